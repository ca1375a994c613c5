# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of which marks there should be, and of what each means."""

from __future__ import annotations

import enum
import types
from unittest import mock

import ctrl_files
import means
import pytest
from fake_monitor import SIGNAL, USER
from ganeti.kvmd.core import lifecycle, marks
from ganeti.kvmd.core.lifecycle import Lifecycle, Outcome, Rule, Verdict
from ganeti.kvmd.core.marks import MEANINGS, Due, Mark, Marks, Meaning
from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.follow import verdicts
from ganeti.kvmd.follow.instance import Instance

SHUTDOWN = Due(Mark.SHUTDOWN, is_wanted=True)
NO_SHUTDOWN = Due(Mark.SHUTDOWN, is_wanted=False)
POWERDOWN = Due(Mark.POWERDOWN, is_wanted=True)
NO_POWERDOWN = Due(Mark.POWERDOWN, is_wanted=False)
NO_MIGRATED = Due(Mark.MIGRATED, is_wanted=False)

# What was said, and which marks are to be there of those that nobody touched,
# while the life goes on and after it.
ROWS = [
  ([], [], [NO_SHUTDOWN, NO_POWERDOWN]),
  (["USER"], [SHUTDOWN], [SHUTDOWN, NO_POWERDOWN]),
  (["SIGNAL"], [NO_SHUTDOWN], [NO_SHUTDOWN, NO_POWERDOWN]),
  (["POWERDOWN"], [POWERDOWN], [NO_SHUTDOWN, NO_POWERDOWN]),
  (
    ["POWERDOWN", "USER"],
    [NO_SHUTDOWN, POWERDOWN],
    [NO_SHUTDOWN, NO_POWERDOWN],
  ),
  (["USER", "RESET"], [], [NO_SHUTDOWN, NO_POWERDOWN]),
  (["POWERDOWN", "RESET"], [], [NO_SHUTDOWN, NO_POWERDOWN]),
]


def state_of(said):
  state = Lifecycle(Rule.CAUSE)
  for each in said:
    data = {"USER": USER, "SIGNAL": SIGNAL}.get(each, {})
    state.receive("SHUTDOWN" if data else each, data, 0.0)
  return state


@pytest.mark.parametrize(("said", "during", "after"), ROWS)
def test_untouched(said, during, after):
  state = state_of(said)
  assert Marks().due(state, is_over=False) == during
  assert Marks().due(state, is_over=True) == [*after, NO_MIGRATED]


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("said", [row[0] for row in ROWS])
def test_what_is_left_as_it_is_to_be_is_due_no_more(said, is_over):
  state = state_of(said)
  known = Marks()
  for due in known.due(state, is_over=is_over):
    known.leave(due)
  assert known.due(state, is_over=is_over) == []


@pytest.mark.parametrize("mark", list(Mark))
def test_one_of_ours_is_taken_back(mark):
  """One that was not touched may be there, as long as nothing is known."""
  known = Marks()
  known.leave(Due(mark, is_wanted=True))
  assert known.due(state_of([]), is_over=False) == [Due(mark, is_wanted=False)]


def test_shutdown_is_found():
  state = state_of([])
  known = Marks()
  known.find(Mark.SHUTDOWN, state, 1.0)
  assert state.announced is lifecycle.REMEMBERED
  assert known.due(state, is_over=False) == []
  assert known.due(state, is_over=True) == [NO_POWERDOWN, NO_MIGRATED]


def test_shutdown_is_found_after_an_end_that_nobody_heard():
  state = state_of([])
  state.announced = lifecycle.UNHEARD
  Marks().find(Mark.SHUTDOWN, state, 1.0)
  assert state.announced is lifecycle.REMEMBERED


@pytest.mark.parametrize("said", ["USER", "SIGNAL"])
def test_what_was_announced_says_more_than_a_file(said):
  state = state_of([said])
  before = state.announced
  Marks().find(Mark.SHUTDOWN, state, 1.0)
  assert state.announced is before


def test_powerdown_is_found():
  state = state_of([])
  known = Marks()
  known.find(Mark.POWERDOWN, state, 7.5)
  assert state.marked == 7.5
  assert state.powerdown
  assert state.announced is None
  assert known.due(state, is_over=False) == []


def test_migrated_is_found():
  """It stays as long as it says something, and no longer."""
  state = state_of([])
  known = Marks()
  known.find(Mark.MIGRATED, state, 7.5)
  assert state.migrated == 7.5
  assert state.announced is None
  assert known.due(state, is_over=False) == []
  assert NO_MIGRATED in known.due(state, is_over=True)
  state.receive("RESUME", {}, 8.0)
  assert known.due(state, is_over=False) == [NO_MIGRATED]


@pytest.mark.parametrize("is_heard", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_migrated_at_the_end(is_heard, left):
  """It was looked for: only one that was there is removed."""
  state = state_of(["SIGNAL"])
  known = Marks()
  if left:
    known.find(Mark.MIGRATED, state, 1.0)
  else:
    known.leave(NO_MIGRATED)
  known.end(state, is_heard=is_heard)
  assert (NO_MIGRATED in known.due(state, is_over=True)) is left


@pytest.mark.parametrize("is_heard", [True, False])
@pytest.mark.parametrize("left", [None, True, False])
@pytest.mark.parametrize(
  ("outcome", "keeps"),
  [
    (None, False),
    (Outcome(Verdict.ADMINISTRATOR, "x"), False),
    (Outcome(Verdict.USER, "x"), True),
  ],
)
def test_shutdown_at_the_end(is_heard, left, outcome, keeps):
  """What is wrong is removed, whoever made it, if anything was heard."""
  state = state_of([])
  state.announced = outcome
  known = Marks()
  if left is not None:
    known.leave(Due(Mark.SHUTDOWN, is_wanted=left))
  known.end(state, is_heard=is_heard)
  due = known.due(state, is_over=True)
  if keeps:
    assert (SHUTDOWN in due) is (left is not True)
  elif is_heard:
    assert NO_SHUTDOWN in due
  else:
    assert (NO_SHUTDOWN in due) is (left is True)


@pytest.mark.parametrize("is_heard", [True, False])
@pytest.mark.parametrize("left", [None, True, False])
def test_powerdown_at_the_end(is_heard, left):
  """It speaks of no later life, whether or not anything was heard."""
  state = state_of(["POWERDOWN"])
  known = Marks()
  if left is not None:
    known.leave(Due(Mark.POWERDOWN, is_wanted=left))
  known.end(state, is_heard=is_heard)
  assert NO_POWERDOWN in known.due(state, is_over=True)


def test_every_mark_has_a_row():
  assert set(MEANINGS) == set(Mark)
  for meaning in MEANINGS.values():
    assert meaning.not_written
    assert meaning.not_removed
  assert [mark for mark in Mark if MEANINGS[mark].is_recalled] == [
    Mark.POWERDOWN
  ]
  assert [mark for mark in Mark if MEANINGS[mark].is_testimony] == [
    Mark.SHUTDOWN,
    Mark.MIGRATED,
  ]
  assert [mark for mark in Mark if MEANINGS[mark].is_sought] == [Mark.MIGRATED]
  assert [mark for mark in Mark if MEANINGS[mark].is_logged] == [Mark.SHUTDOWN]


class Third(enum.Enum):
  """A mark that there is not."""

  PAUSED = ".paused"


def test_third_mark_is_one_row(ctrl_dir, monkeypatch):
  """It is written, found and removed as its row says, and nowhere else."""
  found = []
  row = Meaning(
    wanted=lambda state: state._stopped or None,
    wanted_after=lambda _: False,
    found=lambda _, at: found.append(at),
    is_testimony=False,
    is_recalled=True,
    is_sought=False,
    is_logged=True,
    not_written="nobody knows",
    not_removed="everybody knows",
  )
  rows = {**MEANINGS, Third.PAUSED: row}
  monkeypatch.setattr(verdicts, "_RECALLED", [Third.PAUSED])
  for module in (verdicts, marks):
    monkeypatch.setattr(module, "MEANINGS", rows)
  monkeypatch.setattr("ganeti.kvmd.follow.instance.MEANINGS", rows)
  with ctrl_files.opened(ctrl_dir) as directory:
    place = types.SimpleNamespace(directory=directory)
    giver = verdicts.Verdicts(place, 1.0)
    instance = Instance(
      "web1", Rule.CAUSE, mock.create_autospec(Quota), means.no_history()
    )
    (ctrl_dir / "web1.kvmd").touch()
    instance.begin(directory.life("web1"))
    instance.meet()
    assert giver.settle(instance)
    assert not (ctrl_dir / "web1.paused").exists()
    instance.lifecycle.receive("STOP", {}, 0.0)
    assert giver.settle(instance)
    assert (ctrl_dir / "web1.paused").exists()
    giver.recall(instance)
    assert len(found) == 1
    instance.attach("7.2.0", 1)
    giver.end(instance)
    assert not (ctrl_dir / "web1.paused").exists()
    assert not (ctrl_dir / "web1.shutdown").exists()

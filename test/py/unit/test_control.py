# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what the hypervisor does in a control directory.

That no failure of it keeps Ganeti from anything is in C{test_hv_kvm}.
"""

from __future__ import annotations

import logging
import os
import pathlib
import socket
import time

import pytest
from fake_monitor import GREETING, USER, encode, event
from ganeti.hypervisor.hv_kvm import control, inquiry
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import ctrldir

NAME = "web1.example.com"
OTHER = "web2.example.com"
_JOURNAL = (
  ctrldir.JOURNAL_COMMANDS,
  ctrldir.JOURNAL_DIGEST,
  ctrldir.JOURNAL_EVENTS,
)


@pytest.fixture
def mine(ctrl_dir: pathlib.Path) -> control.Control:
  """The directory, as the hypervisor uses it."""
  return control.Control(str(ctrl_dir))


def _names(ctrl_dir: pathlib.Path) -> set[str]:
  return {
    path.name for path in ctrl_dir.iterdir() if path.name != ctrldir.LOCK_FILE
  }


def _ask(mine: control.Control) -> bool:
  return mine.is_user_shutdown(NAME, inquiry.Budget())


def _write_journal(mine: control.Control, ctrl_dir: pathlib.Path) -> None:
  """Leaves the journal of an instance that its user turned off."""
  mine.prepare_journal(NAME)
  with open(ctrl_dir / f"{NAME}{ctrldir.JOURNAL_EVENTS}", "r+b") as file:
    file.write(encode(GREETING) + event("SHUTDOWN", USER))


class TestMarks:
  """What is left for the daemon, and what the daemon has left."""

  def test_journal(self, mine, ctrl_dir: pathlib.Path) -> None:
    options = mine.prepare_journal(NAME)
    assert f"path={ctrl_dir}/{NAME}{ctrldir.JOURNAL}" in " ".join(options)
    assert _names(ctrl_dir) == {NAME + suffix for suffix in _JOURNAL}

  def test_powerdown(self, mine, ctrl_dir: pathlib.Path) -> None:
    mine.mark(NAME, Mark.POWERDOWN)
    assert _names(ctrl_dir) == {f"{NAME}{Mark.POWERDOWN.value}"}

  def test_migrated(self, mine, ctrl_dir: pathlib.Path) -> None:
    mine.mark(NAME, Mark.MIGRATED)
    assert _names(ctrl_dir) == {f"{NAME}{Mark.MIGRATED.value}"}

  @pytest.mark.parametrize("mark", list(Mark))
  def test_unmark(self, mine, ctrl_dir: pathlib.Path, mark: Mark) -> None:
    _write_journal(mine, ctrl_dir)
    (ctrl_dir / f"{NAME}{mark.value}").touch()
    mine.unmark(NAME, [mark])
    assert _names(ctrl_dir) == {NAME + suffix for suffix in _JOURNAL}

  def test_clear_leaves_the_journal_of_one_that_was_migrated(
    self, mine, ctrl_dir: pathlib.Path
  ) -> None:
    """The daemon has yet to read it; a start or a cleanup removes it."""
    with socket.socket(socket.AF_UNIX) as monitor:
      monitor.bind(str(ctrl_dir / f"{NAME}{ctrldir.MONITOR_SUFFIX}"))
    _write_journal(mine, ctrl_dir)
    mine.mark(NAME, Mark.MIGRATED)
    left = _names(ctrl_dir)
    mine.clear(NAME, [Mark.SHUTDOWN, Mark.POWERDOWN])
    assert _names(ctrl_dir) == left
    mine.clear(NAME)
    assert _names(ctrl_dir) == {f"{NAME}{ctrldir.MONITOR_SUFFIX}"}

  @pytest.mark.parametrize(
    "marks", [[Mark.MIGRATED], [Mark.SHUTDOWN, Mark.MIGRATED], list(Mark)]
  )
  def test_clear(self, mine, ctrl_dir: pathlib.Path, marks) -> None:
    for name in (NAME, OTHER):
      mine.prepare_journal(name)
      for mark in Mark:
        (ctrl_dir / f"{name}{mark.value}").touch()
    mine.clear(NAME, marks)
    left = {f"{NAME}{mark.value}" for mark in Mark if mark not in marks}
    assert {name for name in _names(ctrl_dir) if name.startswith(NAME)} == left
    assert len(_names(ctrl_dir)) == len(left) + len(_JOURNAL) + len(Mark)

  def test_clear_leaves_the_journal_of_one_that_lives(
    self, mine, ctrl_dir: pathlib.Path
  ) -> None:
    mine.prepare_journal(NAME)
    mine.mark(NAME, Mark.POWERDOWN)
    with open(ctrl_dir / f"{NAME}{ctrldir.JOURNAL_EVENTS}", "r+b"):
      mine.clear(NAME)
    assert _names(ctrl_dir) == {NAME + suffix for suffix in _JOURNAL}


class TestUserShutdown:
  """Whether an instance that is down was turned off by its user."""

  @pytest.mark.parametrize("mark", list(Mark))
  def test_by_the_mark(self, mine, ctrl_dir: pathlib.Path, mark: Mark) -> None:
    (ctrl_dir / f"{NAME}{mark.value}").touch()
    assert _ask(mine) is (mark is Mark.SHUTDOWN)
    assert mine.is_user_shutdown(OTHER, inquiry.Budget()) is False

  def test_by_the_journal(self, mine, ctrl_dir: pathlib.Path) -> None:
    _write_journal(mine, ctrl_dir)
    assert _ask(mine) is True

  def test_the_journal_counts_for_more(self, mine, ctrl_dir) -> None:
    _write_journal(mine, ctrl_dir)
    with open(ctrl_dir / f"{NAME}{ctrldir.JOURNAL_EVENTS}", "r+b") as file:
      file.truncate(len(encode(GREETING)))
    (ctrl_dir / f"{NAME}{Mark.SHUTDOWN.value}").touch()
    assert _ask(mine) is False

  @pytest.mark.parametrize(
    ("said", "is_user"),
    [(None, False), ("cause", False), ("sequence", True), ("odd", False)],
  )
  def test_by_the_rule(self, mine, ctrl_dir, said, is_user: bool) -> None:
    mine.prepare_journal(NAME)
    ending = event("SHUTDOWN", {"guest": False, "reason": "host-signal"})
    with open(ctrl_dir / f"{NAME}{ctrldir.JOURNAL_EVENTS}", "r+b") as file:
      file.write(encode(GREETING) + ending)
    if said is not None:
      (ctrl_dir / ctrldir.RULE).write_text(f"{said}\n")
    assert _ask(mine) is is_user


class TestMayBeMarked:
  """Whether the daemon may be about to mark an instance."""

  @pytest.mark.parametrize(
    ("age", "suffix", "expected"),
    [
      (0.0, ".pid", True),
      (4.0, ".pid", True),
      # Nothing has changed for too long.
      (6.0, ".pid", False),
      # The clock was set back.
      (-60.0, ".pid", False),
      # It was killed, and left its monitor, or wrote a journal.
      (0.0, ctrldir.MONITOR_SUFFIX, False),
      (0.0, ctrldir.JOURNAL_EVENTS, False),
    ],
  )
  def test_one(self, mine, ctrl_dir, age: float, suffix: str, expected) -> None:
    for name in (NAME, OTHER):
      (ctrl_dir / f"{name}.qmp").touch()
    (ctrl_dir / f"{NAME}{suffix}").touch()
    changed = time.time() - age
    os.utime(ctrl_dir, (changed, changed))
    assert mine.may_be_marked(NAME, 5.0) is expected

  def test_what_goes_wrong_is_for_who_asked(self, ctrl_dir) -> None:
    (ctrl_dir / "file").touch()
    with pytest.raises(NotADirectoryError):
      control.Control(str(ctrl_dir / "file")).may_be_marked(NAME, 5.0)


def test_no_directory(ctrl_dir: pathlib.Path, caplog) -> None:
  """There is nothing to say, and nothing is made."""
  caplog.set_level(logging.DEBUG)
  mine = control.Control(str(ctrl_dir / "missing"))
  assert mine.prepare_journal(NAME) == []
  mine.clear(NAME)
  mine.mark(NAME, Mark.POWERDOWN)
  assert _ask(mine) is False
  assert mine.may_be_marked(NAME, 5.0) is False
  assert _names(ctrl_dir) == set()
  assert not caplog.records


@pytest.mark.parametrize(
  ("use", "words"),
  [
    (
      lambda mine: mine.prepare_journal(NAME) == [],
      ["make its journal", "it is started without one"],
    ),
    (
      lambda mine: mine.clear(NAME) is None,
      ["remove what is known of its last life", "remove that by hand"],
    ),
    (
      lambda mine: mine.mark(NAME, Mark.POWERDOWN) is None,
      ["mark it as stopped by an administrator", "should its user"],
    ),
    (
      lambda mine: _ask(mine) is False,
      ["find out whether its user shut it down", "it is taken for crashed"],
    ),
  ],
)
def test_no_directory_but_a_file(ctrl_dir, caplog, use, words) -> None:
  """The line has the instance, the path, the reason and what it means."""
  path = ctrl_dir / "file"
  path.touch()
  assert use(control.Control(str(path)))
  messages = {record.getMessage() for record in caplog.records}
  assert len(messages) == 1
  said = messages.pop()
  assert said.startswith(f"Instance {NAME}: cannot {words[0]} ({path}: Not a")
  assert words[1] in said


def test_descriptors_are_closed(mine, ctrl_dir: pathlib.Path) -> None:
  _write_journal(mine, ctrl_dir)
  before = os.listdir("/proc/self/fd")
  assert _ask(mine)
  mine.mark(NAME, Mark.POWERDOWN)
  mine.may_be_marked(NAME, 5.0)
  mine.clear(NAME)
  assert os.listdir("/proc/self/fd") == before


def test_tolerating(mine, ctrl_dir: pathlib.Path, caplog) -> None:
  deed = control.Deed("do it", "it is not done")
  with mine.tolerating(NAME, deed):
    raise PermissionError(13, "Permission denied", "file")
  with mine.tolerating(NAME, deed):
    raise ValueError
  with pytest.raises(KeyboardInterrupt), mine.tolerating(NAME, deed):
    raise KeyboardInterrupt
  first, second = caplog.records
  assert first.getMessage() == (
    f"Instance {NAME}: cannot do it ({ctrl_dir}/file: Permission denied): it is"
    " not done"
  )
  assert not first.exc_info
  assert second.getMessage() == (
    f"Instance {NAME}: cannot do it, by a fault of ganeti-kvmd, please report"
    " it: it is not done"
  )
  assert second.exc_info[0] is ValueError

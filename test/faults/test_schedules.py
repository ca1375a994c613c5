# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A fixed share of the schedules, and whether the suite notices anything."""

from __future__ import annotations

import collections.abc
import pathlib

import forked
import pytest

from faults import chance, checks, steps, suite

_SEED = 1

#: Schedules that failed once, or that no chance would make
_SAVED = sorted((pathlib.Path(__file__).parent / "saved").iterdir())


@pytest.mark.parametrize(
  ("profile", "number"),
  [*[("everything", number) for number in range(3)], ("kills", 0)],
)
def test_schedule(scratch: pathlib.Path, profile: str, number: int) -> None:
  schedule = chance.make(_SEED, number, chance.PROFILES[profile])
  _play(
    schedule, scratch, f"--seed {_SEED} --profile {profile} --number {number}"
  )


@pytest.mark.parametrize("path", _SAVED, ids=lambda path: path.stem)
def test_saved_schedule(scratch: pathlib.Path, path: pathlib.Path) -> None:
  _play(steps.load(path), scratch, f"--replay {path}")


def _play(
  schedule: steps.Schedule, scratch: pathlib.Path, options: str
) -> None:
  try:
    forked.run(
      lambda: _discard(suite.play(schedule, scratch)), forked.Place.OWN_MOUNTS
    )
  except AssertionError as err:
    raise AssertionError(
      f"{err}\nPlay it again with devel/faults {options}"
    ) from None


def _discard(_: object) -> None:
  pass


def _fails(
  scratch: pathlib.Path, *options: str
) -> collections.abc.Callable[[], None]:
  schedule = chance.make(_SEED, 0, chance.KILLS)

  def play() -> None:
    checks.PATIENCE = 3.0
    with pytest.raises(suite.FailedError) as caught:
      suite.play(schedule, scratch, *options)
    (scratch / "reason").write_text(caught.value.reason)

  return play


@pytest.mark.parametrize(
  ("option", "reason"),
  [
    # Takes the host's signals for the user's shutdown.
    ("--rule=sequence", "WRONG"),
    # Hears nothing.
    ("--monitor-suffix=.other", "not attached to"),
  ],
)
def test_bad_daemon_is_noticed(
  scratch: pathlib.Path, option: str, reason: str
) -> None:
  forked.run(_fails(scratch, option), forked.Place.OWN_MOUNTS)
  assert reason in (scratch / "reason").read_text()

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Plays schedules, and makes one that failed short."""

from __future__ import annotations

import collections.abc
import dataclasses
import itertools
import logging
import pathlib
import shutil
import time

from faults.steps import Check, Schedule, Step
from faults.tally import Tally
from faults.world import World

#: As many of the daemon's last lines are shown with a failure.
_LAST_LINES = 40

#: How often a shorter schedule may pass before it counts as one that does
_ATTEMPTS = 3

_numbers = itertools.count()


@dataclasses.dataclass
class FailedError(Exception):
  """A schedule failed."""

  schedule: Schedule
  reason: str
  log: list[str]

  def __str__(self) -> str:
    log = "\n".join(self.log[-_LAST_LINES:])
    return (
      f"{self.schedule.title}: {self.reason}\nThe daemon's last words:\n{log}"
    )


def play(schedule: Schedule, scratch: pathlib.Path, *options: str) -> Tally:
  """Plays a schedule.

  @param scratch: a directory; this process must have mounts of its own
  @param options: further options for the daemon
  @raise FailedError: if something was not right

  """
  # What the hypervisor says is no part of it.
  logging.disable(logging.CRITICAL)
  place = scratch / f"play{next(_numbers)}"
  place.mkdir()
  try:
    with World(schedule, place, *options) as world:
      try:
        world.play()
      except Exception as err:
        reason = f"{type(err).__name__}: {err}"
        raise FailedError(schedule, reason, world.log) from err
      return world.tally
  finally:
    logging.disable(logging.NOTSET)
    shutil.rmtree(place)


def minimise(
  failed: FailedError,
  scratch: pathlib.Path,
  seconds: float,
  on_progress: collections.abc.Callable[[Schedule], None],
) -> Schedule:
  """Leaves out what a schedule fails without, too.

  @param seconds: how long that may take
  @param on_progress: called with each shorter schedule

  """
  deadline = time.monotonic() + seconds
  found = failed.schedule
  size = len(found.steps) // 2
  while size and time.monotonic() < deadline:
    start = 0
    while start < len(found.steps) and time.monotonic() < deadline:
      shorter = found.part(
        found.steps[:start] + _checks_only(found.steps, start, size)
      )
      if len(shorter.steps) < len(found.steps) and _fails(shorter, scratch):
        found = shorter
        on_progress(found)
      else:
        start += size
    size //= 2
  return found


def _checks_only(
  steps: tuple[Step, ...], start: int, size: int
) -> tuple[Step, ...]:
  """Returns the rest of the steps, without some; the last check stays."""
  rest = steps[start + size :]
  return rest or (Check(),)


def _fails(schedule: Schedule, scratch: pathlib.Path) -> bool:
  for _ in range(_ATTEMPTS):
    try:
      play(schedule, scratch)
    except FailedError:
      return True
  return False

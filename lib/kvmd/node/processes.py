# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Processes that are not our own: those of the instances' QEMUs.

A process is known by its number, and as soon as it has ended that may be
another's. So a number is forgotten when the life of its instance is over. Just
a moment longer it counts for the kernel's word on how the process ended, which
comes after the end of what the process had open.
"""

from __future__ import annotations

import collections
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from typing import Optional

#: Running, or in a sleep that no signal ends; see proc(5).
_BUSY = (b"R", b"D")

#: Where the times are, counted from the state on.
_USER_TIME = 11
_SYSTEM_TIME = 12

_TICKS = os.sysconf("SC_CLK_TCK")

_MAX_STATUS = 4096

#: Seconds from the end of a life to the end of its process: some microseconds,
#: or more where there are many that want to run. The number is not given out
#: again before all others were.
_ALLOWANCE = 1.0

#: So many processes of lives that are over are remembered at most.
_MAX_OVER = 16 * 1024


class _Over(NamedTuple):
  """A life that is over.

  @ivar name: the instance's name
  @ivar deadline: when its process will have ended, by the monotonic clock

  """

  name: str
  deadline: float


class Processes:
  """Which instance a process belongs to."""

  def __init__(self) -> None:
    self._names: dict[int, str] = {}
    # By the number as well, in the order of their deadlines.
    self._over: collections.OrderedDict[int, _Over] = collections.OrderedDict()

  def __contains__(self, process: object) -> bool:
    """Tells whether a process belongs to an instance, or did just now."""
    return process in self._names or process in self._over

  def __len__(self) -> int:
    """Returns how many are known."""
    return len(self._names) + len(self._over)

  def begin(self, process: int, name: str) -> None:
    """Takes note of the process of an instance.

    @param process: its number; 0 for one that is not known
    @param name: the instance's name

    """
    if process:
      self._names[process] = name
      self._over.pop(process, None)

  def end(self, process: int, name: str, now: float) -> None:
    """Takes note that the life of an instance is over.

    @param process: the number of its process; 0 for one that is not known
    @param name: the instance's name
    @param now: seconds of the monotonic clock

    """
    if self._names.get(process) == name:
      del self._names[process]
      self._over[process] = _Over(name, now + _ALLOWANCE)
      if len(self._over) > _MAX_OVER:
        self._over.popitem(last=False)

  def take(self, process: int, ended: float) -> Optional[str]:
    """Takes note that a process has ended.

    @param ended: when, in seconds of the monotonic clock; it does not matter
      how long it took to hear of that
    @return: the name of the instance that it belonged to, if any

    """
    name = self._names.pop(process, None)
    if name is not None:
      return name
    over = self._over.pop(process, None)
    return over.name if over is not None and ended <= over.deadline else None

  def sweep(self, now: float) -> None:
    """Forgets processes that ended without a word.

    @param now: seconds of the monotonic clock

    """
    for process, name in list(self._names.items()):
      if not is_alive(process):
        self.end(process, name, now)
    while self._over and next(iter(self._over.values())).deadline < now:
      self._over.popitem(last=False)


def is_alive(process: int) -> bool:
  """Tells whether there is a process of that number.

  @param process: the number; 0 for one that is not known, which is not alive

  """
  if not process:
    return False
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def at_work(process: int) -> Optional[float]:
  """Tells whether a process does something, or waits for the disk.

  Who waits for something is awake the moment that it comes. So a process that
  sleeps has seen to all that it waited for.

  @param process: the number
  @return: how long it has worked so far, in seconds of processor time; None if
    it sleeps or is stopped, or there is none

  """
  try:
    with open(f"/proc/{process}/stat", "rb") as file:
      text = file.read(_MAX_STATUS)
  except OSError:
    return None
  # The name of the process comes before, in brackets, and may be anything.
  fields = text.rpartition(b") ")[2].split()
  if not fields or fields[0] not in _BUSY:
    return None
  return sum(map(int, fields[_USER_TIME : _SYSTEM_TIME + 1])) / _TICKS

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How much one instance may have in the log: so many lines an hour, no more.

An instance that ends and begins all the time, or a QEMU that keeps hanging up,
would fill the disk with what is said of it. What is beyond its quota is
counted instead: the log says at once that this is so, and at the end of the
hour how much it was.

All instances have the same hour, which begins with the first line of any: so
one that says nothing takes no memory, and all of it is given back at once.
Nothing is read or written here, and the time is the caller's.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Iterator, Mapping

#: Seconds that a quota is for.
HOUR = 3600.0

#: Verdicts on one instance that are logged in an hour.
MAX_VERDICTS = 20

#: Other lines about one instance that are logged in an hour.
MAX_LINES = 60

#: Instances that have a quota of their own. Whoever can make files in the
#: control directory can think of any number of names: others share one.
MAX_INSTANCES = 20_000

#: What those are called that share a quota.
OTHERS = "(others)"


class Summary(NamedTuple):
  """What is to be said of what was not.

  @ivar name: the instance's name, or L{OTHERS}
  @ivar text: what to log of it
  @ivar verdicts: how many there were of each kind of verdict, if it is those

  """

  name: str
  text: str
  verdicts: Mapping[str, int] = {}


class Quota:
  """What each instance has had of its quota."""

  def __init__(self) -> None:
    # When this hour ends, in the caller's seconds.
    self._end = float("-inf")
    self._verdicts: dict[str, int] = {}
    self._lines: dict[str, int] = {}
    # How many were left out, by instance and, the verdicts, by their kind.
    self._lost_verdicts: dict[str, collections.Counter[str]] = {}
    self._lost_lines: collections.Counter[str] = collections.Counter()
    # What is to be said as soon as possible.
    self._pending: list[Summary] = []

  def admit_verdict(self, name: str, verdict: str, now: float) -> bool:
    """Tells whether a verdict is to be logged, and takes it into account.

    @param name: the instance's name
    @param verdict: the kind of verdict; there are few kinds
    @param now: the time in seconds, by any clock that is never set

    """
    name = self._holder(name, now)
    taken = self._verdicts.get(name, 0)
    if taken < MAX_VERDICTS:
      self._verdicts[name] = taken + 1
      return True
    if name not in self._lost_verdicts:
      self._lost_verdicts[name] = collections.Counter()
      self._announce(name, f"more than {MAX_VERDICTS} ends in an hour: further")
    self._lost_verdicts[name][verdict] += 1
    return False

  def admit_line(self, name: str, now: float) -> bool:
    """Tells whether any other line is to be logged, and takes it into account.

    @param name: the instance's name
    @param now: as for L{admit_verdict}

    """
    name = self._holder(name, now)
    taken = self._lines.get(name, 0)
    if taken < MAX_LINES:
      self._lines[name] = taken + 1
      return True
    if name not in self._lost_lines:
      self._announce(
        name, f"more than {MAX_LINES} lines about it in an hour: further"
      )
    self._lost_lines[name] += 1
    return False

  @property
  def due(self) -> float:
    """When L{summaries} has something to say; infinite if it has nothing."""
    if self._pending:
      return float("-inf")
    has_lost = self._lost_verdicts or self._lost_lines
    return self._end if has_lost else float("inf")

  def summaries(self, now: float) -> list[Summary]:
    """Takes what is due to be said of what was left out.

    Called after the hour it also forgets who logged anything: now and then
    that is worth a call, L{due} or not.

    @param now: as for L{admit_verdict}; infinite when the daemon ends, and the
      hour with it

    """
    if now >= self._end:
      self._end_hour()
    due, self._pending = self._pending, []
    return due

  def _end_hour(self) -> None:
    self._pending += self._sum_up()
    self._verdicts.clear()
    self._lines.clear()
    self._lost_verdicts.clear()
    self._lost_lines.clear()
    self._end = float("-inf")

  def _holder(self, name: str, now: float) -> str:
    """Returns the name under which an instance's lines are counted.

    Begins another hour, if none goes on.

    """
    if now >= self._end:
      self._end_hour()
      self._end = now + HOUR
    if name in self._lines or name in self._verdicts:
      return name
    if max(len(self._lines), len(self._verdicts)) < MAX_INSTANCES:
      return name
    return OTHERS

  def _announce(self, name: str, what: str) -> None:
    self._pending.append(
      Summary(name, f"{what} ones are counted, and the log says how many")
    )

  def _sum_up(self) -> Iterator[Summary]:
    for name, kinds in self._lost_verdicts.items():
      yield Summary(name, _describe_verdicts(kinds), dict(kinds))
    for name, number in self._lost_lines.items():
      were = "line about it was" if number == 1 else "lines about it were"
      yield Summary(name, f"{number} more {were} left out in the last hour")


def _describe_verdicts(kinds: collections.Counter[str]) -> str:
  number = sum(kinds.values())
  ends, are = ("end", "is") if number == 1 else ("ends", "are")
  counted = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
  return f"{number} more {ends} in the last hour {are} not listed: {counted}"

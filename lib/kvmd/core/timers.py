# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""When to look after whom: one time for each name. No clock is looked at."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collections.abc import Iterator


class Timers:
  """Names and when each is due, in seconds of the caller's clock."""

  def __init__(self) -> None:
    self._deadlines: dict[str, float] = {}
    # Earliest first. An entry counts only while it says the same as above.
    self._heap: list[tuple[float, str]] = []

  def __contains__(self, name: object) -> bool:
    """Tells whether a name will be due."""
    return name in self._deadlines

  @property
  def due(self) -> float:
    """When L{take} has something to give; infinite if it never has."""
    return self._heap[0][0] if self._heap else float("inf")

  def set(self, name: str, deadline: float) -> None:
    """Lets a name be due at a time, and at no other."""
    self._deadlines[name] = deadline
    heapq.heappush(self._heap, (deadline, name))

  def cancel(self, name: str) -> None:
    """Does not let a name be due."""
    self._deadlines.pop(name, None)

  def take(self, now: float) -> Iterator[str]:
    """Gives the names that are due; each has to be set anew."""
    while self._heap and self._heap[0][0] <= now:
      deadline, name = heapq.heappop(self._heap)
      if self._deadlines.get(name) == deadline:
        del self._deadlines[name]
        yield name

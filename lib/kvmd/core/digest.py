# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The digest of a journal: as much of it as was read, in short. No I/O.

It says how far the journal was read and holds the few events in front of that
place that still count. A journal that is read on from there leads to the same
state, whatever the rule and whatever comes after: most events mean nothing,
and of those that do, each undoes some that came before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import lifecycle

if TYPE_CHECKING:
  from collections.abc import Mapping
  from typing import Any

#: Longest digest, in bytes: it has at most five events, none of them long.
MAX_SIZE = 64 * 1024

#: What of the data of a C{SHUTDOWN} counts.
_SHUTDOWN_DATA = ("guest", "reason")

#: The events that undo others. Of those no trace is left; a C{RESET} is kept
#: itself, since it may have to be compared with the hypervisor's mark.
_UNDOES: Mapping[str, tuple[str, ...]] = {
  "RESET": ("POWERDOWN", "RESET", "SHUTDOWN"),
  "RESUME": ("STOP", "SHUTDOWN"),
}


class DamagedError(Exception):
  """A text is no digest."""


class Kept(NamedTuple):
  """An event that counts.

  @ivar name: QEMU's name of it
  @ivar data: as much of what came with it as counts
  @ivar at: when it came, in seconds since the epoch; 0 if QEMU did not say

  """

  name: str
  data: dict[str, Any]
  at: float


class Digest(NamedTuple):
  """The part of a journal that was read, in short.

  @ivar journal: the inode number of the journal that it belongs to
  @ivar position: how many bytes it covers
  @ivar version: QEMU's version; empty if it has not said it yet
  @ivar events: the events that still count

  """

  journal: int
  position: int
  version: str
  events: list[Kept]

  def encode(self) -> bytes:
    """Returns what is written into the file."""
    return json.dumps(self).encode("ascii")


def parse(text: bytes) -> Digest:
  """Parses a digest, which has to be just what L{Digest.encode} gives.

  @raise DamagedError: if it is not

  """
  try:
    journal, position, version, events = json.loads(text)
    if not (
      isinstance(journal, int)
      and isinstance(position, int)
      and position >= 0
      and isinstance(version, str)
    ):
      raise ValueError(text)
    return Digest(
      journal,
      position,
      version,
      [Kept(str(name), dict(data), float(at)) for name, data, at in events],
    )
  except (ValueError, TypeError, RecursionError) as err:
    raise DamagedError("its digest is damaged") from err


class Essence:
  """The few events that lead to the same state as all that were seen.

  They do so under either rule, whatever comes after them, and whenever the
  hypervisor made a mark. However many were seen, no more than five are kept.

  @ivar events: the events, in order

  """

  def __init__(self, events: list[Kept]) -> None:
    """Goes on where another has stopped.

    @param events: what that had kept

    """
    self.events = list(events)

  def receive(self, name: str, data: Mapping[str, Any], at: float) -> None:
    """Takes account of an event, as L{lifecycle.Lifecycle.receive} does."""
    if name in _UNDOES:
      undone = _UNDOES[name]
      self.events = [event for event in self.events if event.name not in undone]
      if name in undone:
        self.events.append(Kept(name, {}, at))
      return
    if name not in lifecycle.EVENTS:
      return
    same = [
      place for place, event in enumerate(self.events) if event.name == name
    ]
    if same and name != "SHUTDOWN":
      return
    if same:
      if not lifecycle.has_cause(data) or lifecycle.reason_of(data).startswith(
        lifecycle.BY_HOST
      ):
        return
      # The first counts for the one rule, the last for the other.
      for place in same[1:]:
        del self.events[place]
    kept = {key: _cut(data[key]) for key in _SHUTDOWN_DATA if key in data}
    self.events.append(Kept(name, kept, at))


def _cut(value: Any) -> Any:
  """Keeps of a value no more than counts, which a hostile one may exceed."""
  if isinstance(value, str):
    return value[: lifecycle.MAX_REASON]
  return value if isinstance(value, bool) else None

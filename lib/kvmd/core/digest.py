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

from ganeti.kvmd.core import events, lifecycle

if TYPE_CHECKING:
  from collections.abc import Mapping
  from typing import Any

#: Longest digest, in bytes: it has at most L{MAX_EVENTS}, none of them long.
MAX_SIZE = 64 * 1024

#: Most events that are kept: one of each kind, two of C{SHUTDOWN}, and three of
#: who pressed the power button.
MAX_EVENTS = len(events.KINDS) + 2

#: What tells who pressed the power button, each with a letter: a press, which
#: is the watchdog's where that barked since the last one.
_PRESSES: Mapping[str, str] = {"POWERDOWN": "p", "WATCHDOG shutdown": "w"}

#: What has to be kept of these, in order. When an administrator has pressed it,
#: no more counts; of the watchdog's presses one does.
_HISTORIES = frozenset({"p", "w", "wp", "wpp", "wpw"})

#: After that it is as it was before the watchdog barked again.
_BARKED_AGAIN = "wpwp"


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
  hypervisor made a mark. However many were seen, no more than L{MAX_EVENTS} are
  kept.

  @ivar events: the events, in order

  """

  def __init__(self, events: list[Kept]) -> None:
    """Goes on where another has stopped.

    @param events: what that had kept

    """
    self.events = list(events)

  def receive(self, name: str, data: Mapping[str, Any], at: float) -> None:
    """Takes account of an event, as L{lifecycle.Lifecycle.receive} does."""
    kind = events.kind_of(name, data)
    if not kind:
      return
    if name in events.UNDOING:
      self.events = [
        event for event in self.events if name not in _undone_by(event)
      ]
    if kind in events.UNDOING:
      # Of what it undoes no trace is left. It is kept itself, since it may have
      # to be compared with a mark.
      self.events.append(Kept(name, {}, at))
    elif self._matters(kind, data):
      fields = events.KINDS[kind].data
      kept = {key: _cut(data[key]) for key in fields if key in data}
      self.events.append(Kept(name, kept, at))

  def _matters(self, kind: str, data: Mapping[str, Any]) -> bool:
    """Tells whether an event adds something to those that are kept.

    It makes room for one that takes another's place.

    """
    if kind in _PRESSES:
      return self._matters_as_press(kind)
    same = [
      place for place, event in enumerate(self.events) if _kind(event) == kind
    ]
    if not same:
      return True
    if (
      kind != "SHUTDOWN"
      or not lifecycle.has_cause(data)
      or lifecycle.reason_of(data).startswith(lifecycle.BY_HOST)
    ):
      return False
    # The first counts for the one rule, the last for the other.
    for place in same[1:]:
      del self.events[place]
    return True

  def _matters_as_press(self, kind: str) -> bool:
    """Tells it of one of L{_PRESSES}."""
    places = [
      place
      for place, event in enumerate(self.events)
      if _kind(event) in _PRESSES
    ]
    known = "".join(_PRESSES[_kind(self.events[place])] for place in places)
    known += _PRESSES[kind]
    if known == _BARKED_AGAIN:
      del self.events[places[-1]]
    return known in _HISTORIES


def _undone_by(event: Kept) -> tuple[str, ...]:
  # One of another version's digest may mean nothing to us.
  row = events.KINDS.get(_kind(event))
  return row.undone_by if row is not None else ()


def _kind(event: Kept) -> str:
  return events.kind_of(event.name, event.data)


def _cut(value: Any) -> Any:
  """Keeps of a value no more than counts, which a hostile one may exceed."""
  if isinstance(value, str):
    return value[: lifecycle.MAX_REASON]
  if isinstance(value, dict):
    return {
      key: None if isinstance(value[key], dict) else _cut(value[key])
      for key in events.PANIC_INFO
      if key in value
    }
  return value if isinstance(value, bool) or events.is_code(value) else None

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How each instance is followed: by its journal, or by its monitor. No I/O.

An instance that has a journal is followed by that, and nobody needs to listen
to its monitor. Any other is followed by its monitor.

  =======  ===========================  ======================================
  state    what is known                what comes next
  =======  ===========================  ======================================
  MONITOR  there is no journal          its monitor is listened to, if it has
                                        one
  AWAITED  a journal is there, and      WRITTEN; after a while without a word
           QEMU has yet to open it      the monitor is listened to
  WRITTEN  a QEMU has it open           READ, when it is closed
  READ     it is closed                 JUDGED, when it is read to its end
  JUDGED   the verdict is given         MONITOR, when it is delivered and the
                                        journal is removed
  USELESS  it cannot be relied on       the monitor is listened to; the journal
                                        is removed when nobody has it open
  =======  ===========================  ======================================

The state is about the last life of the instance. One before it that is followed
by its monitor, and not known to be over, goes on to be followed until the
journal is certain to be that of another QEMU: when it is written, or judged.

What becomes known is a fact; L{TRANSITIONS} says where it leads. A fact that
is not in a state's row changes nothing there.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Mapping


class State(enum.Enum):
  """How an instance is followed."""

  MONITOR = enum.auto()
  AWAITED = enum.auto()
  WRITTEN = enum.auto()
  READ = enum.auto()
  JUDGED = enum.auto()
  USELESS = enum.auto()

  # Each is itself only; Python's own takes ten times as long.
  __hash__ = object.__hash__


#: The states in which nobody needs to listen to the monitor.
JOURNALED = frozenset({State.AWAITED, State.WRITTEN, State.READ})


class Fact(enum.Enum):
  """What becomes known of an instance's journal.

  @cvar OPEN: a QEMU has it open
  @cvar CLOSED: nobody has it open, and there is something in it
  @cvar EMPTY: nobody has it open, and there is nothing in it yet
  @cvar UNKNOWN: it is there, and nothing can be found out about it
  @cvar OVERDUE: no QEMU came to open it
  @cvar USELESS: it cannot be relied on
  @cvar COMPLETE: it is read to its end
  @cvar OUTDATED: likewise, and a later life is known of
  @cvar GONE: it is there no longer
  @cvar DELIVERED: the verdict to which it led is delivered

  """

  OPEN = enum.auto()
  CLOSED = enum.auto()
  EMPTY = enum.auto()
  UNKNOWN = enum.auto()
  OVERDUE = enum.auto()
  USELESS = enum.auto()
  COMPLETE = enum.auto()
  OUTDATED = enum.auto()
  GONE = enum.auto()
  DELIVERED = enum.auto()

  # Each is itself only; Python's own takes ten times as long.
  __hash__ = object.__hash__


class Monitor(enum.Enum):
  """What becomes of the monitor.

  @cvar AS_IT_IS: nothing
  @cvar LISTEN: it is listened to from now on
  @cvar LEAVE: it is not listened to any more
  @cvar LEAVE_DEAD: likewise, and its QEMU has ended, or is about to

  """

  AS_IT_IS = enum.auto()
  LISTEN = enum.auto()
  LEAVE = enum.auto()
  LEAVE_DEAD = enum.auto()

  # Each is itself only; Python's own takes ten times as long.
  __hash__ = object.__hash__


class Move(NamedTuple):
  """Where a fact leads.

  @ivar state: how the instance is followed then
  @ivar monitor: what becomes of its monitor

  """

  state: State
  monitor: Monitor


_TO_LISTENING = Move(State.MONITOR, Monitor.LISTEN)
_TO_NOBODY = Move(State.MONITOR, Monitor.AS_IT_IS)

#: What is found out about a journal that may still become of use.
_FOUND: Mapping[Fact, Move] = {
  Fact.OPEN: Move(State.WRITTEN, Monitor.LEAVE),
  Fact.CLOSED: Move(State.READ, Monitor.AS_IT_IS),
  Fact.EMPTY: Move(State.AWAITED, Monitor.AS_IT_IS),
  Fact.USELESS: Move(State.USELESS, Monitor.LISTEN),
}

TRANSITIONS: Mapping[State, Mapping[Fact, Move]] = {
  State.MONITOR: {
    **_FOUND,
    Fact.UNKNOWN: Move(State.AWAITED, Monitor.AS_IT_IS),
  },
  State.AWAITED: {
    **_FOUND,
    Fact.OVERDUE: _TO_LISTENING,
    Fact.GONE: _TO_LISTENING,
  },
  State.WRITTEN: {
    **_FOUND,
    Fact.OPEN: Move(State.WRITTEN, Monitor.AS_IT_IS),
    Fact.GONE: _TO_NOBODY,
  },
  State.READ: {
    **_FOUND,
    Fact.COMPLETE: Move(State.JUDGED, Monitor.LEAVE_DEAD),
    Fact.OUTDATED: _TO_LISTENING,
    Fact.GONE: _TO_NOBODY,
  },
  State.JUDGED: {Fact.DELIVERED: _TO_NOBODY},
  State.USELESS: {Fact.GONE: _TO_NOBODY},
}

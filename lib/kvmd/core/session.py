# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""One QMP session with a monitor: bytes in, what they mean out. No I/O.

  =========  ===========================  ==============
  state      what is awaited              what is said
  =========  ===========================  ==============
  CONNECTED  the greeting                 nothing
  GREETED    the answer to capabilities   L{Attached}
  ATTACHED   events                       L{qmp.Event}
             the answer to query-status   L{Running}
  =========  ===========================  ==============

The command that ends the negotiation of capabilities is sent at once: QEMU
reads it when it has greeted, and to wait for that would take another round.
Events count in any state. What does not fit is passed over, but for a second
greeting, which no QEMU sends.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import lifecycle, qmp

if TYPE_CHECKING:
  from collections.abc import Iterable, Iterator
  from typing import Union


class State(enum.Enum):
  """How far a session has come."""

  CONNECTED = enum.auto()
  GREETED = enum.auto()
  ATTACHED = enum.auto()


class Attached(NamedTuple):
  """Events arrive from now on.

  @ivar version: QEMU's, as it has it
  @ivar error: why there may be none after all, in QEMU's words; empty if it
    did not object

  """

  version: str
  error: str


class Running(NamedTuple):
  """The guest runs, whatever was known of its end."""


if TYPE_CHECKING:
  Fact = Union[Attached, Running, qmp.Event]

_WANTED = frozenset(lifecycle.EVENTS)


class Session:
  """The client's side of a session.

  @ivar state: how far it has come
  @ivar outgoing: what is to be sent, which the sender empties

  """

  __slots__ = ("_decoder", "_version", "outgoing", "state")

  def __init__(self) -> None:
    self.state = State.CONNECTED
    self._decoder = qmp.Decoder(_WANTED)
    self.outgoing = qmp.CAPABILITIES
    self._version = ""

  def ask_status(self) -> None:
    """Asks whether the guest runs."""
    self.outgoing += qmp.QUERY_STATUS

  def receive(self, data: bytes) -> Iterable[Fact]:
    """Takes account of what the monitor sent.

    @return: what it means; to be used up before the next call
    @raise qmp.ProtocolError: if it is not QMP; what came before that counts

    """
    if self.state is State.ATTACHED and self._decoder.passes_over(data):
      return ()
    return self._take(data)

  def _take(self, data: bytes) -> Iterator[Fact]:
    for message in self._decoder.feed(data):
      if isinstance(message, qmp.Event):
        yield message
      elif isinstance(message, qmp.Greeting):
        if self.state is not State.CONNECTED:
          raise qmp.ProtocolError("a second greeting")
        self._version = message.version or "of unknown version"
        self.state = State.GREETED
      elif message is None:
        continue
      elif self.state is State.GREETED:
        self.state = State.ATTACHED
        yield Attached(self._version, message.error or "")
      elif self.state is State.ATTACHED and _says_running(message):
        yield Running()


def _says_running(reply: qmp.Reply) -> bool:
  """Tells whether a reply says that the guest was not shut down."""
  return (
    reply.ident == qmp.STATUS_ID
    and isinstance(reply.value, dict)
    and reply.value.get("status", qmp.STATUS_SHUTDOWN) != qmp.STATUS_SHUTDOWN
  )

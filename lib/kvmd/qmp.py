# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""QMP, the QEMU Machine Protocol, on the wire: bytes in, messages out.

A QMP monitor greets its client, waits for C{qmp_capabilities} and from then on
answers commands and sends events, each message one JSON object. QEMU writes an
object on one line, with C{-qmp-pretty} on many, and whatever reads a socket
gets it in pieces of any size. So a message ends here where its outermost
bracket closes, wherever the lines end.

Whoever controls a QEMU controls what its monitor says. All input is therefore
bounded in size and depth, costs time linear in its length, and is refused at
the first byte that cannot be QMP. No I/O is done here.

The protocol is described in QEMU's C{docs/interop/qmp-spec.rst}.
"""

from __future__ import annotations

import functools
import json
import math
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Iterator, Mapping
  from typing import Any, Optional, Union

#: Longest message that is accepted, in bytes. QEMU's events have some hundred.
MAX_MESSAGE = 1024 * 1024

#: Longest message that is remembered, in bytes.
_MAX_COMMON = 256

#: Deepest nesting that is accepted; QEMU's own parser stops at 1,024.
MAX_DEPTH = 100

#: The commands that the daemon sends.
CAPABILITIES = b'{"execute": "qmp_capabilities"}\r\n'
STATUS_ID = "status"
QUERY_STATUS = b'{"execute": "query-status", "id": "%s"}\r\n' % (
  STATUS_ID.encode("ascii")
)

#: QEMU's C{RunState} of a guest that was shut down under C{-no-shutdown}.
STATUS_SHUTDOWN = "shutdown"

_WHITESPACE = b" \t\r\n"
_OPENING = b"{["
_QUOTE = b'"'
_BACKSLASH = b"\\"
_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')


class ProtocolError(Exception):
  """What a monitor sent is not QMP."""


class Greeting(NamedTuple):
  """The first message of a monitor.

  @ivar version: QEMU's version, as C{7.2.19}; empty if it did not say

  """

  version: str


class Event(NamedTuple):
  """Something happened to the guest or its QEMU.

  @ivar name: in capitals, as in QEMU's documentation
  @ivar data: what belongs to this kind of event; empty if nothing does
  @ivar at: when it happened, in seconds since the epoch; 0 if QEMU did not say

  """

  name: str
  data: Mapping[str, Any]
  at: float = 0.0


class Reply(NamedTuple):
  """The answer to a command.

  @ivar ident: the C{id} that the command carried, if any
  @ivar value: what the command returned; None if it failed
  @ivar error: QEMU's description of the failure; None if there was none

  """

  ident: Any
  value: Any
  error: Optional[str]


if TYPE_CHECKING:
  Message = Union[Greeting, Event, Reply]


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


# Python's parser takes NaN and Infinity, which are not JSON; and it needs
# quadratic time for an integer of a million digits, but not for a float.
_decode_json = json.JSONDecoder(
  parse_int=float, parse_constant=_refuse_constant
).decode


def _version(greeting: Any) -> str:
  try:
    qemu = greeting["version"]["qemu"]
    return "%d.%d.%d" % (qemu["major"], qemu["minor"], qemu["micro"])
  except (KeyError, TypeError, ValueError, OverflowError):
    return ""


def _time(timestamp: Any) -> float:
  """Returns the seconds of a timestamp; 0 for one that is of no use."""
  try:
    at = timestamp["seconds"] + timestamp["microseconds"] / 1e6
  except (KeyError, TypeError):
    return 0.0
  return at if 0.0 < at < math.inf else 0.0


def _description(error: Any) -> str:
  if isinstance(error, dict) and isinstance(error.get("desc"), str):
    return str(error["desc"])
  return "no description"


def _parse(text: bytes) -> Optional[Message]:
  """Parses one JSON object.

  @return: the message; None for an object of a kind that QMP may have one day
  @raise ProtocolError: if it is not an object, or not as QMP has them

  """
  if len(text) > MAX_MESSAGE:
    raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
  try:
    message = _decode_json(text.decode("utf-8"))
  except (ValueError, RecursionError) as err:
    raise ProtocolError("not JSON") from err
  if not isinstance(message, dict):
    raise ProtocolError("not a JSON object")
  if "event" in message:
    name, data = message["event"], message.get("data", {})
    if not isinstance(name, str) or not isinstance(data, dict):
      raise ProtocolError("an event without a name or with odd data")
    return Event(name, data, _time(message.get("timestamp")))
  if "return" in message:
    return Reply(message.get("id"), message["return"], None)
  if "error" in message:
    return Reply(message.get("id"), None, _description(message["error"]))
  if "QMP" in message:
    return Greeting(_version(message["QMP"]))
  return None


@functools.lru_cache(maxsize=16)
def _parse_common(text: bytes) -> Optional[Message]:
  """Parses what is likely to be said again in the same words."""
  return _parse(text)


class Decoder:
  """Makes messages of the bytes of one connection.

  It keeps no more than the unfinished message at the end of what it was given,
  and how far into that it has looked, so that no byte is looked at twice.
  """

  __slots__ = ("_buffer", "_depth", "_in_string", "_scanned")

  def __init__(self) -> None:
    self._buffer = bytearray()
    self._scanned = 0
    self._depth = 0
    self._in_string = False

  @property
  def pending(self) -> int:
    """How many bytes there are of a message that has not ended yet."""
    return len(self._buffer)

  def feed(self, data: bytes) -> Iterator[Message]:
    """Takes the next bytes and gives the messages that end in them.

    Where messages stand in front of bytes that are not QMP, they are given
    before the error is raised. After it the decoder is of no more use.

    @raise ProtocolError: if this is not QMP, or a message is too long

    """
    if not self._buffer:
      # What QEMU writes arrives in whole lines nearly always, each a message.
      # A line that is not is left, with all behind it, to the closer look.
      position = 0
      for line in data.splitlines(keepends=True):
        if line.count(b"{") + line.count(b"[") > MAX_DEPTH:
          break
        # All QEMUs of a node greet and answer alike. Events have a time each.
        is_common = len(line) <= _MAX_COMMON and b'"timestamp"' not in line
        try:
          message = _parse_common(line) if is_common else _parse(line)
        except ProtocolError:
          break
        position += len(line)
        if message is not None:
          yield message
      if position == len(data):
        return
      data = data[position:]
    self._buffer += data
    for text in self._objects():
      message = _parse(text)
      if message is not None:
        yield message

  def _objects(self) -> Iterator[bytes]:
    """Cuts the objects that are complete off the front of the buffer."""
    buffer = self._buffer
    while True:
      if not self._depth:
        del buffer[: len(buffer) - len(buffer.lstrip(_WHITESPACE))]
        if buffer and not buffer.startswith(b"{"):
          raise ProtocolError("not JSON")
      pattern = _IN_STRING if self._in_string else _OUTSIDE_STRING
      match = pattern.search(buffer, self._scanned)
      if match is None:
        # An escape at the very end has moved this beyond the end already.
        self._scanned = max(self._scanned, len(buffer))
        if len(buffer) > MAX_MESSAGE:
          raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
        return
      self._scanned = match.end()
      if self._scanned > MAX_MESSAGE:
        raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
      mark = match.group()
      # The match would keep the buffer from being cut.
      del match
      if mark == _BACKSLASH:
        self._scanned += 1
      elif mark == _QUOTE:
        self._in_string = not self._in_string
      elif mark in _OPENING:
        self._depth += 1
        if self._depth > MAX_DEPTH:
          raise ProtocolError(f"nested more than {MAX_DEPTH} deep")
      else:
        self._depth -= 1
        if not self._depth:
          text = bytes(buffer[: self._scanned])
          del buffer[: self._scanned]
          self._scanned = 0
          yield text

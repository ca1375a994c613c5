# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""QMP, the QEMU Machine Protocol, on the wire: bytes in, messages out.

A QMP monitor greets its client, waits for C{qmp_capabilities} and from then on
answers commands and sends events, each message one JSON object. QEMU writes an
object on one line, with C{-qmp-pretty} on many, and whatever reads a socket
gets it in pieces of any size. So a message ends here where its outermost
bracket closes, wherever the lines end.

Nearly all that a QEMU says is events that nobody here asks for. A regular
expression passes over these in a fifth of the time that a parser takes, and
only over what the parser would have taken and nobody been given: which of the
two it was can be seen from nothing but the time.

Whoever controls a QEMU controls what its monitor says. All input is therefore
bounded in size and depth, costs time linear in its length, and is refused at
the first byte that cannot be QMP. No I/O is done here.

The protocol is described in QEMU's C{docs/interop/qmp-spec.rst}.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import chatter

if TYPE_CHECKING:
  from collections.abc import Iterable, Iterator, Mapping
  from typing import Any, Optional, Union

#: Longest message that is accepted, in bytes. QEMU's events have some hundred.
MAX_MESSAGE = 64 * 1024

#: Deepest nesting that is accepted; QEMU's own parser stops at 1,024.
MAX_DEPTH = 100

#: Longest run of events that is passed over at a time, in bytes. The matching
#: takes a hundred times as much memory; it must not be above MAX_MESSAGE.
_MAX_RUN = 8 * 1024

#: Longest piece that is remembered, in bytes. It is too short to be too deep.
_MAX_COMMON = 2 * MAX_DEPTH

#: The commands that the daemon sends.
CAPABILITIES = b'{"execute": "qmp_capabilities"}\r\n'
STATUS_ID = "status"
QUERY_STATUS = b'{"execute": "query-status", "id": "%s"}\r\n' % (
  STATUS_ID.encode("ascii")
)

#: QEMU's C{RunState} of a guest that was shut down under C{-no-shutdown}.
STATUS_SHUTDOWN = "shutdown"


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
  #: Messages, and how many of the bytes taken stand behind each.
  _Common = list[tuple[Optional[Message], int]]


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


# Python's parser takes NaN and Infinity, which are not JSON; and it needs
# quadratic time for an integer of many digits, but not for a float.
_decode_json = json.JSONDecoder(
  parse_int=float, parse_constant=_refuse_constant
).raw_decode


def _version(greeting: Any) -> str:
  try:
    qemu = greeting["version"]["qemu"]
    return _dotted(qemu["major"], qemu["minor"], qemu["micro"])
  except (KeyError, TypeError, OverflowError):
    return ""


@functools.lru_cache(maxsize=16)
def _dotted(major: float, minor: float, micro: float) -> str:
  """Gives a version as text, the same string for all instances that have it."""
  return "%d.%d.%d" % (major, minor, micro)


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


def _message(value: Any, names: frozenset[str]) -> Optional[Message]:
  """Tells which message an object is.

  @return: None for an event that is none of those, and for an object of a kind
    that QMP may have one day
  @raise ProtocolError: if it is not as QMP has them

  """
  if "event" in value:
    name, data = value["event"], value.get("data", {})
    if not isinstance(name, str) or not isinstance(data, dict):
      raise ProtocolError("an event without a name or with odd data")
    if name not in names:
      return None
    return Event(name, data, _time(value.get("timestamp")))
  if "return" in value:
    return Reply(value.get("id"), value["return"], None)
  if "error" in value:
    return Reply(value.get("id"), None, _description(value["error"]))
  if "QMP" in value:
    return Greeting(_version(value["QMP"]))
  return None


_STRUCTURE = re.compile(rb'["\\{}\[\]]')
_NO_BRACKETS = bytes(each for each in range(256) if each not in b"{}[]")
# One deeper, and one less deep in a byte with a sign.
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")


class _Partial:
  """A message of which there is a beginning, as far as it has come.

  Its brackets are followed, to know when all of it is there; only then it is
  seen whether it is JSON.

  @ivar text: its bytes; when it is complete, perhaps what comes after it, too

  """

  __slots__ = ("_depth", "_in_string", "_scanned", "text")

  def __init__(self) -> None:
    self.text = bytearray()
    self._scanned = 0
    self._depth = 0
    self._in_string = False

  def add(self, data: bytes) -> bool:
    """Takes what comes next.

    @return: whether its outermost bracket closes in there
    @raise ProtocolError: if it is too long, or nested too deep

    """
    self.text += data
    if _STRUCTURE.search(self.text, self._scanned):
      depths = self._follow(bytes(self.text[self._scanned : MAX_MESSAGE]))
      try:
        del depths[depths.index(0) :]
        is_complete = True
      except ValueError:
        is_complete = False
      if max(depths, default=0) > MAX_DEPTH:
        raise ProtocolError(f"nested more than {MAX_DEPTH} deep")
      if is_complete:
        return True
    else:
      self._scanned = len(self.text)
    if len(self.text) > MAX_MESSAGE:
      raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
    return False

  def _follow(self, block: bytes) -> list[int]:
    """Gives the depth behind each bracket in the next part of the message."""
    if (len(block) - len(block.rstrip(b"\\"))) % 2:
      # It escapes what is still to come.
      block = block[:-1]
    self._scanned += len(block)
    # Without what is escaped, a string is what stands between two quotes.
    parts = block.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    outside = b"".join(parts[self._in_string :: 2])
    if len(parts) % 2 == 0:
      self._in_string = not self._in_string
    steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
    depths = list(itertools.accumulate(steps, initial=self._depth))
    self._depth = depths[-1]
    del depths[0]
    return depths


def _check_bounds(message: bytes) -> None:
  """Raises L{ProtocolError} if a whole message is too long or too deep."""
  if (
    len(message) > MAX_MESSAGE
    or message.count(b"{") + message.count(b"[") > MAX_DEPTH
  ):
    # Which of the two it is, or whether these are in strings.
    _Partial().add(message)


class Decoder:
  """Makes messages of the bytes of one connection.

  It keeps no more than the unfinished message at the end of what it was given,
  and how far into that it has looked, so that time is linear in length however
  that arrives.
  """

  __slots__ = ("_filter", "_partial", "_unread")

  def __init__(self, names: Iterable[str]) -> None:
    """Begins where a message begins; C{names} are the events that count."""
    self._filter = chatter.of(frozenset(names))
    self._partial: Optional[_Partial] = None
    self._unread = 0

  @property
  def pending(self) -> int:
    """How many of the bytes taken stand behind the message given last."""
    if self._partial is not None:
      return len(self._partial.text)
    return self._unread

  def passes_over(self, data: bytes) -> bool:
    """Takes the next bytes if they are a few events that nobody asked for.

    Nearly all that is read from a monitor is one of these, and this the
    shortest way through them.

    @return: whether they were; if not, they are to be given to L{feed}

    """
    return (
      self._partial is None
      and len(data) <= _MAX_RUN
      and self._filter.is_meaningless(data)
    )

  def feed(self, data: bytes) -> Iterator[Optional[Message]]:
    """Takes the next bytes and gives the messages that end in them.

    None stands for a message that took a parser to see that it means nothing:
    from one step to the next lies never more than the longest message.
    Messages in front of bytes that are not QMP are given before the error,
    after which the decoder is of no more use.

    @param data: some bytes; the ones before must have been gone through
    @raise ProtocolError: if this is not QMP, or a message is too long

    """
    if (
      self._partial is None
      and len(data) <= _MAX_COMMON
      and b'"timestamp"' not in data
    ):
      # All QEMUs of a node greet and answer alike. Events have a time each.
      common = _read_common(data, self._filter.names)
      if common is not None:
        return self._repeat(common)
    return self._read(data)

  def _repeat(self, common: _Common) -> Iterator[Optional[Message]]:
    for message, self._unread in common:
      yield message
    self._unread = 0

  def _read(self, data: bytes) -> Iterator[Optional[Message]]:
    partial = self._partial
    if partial is not None:
      if not partial.add(data):
        return
      data = bytes(partial.text)
      self._partial = None
    names, meaningless = self._filter
    # The same in characters, when there is more in it than is passed over.
    text = ""
    is_ascii = True
    # How far we are, in characters and in bytes.
    position = done = 0
    while done < len(data):
      run = meaningless.match(data, done, done + _MAX_RUN)
      if run is not None:
        position += run.end() - done
        done = run.end()
        continue
      if not text:
        # What is not UTF-8 becomes what UTF-8 cannot be.
        text = data.decode("utf-8", "surrogateescape")
        is_ascii = text.isascii()
      if text[position] != "{":
        raise ProtocolError("not JSON")
      try:
        value, end = _decode_json(text, position)
        size = end - position
        if not is_ascii:
          size = len(text[position:end].encode("utf-8"))
      except (ValueError, RecursionError) as err:
        self._partial = _Partial()
        if self._partial.add(data[done:]):
          raise ProtocolError("not JSON") from err
        return
      # One that came in pieces was followed from its beginning.
      if size > _MAX_COMMON and (partial is None or done):
        _check_bounds(data[done : done + size])
      position = end
      done += size
      self._unread = len(data) - done
      yield _message(value, names)
      self._unread = 0


@functools.lru_cache(maxsize=16)
def _read_common(data: bytes, names: frozenset[str]) -> Optional[_Common]:
  """Reads a piece that is likely to come again in the same words.

  @return: the messages in it, and how many bytes stand behind each; None if
    that is not all, but an error or the beginning of another

  """
  decoder = Decoder(names)
  try:
    messages = [(message, decoder.pending) for message in decoder._read(data)]
  except ProtocolError:
    return None
  return None if decoder.pending else messages

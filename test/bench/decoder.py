#!/usr/bin/python3
# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Measures how fast the decoder takes whatever a QEMU may send.

Usage, after devel/build: test/bench/decoder.py [--repeat=N]. It takes half a
minute, and ends with status 1 if a limit is broken.

Each shape is measured in turn with events that count, and its share is its rate
by theirs. When the limit was set, to a third of what such events went through
at, they took four times as long as since: so it is a twelfth of what they do
now. A step is what the decoder does between one chance for its caller to look
after others and the next. What comes a byte at a time costs a call for each, as
it costs the daemon a read.

"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Iterator

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
sys.path.insert(0, os.path.join(_TOP, "build"))

from ganeti.kvmd.core import lifecycle, qmp  # noqa: E402

# What the daemon reads at a time, from a monitor and from a journal.
_FROM_MONITOR = 16 * 1024
_FROM_JOURNAL = 64 * 1024

_STREAM_SIZE = 256 * 1024

_LEAST_SHARE = 1 / 12
_LEAST_CHATTER = 2
_MOST_STEP_MS = 5
_MOST_PIECE_US = 10

_TIMESTAMP = b'"timestamp": {"seconds": 1795438800, "microseconds": 123456}'
_COUNTS = (
  b"{%s" % _TIMESTAMP + b', "event": "SHUTDOWN", "data": {"guest": true,'
  b' "reason": "guest-shutdown"}}\r\n'
)
_CHATTER = (
  b"{%s" % _TIMESTAMP + b', "event": "RTC_CHANGE", "data": {"offset": 7,'
  b' "qom-path": "/machine/unattached/device[7]/rtc"}}\r\n'
)
_CHATTER_WITH_LIST = _CHATTER.replace(b"}}", b', "list": []}}')
_LONG_CHATTER = (_CHATTER[:-4], b', "a": {"b": 0}', b"}}\r\n")
_LONG_CHATTER_WITH_LIST = (*_LONG_CHATTER[:2], b', "list": []}}\r\n')
_PRETTY = (
  b'{\r\n    "timestamp": {\r\n        "seconds": 1795438800,\r\n'
  b'        "microseconds": 123456\r\n    },\r\n    "event": "STOP"\r\n}\r\n'
)

_DEEP = b"[" * 97 + b"]" * 97
_MANY_KEYS = b"{%s}" % b",".join(b'"%d":0' % key for key in range(7000))


class Shape(NamedTuple):
  """Something that a QEMU, or what was a QEMU, may send.

  @ivar name: what is in it
  @ivar text: the bytes of it
  @ivar piece: how many of them arrive at a time

  """

  name: str
  text: bytes
  piece: int = _FROM_JOURNAL


def _many(text: bytes) -> bytes:
  return text * (_STREAM_SIZE // len(text))


def _long(opening: bytes, text: bytes, closing: bytes) -> bytes:
  """Makes messages as long as they may be."""
  room = qmp.MAX_MESSAGE - len(opening) - len(closing)
  return _many(opening + text * (room // len(text)) + closing)


def _list(text: bytes) -> bytes:
  """Makes messages as long as they may be of a list each."""
  return _long(b'{"a":[' + text, b"," + text, b"]}")


def _string(text: bytes) -> bytes:
  """Makes messages as long as they may be of a string each."""
  return _long(b'{"event":"A","data":{"a":"', text, b'"}}')


_ORDINARY = Shape("events that count", _many(_COUNTS))

_CHATTERS = (
  Shape("chatter", _many(_CHATTER)),
  Shape("chatter, as a monitor sends it", _many(_CHATTER), _FROM_MONITOR),
  Shape("chatter, every tenth event counts", _many(_CHATTER * 9 + _COUNTS)),
)

_SHAPES = (
  Shape("events that count, from a monitor", _ORDINARY.text, _FROM_MONITOR),
  Shape("chatter, half a line at a time", _many(_CHATTER), 80),
  Shape("chatter with escapes", _many(_CHATTER.replace(b"/", b"\\/"))),
  Shape("chatter with a list at its end", _many(_CHATTER_WITH_LIST)),
  Shape("long chatter", _long(*_LONG_CHATTER)),
  Shape("long chatter with a list at its end", _long(*_LONG_CHATTER_WITH_LIST)),
  Shape("short events", _many(b'{"event":"A"}')),
  Shape("short events that count", _many(b'{"event":"STOP"}')),
  Shape("pretty events", _many(_PRETTY)),
  Shape("pretty events, in pieces", _many(_PRETTY), 100),
  Shape("greetings", _many(b'{"QMP":{}}')),
  Shape("answers", _many(b'{"return":{}}')),
  Shape("{}{}{}", _many(b"{}")),
  Shape("{}{}{}, a few at a time", _many(b"{}"), 40),
  Shape("{}, a line each", _many(b"{}\n")),
  Shape("{ }{ }{ }", _many(b"{ }")),
  Shape('{"":0}', _many(b'{"":0}')),
  Shape('{"":0}, a line each', _many(b'{"":0}\n')),
  Shape('{"":{}}', _many(b'{"":{}}')),
  Shape('{"":""}', _many(b'{"":""}')),
  Shape('{"":"é"}', _many('{"":"é"}'.encode())),
  Shape("lists in a list", _list(b"[]")),
  Shape("lists in a list, in pieces", _list(b"[]"), 1000),
  Shape("objects in a list", _list(b"{}")),
  Shape("objects with a member in a list", _list(b'{"":0}')),
  Shape("lists as deep as may be, in a list", _list(_DEEP)),
  Shape("lists as deep as may be", _many(b'{"a":%s}' % _DEEP)),
  Shape("numbers", _list(b"1")),
  Shape("numbers of three digits", _list(b"123")),
  Shape("a long number", _long(b'{"a":', b"9", b"}")),
  Shape("a long fraction", _long(b'{"a":0.', b"3", b"}")),
  Shape("large numbers", _list(b"8.98846567431158e307")),
  Shape("small numbers", _list(b"2.4703282292062327208828439643411e-324")),
  Shape("words", _list(b"null")),
  Shape("empty strings", _list(b'""')),
  Shape("strings of a letter", _list(b'"a"')),
  Shape("one key, many times", _long(b'{"a":0', b',"a":0', b"}")),
  Shape("many keys", _many(_MANY_KEYS)),
  Shape("quotes in a string", _string(b'\\"')),
  Shape("backslashes in a string", _string(b"\\\\")),
  Shape("escaped letters in a string", _string(b"\\u0041")),
  Shape("escaped surrogates in a string", _string(b"\\ud83d\\ude00")),
  Shape("quotes and brackets in a string", _string(b'\\"{')),
  Shape("brackets in a string", _string(b"[")),
  Shape("é in a string", _string("é".encode())),
  Shape("😀 in a string", _string("😀".encode())),
  Shape("a string", _string(b"x")),
  Shape("a string, in pieces", _string(b"x"), 100),
  Shape("white space", _many(b" ")),
  Shape("blank lines", _many(b"\r\n")),
  Shape("white space in a message", _long(b'{"a":', b" ", b"0}")),
  Shape("lines in a message", _long(b'{"a":', b"\r\n", b"0}")),
)

# These end in an error; how long it takes to find that counts.
_REFUSED = (
  Shape("lists without an end", b'{"a":[' + b"[]," * qmp.MAX_MESSAGE),
  Shape("objects without an end", b'{"a":[' + b"{}," * qmp.MAX_MESSAGE),
  Shape("strings without an end", b'{"a":[' + b'"",' * qmp.MAX_MESSAGE),
  Shape("a string without an end", b'{"a":"' + b"x" * qmp.MAX_MESSAGE),
  Shape("quotes without an end", b'{"a":"' + b'\\"' * qmp.MAX_MESSAGE),
  Shape("backslashes without an end", b'{"a":"' + b"\\" * qmp.MAX_MESSAGE),
  Shape("white space without an end", b"{" + b" " * qmp.MAX_MESSAGE),
  Shape("lists that end wrongly", _long(b'{"a":[[]', b",[]", b",]}")),
  Shape("too deep", b'{"a":' + b"[" * qmp.MAX_MESSAGE),
  Shape("no UTF-8", _string(b"\xff")),
)

_BYTEWISE = (
  Shape("events", _COUNTS * 40, 1),
  Shape("{}{}{}", b"{}" * 4000, 1),
  Shape("lists", b'{"a":[%s[]]}' % (b"[]," * 1800), 1),
  Shape("quotes", b'{"a":"%s"}' % (b'\\"' * 3000), 1),
)


class Pace(NamedTuple):
  """How a shape went through.

  @ivar rate: in MB/s
  @ivar share: the same, in rates of events that count
  @ivar piece_us: the time for a piece
  @ivar step_ms: the longest time between two chances to look after others

  """

  rate: float
  share: float
  piece_us: float
  step_ms: float


def _pieces(shape: Shape) -> list[bytes]:
  return [
    shape.text[start : start + shape.piece]
    for start in range(0, len(shape.text), shape.piece)
  ]


def _time(shape: Shape) -> float:
  """Returns how many seconds a megabyte of a shape takes."""
  pieces = _pieces(shape)
  decoder = qmp.Decoder(lifecycle.EVENTS)
  began = time.perf_counter()
  for piece in pieces:
    for _ in decoder.feed(piece):
      pass
  return (time.perf_counter() - began) / len(shape.text) * 1e6


def _time_steps(shape: Shape) -> Iterator[float]:
  """Gives the time to each message and to the end of each piece, in ms."""
  decoder = qmp.Decoder(lifecycle.EVENTS)
  for piece in _pieces(shape):
    messages = decoder.feed(piece)
    is_over = False
    while not is_over:
      began = time.perf_counter()
      try:
        next(messages)
      except StopIteration:
        is_over = True
      except qmp.ProtocolError:
        yield (time.perf_counter() - began) * 1e3
        return
      yield (time.perf_counter() - began) * 1e3


def _longest_step(shape: Shape, repeat: int) -> float:
  """Returns how long the longest step takes, in ms.

  What else the machine does makes a step longer, never shorter: so the least
  of some runs counts.

  """
  runs = zip(*(_time_steps(shape) for _ in range(repeat)))
  return max(min(steps) for steps in runs)


def measure(shape: Shape, repeat: int) -> Pace:
  """Measures one shape, in turn with the ordinary one."""
  ordinary = seconds = math.inf
  for _ in range(repeat):
    ordinary = min(ordinary, _time(_ORDINARY))
    seconds = min(seconds, _time(shape))
  return Pace(
    1 / seconds,
    ordinary / seconds,
    seconds * shape.piece,
    _longest_step(shape, repeat),
  )


def run(repeat: int) -> bool:
  """Measures and prints everything.

  @return: whether all limits hold

  """
  broken = []
  print(f"{'':<38}    MB/s   share  longest step, ms")
  for shape in (_ORDINARY, *_CHATTERS, *_SHAPES):
    pace = measure(shape, repeat)
    print(
      f"{shape.name:<38}{pace.rate:>8.1f}{pace.share:>8.2f}{pace.step_ms:>8.2f}"
    )
    least = _LEAST_CHATTER if shape in _CHATTERS else _LEAST_SHARE
    if pace.share < least:
      broken.append(f"{shape.name}: a share of at least {least:.3g}")
    if pace.step_ms > _MOST_STEP_MS:
      broken.append(f"{shape.name}: a step of at most {_MOST_STEP_MS} ms")
  print("\nRefused")
  for shape in _REFUSED:
    step = _longest_step(shape, repeat)
    print(f"{shape.name:<54}{step:>8.2f}")
    if step > _MOST_STEP_MS:
      broken.append(f"{shape.name}: a step of at most {_MOST_STEP_MS} ms")
  print("\nA byte at a time                           µs each")
  for shape in _BYTEWISE:
    piece = measure(shape, repeat).piece_us
    print(f"{shape.name:<38}{piece:>12.2f}")
    if piece > _MOST_PIECE_US:
      broken.append(f"{shape.name}, bytewise: at most {_MOST_PIECE_US} µs each")
  print()
  for limit in broken:
    print(f"BROKEN: {limit}")
  if not broken:
    print("All limits hold.")
  return not broken


def main() -> int:
  """Reads the command line, and measures."""
  parser = argparse.ArgumentParser(
    description="Measures how fast the decoder takes what a QEMU may send."
  )
  parser.add_argument(
    "--repeat", type=int, default=9, metavar="N", help="how often (9)"
  )
  repeat = parser.parse_args().repeat
  if repeat < 1:
    parser.error("--repeat must be at least 1")
  return 0 if run(repeat) else 1


if __name__ == "__main__":
  sys.exit(main())

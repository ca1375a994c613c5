# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What a hostile QEMU says, in pieces that can be said over and over."""

from __future__ import annotations

import random

from pretended import RESET, UNINTERESTING, USER, event

_CHUNK = 64 * 1024
# The longest message that ever was accepted is 1 MiB.
_LONG = 1024 * 1024 - 256


def _filled(line: bytes, size: int) -> bytes:
  return line * max(1, size // len(line))


def chatter() -> bytes:
  """Gives events that mean nothing here."""
  return _filled(b"".join(event(*x) for x in UNINTERESTING), _CHUNK)


def counted() -> bytes:
  """Gives events that all count: each contradicts the one before."""
  lines = (
    event("SHUTDOWN", USER),
    event("RESET", RESET),
    event("STOP"),
    event("RESUME"),
  )
  return _filled(b"".join(lines), _CHUNK)


def braces() -> bytes:
  """Gives the shortest objects, on a line without an end."""
  return _filled(b"{}", _CHUNK)


def brackets() -> bytes:
  """Gives an event with as many brackets as it has room for."""
  inner = _filled(b"[],", _CHUNK // 2)
  return b'{"event": "A", "data": {"a": [' + inner + b"[]]}}\r\n"


def long() -> bytes:
  """Gives an event of nearly 1 MB."""
  text = "a" * _LONG
  return event("RTC_CHANGE", {"offset": text})


def unending() -> bytes:
  """Gives a part of a message that never ends, however often it is said."""
  return b"{" + b" " * _CHUNK


def garbage() -> bytes:
  """Gives what is not QMP."""
  return random.Random(1).randbytes(_CHUNK)

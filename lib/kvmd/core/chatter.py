# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What QEMUs say that means nothing to us, found without a parser."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

_SPACE = r"[ \t\r\n]"
_STRING = r'"[ !#-\[\]-~]*"'
_INTEGER = "-?(?:0|[1-9][0-9]*)"
_SCALAR = f"{_STRING}|{_INTEGER}|true|false|null"


def _object(value: str) -> str:
  """Gives the pattern of an object, as QEMU writes one on a line."""
  member = f"{_STRING}: (?:{value})"
  return rf"\{{(?:{member}(?:, {member})*)?\}}"


class Filter(NamedTuple):
  """What a client wants of all that a QEMU says.

  @ivar names: the events that mean something
  @ivar meaningless: matches what means nothing

  """

  names: frozenset[str]
  meaningless: re.Pattern[bytes]

  def is_meaningless(self, data: bytes) -> bool:
    """Tells whether all of some bytes mean nothing."""
    # Not fullmatch: white space can be divided in any way, and where that
    # fails it tries all of them.
    found = self.meaningless.match(data)
    return found is not None and found.end() == len(data)


@functools.lru_cache(maxsize=8)
def of(names: frozenset[str]) -> Filter:
  """Makes the filter that all clients share who want the same events.

  @param names: of the events that mean something

  Its pattern matches white space, objects without a member, and events as QEMU
  writes them on a line, as far as nothing in them is escaped and in their data
  is nothing deeper than another object. Whatever else there may be takes a
  parser. Nothing in an event can be matched in two ways, so that to give up at
  its end takes no longer than to come there.

  """
  time = rf'\{{"seconds": {_INTEGER}, "microseconds": {_INTEGER}\}}'
  wanted = "|".join(map(re.escape, sorted(names)))
  data = _object(f"{_SCALAR}|{_object(_SCALAR)}")
  event = (
    rf'\{{"timestamp": {time}, "event": "(?!(?:{wanted})")[0-9A-Z_]+"'
    rf'(?:, "data": {data})?\}}'
  )
  chatter = rf"(?:{_SPACE}+|\{{{_SPACE}*\}}|{event})+"
  return Filter(names, re.compile(chatter.encode("utf-8", "surrogatepass")))

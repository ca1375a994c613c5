# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What a line of the history says: one life of an instance, from end to ending.

Each line is one JSON object (doc/history.md has the fields). Fields are only
ever added; what is not known is left out. Names, causes and versions come from
guests and from files that anybody may have named: here they become text that
can be shown, and that is not too long, whatever they were.
"""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import text

if TYPE_CHECKING:
  from collections.abc import Callable, Mapping, Sequence
  from typing import Any, Optional, Union

  from ganeti.kvmd.core.lifecycle import Outcome

  _Value = Union[
    str,
    int,
    float,
    bool,
    Sequence[str],
    Mapping[str, int],
    Mapping[str, Union[str, int]],
    None,
  ]

#: The version of the format; another one means that a field has another meaning
#: than before.
VERSION = 1

#: Longest text of a field, in characters.
MAX_TEXT = 1000

#: No line is longer, in bytes: an upper limit for all fields together, each of
#: them of the longest text, in UTF-8 and escaped.
MAX_LINE = 32 * 1024

#: The last second of the year 9999, in seconds since the epoch.
_LAST_TIME = 253402300799.0

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

#: The shortest way to write out what most values are.
_ENCODE: Mapping[type, Callable[[Any], str]] = {
  str: json.encoder.encode_basestring,
  int: repr,
  float: repr,
}


class Ending(NamedTuple):
  """The end of a life of an instance, and what is known of that life.

  @ivar instance: the instance's name
  @ivar life: what tells the life from all others of that node; "" if nothing
    does
  @ivar began: when it began, in seconds since the epoch; None if unknown
  @ivar ended: when it ended, likewise
  @ivar heard: when the last was heard of it, likewise
  @ivar seconds: how long it lasted
  @ivar outcome: the verdict, and what it rests on
  @ivar said: what else QEMU said on the way to it
  @ivar source: by what it was followed
  @ivar qemu: QEMU's version; "" if unknown
  @ivar process: the number of its process; 0 if unknown
  @ivar is_marked: whether an administrator was about to stop it
  @ivar words: what QEMU wrote last to its log file; "" if nothing is known
  @ivar telling: the line of it that tells most
  @ivar is_overwritten: whether a later life has written there since
  @ivar asked: what Ganeti was asked to do that ended it; empty if nothing is
    known
  @ivar is_new: whether no daemon but this one can know of it

  """

  instance: str
  life: str
  began: Optional[float]
  ended: Optional[float]
  heard: Optional[float]
  seconds: float
  outcome: Outcome
  said: Sequence[str]
  source: str
  qemu: str
  process: int
  is_marked: bool
  is_new: bool
  words: str = ""
  telling: str = ""
  is_overwritten: bool = False
  asked: Mapping[str, Union[str, int]] = {}


def encode_ending(ending: Ending, node: str, now: float, exit_: str) -> bytes:
  """Makes the line of an ending.

  @param node: the node's name
  @param now: the time, in seconds since the epoch
  @param exit_: how the process ended, in the kernel's words; "" if unknown
  @return: the line, with its newline

  """
  return _encode(
    ending.instance,
    node,
    now,
    {
      "life": ending.life,
      "began": written_out(ending.began),
      "ended": written_out(ending.ended),
      "heard": written_out(ending.heard),
      "seconds": round(ending.seconds, 3),
      "verdict": ending.outcome.verdict.value,
      "cause": ending.outcome.cause,
      "said": ending.said or None,
      "source": ending.source,
      "qemu": ending.qemu,
      "process": ending.process or None,
      "exit": exit_,
      "marked": ending.is_marked or None,
      "asked": ending.asked or None,
      "last_words": ending.words,
      "overwritten": ending.is_overwritten or None,
    },
  )


def encode_more(
  instance: str, node: str, now: float, verdicts: Mapping[str, int]
) -> bytes:
  """Makes the line for further ends of one instance in an hour.

  @param node: the node's name
  @param now: the time, in seconds since the epoch
  @param verdicts: how many of each kind there were
  @return: the line, with its newline

  """
  number = sum(verdicts.values())
  fields: Mapping[str, _Value] = {"more": number, "verdicts": verdicts}
  return _encode(instance, node, now, fields)


def _encode(
  instance: str, node: str, now: float, fields: Mapping[str, _Value]
) -> bytes:
  known: dict[str, _Value] = {
    "version": VERSION,
    "time": written_out(now),
    "node": node,
    "instance": instance,
    **fields,
  }
  line = _join(known)
  # Most need no cleaning, which would take as long again.
  if len(line) > MAX_TEXT or "\\" in line or not line.isprintable():
    for name, value in known.items():
      if isinstance(value, str):
        known[name] = text.escape(value, MAX_TEXT)
    line = _join(known)
  return line.encode() + b"\n"


def _join(fields: Mapping[str, _Value]) -> str:
  """Makes one object of what is known; the encoder as a whole takes longer."""
  members = [
    f'"{name}":{_ENCODE.get(value.__class__, _ENCODER.encode)(value)}'
    for name, value in fields.items()
    if value is not None and value != ""
  ]
  return f"{{{','.join(members)}}}"


def written_out(seconds: Optional[float]) -> Optional[str]:
  """Writes a time out, in UTC and milliseconds.

  @param seconds: since the epoch
  @return: None if it is not known, or no calendar has it

  """
  if seconds is None or not 0.0 <= seconds <= _LAST_TIME:
    return None
  whole = int(seconds)
  return "%s.%03dZ" % (_date(whole), (seconds - whole) * 1000)


@functools.lru_cache(maxsize=64)
def _date(second: int) -> str:
  """Writes a second out, which many ends at once have in common."""
  return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon's log, as values.

Only this module knows what the lines look like that others go by.

"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Optional

if TYPE_CHECKING:
  import pathlib
  from collections.abc import Iterable

#: A line, as Ganeti writes them: process, level, message
LOG_LINE = re.compile(
  r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: ganeti-kvmd pid=(\d+)"
  r"(?: \w+:\d+)? (DEBUG|INFO|WARNING|ERROR) (.*)"
)
_VERDICT = re.compile(
  r"instance (\S+): verdict ([a-z ]+) \((.*)\) after ([0-9.]+) s(?:;.*)?"
)
_ATTACHED = re.compile(
  r"instance (\S+): attached to QEMU (\S+)(?:, process (\d+)| again)"
)
_FOLLOWED = re.compile(r"instance (\S+): its QEMU keeps a journal\b.*")
_EXIT = re.compile(r"instance (\S+): its process (\d+) .*")
_WATCHING = re.compile(r"watching (.*)")


class Line(NamedTuple):
  """A line, as Ganeti writes them."""

  process: int
  level: str
  message: str


class Outcome(NamedTuple):
  """What was decided, in the daemon's own words."""

  verdict: str
  cause: str


class Verdict(NamedTuple):
  """A verdict on an instance, and for how long that ran, in seconds."""

  instance: str
  verdict: str
  cause: str
  seconds: float

  @property
  def outcome(self) -> Outcome:
    return Outcome(self.verdict, self.cause)


class Attached(NamedTuple):
  """The daemon listens to a monitor; without a number, once more."""

  instance: str
  version: str
  process: Optional[int]


class Exit(NamedTuple):
  """A QEMU's process has ended badly."""

  instance: str
  process: int


def parse(line: str) -> Optional[Line]:
  """Takes a line apart; None if it does not look like Ganeti's."""
  found = LOG_LINE.fullmatch(line)
  return Line(int(found[1]), found[2], found[3]) if found else None


def messages(lines: Iterable[str]) -> list[str]:
  """Returns what lines say, without those that do not look like Ganeti's."""
  return [found.message for found in map(parse, lines) if found]


def verdict(message: str) -> Optional[Verdict]:
  found = _VERDICT.fullmatch(message)
  return (
    Verdict(found[1], found[2], found[3], float(found[4])) if found else None
  )


def verdicts(
  said: Iterable[str], instance: Optional[str] = None
) -> list[Verdict]:
  """Returns the verdicts among messages, oldest first.

  @param instance: on which; by default on all of them

  """
  return [
    found
    for found in map(verdict, said)
    if found and instance in (None, found.instance)
  ]


def attached(message: str) -> Optional[Attached]:
  found = _ATTACHED.fullmatch(message)
  if found is None:
    return None
  return Attached(found[1], found[2], int(found[3]) if found[3] else None)


def followed(message: str) -> Optional[str]:
  """Returns the instance that is followed by its journal from now on."""
  found = _FOLLOWED.fullmatch(message)
  return found[1] if found else None


def exit_of(message: str) -> Optional[Exit]:
  found = _EXIT.fullmatch(message)
  return Exit(found[1], int(found[2])) if found else None


def watched(message: str) -> Optional[str]:
  """Returns the directory that is watched from now on."""
  found = _WATCHING.fullmatch(message)
  return found[1] if found else None


class Log:
  """A log file, each line of which is read once.

  @ivar lines: all that was read so far
  @ivar messages: what those say that look like Ganeti's
  @ivar verdicts: those among them

  """

  def __init__(self, path: pathlib.Path, position: int = 0) -> None:
    """Reads nothing yet.

    @param position: where to begin, in bytes

    """
    self._path = path
    self._position = position
    self.lines: list[str] = []
    self.messages: list[str] = []
    self.verdicts: list[Verdict] = []

  def read(self) -> list[Line]:
    """Takes in what was logged since the last call.

    @return: what of it looks like Ganeti's

    """
    with open(self._path, "rb") as stream:
      stream.seek(self._position)
      # It may be in the middle of a line.
      data, end, _ = stream.read().rpartition(b"\n")
    self._position += len(data + end)
    lines = data.decode(errors="replace").split("\n") if end else []
    added = [line for line in map(parse, lines) if line]
    said = [line.message for line in added]
    self.lines += lines
    self.messages += said
    self.verdicts += verdicts(said)
    return added

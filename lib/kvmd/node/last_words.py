# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What QEMU wrote last to its log file: by whom it was ended, or what failed.

Ganeti starts each QEMU with C{-D LOG_KVM_DIR/INSTANCE.log} and C{-daemonize}
(hv_kvm, C{_GenerateKVMRuntime}), which makes that file its standard error. The
directory is log/ganeti/kvm under /var (pathutils), of root and the group of
Ganeti's daemons, 0750 (tools/ensure_dirs); Debian's logrotate has only what is
in the one above. QEMU 7.2 makes the file as root, before C{-chroot} and
C{-runas}, which change nothing about it: 0600, by the node daemon's umask
(utils/process). It has it open ever after, and can write to it whatever it
likes.

Each start empties the file and leaves it the same file. So does a start that
fails, and the reason is then all that stands there (Ganeti's own message has
none: the file is QEMU's standard error by then). On a real node that was 2 to
12 ms before the start's monitor appeared, and as early as 67 ms after the end
of the life before (C{gnt-instance reboot --type=soft}; 1.1 s and more with the
other types). So the file's date tells whose words they are: a life's own last
ones were written before its process was gone, as a rule some 10 ms before. A
QEMU that falsifies the date falsifies its own words.
"""

from __future__ import annotations

import enum
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import text
from ganeti.kvmd.node import own_files

if TYPE_CHECKING:
  from collections.abc import Iterator

_SUFFIX = ".log"

#: So much of the end of the file is read, in bytes.
_READ_SIZE = 4096

_MAX_LINES = 10
_MAX_TEXT = 1000
_MAX_SHORT = 160

#: Seconds before a life's beginning, which is when its monitor appeared, in
#: which its start may have emptied the file.
_STARTING = 10.0

#: Seconds after a life's end in which what changed the file was still its own:
#: less than the next start needs.
_DYING = 0.05

_PROGRAM = re.compile(r"^(?:qemu[\w.+-]*|kvm): ")

#: What a line has that tells of an end, the most certain first.
_TELLING = (
  re.compile(
    r"terminating on signal|assertion|\bfatal\b|hardware error|internal error"
    r"|kvm run failed|load of migration failed|stack smashing|double free"
    r"|corrupted|invalid pointer",
    re.IGNORECASE,
  ),
  re.compile(
    r"\b(?:could not|cannot|can't|unable to|failed|failure|error)\b",
    re.IGNORECASE,
  ),
  re.compile(""),
)


class Fate(enum.Enum):
  """What became of the last words of a life."""

  THERE = "there"
  OVERWRITTEN = "overwritten"
  NONE = "none"


class LastWords(NamedTuple):
  """The last words of a life.

  @ivar fate: whether there are any
  @ivar text: up to ten lines, escaped; empty if there are none
  @ivar short: the line among all that were read that tells most, escaped
  @ivar reason: why there are none, for the log

  """

  fate: Fate
  text: str = ""
  short: str = ""
  reason: str = ""


def read(
  directory: str,
  instance: str,
  *,
  began: float,
  ended: float,
  is_reborn: bool,
) -> LastWords:
  """Returns the last words of one life of an instance.

  @param directory: the path of the log files' directory: C{LOG_KVM_DIR}
  @param instance: its name, as it is in names of files
  @param began: when the life began, in seconds since the epoch
  @param ended: when its process was gone, in seconds since the epoch; if that
    is not known, when it last said something
  @param is_reborn: whether a later life is known

  """
  if is_reborn:
    return LastWords(Fate.OVERWRITTEN, reason="a later life has begun")
  try:
    found = _read(directory, instance + _SUFFIX)
  except FileNotFoundError:
    return LastWords(Fate.NONE, reason="there is no log file of QEMU's")
  except (own_files.UnusableError, OSError) as err:
    shown = text.escape(str(err), _MAX_SHORT)
    return LastWords(Fate.NONE, reason=f"its log file is of no use: {shown}")
  # Who empties it after the end is another, however soon it is.
  if found.written > ended + (_DYING if found.end else 0.0):
    return LastWords(Fate.OVERWRITTEN, reason="its log file is a later life's")
  if found.written < began - _STARTING:
    return LastWords(Fate.NONE, reason="its log file is an earlier life's")
  lines = list(_lines(found))
  if not lines:
    return LastWords(Fate.NONE, reason="QEMU wrote nothing to its log file")
  return LastWords(Fate.THERE, _last(lines), _most_telling(lines))


def short(words: str) -> str:
  """Returns the line that tells who or what ended it, without the program.

  @return: at most 160 characters, escaped; empty if there is no line

  """
  return _most_telling([line for line in words.split("\n") if line.strip()])


class _Found(NamedTuple):
  """What was found in the file.

  @ivar end: its last bytes
  @ivar is_whole: whether these are all
  @ivar written: when it was written to last, in seconds since the epoch

  """

  end: bytes
  is_whole: bool
  written: float


def _read(directory: str, name: str) -> _Found:
  """Reads the end of a file.

  @raise own_files.UnusableError: if it is not our own, or cannot be opened
  @raise OSError: if there is none, or it cannot be read

  """
  opened = os.open(directory, os.O_PATH)
  try:
    file = own_files.open_own(opened, name, os.O_RDONLY)
  finally:
    os.close(opened)
  try:
    start = max(0, os.lseek(file, 0, os.SEEK_END) - _READ_SIZE)
    end = os.pread(file, _READ_SIZE, start)
    # The date comes last: what was read is no younger.
    return _Found(end, start == 0, os.fstat(file).st_mtime)
  finally:
    os.close(file)


def _lines(found: _Found) -> Iterator[str]:
  """Gives the lines that say anything."""
  lines = found.end.split(b"\n")
  # The first one's beginning was not read.
  for line in lines if found.is_whole or len(lines) == 1 else lines[1:]:
    decoded = line.decode("utf-8", "backslashreplace").rstrip()
    if decoded:
      yield decoded


def _last(lines: list[str]) -> str:
  """Returns as many of the last lines as there is room for."""
  kept: list[str] = []
  room = _MAX_TEXT
  for line in reversed(lines[-_MAX_LINES:]):
    shown = text.escape(line, _MAX_TEXT)
    if len(shown) > room:
      break
    kept.insert(0, shown)
    room -= len(shown) + 1
  return "\n".join(kept)


def _most_telling(lines: list[str]) -> str:
  for telling in _TELLING:
    for line in reversed(lines):
      if telling.search(line):
        return text.escape(_PROGRAM.sub("", line), _MAX_SHORT)
  return ""

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The files of the history: one that grows, and some before it.

Whole lines are added with one C{write} each. Where that does not succeed as a
whole, the part is taken away again: so that a reader who leaves out what comes
after the last newline never sees a part of a line. The same is done with what
was left by a daemon that was killed, or a machine that lost power.

When the file is large enough it gets C{.1} appended to its name, the one before
it C{.2}, and so on; the oldest goes. Who else moves it away (logrotate, say)
is noticed as well.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from ganeti.kvmd.core.history_line import MAX_LINE
from ganeti.kvmd.node import own_files

if TYPE_CHECKING:
  from typing import Optional

#: The size of a file at which another is begun, in bytes; a line has some 300.
MAX_SIZE = 8 * 1024 * 1024

#: So many older files are kept.
MAX_OLD = 8

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600

_LIFE = re.compile(rb'"life":"([0-9]+-[0-9]+)"')


class HistoryFiles:
  """The history, open for adding to it."""

  def __init__(self, path: str) -> None:
    """Opens nothing yet.

    @param path: of the file that grows; if the directory that it is in does
      not exist, it is made

    """
    self.path = path
    self._directory: Optional[int] = None
    self._name = os.path.basename(path)
    self._file: Optional[int] = None
    self._size = 0

  def close(self) -> None:
    """Lets go of file and directory."""
    self._close_file()
    if self._directory is not None:
      os.close(self._directory)
      self._directory = None

  def prepare(self) -> None:
    """Opens the file that has the name now, unless it is open already.

    So does it when somebody else has changed it.

    To be called before each series of lines.

    @raise OSError: if that is not possible

    """
    if self._file is not None:
      held = os.fstat(self._file)
      found = own_files.find(None, self.path)
      if found is None or not (
        os.path.samestat(found, held) and found.st_size == self._size
      ):
        self.close()
    if self._file is None:
      self._open_file()

  def add(self, line: bytes) -> None:
    """Adds a line.

    @param line: with its newline
    @raise OSError: if it could not be written; then there is nothing of it

    """
    if self._size and self._size + len(line) > MAX_SIZE:
      self._rotate()
    assert self._file is not None
    try:
      written = os.write(self._file, line)
      if written < len(line):
        os.ftruncate(self._file, self._size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as err:
      # It is looked at anew when the next is written.
      self._close_file()
      err.filename = self.path
      raise
    self._size += written

  def recorded(self, lives: set[str], since: float) -> set[str]:
    """Returns which of some lives are in the history.

    @param lives: what tells them from others
    @param since: when the first of them began, in seconds since the epoch
    @raise OSError: if the history cannot be read

    """
    directory = self._open_directory()
    recorded: set[str] = set()
    for name in (self._name, *map(self._old, range(1, MAX_OLD + 1))):
      found = own_files.find(directory, name)
      if found is None or found.st_mtime < since:
        continue
      try:
        content = own_files.read(directory, name, MAX_SIZE)
      except (FileNotFoundError, own_files.UnusableError):
        continue
      for match in _LIFE.finditer(content):
        life = match[1].decode()
        if life in lives:
          recorded.add(life)
    return recorded

  def _old(self, number: int) -> str:
    return f"{self._name}.{number}"

  def _open_directory(self) -> int:
    if self._directory is None:
      path = os.path.dirname(self.path) or "."
      if not os.path.isdir(path):
        os.mkdir(path, _DIRECTORY_MODE)
      self._directory = os.open(
        path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
      )
    return self._directory

  def _open_file(self) -> None:
    directory = self._open_directory()
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK
    try:
      file = os.open(self._name, flags, _FILE_MODE, dir_fd=directory)
      try:
        found = os.fstat(file)
        if not own_files.is_own(found):
          raise OSError(errno.EPERM, "no regular file of our own")
        self._size = _mend(file, found.st_size)
      except OSError:
        os.close(file)
        raise
    except OSError as err:
      err.filename = self.path
      raise
    self._file = file

  def _close_file(self) -> None:
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def _rotate(self) -> None:
    """Begins another file.

    @raise OSError: if that is not possible; then nothing is lost

    """
    directory = self._open_directory()
    try:
      for number in range(MAX_OLD - 1, 0, -1):
        if own_files.find(directory, self._old(number)) is not None:
          self._rename(self._old(number), self._old(number + 1))
      self._rename(self._name, self._old(1))
    except OSError as err:
      err.filename = self.path
      raise
    self._close_file()
    self._open_file()

  def _rename(self, before: str, after: str) -> None:
    directory = self._directory
    os.rename(before, after, src_dir_fd=directory, dst_dir_fd=directory)


def _mend(file: int, size: int) -> int:
  """Takes away a part of a line at the end; returns the size that is left."""
  begin = max(0, size - MAX_LINE)
  tail = os.pread(file, size - begin, begin)
  if not tail or tail.endswith(b"\n"):
    return size
  end = tail.rfind(b"\n") + 1
  if not end and begin:
    # It is no line of ours that is as long: what comes then is a line anew.
    return size + os.write(file, b"\n")
  os.ftruncate(file, begin + end)
  return begin + end

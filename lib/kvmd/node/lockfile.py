# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Locks that no stranger can take.

Whoever can open a file can lock it, if only to read it. So what is locked here
are files that nobody else can have open: regular, our own, with one name, and
closed to all others since they were made. One that is anything else is
replaced by a new one, as it may be open to somebody who was quicker.

A lock is on one byte of the file, and belongs to the open file: it stays when
another descriptor of the same file is closed. The kernel does not tell then
who has it. So whoever takes it notes his process number in the file. That is
for people; what counts is the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
from typing import TYPE_CHECKING

from ganeti.kvmd.node import own_files

if TYPE_CHECKING:
  from typing import Optional

#: struct flock: kind, whence, start, length, process.
_FLOCK = struct.Struct("hhqqi4x")

_FILE_MODE = 0o600

#: Whoever else is meant by the mode of a file.
_OTHERS = 0o077

_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Room for the number of the process that has a lock, in bytes.
_NOTE_SIZE = 16


class LockedError(Exception):
  """Another process has a lock.

  @ivar process: which one; 0 if that is not known

  """

  def __init__(self, path: str, process: int) -> None:
    super().__init__(f"process {process or '(unknown)'} holds {path}")
    self.process = process


class LockFile:
  """An open lock file, and a lock on it."""

  def __init__(
    self, path: str, place: int = 0, directory: Optional[int] = None
  ) -> None:
    """Takes a lock; the file is made if there is none.

    @param path: of the file
    @param place: the byte that is locked
    @param directory: an open directory that the path begins in
    @raise LockedError: if somebody else has it
    @raise OSError: if the file cannot be used

    """
    self._path = path
    self._directory = directory
    while True:
      self._descriptor = open_private(path, directory)
      try:
        if not self.lock(place):
          raise LockedError(path, _noted(self._descriptor, place))
        if self.is_intact:
          return
      except BaseException:
        self.close()
        raise
      # It was removed or replaced just now: what counts is the new one.
      self.close()

  @property
  def is_intact(self) -> bool:
    """Whether the file still has its name, and is closed to all others."""
    found = os.fstat(self._descriptor)
    return is_private(found) and is_at(found, self._path, self._directory)

  def lock(self, place: int) -> bool:
    """Takes another lock on the same file, if nobody else has it.

    @param place: the byte that is locked

    """
    try:
      fcntl.fcntl(
        self._descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, place, 1)
      )
    except BlockingIOError:
      return False
    note = str(os.getpid()).encode("ascii").ljust(_NOTE_SIZE - 1) + b"\n"
    # On a full disk it has to do without.
    with contextlib.suppress(OSError):
      os.pwrite(self._descriptor, note, place * _NOTE_SIZE)
    return True

  def unlock(self, place: int) -> None:
    """Lets others take a lock."""
    fcntl.fcntl(
      self._descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place, 1)
    )

  def noted(self, place: int) -> int:
    """Returns the process that took a lock last; 0 if that is not known."""
    return _noted(self._descriptor, place)

  def remove(self) -> None:
    """Removes the file; all locks end with that."""
    if self.is_intact:
      os.unlink(self._path, dir_fd=self._directory)
    self.close()

  def close(self) -> None:
    """Lets others take all locks."""
    os.close(self._descriptor)


def holder(path: str, place: int = 0) -> Optional[int]:
  """Returns the process that has a lock, without taking part in that.

  @param path: of the lock file
  @param place: the byte that is locked
  @return: 0 if it is not known which; None if nobody has it
  @raise OSError: if the file is there and cannot be read

  """
  descriptor = open_to_look(path)
  if descriptor is None:
    return None
  try:
    if not is_private(os.fstat(descriptor)):
      # What strangers can open they can lock.
      return None
    kind, *_ = _FLOCK.unpack(
      fcntl.fcntl(
        descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, place, 1)
      )
    )
    return None if kind == fcntl.F_UNLCK else _noted(descriptor, place)
  finally:
    os.close(descriptor)


def writer(descriptor: int) -> Optional[int]:
  """Returns the process that has locked an open file so as to write it.

  That is about locks that belong to a process. Others, and those that only
  need a file that can be read, do not count.

  @return: 0 if it is not known which process that is

  """
  kind, _, _, _, process = _FLOCK.unpack(
    fcntl.fcntl(descriptor, fcntl.F_GETLK, _flock(fcntl.F_RDLCK, 0, 0))
  )
  # Of another process namespace, say.
  return None if kind == fcntl.F_UNLCK else max(0, process)


def open_private(
  path: str, directory: Optional[int] = None, *, create: bool = True
) -> int:
  """Opens a file that nobody else can have open, for reading and writing.

  @param path: of the file; if it is not like that it is removed
  @param directory: an open directory that the path begins in
  @param create: whether to make it if there is none
  @raise FileNotFoundError: if there is none
  @raise PermissionError: if it belongs to somebody else, and this is not root
  @raise OSError: if it can be neither used nor replaced

  """
  while True:
    found = own_files.find(directory, path)
    if found is None:
      if not create:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
      with contextlib.suppress(FileExistsError):
        return os.open(
          path,
          os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN,
          _FILE_MODE,
          dir_fd=directory,
        )
      continue
    if not is_private(found):
      # Two who share a directory would replace each other's for ever.
      if os.geteuid() not in {0, found.st_uid}:
        reason = f"it belongs to user {found.st_uid}"
        raise PermissionError(errno.EACCES, reason, path)
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=directory)
      continue
    try:
      descriptor = os.open(path, os.O_RDWR | _OPEN, dir_fd=directory)
    except OSError as err:
      if err.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
        raise
      continue
    if os.path.samestat(found, os.fstat(descriptor)):
      return descriptor
    os.close(descriptor)


def open_to_look(path: str) -> Optional[int]:
  """Opens a file for reading; returns None if there is no regular one.

  @raise OSError: if it cannot be opened

  """
  try:
    if not stat.S_ISREG(os.lstat(path).st_mode):
      return None
    return os.open(path, os.O_RDONLY | _OPEN)
  except FileNotFoundError:
    return None


def is_private(found: os.stat_result) -> bool:
  """Tells whether a file is one that nobody else can have open."""
  return own_files.is_own(found) and not found.st_mode & _OTHERS


def is_at(
  found: os.stat_result, path: str, directory: Optional[int] = None
) -> bool:
  """Tells whether a file is the one that has a path.

  @param directory: an open directory that the path begins in

  """
  there = own_files.find(directory, path)
  return there is not None and os.path.samestat(found, there)


@functools.cache
def _flock(kind: int, start: int, length: int) -> bytes:
  """Says what to lock; see fcntl(2). A length of 0 goes to the end."""
  return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def _noted(descriptor: int, place: int) -> int:
  try:
    return int(os.pread(descriptor, _NOTE_SIZE, place * _NOTE_SIZE))
  except (OSError, ValueError):
    return 0

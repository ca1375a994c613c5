# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The pidfile: one daemon at a time, and who it is.

Whoever holds the lock is the daemon; what is in an unlocked file is stale and
means nothing. Ganeti and C{start-stop-daemon} read the number.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from typing import Optional

_FILE_MODE = 0o644

#: struct flock: kind, whence, start, length, process.
_FLOCK = struct.Struct("hhqqi4x")


class LockedError(Exception):
  """Another process holds the pidfile."""


class PidFile:
  """A pidfile that this process holds."""

  def __init__(self, path: str) -> None:
    """Takes the pidfile and writes this process into it.

    @raise LockedError: if another daemon runs
    @raise OSError: if the file cannot be written

    """
    self._path = path
    self._descriptor = _open_locked(path)
    if os.geteuid() == 0:
      # start-stop-daemon believes no pidfile that others than root may write,
      # and Ganeti starts its daemons with a group of its own.
      os.fchown(self._descriptor, 0, 0)
      os.fchmod(self._descriptor, _FILE_MODE)
    number = b"%d\n" % os.getpid()
    # In this order a reader never finds an empty file.
    os.pwrite(self._descriptor, number, 0)
    os.ftruncate(self._descriptor, len(number))

  def remove(self) -> None:
    """Removes the file and lets the next daemon take it."""
    if _is_at(self._descriptor, self._path):
      os.unlink(self._path)
    os.close(self._descriptor)


def holder(path: str) -> Optional[int]:
  """Returns the process that holds a pidfile, if any.

  @raise OSError: if the file is there and cannot be read

  """
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
  except FileNotFoundError:
    return None
  try:
    # A look that takes no lock itself, and so is in no daemon's way.
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, process = _FLOCK.unpack(
      fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
    )
  finally:
    os.close(descriptor)
  return None if kind == fcntl.F_UNLCK else int(process)


def remove_stale(path: str) -> None:
  """Removes a pidfile that nobody holds.

  @raise LockedError: if somebody does
  @raise OSError: if it cannot be removed

  """
  try:
    descriptor = _open_locked(path, create=False)
  except FileNotFoundError:
    return
  os.unlink(path)
  os.close(descriptor)


def _open_locked(path: str, *, create: bool = True) -> int:
  creation = os.O_CREAT if create else 0
  while True:
    descriptor = os.open(
      path, os.O_RDWR | creation | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE
    )
    try:
      # Ganeti's Python daemons use one kind of lock, its Haskell ones, and so
      # the stock kvmd, the other.
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if _is_at(descriptor, path):
        return descriptor
    except (BlockingIOError, PermissionError) as err:
      holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
      os.close(descriptor)
      raise LockedError(
        f"another ganeti-kvmd runs already: process {holder!a} holds {path}"
      ) from err
    except OSError:
      os.close(descriptor)
      raise
    # A daemon that was just ending removed the file before it let go of it.
    os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
  """Tells whether an open file is the one that has the path."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except FileNotFoundError:
    return False

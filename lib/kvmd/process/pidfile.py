# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The pidfile: who the daemon is, for those who were here before us.

Ganeti and C{start-stop-daemon} read the number, and the stock daemon takes a
lock on the same file, so that only one of the two runs. That there is only one
of ours is seen to elsewhere (L{directory_locks.DirectoryLocks.claim}).

What is in an unlocked file is stale and means nothing. No lock counts that a
stranger could have taken: any, where he may write the file, and one for
reading, where he may read it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from ganeti.kvmd.node import lockfile

if TYPE_CHECKING:
  from typing import Optional

#: Whoever else may write a file.
_OTHERS_WRITE = 0o022


class PidFile:
  """A pidfile that this process holds."""

  def __init__(self, path: str) -> None:
    """Takes the pidfile and writes this process into it.

    @raise lockfile.LockedError: if another daemon runs
    @raise OSError: if the file cannot be written

    """
    self._path = path
    self._descriptor = _take(path)

  def restore(self) -> bool:
    """Makes the file anew if it was removed, replaced, or opened to others.

    @return: whether it had to be
    @raise lockfile.LockedError: if another daemon has taken its place
    @raise OSError: if the file cannot be written

    """
    found = os.fstat(self._descriptor)
    if lockfile.is_private(found) and lockfile.is_at(found, self._path):
      return False
    descriptor = _take(self._path)
    os.close(self._descriptor)
    self._descriptor = descriptor
    return True

  def remove(self) -> None:
    """Removes the file and lets the next daemon take it."""
    if lockfile.is_at(os.fstat(self._descriptor), self._path):
      os.unlink(self._path)
    os.close(self._descriptor)


def holder(path: str) -> Optional[int]:
  """Returns the process of the daemon that holds a pidfile, if any.

  To look takes no lock, and so is in no daemon's way. It must not be done by
  the daemon itself: the kernel takes its lock away when the file is closed.

  @raise OSError: if the file is there and cannot be read

  """
  descriptor = lockfile.open_to_look(path)
  if descriptor is None:
    return None
  try:
    found = os.fstat(descriptor)
    if (
      found.st_uid not in {0, os.geteuid()}
      or stat.S_IMODE(found.st_mode) & _OTHERS_WRITE
    ):
      return None
    return lockfile.writer(descriptor)
  finally:
    os.close(descriptor)


def remove_stale(path: str) -> None:
  """Removes a pidfile that nobody holds.

  @raise lockfile.LockedError: if somebody does
  @raise OSError: if it cannot be removed

  """
  try:
    descriptor = _open_locked(path, create=False)
  except FileNotFoundError:
    return
  os.unlink(path)
  os.close(descriptor)


def _take(path: str) -> int:
  """Opens and locks a pidfile, and writes this process into it."""
  descriptor = _open_locked(path)
  try:
    if os.geteuid() == 0:
      # start-stop-daemon believes no pidfile of a group other than root's, and
      # Ganeti starts its daemons with a group of its own.
      os.fchown(descriptor, 0, 0)
    number = b"%d\n" % os.getpid()
    # In this order a reader never finds an empty file.
    os.pwrite(descriptor, number, 0)
    os.ftruncate(descriptor, len(number))
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def _open_locked(path: str, *, create: bool = True) -> int:
  while True:
    process = holder(path)
    if process is not None:
      raise lockfile.LockedError(path, process)
    descriptor = lockfile.open_private(path, create=create)
    try:
      # Ganeti's Python daemons use one kind of lock, its Haskell ones, and so
      # the stock kvmd, the other.
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if lockfile.is_at(os.fstat(descriptor), path):
        return descriptor
    except (BlockingIOError, PermissionError) as err:
      process = _number(descriptor)
      os.close(descriptor)
      raise lockfile.LockedError(path, process) from err
    except OSError:
      os.close(descriptor)
      raise
    # A daemon that was just ending removed the file before it let go of it.
    os.close(descriptor)


def _number(descriptor: int) -> int:
  """Returns the process that is in a pidfile; 0 if that is none."""
  try:
    return int(os.pread(descriptor, 32, 0))
  except ValueError:
    return 0

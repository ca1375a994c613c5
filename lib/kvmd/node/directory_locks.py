# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Whose a control directory is, and who changes files there just now.

Both are locks on one file of the directory, which stays when nobody has any.
"""

from __future__ import annotations

import enum
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.node import lockfile

if TYPE_CHECKING:
  from typing import Optional

LOCK_FILE = ".ganeti-kvmd.lock"

#: Seconds after which it is tried again to get a lock.
_INTERVAL = 0.01


class Lock(enum.IntEnum):
  """What there is a lock for; the value is its byte in the lock file.

  @cvar DAEMON: to be the daemon of the directory
  @cvar CHANGES: to change files that belong together

  """

  DAEMON = 0
  CHANGES = 1


class KeptOut(NamedTuple):
  """That somebody else had the lock for changes, time and again.

  @ivar first: when that was found first, in seconds of the monotonic clock
  @ivar last: when it was found last
  @ivar reason: who it was, or why there was no lock to be had

  """

  first: float
  last: float
  reason: str


def daemon_of(path: str) -> Optional[int]:
  """Returns the process of the daemon of a control directory, if there is one.

  To look takes no lock, and so is in nobody's way.

  @param path: of the directory, which may be missing
  @return: 0 if it is not known which process it is
  @raise OSError: if that cannot be found out

  """
  return lockfile.holder(os.path.join(path, LOCK_FILE), Lock.DAEMON)


class DirectoryLocks:
  """The locks of one open control directory.

  @ivar kept_out: since when L{lock} has failed, unless it succeeded last

  """

  def __init__(self, path: str, descriptor: int) -> None:
    """Has no lock yet.

    @param path: of the directory
    @param descriptor: of the same, open for reading; somebody else closes it

    """
    self.kept_out: Optional[KeptOut] = None
    self._path = os.path.join(path, LOCK_FILE)
    self._directory = descriptor
    self._claim: Optional[lockfile.LockFile] = None
    # What is locked is the file of the claim, or else one for that moment.
    self._changed: Optional[lockfile.LockFile] = None

  def claim(self) -> None:
    """Makes this process the only daemon of the directory, or sees to it.

    That holds until L{release}, unless somebody removes the lock file.

    @raise lockfile.LockedError: if there is another
    @raise PermissionError: if the lock file belongs to another user
    @raise OSError: if it cannot be used otherwise; a claim stays as it was

    """
    if self._claim is not None and self._claim.is_intact:
      return
    try:
      claim = self._open(Lock.DAEMON)
    except (lockfile.LockedError, PermissionError):
      self.release()
      raise
    self.release()
    self._claim = claim

  def release(self) -> None:
    """Lets another process become the daemon."""
    if self._claim is not None:
      self._claim.close()
      self._claim = None

  def lock(self, patience: float) -> bool:
    """Keeps others from changing files that belong together.

    @param patience: how long to wait for others, in seconds
    @return: whether that was possible; if so, call L{unlock}

    """
    end = time.monotonic() + patience
    while True:
      try:
        self._changed = self._lock_changes()
      except lockfile.LockedError as err:
        if time.monotonic() < end:
          time.sleep(_INTERVAL)
          continue
        reason = str(err)
      except OSError as err:
        # Without a lock file there is nothing to wait for.
        reason = f"cannot use {err.filename}: {err.strerror}"
      else:
        self.kept_out = None
        return True
      now = time.monotonic()
      first = now if self.kept_out is None else self.kept_out.first
      self.kept_out = KeptOut(first, now, reason)
      return False

  def unlock(self) -> None:
    """Lets others change files again, if they were kept from it."""
    if self._changed is not None:
      # A process that was just started may have inherited the open file.
      self._changed.unlock(Lock.CHANGES)
      if self._changed is not self._claim:
        self._changed.close()
      self._changed = None

  def _lock_changes(self) -> lockfile.LockFile:
    """Locks the file of the claim, or one that is opened for it.

    @raise lockfile.LockedError: if somebody else has locked it
    @raise OSError: if there is no lock file to be had

    """
    if self._claim is None:
      return self._open(Lock.CHANGES)
    # Whether it is still the one is looked at by the claim often enough.
    if not self._claim.lock(Lock.CHANGES):
      raise lockfile.LockedError(self._path, self._claim.noted(Lock.CHANGES))
    return self._claim

  def _open(self, lock: Lock) -> lockfile.LockFile:
    try:
      return lockfile.LockFile(LOCK_FILE, lock, self._directory)
    except lockfile.LockedError as err:
      raise lockfile.LockedError(self._path, err.process) from None
    except OSError as err:
      err.filename = self._path
      raise

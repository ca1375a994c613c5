# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Watches the control directory, or as much of its path as exists.

Any part of the path may be missing, appear, be removed, be renamed away or
into place, or be a symbolic link that is changed. So each directory that the
path leads through is watched for the one name that the path goes on with, and
the directory itself for new names in it. When a step of the path changes, the
path is followed anew.

To lose nothing in between, a directory is watched before it is looked into.

This is the only user of pyinotify: its C{WatchManager} keeps the watches. The
events are unpacked here, since its C{Notifier} drops all that it has read at
a file name that is not UTF-8, and takes ten times as long for the others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

import pyinotify

if TYPE_CHECKING:
  from typing import Optional

# It would write to standard error what is raised and logged here.
pyinotify.log.handlers.clear()

#: struct inotify_event: watch descriptor, mask, cookie, length of the name.
_EVENT = struct.Struct("iIII")

#: Room for what one read takes, in bytes: some thousand events.
_READ_SIZE = 256 * 1024

#: As many links are followed in one path as the kernel follows.
_MAX_LINKS = 40

_OPEN_PLACE = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW

_NAME_APPEARS = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO
_NAME_VANISHES = pyinotify.IN_DELETE | pyinotify.IN_MOVED_FROM
_SELF_VANISHES = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF
_STEP_MASK = _NAME_APPEARS | _NAME_VANISHES | _SELF_VANISHES
_TARGET_MASK = _NAME_APPEARS | _SELF_VANISHES | pyinotify.IN_CLOSE_WRITE


class Changes(NamedTuple):
  """What happened since the last look.

  @ivar names: the names that appeared in the directory
  @ivar closed: the names of files there that were closed after writing
  @ivar path: whether the path may lead elsewhere now: follow it
  @ivar lost: whether the kernel dropped events: look at everything

  """

  names: set[str]
  closed: set[str]
  path: bool
  lost: bool


class Watch:
  """Watches one path.

  @ivar path: the path, absolute
  @ivar directory: a descriptor of the directory that the path led to when it
    was last followed; None if it led nowhere. It belongs to the watch.

  """

  def __init__(self, path: str) -> None:
    """Begins to watch; L{follow} has to be called first.

    @param path: absolute
    @raise OSError: if the kernel has no more inotify instances for the user

    """
    self.path = path
    self.directory: Optional[int] = None
    self._manager = pyinotify.WatchManager()
    os.set_blocking(self.fileno(), False)
    os.set_inheritable(self.fileno(), False)
    # Which names matter in which watched directory, by watch descriptor.
    self._steps: dict[int, set[str]] = {}
    self._target: Optional[int] = None

  def fileno(self) -> int:
    """Returns the descriptor that becomes readable when there are changes."""
    return int(self._manager.get_fd())

  def close(self) -> None:
    """Stops watching."""
    self._manager.close()
    self._replace_directory(None)

  def read(self) -> Changes:
    """Takes the changes since the last call, if any."""
    names: set[str] = set()
    closed: set[str] = set()
    path = lost = False
    try:
      data = os.read(self.fileno(), _READ_SIZE)
    except BlockingIOError:
      data = b""
    position = 0
    while position < len(data):
      watch, mask, _, length = _EVENT.unpack_from(data, position)
      position += _EVENT.size + length
      if mask & pyinotify.IN_Q_OVERFLOW:
        lost = True
        continue
      raw = data[position - length : position].rstrip(b"\0")
      if not raw:
        path = path or watch in self._watches()
        if mask & pyinotify.IN_IGNORED:
          self._forget(watch)
        continue
      name = os.fsdecode(raw)
      if watch == self._target and mask & _NAME_APPEARS:
        names.add(name)
      if watch == self._target and mask & pyinotify.IN_CLOSE_WRITE:
        closed.add(name)
      if name in self._steps.get(watch, ()):
        path = True
    return Changes(names, closed, path, lost)

  def follow(self) -> bool:
    """Follows the path anew and watches whatever there is of it.

    @return: whether L{directory} is another directory than before, or None
      where it was not
    @raise OSError: if the path leads to something that is no directory, may
      not be entered, or cannot be watched; L{directory} is None then

    """
    old = self._watches()
    self._steps = {}
    self._target = None
    try:
      found = self._walk()
    except OSError:
      self._replace_directory(None)
      raise
    finally:
      for watch in old - self._watches():
        self._remove(watch)
    if self.directory == found:
      return False
    if (
      self.directory is not None
      and found is not None
      and os.path.sameopenfile(self.directory, found)
    ):
      os.close(found)
      return False
    self._replace_directory(found)
    return True

  def _walk(self) -> Optional[int]:
    """Watches each step of the path and opens the directory at its end.

    @return: the directory's descriptor; None if some of the path is missing

    """
    place = "/"
    todo = _parts(self.path)
    links = 0
    while todo:
      name = todo.pop()
      step = os.path.join(place, name)
      try:
        self._watch_step(place, name)
        link = os.readlink(step)
      except FileNotFoundError:
        return None
      except OSError as err:
        if err.errno != errno.EINVAL:
          raise
        place = step
        continue
      links += 1
      if links > _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
      if os.path.isabs(link):
        place = "/"
      todo += _parts(link)
    return self._watch_target(place)

  def _watch_step(self, place: str, name: str) -> None:
    descriptor = os.open(place, os.O_PATH | _OPEN_PLACE)
    try:
      watch = self._add(descriptor, place, _STEP_MASK)
    except PermissionError:
      # It may be passed but not read, as some parents of a user's own
      # directory: changes in it are found at the next rescan.
      return
    finally:
      os.close(descriptor)
    self._steps.setdefault(watch, set()).add(name)

  def _watch_target(self, place: str) -> Optional[int]:
    try:
      descriptor = os.open(place, os.O_RDONLY | _OPEN_PLACE)
    except FileNotFoundError:
      return None
    try:
      self._target = self._add(descriptor, place, _TARGET_MASK)
    except OSError:
      os.close(descriptor)
      raise
    return descriptor

  def _add(self, descriptor: int, place: str, mask: int) -> int:
    """Watches an open directory, and no other that has its name by now."""
    try:
      added = self._manager.add_watch(
        f"/proc/self/fd/{descriptor}", mask | pyinotify.IN_MASK_ADD, quiet=False
      )
    except pyinotify.WatchManagerError as err:
      number = ctypes.get_errno()
      reason = os.strerror(number)
      if number == errno.ENOSPC:
        reason = "out of inotify watches (sysctl fs.inotify.max_user_watches)"
      raise OSError(number, reason, place) from err
    return int(next(iter(added.values())))

  def _remove(self, watch: int) -> None:
    try:
      self._manager.rm_watch(watch, quiet=False)
    except pyinotify.WatchManagerError:
      # The kernel has ended it already, as its directory is gone.
      self._manager.del_watch(watch)

  def _watches(self) -> set[int]:
    watches = set(self._steps)
    if self._target is not None:
      watches.add(self._target)
    return watches

  def _forget(self, watch: int) -> None:
    """Follows the kernel, which has ended a watch by itself."""
    if watch in self._watches():
      self._manager.del_watch(watch)
      self._steps.pop(watch, None)
      if watch == self._target:
        self._target = None

  def _replace_directory(self, descriptor: Optional[int]) -> None:
    if self.directory is not None:
      os.close(self.directory)
    self.directory = descriptor


def _parts(path: str) -> list[str]:
  """Splits a path into its names, the first one last."""
  return [part for part in reversed(path.split("/")) if part]

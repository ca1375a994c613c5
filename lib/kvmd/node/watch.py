# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Watches the control directory, or as much of its path as exists.

Any part of the path may be missing, appear, be removed, be renamed away or
into place, or be a symbolic link that is changed. So each directory that the
path leads through is watched for the one name that the path goes on with, and
the directory itself for new names in it. When a step of the path changes, the
path is followed anew.

To lose nothing in between, a directory is watched before it is looked into.

The kernel has so many watches for a user, and no more. Where there is none to
be had the path is followed all the same, and the watch says that it is blind:
whoever uses it has to look by himself then, and to try again.

This is the only user of pyinotify: its C{WatchManager} keeps the watches. The
events are unpacked here, since its C{Notifier} drops all that it has read at
a file name that is not UTF-8, and takes ten times as long for the others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import TYPE_CHECKING, NamedTuple

import pyinotify

if TYPE_CHECKING:
  from typing import Optional

# It would write to standard error what is raised and logged here.
pyinotify.log.handlers.clear()

#: struct inotify_event: watch descriptor, mask, cookie, length of the name.
_EVENT = struct.Struct("iIII")

#: Room for what one read takes, in bytes: some twenty events. The others wait
#: in the kernel, till there is time to do what is to be done about them.
_READ_SIZE = 1024

#: As many links are followed in one path as the kernel follows.
_MAX_LINKS = 40

_OPEN_PLACE = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW

_NAME_APPEARS = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO
_NAME_VANISHES = pyinotify.IN_DELETE | pyinotify.IN_MOVED_FROM
_SELF_VANISHES = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF
_STEP_MASK = _NAME_APPEARS | _NAME_VANISHES | _SELF_VANISHES
_TARGET_MASK = _NAME_APPEARS | _SELF_VANISHES | pyinotify.IN_CLOSE_WRITE


#: What it means that there is no watch to be had.
_EXHAUSTED = {
  errno.ENOSPC: "out of inotify watches (sysctl fs.inotify.max_user_watches)",
  errno.ENOMEM: "out of memory for inotify watches",
}

#: The same of an inotify instance, without which there are no watches.
_NO_INSTANCE = "out of inotify instances (sysctl fs.inotify.max_user_instances)"


class Changes(NamedTuple):
  """What happened since the last look, or the first part of it.

  @ivar number: how many changes these are, of whatever kind
  @ivar names: the names that appeared in the directory
  @ivar closed: the names of files there that were closed after writing
  @ivar path: whether the path may lead elsewhere now: follow it
  @ivar lost: whether the kernel dropped events: look at everything

  """

  number: int
  names: set[str]
  closed: set[str]
  path: bool
  lost: bool


class Watch:
  """Watches one path.

  @ivar path: the path, absolute
  @ivar directory: a descriptor of the directory that the path led to when it
    was last followed; None if it led nowhere. It belongs to the watch.
  @ivar blindness: why not all changes are told; empty if they are. L{follow}
    tries again.

  """

  def __init__(self, path: str) -> None:
    """Begins to watch; L{follow} has to be called first.

    @param path: absolute
    @raise OSError: if there is no descriptor left

    """
    self.path = path
    self.directory: Optional[int] = None
    self.blindness = ""
    # It is there from the beginning, whenever there is something to poll.
    self._poller = select.epoll()
    self._manager: Optional[pyinotify.WatchManager] = None
    # Which names matter in which watched directory, by watch descriptor.
    self._steps: dict[int, set[str]] = {}
    self._target: Optional[int] = None

  def fileno(self) -> int:
    """Returns the descriptor that becomes readable when there are changes."""
    return self._poller.fileno()

  def close(self) -> None:
    """Stops watching."""
    self._poller.close()
    if self._manager is not None:
      self._manager.close()
    self._replace_directory(None)

  def read(self) -> Changes:
    """Takes the changes since the last call, if any.

    The descriptor stays readable when there are more.

    """
    names: set[str] = set()
    closed: set[str] = set()
    path = lost = False
    data = self._read()
    position = number = 0
    while position < len(data):
      number += 1
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
    return Changes(number, names, closed, path, lost)

  def follow(self) -> bool:
    """Follows the path anew and watches whatever there is of it.

    @return: whether L{directory} is another directory than before, or None
      where it was not
    @raise OSError: if the path leads to something that is no directory, or may
      not be entered; L{directory} is None then

    """
    old = self._watches()
    self._steps = {}
    self._target = None
    self.blindness = ""
    if self._manager is None:
      self._open_manager()
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

  def _open_manager(self) -> None:
    """Gets an inotify instance, if there is one to be had."""
    # WatchManager itself does not say what went wrong, and finds its C library
    # by running ldconfig, every time.
    probe = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    if probe < 0:
      number = ctypes.get_errno()
      exhausted = number in {errno.EMFILE, errno.ENFILE}
      self.blindness = _NO_INSTANCE if exhausted else os.strerror(number)
      return
    os.close(probe)
    try:
      self._manager = pyinotify.WatchManager()
    except OSError:
      # Somebody else was faster.
      self.blindness = _NO_INSTANCE
      return
    descriptor = self._manager.get_fd()
    os.set_blocking(descriptor, False)
    os.set_inheritable(descriptor, False)
    self._poller.register(descriptor, select.EPOLLIN)

  def _read(self) -> bytes:
    if self._manager is None:
      return b""
    try:
      return os.read(self._manager.get_fd(), _READ_SIZE)
    except BlockingIOError:
      return b""

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
    if watch is not None:
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

  def _add(self, descriptor: int, place: str, mask: int) -> Optional[int]:
    """Watches an open directory, and no other that has its name by now.

    @return: the watch; None if there is none to be had
    @raise OSError: if the directory cannot be watched for another reason

    """
    if self._manager is None:
      return None
    try:
      added = self._manager.add_watch(
        f"/proc/self/fd/{descriptor}", mask | pyinotify.IN_MASK_ADD, quiet=False
      )
    except pyinotify.WatchManagerError as err:
      number = ctypes.get_errno()
      if number in _EXHAUSTED:
        self.blindness = _EXHAUSTED[number]
        return None
      raise OSError(number, os.strerror(number), place) from err
    return int(next(iter(added.values())))

  def _remove(self, watch: int) -> None:
    assert self._manager is not None
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
      assert self._manager is not None
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

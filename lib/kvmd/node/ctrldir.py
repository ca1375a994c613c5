# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The control directory: the names of its files, and which lives they tell of.

The directory holds, for each instance, the sockets that its QEMU makes, its
journal, and the marks that the daemon and the hypervisor leave for each other.
What all of them are called is written down here only.

Everything is done relative to the open directory and without following links:
what a name stands for may change at any time.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import directory_locks, own_files

if TYPE_CHECKING:
  from typing import Optional

#: What the names of the monitors for the daemon end in.
MONITOR_SUFFIX = ".kvmd"

#: What QEMU is told of a journal, and what it makes of that: the file that it
#: reads its commands from, and the one that it writes events to.
JOURNAL = ".journal"
JOURNAL_COMMANDS = JOURNAL + ".in"
JOURNAL_EVENTS = JOURNAL + ".out"

#: The summary of a journal's beginning, and the same while it is written. Of a
#: journal's files this one is never open to QEMU: its date is that of the life.
JOURNAL_DIGEST = JOURNAL + ".digest"
JOURNAL_NEW_DIGEST = JOURNAL_DIGEST + ".new"

#: What the names of Ganeti's own monitors end in.
_GANETI_MONITOR = ".qmp"

#: Where Ganeti has the process numbers of its instances, and what it starts
#: them with, seen from its control directory; with another nothing is there.
_PROCESS_NUMBERS = os.path.join("..", "pid")
_RUNTIMES = os.path.join("..", "conf")

#: Says which rule the daemon judges by, and the same while it is written.
RULE = ".ganeti-kvmd.rule"
NEW_RULE = ".new" + RULE

#: The file with the locks of the directory.
LOCK_FILE = directory_locks.LOCK_FILE


class Instances(NamedTuple):
  """The names of the instances that have something to follow.

  @ivar monitored: those with a monitor
  @ivar journaled: those with a journal, or what is left of one
  @ivar marked: those with a mark

  """

  monitored: set[str]
  journaled: set[str]
  marked: set[str]


class Life(NamedTuple):
  """One life of an instance, told from the next by a file that is made anew.

  That is its monitor's socket, or its journal. The inode number alone would not
  do, since file systems give the numbers out again.

  @ivar inode: the file's inode number
  @ivar born: when the file was made, in nanoseconds since the epoch, by the
    clock of the file system; of a journal it is the date of the digest, which
    QEMU cannot change

  """

  inode: int
  born: int


class OpenMonitor(NamedTuple):
  """A monitor's socket, held by a descriptor whatever becomes of its name.

  @ivar descriptor: an C{O_PATH} descriptor of the socket
  @ivar life: the life of the instance that the socket belongs to

  """

  descriptor: int
  life: Life


class MissingDirectoryError(FileNotFoundError):
  """There is no control directory that may be used."""


def ganeti_path() -> str:
  """Returns the path of Ganeti's own control directory.

  @raise ImportError: if there is no Ganeti

  """
  from ganeti import pathutils

  return os.path.join(pathutils.RUN_DIR, "kvm-hypervisor", "ctrl")


class ControlDirectory:
  """An open control directory.

  @ivar path: where it was found

  """

  def __init__(self, path: str, descriptor: Optional[int], suffix: str) -> None:
    """Works in a directory that somebody else has opened and will close.

    @param descriptor: of the directory, open for reading; None if it is
      missing: whatever is done there raises L{MissingDirectoryError} then
    @param suffix: what the names of monitor sockets end in

    """
    self.path = path
    self._descriptor = descriptor
    self._locks: Optional[directory_locks.DirectoryLocks] = None
    self._suffix = suffix
    # What the names of all monitors end in, each once.
    self._monitors = {suffix, MONITOR_SUFFIX, _GANETI_MONITOR}

  @property
  def descriptor(self) -> int:
    """The open directory.

    @raise MissingDirectoryError: if it is missing

    """
    if self._descriptor is None:
      raise MissingDirectoryError(
        errno.ENOENT, os.strerror(errno.ENOENT), self.path
      )
    return self._descriptor

  @property
  def locks(self) -> directory_locks.DirectoryLocks:
    """Whose it is, and who changes files there just now.

    @raise MissingDirectoryError: if it is missing

    """
    if self._locks is None:
      self._locks = directory_locks.DirectoryLocks(self.path, self.descriptor)
    return self._locks

  def monitored_by(self, name: str) -> Optional[str]:
    """Returns the instance whose monitor a file is by its name, if any."""
    if name.endswith(self._suffix) and len(name) > len(self._suffix):
      return name[: -len(self._suffix)]
    return None

  def check_access(self) -> None:
    """Makes sure that shutdown files can be written and removed.

    @raise PermissionError: if not

    """
    if not os.access(
      ".", os.W_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=True
    ):
      reason = os.strerror(errno.EACCES) + " to write there"
      raise PermissionError(errno.EACCES, reason, self.path)

  def journaled_by(self, name: str) -> Optional[str]:
    """Returns the instance whose journal a file is by its name, if any."""
    if name.endswith(JOURNAL_EVENTS) and len(name) > len(JOURNAL_EVENTS):
      return name[: -len(JOURNAL_EVENTS)]
    return None

  def instances(self) -> Instances:
    """Lists the instances that have a monitor or a journal.

    @raise OSError: if the directory cannot be read

    """
    # Plain names: an object for each entry would take five times as long.
    names = os.listdir(self.descriptor)
    return Instances(
      _begins_of(names, self._suffix),
      # Of a journal's files this is made first and removed last.
      _begins_of(names, JOURNAL_DIGEST),
      set().union(*(_begins_of(names, mark.value) for mark in Mark)),
    )

  def open_monitor(self, instance: str) -> OpenMonitor:
    """Takes hold of an instance's monitor without connecting to it.

    @raise FileNotFoundError: if there is none
    @raise OSError: if it is no socket (C{ENOTSOCK}; links are not followed),
      or there is no descriptor left

    """
    name = instance + self._suffix
    descriptor = os.open(
      name,
      os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
      dir_fd=self.descriptor,
    )
    found = os.fstat(descriptor)
    if not stat.S_ISSOCK(found.st_mode):
      os.close(descriptor)
      raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), name)
    return OpenMonitor(descriptor, _life(found))

  def life(self, instance: str) -> Life:
    """Returns the present life of an instance; if it is down, the last one.

    @raise OSError: if that cannot be found out

    """
    found = self.find(instance + self._suffix)
    # Without a socket any life that there was is older than now.
    return Life(0, time.time_ns()) if found is None else _life(found)

  def journaled_life(self, instance: str) -> Optional[Life]:
    """Returns the life that an instance's journal tells of, if it has one.

    @raise OSError: if that cannot be found out

    """
    events = self.find(instance + JOURNAL_EVENTS)
    if events is None:
      return None
    digest = self.find(instance + JOURNAL_DIGEST)
    if digest is None:
      return None
    return Life(events.st_ino, digest.st_mtime_ns)

  def is_journal_outdated(self, instance: str, last: int) -> bool:
    """Tells whether a life is known of that is younger than a journal.

    What a QEMU makes at its start was there when it read the commands of its
    journal: that holds however the clock was set since then.

    @param last: when the journal was written to last, in nanoseconds since the
      epoch
    @raise OSError: if that cannot be found out

    """
    commands = self.find(instance + JOURNAL_COMMANDS)
    # Without them it is just being removed.
    return commands is not None and self.is_outdated(
      instance, commands.st_atime_ns, last
    )

  def is_outdated(self, instance: str, started: int, last: int) -> bool:
    """Tells whether a younger life of an instance is known of.

    What says something of an earlier life must not speak of a later one. Who
    starts that one may know nothing of us: then no more than its sockets and
    Ganeti's files tell of it, of which the last stays when QEMU ends well.

    @param started: when the life in question had made all that it made at its
      start, in nanoseconds since the epoch
    @param last: when the last was written that is known of it, likewise
    @raise OSError: if that cannot be found out

    """
    for name in (
      *(instance + each for each in self._monitors),
      os.path.join(_PROCESS_NUMBERS, instance),
      os.path.join(_RUNTIMES, instance + ".runtime"),
    ):
      found = self.find(name)
      # The kernel's dates are the same for some milliseconds.
      if found is not None and started < found.st_mtime_ns >= last:
        return True
    return False

  def has_monitor(self, instance: str) -> bool:
    """Tells whether there is a file that has the name of a monitor.

    @raise OSError: if that cannot be found out

    """
    return self.find(instance + self._suffix) is not None

  def has_journal(self, instance: str) -> bool:
    """Tells whether an instance has a journal.

    @raise OSError: if that cannot be found out

    """
    return self.find(instance + JOURNAL_EVENTS) is not None

  def journal_tells_of(self, instance: str, life: Life) -> bool:
    """Tells whether an instance's journal is that of a life.

    QEMU makes its monitor before it opens its journal. So the present one, if
    there is one, is of the same QEMU; else the dates have to tell.

    @param life: as it is told from others by its monitor
    @raise OSError: if that cannot be found out

    """
    journaled = self.journaled_life(instance)
    if journaled is None:
      return False
    monitor = self.find(instance + self._suffix)
    if monitor is not None:
      return _life(monitor) == life
    return journaled.born < life.born

  def is_reborn(self, instance: str, life: Life) -> bool:
    """Tells whether all that there is belongs to another life.

    @raise OSError: if that cannot be found out

    """
    monitor = self.find(instance + self._suffix)
    if monitor is not None and _life(monitor) == life:
      return False
    journaled = self.journaled_life(instance)
    if journaled is None:
      return monitor is not None
    return journaled != life

  def find(self, name: str) -> Optional[os.stat_result]:
    """Looks at a file, not at what it may link to; None if there is none.

    @raise OSError: if that cannot be found out

    """
    return own_files.find(self.descriptor, name)


def _life(found: os.stat_result) -> Life:
  return Life(found.st_ino, found.st_mtime_ns)


def _begins_of(names: list[str], ending: str) -> set[str]:
  """Returns what stands in front of an ending, where something does."""
  return {
    name[: -len(ending)]
    for name in names
    if name.endswith(ending) and name != ending
  }

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The control directory: the names of its files, and the marks left there.

The directory holds, for each instance, the sockets that its QEMU makes and the
marks that the daemon and the hypervisor leave for each other: empty files that
say something of one life of the instance. They are written and removed here
only, and what they are called is written down here only. So is what the daemon
says there of itself: by which rule it judges, as the hypervisor has to judge by
the same when no daemon runs.

Everything is done relative to the open directory and without following links:
what a name stands for may change at any time.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import lockfile
from ganeti.kvmd.marks import Mark

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
_NEW_RULE = ".new" + RULE

#: No rule's name is as long.
_MAX_RULE = 64

#: The file with the locks of the directory; it stays when nobody has any.
LOCK_FILE = ".ganeti-kvmd.lock"

_FILE_MODE = 0o600

#: Seconds after which it is tried again to get a lock.
_LOCK_INTERVAL = 0.01

# A monitor's name may be so long that no mark's name fits: there is none then.
_NO_SUCH_FILE = (errno.ENOENT, errno.ENAMETOOLONG)


class Lock(enum.IntEnum):
  """What there is a lock for; the value is its byte in the lock file.

  @cvar DAEMON: to be the daemon of the directory
  @cvar CHANGES: to change files that belong together

  """

  DAEMON = 0
  CHANGES = 1


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


class Found(NamedTuple):
  """A mark that is there.

  @ivar is_current: whether it speaks of the life in question, not of another
  @ivar at: when it was made, in seconds since the epoch

  """

  is_current: bool
  at: float


class OpenMonitor(NamedTuple):
  """A monitor's socket, held by a descriptor whatever becomes of its name.

  @ivar descriptor: an C{O_PATH} descriptor of the socket
  @ivar life: the life of the instance that the socket belongs to

  """

  descriptor: int
  life: Life


class MissingDirectoryError(FileNotFoundError):
  """There is no control directory that may be used."""


class KeptOut(NamedTuple):
  """That somebody else had the lock for changes, time and again.

  @ivar first: when that was found first, in seconds of the monotonic clock
  @ivar last: when it was found last
  @ivar reason: who it was, or why there was no lock to be had

  """

  first: float
  last: float
  reason: str


def ganeti_path() -> str:
  """Returns the path of Ganeti's own control directory.

  @raise ImportError: if there is no Ganeti

  """
  from ganeti import pathutils

  return os.path.join(pathutils.RUN_DIR, "kvm-hypervisor", "ctrl")


def daemon_of(path: str) -> Optional[int]:
  """Returns the process of the daemon of a control directory, if there is one.

  To look takes no lock, and so is in nobody's way.

  @param path: of the directory, which may be missing
  @return: 0 if it is not known which process it is
  @raise OSError: if that cannot be found out

  """
  return lockfile.holder(os.path.join(path, LOCK_FILE), Lock.DAEMON)


class ControlDirectory:
  """An open control directory.

  @ivar path: where it was found
  @ivar kept_out: since when L{lock} has failed, unless it succeeded last

  """

  def __init__(self, path: str, descriptor: Optional[int], suffix: str) -> None:
    """Works in a directory that somebody else has opened and will close.

    @param descriptor: of the directory, open for reading; None if it is
      missing: whatever is done there raises L{MissingDirectoryError} then
    @param suffix: what the names of monitor sockets end in

    """
    self.path = path
    self._descriptor = descriptor
    self.kept_out: Optional[KeptOut] = None
    self._suffix = suffix
    # What the names of all monitors end in, each once.
    self._monitors = {suffix, MONITOR_SUFFIX, _GANETI_MONITOR}
    self._claim: Optional[lockfile.LockFile] = None
    # What is locked is the file of the claim, or else one for that moment.
    self._changed: Optional[lockfile.LockFile] = None

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
      claim = self._open_lock_file(Lock.DAEMON)
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
          time.sleep(_LOCK_INTERVAL)
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
    """Lets others change files again."""
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
      return self._open_lock_file(Lock.CHANGES)
    # Whether it is still the one is looked at by the claim often enough.
    if not self._claim.lock(Lock.CHANGES):
      raise lockfile.LockedError(
        self._lock_path, self._claim.noted(Lock.CHANGES)
      )
    return self._claim

  def _open_lock_file(self, lock: Lock) -> lockfile.LockFile:
    try:
      return lockfile.LockFile(LOCK_FILE, lock, self.descriptor)
    except lockfile.LockedError as err:
      raise lockfile.LockedError(self._lock_path, err.process) from None
    except OSError as err:
      err.filename = self._lock_path
      raise

  @property
  def _lock_path(self) -> str:
    return os.path.join(self.path, LOCK_FILE)

  def life(self, instance: str) -> Life:
    """Returns the present life of an instance; if it is down, the last one.

    @raise OSError: if that cannot be found out

    """
    found = self._find(instance + self._suffix)
    # Without a socket any life that there was is older than now.
    return Life(0, time.time_ns()) if found is None else _life(found)

  def journaled_life(self, instance: str) -> Optional[Life]:
    """Returns the life that an instance's journal tells of, if it has one.

    @raise OSError: if that cannot be found out

    """
    events = self._find(instance + JOURNAL_EVENTS)
    digest = self._find(instance + JOURNAL_DIGEST)
    if events is None or digest is None:
      return None
    return Life(events.st_ino, digest.st_mtime_ns)

  def marked_at(self, mark: Mark, instance: str, life: Life) -> Optional[float]:
    """Tells when a life of an instance was marked.

    @return: in seconds since the epoch; None if it was not
    @raise OSError: if that cannot be found out

    """
    found = self.look(mark, instance, life)
    return found.at if found is not None and found.is_current else None

  def is_journal_outdated(self, instance: str, last: int) -> bool:
    """Tells whether a life is known of that is younger than a journal.

    What a QEMU makes at its start was there when it read the commands of its
    journal: that holds however the clock was set since then.

    @param last: when the journal was written to last, in nanoseconds since the
      epoch
    @raise OSError: if that cannot be found out

    """
    commands = self._find(instance + JOURNAL_COMMANDS)
    # Without them it is just being removed.
    return commands is not None and self._is_outdated(
      instance, commands.st_atime_ns, last
    )

  def _is_outdated(self, instance: str, started: int, last: int) -> bool:
    """Tells whether a younger life of an instance is known of.

    What says something of an earlier life must not speak of a later one. Who
    starts that one may know nothing of us: then no more than its sockets and
    Ganeti's files tell of it, of which the last stays when QEMU ends well.

    @param started: when the life in question had made all that it made at its
      start, in nanoseconds since the epoch
    @param last: when the last was written that is known of it, likewise

    """
    for name in (
      *(instance + each for each in self._monitors),
      os.path.join(_PROCESS_NUMBERS, instance),
      os.path.join(_RUNTIMES, instance + ".runtime"),
    ):
      found = self._find(name)
      # The kernel's dates are the same for some milliseconds.
      if found is not None and started < found.st_mtime_ns >= last:
        return True
    return False

  def has_monitor(self, instance: str) -> bool:
    """Tells whether there is a file that has the name of a monitor.

    @raise OSError: if that cannot be found out

    """
    return self._find(instance + self._suffix) is not None

  def has_journal(self, instance: str) -> bool:
    """Tells whether an instance has a journal.

    @raise OSError: if that cannot be found out

    """
    return self._find(instance + JOURNAL_EVENTS) is not None

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
    monitor = self._find(instance + self._suffix)
    if monitor is not None:
      return _life(monitor) == life
    return journaled.born < life.born

  def is_marked(self, mark: Mark, instance: str) -> bool:
    """Tells whether an instance is marked, and nothing younger is known of it.

    @raise OSError: if that cannot be found out

    """
    found = self._find(instance + mark.value)
    # It may be made in the moment in which its QEMU was started.
    return found is not None and not self._is_outdated(
      instance, found.st_mtime_ns - 1, found.st_ctime_ns + 1
    )

  def look(self, mark: Mark, instance: str, life: Life) -> Optional[Found]:
    """Finds out whether an instance is marked, in which life, and since when.

    @return: None if there is no mark
    @raise OSError: if that cannot be found out

    """
    found = self._find(instance + mark.value)
    if found is None:
      return None
    return Found(
      is_current=found.st_mtime_ns > life.born, at=found.st_ctime_ns / 1e9
    )

  def write(self, mark: Mark, instance: str, life: Life) -> bool:
    """Marks an instance.

    The file is dated just after the birth of the life that it speaks of, or
    just after all was made that belongs to its start. So it is never taken for
    one of another life, however late it is written and however the clock was
    set meanwhile. If the instance lives anew already, none is written; and if
    the hypervisor removes it at once, that counts.

    @return: whether it was written
    @raise OSError: if the file cannot be written

    """
    if self._is_reborn(instance, life):
      return False
    name = instance + mark.value
    try:
      self._create(name)
      commands = self._find(instance + JOURNAL_COMMANDS)
      started = 0 if commands is None else commands.st_atime_ns
      return self._date(name, max(life.born, started) + 1)
    except OSError as err:
      # Python says it of neither call.
      err.filename = name
      raise

  def remove(self, mark: Mark, instance: str) -> bool:
    """Takes a mark away.

    @return: whether there was one
    @raise OSError: if it cannot be removed

    """
    return self._unlink(instance + mark.value)

  def rule(self) -> Optional[str]:
    """Returns the rule that a daemon has said it judges by.

    @return: None if none has, or it was somebody else

    """
    try:
      descriptor = os.open(
        RULE,
        os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        dir_fd=self.descriptor,
      )
    except OSError:
      return None
    try:
      if not _is_only_ours(os.fstat(descriptor)):
        return None
      text = os.read(descriptor, _MAX_RULE)
    except OSError:
      return None
    finally:
      os.close(descriptor)
    return text.decode("ascii", "replace").removesuffix("\n")

  def say_rule(self, rule: Optional[str]) -> None:
    """Says which rule the daemon judges by, for as long as none says another.

    @param rule: None if nothing is to be said of it
    @raise OSError: if that cannot be written or removed

    """
    if rule is not None and self.rule() == rule:
      return
    try:
      self._unlink(_NEW_RULE)
      if rule is None:
        self._unlink(RULE)
      else:
        self._write_rule(rule.encode("ascii") + b"\n")
    except OSError as err:
      # Not every call says it, and the other name is of no interest.
      err.filename = RULE
      raise

  def _write_rule(self, text: bytes) -> None:
    descriptor = os.open(
      _NEW_RULE,
      os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
      _FILE_MODE,
      dir_fd=self.descriptor,
    )
    with open(descriptor, "wb") as file:
      file.write(text)
    os.rename(
      _NEW_RULE, RULE, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor
    )

  def _unlink(self, name: str) -> bool:
    """Removes a file.

    @return: whether there was one

    """
    descriptor = self.descriptor
    try:
      os.unlink(name, dir_fd=descriptor)
    except OSError as err:
      if err.errno in _NO_SUCH_FILE:
        return False
      raise
    return True

  def _is_reborn(self, instance: str, life: Life) -> bool:
    """Tells whether all that there is belongs to another life."""
    monitor = self._find(instance + self._suffix)
    if monitor is not None and _life(monitor) == life:
      return False
    journaled = self.journaled_life(instance)
    if journaled is None:
      return monitor is not None
    return journaled != life

  def _find(self, name: str) -> Optional[os.stat_result]:
    """Looks at a file, not at what it may link to; None if there is none."""
    descriptor = self.descriptor
    try:
      return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except OSError as err:
      if err.errno in _NO_SUCH_FILE:
        return None
      raise

  def _create(self, name: str) -> None:
    """Sees to it that there is an empty file of our own."""
    # In one step, which also nobody hears of who waits for files to be closed.
    kind = stat.S_IFREG | _FILE_MODE
    try:
      os.mknod(name, kind, dir_fd=self.descriptor)
    except FileExistsError:
      found = self._find(name)
      if found is not None and not _is_mark(found):
        os.unlink(name, dir_fd=self.descriptor)
        os.mknod(name, kind, dir_fd=self.descriptor)

  def _date(self, name: str, date: int) -> bool:
    """Dates a file, in nanoseconds since the epoch.

    @return: whether it is still there

    """
    try:
      os.utime(
        name,
        ns=(date, date),
        dir_fd=self.descriptor,
        follow_symlinks=False,
      )
    except FileNotFoundError:
      return False
    return True


def _life(found: os.stat_result) -> Life:
  return Life(found.st_ino, found.st_mtime_ns)


def _is_mark(found: os.stat_result) -> bool:
  """Tells whether a file is what marks are: regular, empty, and only here."""
  return (
    stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and not found.st_size
  )


def _is_only_ours(found: os.stat_result) -> bool:
  """Tells whether nobody else can have written a file."""
  return (
    stat.S_ISREG(found.st_mode)
    and found.st_nlink == 1
    and found.st_uid == os.geteuid()
    and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  )


def _begins_of(names: list[str], ending: str) -> set[str]:
  """Returns what stands in front of an ending, where something does."""
  return {
    name[: -len(ending)]
    for name in names
    if name.endswith(ending) and name != ending
  }

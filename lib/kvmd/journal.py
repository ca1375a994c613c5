# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The journal: events that QEMU wrote down itself.

Given two regular files as the two ends of a monitor's pipe, QEMU reads
C{qmp_capabilities} from the one and appends all that it has to say to the
other, whether or not anybody listens. When the process ends, however it ends,
the kernel closes that file. So the daemon needs no connection, and the
hypervisor no daemon, to know what the instance died of.

A third file, the digest, keeps a journal from growing for ever. It says how
far the journal was read and holds the few events in front of that place which
still count; what it covers is given back to the file system. It is replaced in
one step, before anything is given back, so that there is no moment at which
something is missing.

The files are in a directory that root alone can write to, but QEMU writes one
of them: each is checked, and what is odd about it makes the verdict unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import stat
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import lifecycle, qmp
from ganeti.kvmd.ctrldir import (
  JOURNAL,
  JOURNAL_COMMANDS,
  JOURNAL_DIGEST,
  JOURNAL_EVENTS,
  JOURNAL_NEW_DIGEST,
  Life,
)

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Any, Optional

  from ganeti.kvmd.ctrldir import ControlDirectory

#: All files of a journal. The events are removed first: without them the rest
#: means nothing.
_FILES = (
  JOURNAL_EVENTS,
  JOURNAL_DIGEST,
  JOURNAL_NEW_DIGEST,
  JOURNAL_COMMANDS,
)

_FILE_MODE = 0o600
_READ_SIZE = 64 * 1024

#: Errors that say nothing about a file, only about us or the machine; EAGAIN:
#: somebody asks just now who writes it.
_OUR_TROUBLE = (
  errno.EAGAIN,
  errno.EIO,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
)

#: Longest that the hypervisor waits for the daemon, in seconds.
_LOCK_PATIENCE = 1.0

#: A digest has at most four events, none of them long.
_MAX_DIGEST = 64 * 1024

#: A journal that occupies as many bytes is digested.
_DIGEST_SIZE = 64 * 1024

#: So many bytes are reserved ahead of what QEMU has written: a hundred events.
_RESERVED = 16 * 1024

# linux/falloc.h
_KEEP_SIZE = 1
_PUNCH_HOLE = 2

#: Holes are made of whole pages.
_PAGE = os.sysconf("SC_PAGESIZE")


class JournalError(Exception):
  """A journal cannot be relied upon; the text says why."""


class Record(NamedTuple):
  """What a journal tells.

  @ivar lifecycle: the state that its events lead to
  @ivar version: QEMU's version; empty if QEMU never came to open the journal
  @ivar ended: when QEMU wrote last, in seconds since the epoch
  @ivar size: how many bytes there were
  @ivar digest: the same in short

  """

  lifecycle: lifecycle.Lifecycle
  version: str
  ended: float
  size: int
  digest: Digest


class Digest(NamedTuple):
  """The part of a journal that was read, in short.

  @ivar journal: the inode number of the journal that it belongs to
  @ivar position: how many bytes it covers
  @ivar version: QEMU's version
  @ivar events: the names and data of the events that still count

  """

  journal: int
  position: int
  version: str
  events: list[tuple[str, dict[str, Any]]]


def prepare(directory: ControlDirectory, name: str) -> list[str]:
  """Makes the files for a journal that a QEMU is about to be started with.

  @param name: the instance's
  @return: the options that make QEMU write it
  @raise OSError: if the files cannot be made

  """
  with _daemon_kept_out(directory):
    try:
      _remove(directory, name)
      with _create(directory, name + JOURNAL_COMMANDS) as file:
        file.write(qmp.CAPABILITIES)
      with _create(directory, name + JOURNAL_EVENTS) as file:
        _reserve(file.fileno(), 0)
    except OSError:
      with contextlib.suppress(OSError):
        _remove(directory, name)
      raise
  # QEMU takes a comma in a path for the end of it, unless it is doubled.
  path = os.path.join(directory.path, name + JOURNAL).replace(",", ",,")
  return [
    "-chardev",
    f"pipe,id=kvmdjournal,path={path}",
    "-mon",
    "chardev=kvmdjournal,mode=control",
  ]


def remove(directory: ControlDirectory, name: str) -> None:
  """Removes an instance's journal and all that belongs to it.

  @raise OSError: if it cannot be removed

  """
  with _daemon_kept_out(directory):
    _remove(directory, name)


def remove_life(directory: ControlDirectory, name: str, life: Life) -> None:
  """Removes an instance's journal of one life, and of no other.

  @raise BlockingIOError: if the hypervisor is about to make another
  @raise OSError: if it cannot be removed

  """
  with _locked(directory):
    if directory.journaled_life(name) in (None, life):
      _remove(directory, name)


def remove_rest(directory: ControlDirectory, name: str) -> None:
  """Removes what somebody left of a journal who was killed while removing it.

  @raise BlockingIOError: if the hypervisor is about to make another
  @raise OSError: if it cannot be removed

  """
  with _locked(directory):
    if not directory.has_journal(name):
      _remove(directory, name)


def is_being_written(directory: ControlDirectory, name: str) -> bool:
  """Tells whether an instance has a journal that a QEMU may have open."""
  try:
    with opened(directory, name) as found:
      return found.is_being_written
  except (FileNotFoundError, JournalError):
    return False
  except OSError:
    return True


def is_long(directory: ControlDirectory, name: str) -> bool:
  """Tells whether it is worth while to condense an instance's journal."""
  try:
    found = os.stat(
      name + JOURNAL_EVENTS,
      dir_fd=directory.descriptor,
      follow_symlinks=False,
    )
  except OSError:
    return False
  return found.st_blocks * 512 >= _DIGEST_SIZE


def _remove(directory: ControlDirectory, name: str) -> None:
  for ending in _FILES:
    try:
      os.unlink(name + ending, dir_fd=directory.descriptor)
    except FileNotFoundError:
      pass


@contextlib.contextmanager
def _daemon_kept_out(directory: ControlDirectory) -> Iterator[None]:
  """Keeps the daemon from touching the journal of an earlier life.

  One that was stopped in there must not keep instances from starting.

  """
  is_locked = directory.lock(_LOCK_PATIENCE)
  try:
    yield
  finally:
    if is_locked:
      directory.unlock()


@contextlib.contextmanager
def _locked(directory: ControlDirectory) -> Iterator[None]:
  """Keeps the hypervisor from making a journal.

  @raise BlockingIOError: if it is about to

  """
  if not directory.lock(0.0):
    raise BlockingIOError(
      errno.EAGAIN, os.strerror(errno.EAGAIN), directory.path
    )
  try:
    yield
  finally:
    directory.unlock()


@contextlib.contextmanager
def opened(directory: ControlDirectory, name: str) -> Iterator[Journal]:
  """Opens an instance's journal.

  @raise FileNotFoundError: if it has none
  @raise JournalError: if it is not what QEMU was given to write to

  """
  commands = _open(directory, name + JOURNAL_COMMANDS, os.O_RDONLY)
  born = os.fstat(commands)
  os.close(commands)
  events = _open(directory, name + JOURNAL_EVENTS, os.O_RDONLY)
  try:
    yield Journal(directory, name, events, Life(born.st_ino, born.st_mtime_ns))
  finally:
    os.close(events)


class Journal:
  """An open journal.

  @ivar life: the life of the instance that it tells of

  """

  def __init__(
    self, directory: ControlDirectory, name: str, events: int, life: Life
  ) -> None:
    """Not to be called; see L{opened}."""
    self._directory = directory
    self._name = name
    self._events = events
    self.life = life

  @property
  def is_being_written(self) -> bool:
    """Whether a QEMU has it open.

    @raise JournalError: if that cannot be found out

    """
    # A lease for reading is given only where nobody can write. It is kept for
    # no longer than it takes to ask; who opens the file meanwhile waits for
    # that, and the signal about it is one that is ignored.
    try:
      fcntl.fcntl(self._events, fcntl.F_SETSIG, signal.SIGURG)
      fcntl.fcntl(self._events, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
      return True
    except OSError as err:
      # A file system without leases, say.
      reason = f"cannot tell whether QEMU writes it: {err.strerror}"
      raise JournalError(reason) from err
    fcntl.fcntl(self._events, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False

  def conclude(self, rule: lifecycle.Rule) -> Optional[Record]:
    """Reads it, if its QEMU has ended or never came to open it.

    What is found counts only if nobody wrote before and after it was read,
    and nothing came in between: QEMU may open it at any moment.

    @param rule: how a shutdown is judged
    @return: None if a QEMU has it open; if there is something else in it than
      QEMU's events, the verdict is that nothing is known
    @raise JournalError: if it cannot be found out who writes it

    """
    record = None
    while not self.is_being_written:
      if record and record.size == os.fstat(self._events).st_size:
        return record
      try:
        record = self.replay(rule)
      except JournalError as err:
        record = self._damaged(rule, err)
    return None

  def _damaged(self, rule: lifecycle.Rule, err: JournalError) -> Record:
    state = lifecycle.Lifecycle(rule)
    state.announced = lifecycle.Outcome(
      lifecycle.Verdict.UNKNOWN, f"its journal is of no use: {err}"
    )
    found = os.fstat(self._events)
    return Record(
      state,
      "unknown",
      found.st_mtime,
      found.st_size,
      Digest(found.st_ino, 0, "", []),
    )

  def replay(self, rule: lifecycle.Rule) -> Record:
    """Reads it from the end of its digest.

    @param rule: how a shutdown is judged
    @raise JournalError: if there is something else in it than QEMU's events

    """
    before = self._read_digest()
    try:
      return self._replay(rule, before)
    except JournalError:
      # Was what it covers given back while we read?
      after = self._read_digest()
      if after == before:
        raise
      return self._replay(rule, after)

  def condense(self, rule: lifecycle.Rule) -> None:
    """Gives back what is not needed any more.

    @param rule: how a shutdown is judged
    @raise JournalError: if there is something else in it than QEMU's events
    @raise BlockingIOError: if the hypervisor is about to make another, or
      looks at this one
    @raise OSError: if the file system does not take part

    """
    digest = self.replay(rule).digest
    with _locked(self._directory):
      # A digest of this journal must not become that of another.
      if self._directory.journaled_life(self._name) == self.life:
        self._give_back(digest)

  def _give_back(self, digest: Digest) -> None:
    """Writes a digest, then gives back what it covers."""
    with _create(self._directory, self._name + JOURNAL_NEW_DIGEST) as file:
      file.write(json.dumps(digest).encode("ascii"))
    os.rename(
      self._name + JOURNAL_NEW_DIGEST,
      self._name + JOURNAL_DIGEST,
      src_dir_fd=self._directory.descriptor,
      dst_dir_fd=self._directory.descriptor,
    )
    writable = _open(self._directory, self._name + JOURNAL_EVENTS, os.O_RDWR)
    try:
      if os.path.sameopenfile(writable, self._events):
        _punch_hole(writable, digest.position // _PAGE * _PAGE)
        _reserve(writable, digest.position)
    finally:
      os.close(writable)

  def _replay(self, rule: lifecycle.Rule, digest: Digest) -> Record:
    state = lifecycle.Lifecycle(rule)
    essence = lifecycle.Essence()
    for name, data in digest.events:
      state.receive(name, data)
      essence.receive(name, data)
    version = digest.version
    position = digest.position
    decoder = qmp.Decoder()
    try:
      while chunk := os.pread(self._events, _READ_SIZE, position):
        position += len(chunk)
        for message in decoder.feed(chunk):
          if isinstance(message, qmp.Event):
            if message.name in lifecycle.EVENTS:
              state.receive(message.name, message.data)
              essence.receive(message.name, message.data)
          elif isinstance(message, qmp.Greeting):
            version = message.version or "unknown"
    except qmp.ProtocolError as err:
      raise JournalError(f"there is {err} in it") from err
    found = os.fstat(self._events)
    if found.st_size < digest.position:
      raise JournalError("it is shorter than it was")
    return Record(
      state,
      version,
      found.st_mtime,
      position,
      Digest(found.st_ino, position - decoder.pending, version, essence.events),
    )

  def _read_digest(self) -> Digest:
    journal = os.fstat(self._events).st_ino
    try:
      descriptor = _open(
        self._directory, self._name + JOURNAL_DIGEST, os.O_RDONLY
      )
    except FileNotFoundError:
      return Digest(journal, 0, "", [])
    try:
      text = os.read(descriptor, _MAX_DIGEST)
    finally:
      os.close(descriptor)
    digest = _parse_digest(text)
    if digest.journal != journal:
      raise JournalError("its digest belongs to another")
    return digest


def _parse_digest(text: bytes) -> Digest:
  """Parses a digest, which has to be just what L{Journal.condense} writes.

  @raise JournalError: if it is not

  """
  try:
    journal, position, version, events = json.loads(text)
    if not (
      isinstance(journal, int)
      and isinstance(position, int)
      and position >= 0
      and isinstance(version, str)
    ):
      raise ValueError(text)
    return Digest(
      journal,
      position,
      version,
      [(str(name), dict(data)) for name, data in events],
    )
  except (ValueError, TypeError, RecursionError) as err:
    raise JournalError("its digest is damaged") from err


def _open(directory: ControlDirectory, name: str, flags: int) -> int:
  """Opens a file that must be regular, ours, and nowhere else.

  @raise FileNotFoundError: if there is none
  @raise OSError: if there is no descriptor left, or the like
  @raise JournalError: if it is none of that, or cannot be opened

  """
  try:
    descriptor = os.open(
      name,
      flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
      dir_fd=directory.descriptor,
    )
  except OSError as err:
    if err.errno in (errno.ENOENT, errno.ENAMETOOLONG):
      raise FileNotFoundError(err.errno, err.strerror, name) from err
    if err.errno in _OUR_TROUBLE:
      raise
    raise JournalError(f"cannot open {name}: {err.strerror}") from err
  found = os.fstat(descriptor)
  if (
    not stat.S_ISREG(found.st_mode)
    or found.st_nlink > 1
    or found.st_uid != os.geteuid()
  ):
    os.close(descriptor)
    raise JournalError(f"{name} is no regular file of our own")
  return descriptor


@contextlib.contextmanager
def _create(directory: ControlDirectory, name: str) -> Iterator[Any]:
  with contextlib.suppress(FileNotFoundError):
    os.unlink(name, dir_fd=directory.descriptor)
  descriptor = os.open(
    name,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
    _FILE_MODE,
    dir_fd=directory.descriptor,
  )
  with open(descriptor, "wb") as file:
    yield file


def _punch_hole(descriptor: int, length: int) -> None:
  """Gives back the beginning of a file; it reads as zeros from then on.

  @raise OSError: if the file system cannot do that

  """
  if length:
    _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, length)


def _reserve(descriptor: int, position: int) -> None:
  """Makes sure that QEMU has room for its last words, also on a full disk.

  Of what there is no room for, QEMU drops the rest, and may go on after it.

  @raise OSError: if there is none

  """
  try:
    _fallocate(descriptor, _KEEP_SIZE, position, _RESERVED)
  except OSError as err:
    # Some file systems know no such thing.
    if err.errno != errno.EOPNOTSUPP:
      raise


def _fallocate(descriptor: int, mode: int, position: int, length: int) -> None:
  """Does what Python has no function for; see fallocate(2)."""
  fallocate = ctypes.CDLL(None, use_errno=True).fallocate
  fallocate.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
  ]
  if fallocate(descriptor, mode, position, length):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The files of a journal: making, opening, shortening and removing them.

  ====================  ============================  ========================
  file                  who has it open               what is in it
  ====================  ============================  ========================
  INSTANCE.journal.in   QEMU                          the one command
  INSTANCE.journal.out  QEMU, which writes it         QEMU's events
  INSTANCE....digest    nobody for long; dated as     what was read, in short
                        the life was begun
  ====================  ============================  ========================

They are in a directory that root alone can write to, but what a QEMU has open
it can write to, whatever user it runs as by then. So each file is checked when
it is opened, only the digest tells one life from the next, and how much of the
file system a journal takes is looked after by the daemon.

The digest is made first and removed last; without the events the rest means
nothing. What a digest covers is given back to the file system after it has
replaced the one before, so that there is no moment at which something is
missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import digest, qmp
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
  from typing import Optional

  from ganeti.kvmd.ctrldir import ControlDirectory

#: In the order in which they are removed.
_FILES = (
  JOURNAL_EVENTS,
  JOURNAL_NEW_DIGEST,
  JOURNAL_COMMANDS,
  JOURNAL_DIGEST,
)

_FILE_MODE = 0o600

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

#: So many bytes are reserved ahead of what QEMU has written, for its last words
#: on a full file system: some four hundred events. Without a daemon a journal
#: has this much and no more.
RESERVED = 64 * 1024

#: Most that is given back at a time of a journal that is of no use, in bytes:
#: that takes a millisecond or two.
_MAX_CUT = 16 * 1024 * 1024

# linux/falloc.h
_KEEP_SIZE = 1
_PUNCH_HOLE = 2

#: Holes are made of whole pages.
_PAGE = os.sysconf("SC_PAGESIZE")


class JournalError(Exception):
  """A journal cannot be relied upon; the text says why."""


class Extent(NamedTuple):
  """How much there is of a journal.

  @ivar size: how many bytes QEMU has written, those that were given back too
  @ivar allocated: how many bytes it takes from the file system

  """

  size: int
  allocated: int


def prepare(directory: ControlDirectory, name: str) -> list[str]:
  """Makes the files for a journal that a QEMU is about to be started with.

  @param name: the instance's
  @return: the options that make QEMU write it
  @raise OSError: if the files cannot be made

  """
  with _daemon_kept_out(directory):
    try:
      _remove(directory, name)
      os.close(_create(directory, name + JOURNAL_DIGEST))
      _write(directory, name + JOURNAL_COMMANDS, qmp.CAPABILITIES)
      events = _create(directory, name + JOURNAL_EVENTS)
      try:
        _reserve(events, 0)
      finally:
        os.close(events)
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


@contextlib.contextmanager
def opened(directory: ControlDirectory, name: str) -> Iterator[JournalFiles]:
  """Opens an instance's journal.

  @raise FileNotFoundError: if it has none
  @raise JournalError: if it is not what QEMU was given to write to
  @raise OSError: if there is no descriptor left, or the like

  """
  life = directory.journaled_life(name)
  if life is None:
    raise FileNotFoundError(
      errno.ENOENT, os.strerror(errno.ENOENT), name + JOURNAL_EVENTS
    )
  events = _open(directory, name + JOURNAL_EVENTS, os.O_RDONLY)
  try:
    if os.fstat(events).st_ino != life.inode:
      raise FileNotFoundError(
        errno.ENOENT, "replaced by that of another life", name + JOURNAL_EVENTS
      )
    yield JournalFiles(directory, name, events, life)
  finally:
    os.close(events)


class JournalFiles:
  """The files of one open journal.

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

  @property
  def written_at(self) -> int:
    """When it was written to last, in nanoseconds since the epoch."""
    return os.fstat(self._events).st_mtime_ns

  def extent(self) -> Extent:
    """Tells how much there is of it."""
    return _extent(os.fstat(self._events))

  def read(self, length: int, position: int) -> bytes:
    """Reads a part of the events.

    @raise OSError: if that fails

    """
    return os.pread(self._events, length, position)

  def read_digest(self) -> digest.Digest:
    """Reads the digest; one that says nothing yet is as good as any.

    @raise JournalError: if it is damaged, or that of another journal
    @raise OSError: if it cannot be read

    """
    journal = self.life.inode
    try:
      descriptor = _open(
        self._directory, self._name + JOURNAL_DIGEST, os.O_RDONLY
      )
    except FileNotFoundError:
      # It was removed while we look: what was read will not count.
      return digest.Digest(journal, 0, "", [])
    try:
      text = os.read(descriptor, digest.MAX_SIZE)
    finally:
      os.close(descriptor)
    if not text:
      return digest.Digest(journal, 0, "", [])
    try:
      found = digest.parse(text)
    except digest.DamagedError as err:
      raise JournalError(str(err)) from err
    if found.journal != journal:
      raise JournalError("its digest belongs to another")
    return found

  def give_back(self, read: digest.Digest) -> None:
    """Writes a digest, then gives back what it covers.

    @raise BlockingIOError: if the hypervisor is about to make another journal,
      or looks at this one
    @raise OSError: if the file system does not take part

    """
    with _locked(self._directory):
      # A digest of this journal must not become that of another.
      if self._directory.journaled_life(self._name) != self.life:
        return
      with self._writable() as writable:
        try:
          self._replace_digest(read)
        except OSError as err:
          if err.errno != errno.ENOSPC:
            raise
          # Of what is reserved a page will do, till that is done anew.
          _punch_hole(writable, self.extent().size + _PAGE, 2 * RESERVED)
          self._replace_digest(read)
        _punch_hole(writable, 0, read.position)
        _reserve(writable, read.position)

  def reserve(self) -> None:
    """Makes sure that QEMU has room for its last words.

    @raise OSError: if there is none

    """
    with self._writable() as writable:
      _reserve(writable, os.fstat(writable).st_size)

  def cut(self) -> None:
    """Gives back some of what there is, read or not, but not all at once.

    The journal is of no use after that: what is missing reads as zeros.

    @raise OSError: if the file system does not take part

    """
    with self._writable() as writable:
      try:
        begin = os.lseek(writable, 0, os.SEEK_DATA)
      except OSError as err:
        if err.errno != errno.ENXIO:
          raise
        # Whoever has it open may have reserved as much as there is, behind
        # its end: a file that is cut there has no more of that.
        os.ftruncate(writable, os.fstat(writable).st_size)
      else:
        _punch_hole(writable, begin // _PAGE * _PAGE, _MAX_CUT)

  def _replace_digest(self, read: digest.Digest) -> None:
    new = self._name + JOURNAL_NEW_DIGEST
    _write(self._directory, new, read.encode())
    os.utime(
      new,
      ns=(self.life.born, self.life.born),
      dir_fd=self._directory.descriptor,
      follow_symlinks=False,
    )
    os.rename(
      new,
      self._name + JOURNAL_DIGEST,
      src_dir_fd=self._directory.descriptor,
      dst_dir_fd=self._directory.descriptor,
    )

  @contextlib.contextmanager
  def _writable(self) -> Iterator[int]:
    """Opens the events for writing, if they are still those of this life."""
    descriptor = _open(self._directory, self._name + JOURNAL_EVENTS, os.O_RDWR)
    try:
      if not os.path.sameopenfile(descriptor, self._events):
        raise FileNotFoundError(
          errno.ENOENT,
          "replaced by that of another life",
          self._name + JOURNAL_EVENTS,
        )
      yield descriptor
    finally:
      os.close(descriptor)


def extent(directory: ControlDirectory, name: str) -> Optional[Extent]:
  """Tells how much there is of an instance's journal, without opening it.

  @return: None if it has none
  @raise OSError: if that cannot be found out

  """
  try:
    found = os.stat(
      name + JOURNAL_EVENTS,
      dir_fd=directory.descriptor,
      follow_symlinks=False,
    )
  except FileNotFoundError:
    return None
  return _extent(found)


def _extent(found: os.stat_result) -> Extent:
  return Extent(found.st_size, found.st_blocks * 512)


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


def _create(directory: ControlDirectory, name: str) -> int:
  """Makes a new file in the place of whatever there is.

  @return: its descriptor, open for writing

  """
  with contextlib.suppress(FileNotFoundError):
    os.unlink(name, dir_fd=directory.descriptor)
  return os.open(
    name,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
    _FILE_MODE,
    dir_fd=directory.descriptor,
  )


def _write(directory: ControlDirectory, name: str, text: bytes) -> None:
  with open(_create(directory, name), "wb") as file:
    file.write(text)


def _punch_hole(descriptor: int, position: int, length: int) -> None:
  """Gives back the whole pages of a part of a file, which then reads as zeros.

  @raise OSError: if the file system cannot do that

  """
  begin = -(-position // _PAGE) * _PAGE
  end = (position + length) // _PAGE * _PAGE
  if begin < end:
    _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, begin, end - begin)


def _reserve(descriptor: int, position: int) -> None:
  """Makes sure that QEMU has room for its last words, also on a full disk.

  Of what there is no room for, QEMU drops the rest, and may go on after it.

  @raise OSError: if there is none

  """
  # What is reserved for the last words takes as many pages at any position.
  begin = position // _PAGE * _PAGE
  try:
    _fallocate(descriptor, _KEEP_SIZE, begin, RESERVED)
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

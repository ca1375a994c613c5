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
import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import digest, qmp
from ganeti.kvmd.node import own_files, space
from ganeti.kvmd.node.ctrldir import (
  JOURNAL,
  JOURNAL_COMMANDS,
  JOURNAL_DIGEST,
  JOURNAL_EVENTS,
  JOURNAL_NEW_DIGEST,
  Life,
)

if TYPE_CHECKING:
  from collections.abc import Iterator

  from ganeti.kvmd.node.ctrldir import ControlDirectory

#: In the order in which they are removed.
_FILES = (JOURNAL_EVENTS, JOURNAL_NEW_DIGEST, JOURNAL_COMMANDS, JOURNAL_DIGEST)

#: Longest that the hypervisor waits for the daemon, in seconds.
_LOCK_PATIENCE = 1.0

#: So many bytes are reserved ahead of what QEMU has written, for its last words
#: on a full file system: some four hundred events. Without a daemon a journal
#: has this much and no more.
RESERVED = 64 * 1024


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
      own_files.write(directory.descriptor, name + JOURNAL_DIGEST, b"")
      own_files.write(
        directory.descriptor, name + JOURNAL_COMMANDS, qmp.CAPABILITIES
      )
      events = own_files.create(directory.descriptor, name + JOURNAL_EVENTS)
      with open(events, "wb"):
        space.reserve(events, 0, RESERVED)
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
    raise _missing(name + JOURNAL_EVENTS)
  with _opened_events(directory, name, life, os.O_RDONLY) as events:
    yield JournalFiles(directory, name, events, life)


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
      with _believed():
        text = own_files.read(
          self._directory.descriptor,
          self._name + JOURNAL_DIGEST,
          digest.MAX_SIZE,
        )
    except FileNotFoundError:
      # It was removed while we look: what was read will not count.
      text = b""
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
          space.punch_hole(
            writable, self.extent().size + space.PAGE, 2 * RESERVED
          )
          self._replace_digest(read)
        space.punch_hole(writable, 0, read.position)
        space.reserve(writable, read.position, RESERVED)

  def reserve(self) -> None:
    """Makes sure that QEMU has room for its last words.

    @raise OSError: if there is none

    """
    with self._writable() as writable:
      space.reserve(writable, os.fstat(writable).st_size, RESERVED)

  def cut(self) -> None:
    """Gives back some of what there is, read or not, but not all at once.

    The journal is of no use after that: what is missing reads as zeros.

    @raise OSError: if the file system does not take part

    """
    with self._writable() as writable:
      space.cut(writable)

  def _replace_digest(self, read: digest.Digest) -> None:
    own_files.replace(
      self._directory.descriptor,
      self._name + JOURNAL_DIGEST,
      self._name + JOURNAL_NEW_DIGEST,
      read.encode(),
      self.life.born,
    )

  def _writable(self) -> contextlib.AbstractContextManager[int]:
    """Opens the events for writing, if they are still those of this life."""
    return _opened_events(self._directory, self._name, self.life, os.O_RDWR)


def extent(directory: ControlDirectory, name: str) -> Extent:
  """Tells how much there is of an instance's journal, without opening it.

  @raise FileNotFoundError: if it has none
  @raise OSError: if that cannot be found out

  """
  found = own_files.find(directory.descriptor, name + JOURNAL_EVENTS)
  if found is None:
    raise _missing(name + JOURNAL_EVENTS)
  return _extent(found)


def _missing(name: str) -> FileNotFoundError:
  return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _extent(found: os.stat_result) -> Extent:
  return Extent(found.st_size, found.st_blocks * 512)


def _remove(directory: ControlDirectory, name: str) -> None:
  for ending in _FILES:
    own_files.remove(directory.descriptor, name + ending)


@contextlib.contextmanager
def _daemon_kept_out(directory: ControlDirectory) -> Iterator[None]:
  """Keeps the daemon from touching the journal of an earlier life.

  One that was stopped in there must not keep instances from starting.

  """
  directory.locks.lock(_LOCK_PATIENCE)
  try:
    yield
  finally:
    directory.locks.unlock()


@contextlib.contextmanager
def _locked(directory: ControlDirectory) -> Iterator[None]:
  """Keeps the hypervisor from making a journal.

  @raise BlockingIOError: if it is about to

  """
  if not directory.locks.lock(0.0):
    raise BlockingIOError(
      errno.EAGAIN, os.strerror(errno.EAGAIN), directory.path
    )
  try:
    yield
  finally:
    directory.locks.unlock()


@contextlib.contextmanager
def _opened_events(
  directory: ControlDirectory, name: str, life: Life, flags: int
) -> Iterator[int]:
  """Opens the events of one life of an instance.

  @raise FileNotFoundError: if there are none
  @raise JournalError: if they are in no file of our own
  @raise OSError: if there is no descriptor left, or the like

  """
  name += JOURNAL_EVENTS
  with _believed():
    descriptor = own_files.open_own(directory.descriptor, name, flags)
  try:
    if os.fstat(descriptor).st_ino != life.inode:
      raise _missing(name)
    yield descriptor
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _believed() -> Iterator[None]:
  """Makes a file that is not our own a fault of the journal."""
  try:
    yield
  except own_files.UnusableError as err:
    raise JournalError(str(err)) from err

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What is known of one instance by its journal, and how far that is read."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.follow.instance import Instance, Told
from ganeti.kvmd.node import (
  connection,
  journal,
  journal_files,
  journal_space,
  mark_files,
)

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.ctrldir import Life
  from ganeti.kvmd.node.journal_files import Extent, JournalFiles


class Progress(enum.Enum):
  """How far a journal is read.

  @cvar UNFINISHED: there is more
  @cvar UP_TO_DATE: a QEMU has it open, and all is read that was there
  @cvar SILENT: it is closed, and QEMU has not even greeted
  @cvar COMPLETE: it is closed, and read to its end

  """

  UNFINISHED = enum.auto()
  UP_TO_DATE = enum.auto()
  SILENT = enum.auto()
  COMPLETE = enum.auto()


class Journaled:
  """An instance and its journal.

  @ivar instance: the instance
  @ivar life: the life that the journal tells of; None if nothing could be found
    out yet
  @ivar reading: what was read since the digest; None if nothing was
  @ivar delay: how long the last wait for its closing to count was, in seconds;
    0 if it was not closed
  @ivar last: when its journal was written to last, in nanoseconds since the
    epoch, once it is read
  @ivar was_written: whether a QEMU was seen to have it open

  """

  __slots__ = (
    "_covered",
    "_extent",
    "_looked",
    "_shared",
    "delay",
    "instance",
    "last",
    "life",
    "reading",
    "was_written",
  )

  def __init__(self, name: str, life: Optional[Life], shared: Shared) -> None:
    self.instance = Instance(name, shared.rule, shared.quota, shared.history)
    self._shared = shared
    self.reading: Optional[journal.Reading] = None
    self.delay = 0.0
    self.last = 0
    self.was_written = False
    # How many bytes the digest covers.
    self._covered = 0
    # How much there was of it when its growth was looked at last, and when that
    # was, by the monotonic clock.
    self._extent = journal_files.Extent(0, 0)
    self._looked = 0.0
    self.identify(life)

  @property
  def has_begun(self) -> bool:
    """Whether more was read than one piece since the digest."""
    return self.reading is not None and (
      self.reading.position - self._covered > journal.PIECE
    )

  def identify(self, life: Optional[Life]) -> None:
    """Takes note which life it tells of; what was logged stays said."""
    self.life = life
    self.instance.begin(life)

  def meet(self) -> None:
    """Finds out which process its QEMU is, unless that is known."""
    if not self.instance.process:
      name = self.instance.name
      process = connection.find_process(self._shared.place.directory, name)
      self.instance.process = process
      self._shared.processes.begin(process, name)

  def part(self) -> None:
    """Forgets the number of its process, which may soon be another's."""
    self._shared.processes.end(
      self.instance.process, self.instance.name, time.monotonic()
    )

  def conclude(self, found: journal.Record) -> None:
    """Takes note that all is read of it, and its QEMU has ended.

    A QEMU that was killed says nothing at its end. Nobody knows when that was,
    unless it was seen.

    """
    heard = self.last = found.written_at
    is_announced = found.lifecycle.announced is not None
    ended = heard if is_announced else time.time_ns()
    is_known = is_announced or self.was_written
    self.instance.was_alive = self.was_written
    self.instance.conclude(
      Told(
        found.lifecycle,
        found.version,
        self.seconds(ended),
        ended=ended / 1e9 if is_known else None,
        heard=None if is_known else heard / 1e9,
      )
    )

  def seconds(self, ended: int) -> float:
    """Returns how long the life lasted, in seconds.

    @param ended: when it was over, in nanoseconds since the epoch

    """
    return max(0, ended - self.life.born) / 1e9 if self.life else 0.0

  def remove(self) -> None:
    """Removes the journal, if it is still that of the same life.

    @raise BlockingIOError: if the hypervisor is about to make another
    @raise OSError: if it cannot be removed

    """
    if self.life is not None:
      journal_files.remove_life(
        self._shared.place.directory, self.instance.name, self.life
      )

  def open(self, files: JournalFiles) -> None:
    """Takes note that a QEMU has it open.

    @raise JournalError: if it is of no use
    @raise OSError: if it cannot be read

    """
    self._covered = files.read_digest().position
    self._extent, self._looked = files.extent(), time.monotonic()
    self.was_written = True
    self.instance.log("its QEMU keeps a journal, and is followed by it")

  def read_on(self, files: JournalFiles, seconds: float) -> Progress:
    """Reads on, for a while.

    @param seconds: how long it may take
    @raise JournalError: if it is of no use
    @raise OSError: if it cannot be read

    """
    shared, name = self._shared, self.instance.name
    marked = mark_files.marked_at(
      shared.place.directory, Mark.POWERDOWN, name, files.life
    )
    if self.reading is None:
      self.reading = journal.Reading(files, shared.rule)
      self._covered = self.reading.position
    self.reading.advance(files, marked, seconds)
    if not self.reading.is_complete:
      return Progress.UNFINISHED
    if files.is_being_written:
      return Progress.UP_TO_DATE
    if files.extent().size != self.reading.position:
      self.reading.extend(files)
      return Progress.UNFINISHED
    if self.reading.record(files).version:
      return Progress.COMPLETE
    self.reading = None
    return Progress.SILENT

  def condense(self, files: JournalFiles) -> None:
    """Gives back what was read of it while it is being written.

    @raise JournalError: if it is written faster than it is read
    @raise FileNotFoundError: if it was removed

    """
    assert self.reading is not None
    digest, self.reading = self.reading.digest, None
    size = files.extent().size
    if journal_space.is_outpaced(self._covered, digest.position, size):
      raise journal_files.JournalError("it is written faster than it is read")
    try:
      files.give_back(digest)
    except BlockingIOError:
      return
    except FileNotFoundError:
      raise
    except OSError as err:
      self.instance.complain(
        "cannot keep its journal short (%s): if its user shuts it down on a"
        " full file system, that may be taken for a crash",
        err.strerror,
      )
    self._covered = digest.position

  def measure(self, extent: Extent) -> journal_space.Need:
    """Takes note how much there is of it by now, and tells what it needs."""
    now = time.monotonic()
    need = journal_space.need(
      self._covered, self._extent, extent, now - self._looked
    )
    self._extent, self._looked = extent, now
    return need

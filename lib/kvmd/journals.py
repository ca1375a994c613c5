# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""All journals of the node: when to read them, and what to do about it.

As long as a QEMU writes its journal there is nothing to do but to keep it
short. It is read when it is closed; and those that were closed while no daemon
ran are read at the start. How long a journal is, its QEMU decides: so each is
read for a few milliseconds at a time, and others come in between.

  ==========  ==========================  ====================================
  state       what is known               what comes next
  ==========  ==========================  ====================================
  AWAITED     a journal is there, and     WRITTEN; after a while without a
              QEMU has yet to open it     word the monitor is listened to
  WRITTEN     a QEMU has it open          READ, when it is closed
  READ        it is closed                JUDGED, when it is read to its end
  JUDGED      the verdict is given        forgotten, when it is delivered and
                                          the journal removed
  USELESS     it cannot be relied on      the monitor is listened to; removed
                                          when nobody has it open any more
  ==========  ==========================  ====================================

"""

from __future__ import annotations

import collections
import contextlib
import enum
import errno
import heapq
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import instance, journal, journal_files, lifecycle, monitor
from ganeti.kvmd.ctrldir import Mark
from ganeti.kvmd.processes import is_alive

if TYPE_CHECKING:
  from collections.abc import Callable, Iterable
  from typing import Optional

  from ganeti.kvmd.ctrldir import ControlDirectory, Life
  from ganeti.kvmd.journal_files import JournalFiles
  from ganeti.kvmd.processes import Processes
  from ganeti.kvmd.quota import Quota

#: Seconds that a QEMU may take from making its sockets to opening its journal.
_PATIENCE = 1.0

#: Seconds after which a journal that was closed is looked at again if it still
#: counts as open; doubled for each further look, for as long as L{_PATIENCE}.
#: The kernel tells of the closing just before it counts: six times in 20,000
#: the daemon was faster.
_FIRST_DELAY = 0.01

#: Seconds after which it is tried again to mark an instance.
_SETTLING_INTERVAL = 1.0

#: Longest that one turn of the daemon reads journals, in seconds.
_SLICE = 0.005

#: A journal that takes more than so many bytes is condensed.
_LONG = 2 * journal_files.RESERVED

#: So much of what is reserved for its last words a QEMU may use up, in bytes,
#: before more is reserved.
_USED_UP = journal_files.RESERVED // 4

#: A journal is written faster than it can be read if so many bytes, and more
#: than were read, came while it was read.
_OUTPACED = 1024 * 1024

#: The file system is nearly full when less than that share of it is free.
_SCARCE = 1 / 16

#: Seconds after which it is looked whether the file system is nearly full, and
#: between two looks at a journal that is written fast.
_SPACE_INTERVAL = 1.0

#: A journal is looked at before the next rescan if what is reserved for it may
#: last for less than so many seconds.
_HURRY = 30.0

#: Seconds between two cuts of a journal whose QEMU fills the file system.
_CUT_INTERVAL = 0.02


class State(enum.Enum):
  """What is known of a journal."""

  AWAITED = enum.auto()
  WRITTEN = enum.auto()
  READ = enum.auto()
  JUDGED = enum.auto()
  USELESS = enum.auto()


#: The states in which nobody needs to listen to the monitor.
_FOLLOWED = (State.AWAITED, State.WRITTEN, State.READ)


class _Record:
  """An instance with a journal.

  @ivar instance: the instance
  @ivar life: the life that the journal tells of; None if nothing could be found
    out yet
  @ivar state: what is known of the journal
  @ivar reading: what was read since the digest; None if nothing was
  @ivar deadline: when it is looked at next, by the monotonic clock
  @ivar delay: how long the last wait for its closing to count was, in seconds;
    0 if it was not closed
  @ivar covered: how many bytes its digest covers
  @ivar extent: how much there was of it when its growth was looked at last
  @ivar looked: when that was, by the monotonic clock
  @ivar is_queued: whether it is to be read in another turn
  @ivar was_written: whether a QEMU was seen to have it open

  """

  __slots__ = (
    "covered",
    "deadline",
    "delay",
    "extent",
    "instance",
    "is_queued",
    "life",
    "looked",
    "reading",
    "state",
    "was_written",
  )

  def __init__(self, known: instance.Instance, life: Optional[Life]) -> None:
    self.instance = known
    self.life = life
    known.begin(life)
    self.state = State.AWAITED
    self.reading: Optional[journal.Reading] = None
    self.deadline = float("inf")
    self.delay = 0.0
    self.covered = 0
    self.extent = journal_files.Extent(0, 0)
    self.looked = 0.0
    self.is_queued = False
    self.was_written = False


class Listeners(NamedTuple):
  """Who is told what becomes of an instance's journal, by the instance's name.

  @ivar served: that its QEMU keeps one
  @ivar judged: that a verdict is about to be given to which it led
  @ivar absent: that no QEMU came to write one after all, or it is of no use

  """

  served: Callable[[str], None]
  judged: Callable[[str], None]
  absent: Callable[[str], None]


class Journals:
  """Follows instances by their journals.

  @ivar directory: the control directory; None while it is missing

  """

  def __init__(
    self,
    rule: lifecycle.Rule,
    listeners: Listeners,
    processes: Processes,
    quota: Quota,
  ) -> None:
    """Follows nothing yet.

    @param rule: how a shutdown is judged
    @param listeners: whom to tell what becomes of the journals
    @param processes: where to note which process is which instance's
    @param quota: how much is logged of each instance

    """
    self.directory: Optional[ControlDirectory] = None
    self._rule = rule
    self._listeners = listeners
    self._processes = processes
    self._quota = quota
    self._records: dict[str, _Record] = {}
    # Instances to look at and when, earliest first. An entry counts only while
    # it says the same as its record's deadline.
    self._timers: list[tuple[float, str]] = []
    # Instances whose journal is to be read: those that nothing was read of
    # yet, and those that take longer.
    self._fresh: collections.deque[str] = collections.deque()
    self._long: collections.deque[str] = collections.deque()
    # Instances that are judged.
    self._judged: set[str] = set()
    self._next_settling = 0.0
    self._next_space = 0.0
    # Instances whose growth is to be looked at, as the file system is full.
    self._suspects: collections.deque[str] = collections.deque()

  @property
  def due(self) -> float:
    """When L{run_timers} is to be called, by the monotonic clock."""
    if self._fresh or self._long or self._suspects:
      return 0.0
    due = self._timers[0][0] if self._timers else float("inf")
    if self._judged:
      due = min(due, self._next_settling)
    return min(due, self._next_space) if self._records else due

  def follows(self, name: str) -> bool:
    """Tells whether an instance is followed by its journal."""
    record = self._records.get(name)
    return record is not None and record.state in _FOLLOWED

  def look(self, name: str) -> None:
    """Takes note that something has become of an instance, or its journal."""
    self._guard(self._look, name)

  def closed(self, name: str) -> None:
    """Takes note that an instance's journal was closed after writing."""
    record = self._records.get(name)
    if record is not None:
      record.delay = 0.0
    self._guard(self._look_after_closing, name)

  def rescan(
    self, names: Iterable[str], *, thoroughly: bool, elsewhere: bool
  ) -> None:
    """Looks at all journals.

    @param names: the names of the instances that have one, or a rest of one
    @param thoroughly: whether also at those that show no sign of a change:
      the number of a process may be that of another by now
    @param elsewhere: whether the control directory is another than before, so
      that what is missing in it says nothing

    """
    found = set(names)
    for gone in self._records.keys() - found:
      if elsewhere:
        self._forget(gone)
      else:
        self._guard(self._look, gone)
    for name in found:
      record = self._records.get(name)
      if (
        thoroughly
        or record is None
        or record.state is not State.WRITTEN
        or not is_alive(record.instance.process)
      ):
        self._guard(self._look, name)
      record = self._records.get(name)
      if record is None:
        self._guard(self._tidy, name)
      elif record.state is State.WRITTEN:
        self._guard(self._check_growth, name)

  def run_timers(self, now: float) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock

    """
    while self._timers and self._timers[0][0] <= now:
      deadline, name = heapq.heappop(self._timers)
      record = self._records.get(name)
      if record is not None and record.deadline == deadline:
        record.deadline = float("inf")
        self._guard(self._look_when_due, name)
    self._work(now + _SLICE)
    if self._records and now >= self._next_space:
      self._next_space = now + _SPACE_INTERVAL
      if not self._suspects and self._is_space_scarce():
        self._suspects.extend(self._records)
    if self._judged and now >= self._next_settling:
      self._next_settling = now + _SETTLING_INTERVAL
      for name in list(self._judged):
        self._guard(self._settle, name)

  def _work(self, stop: float) -> None:
    """Reads what there is to be read, and looks at who fills the disk.

    @param stop: when to leave the rest to the next turn, by the monotonic
      clock

    """
    while self._fresh or self._long:
      name = (self._fresh or self._long).popleft()
      if name in self._records:
        self._records[name].is_queued = False
      self._guard(self._read, name)
      if time.monotonic() >= stop:
        return
    while self._suspects:
      name = self._suspects.popleft()
      if name in self._records:
        self._guard(self._check_growth, name)
      if time.monotonic() >= stop:
        return

  def _schedule(self, name: str, delay: float) -> None:
    record = self._records[name]
    record.deadline = time.monotonic() + delay
    heapq.heappush(self._timers, (record.deadline, name))

  def _look_when_due(self, name: str) -> None:
    """Looks at what was to be looked at again."""
    record = self._records[name]
    if record.state is State.AWAITED:
      self._look(name)
      if self._records.get(name) is record and record.state is State.AWAITED:
        self._forget(name)
        self._listeners.absent(name)
    elif record.state is State.READ:
      self._queue(name, record)
    elif record.state is State.WRITTEN and record.delay:
      self._look_after_closing(name)
    else:
      self._check_growth(name)

  def _look_after_closing(self, name: str) -> None:
    """Looks, and looks again later if the journal counts as open."""
    self._look(name)
    record = self._records.get(name)
    if record is None or record.state is not State.WRITTEN:
      return
    record.delay = 2 * record.delay or _FIRST_DELAY
    if record.delay < _PATIENCE:
      self._schedule(name, record.delay)
    else:
      record.delay = 0.0

  def _look(self, name: str) -> None:
    """Finds out about an instance's journal."""
    self._open(name, self._look_into)

  def _look_into(self, name: str, files: JournalFiles) -> None:
    record = self._record(name, files.life)
    if record.state in _FOLLOWED:
      self._find_state(name, record, files)
    elif record.state is State.USELESS:
      self._drop_useless(name, files)

  def _open(self, name: str, act: Callable[[str, JournalFiles], None]) -> None:
    """Does something with a journal, and acts on what is wrong with it.

    @param act: what to do with its files

    """
    if self.directory is None:
      return
    try:
      with journal_files.opened(self.directory, name) as files:
        act(name, files)
    except FileNotFoundError:
      self._lose(name)
    except journal_files.JournalError as err:
      self._distrust(name, err)
    except OSError as err:
      self._complain(name, err)

  def _record(self, name: str, life: Optional[Life]) -> _Record:
    """Returns what is known of a life, which may be a new one."""
    record = self._records.get(name)
    if record is not None and record.life is None and life is not None:
      # Nothing could be found out before; what was logged of that stays said.
      record.life = life
      record.instance.begin(life)
    elif record is not None and record.life != life:
      if record.state is State.JUDGED:
        # What could not be delivered is of no use any more.
        record.instance.settle(self.directory)
        self._forget(name)
      else:
        self._lose(name)
      record = None
    if record is None:
      known = instance.Instance(name, self._rule, self._quota)
      record = self._records[name] = _Record(known, life)
    return record

  def _find_state(
    self, name: str, record: _Record, files: JournalFiles
  ) -> None:
    if files.is_being_written:
      self._follow(name, record, files)
    elif files.extent().size:
      if record.state is not State.READ:
        record.state = State.READ
        # Most are short: then that was all.
        self._read_on(name, record, files, seconds=0.0)
    elif record.state is not State.AWAITED or record.deadline == float("inf"):
      record.state = State.AWAITED
      self._schedule(name, _PATIENCE)

  def _follow(self, name: str, record: _Record, files: JournalFiles) -> None:
    """Takes note that a QEMU writes its journal."""
    assert self.directory is not None
    record.state = State.WRITTEN
    if not record.was_written:
      record.was_written = True
      record.covered = files.read_digest().position
      record.extent, record.looked = files.extent(), time.monotonic()
      record.instance.log("its QEMU keeps a journal, and is not connected to")
      self._listeners.served(name)
    if not record.instance.process:
      record.instance.process = monitor.find_process(self.directory, name)
      self._processes.begin(record.instance.process, name)

  def _read(self, name: str) -> None:
    """Reads on in a journal."""
    record = self._records.get(name)
    if record is not None and record.state in {State.WRITTEN, State.READ}:
      self._open(name, self._read_into)

  def _read_into(self, name: str, files: JournalFiles) -> None:
    record = self._records[name]
    if files.life == record.life:
      self._read_on(name, record, files, seconds=_SLICE)
    else:
      self._look_into(name, files)

  def _read_on(
    self, name: str, record: _Record, files: JournalFiles, seconds: float
  ) -> None:
    """Reads a piece of a journal, and acts on it when that was the last."""
    assert self.directory is not None
    try:
      if record.reading is None:
        record.reading = journal.Reading(files, self._rule)
      marked = self.directory.marked_at(Mark.POWERDOWN, name, files.life)
      record.reading.advance(files, marked, seconds)
      if record.reading.is_complete:
        self._complete(name, record, record.reading, files)
      else:
        self._queue(name, record)
    except journal_files.JournalError as err:
      if files.is_being_written:
        raise
      self._judge(name, record, journal.useless(files, self._rule, err))

  def _queue(self, name: str, record: _Record) -> None:
    """Lets a journal be read, or read on, when it is its turn."""
    if record.is_queued:
      return
    record.is_queued = True
    has_begun = record.reading is not None and (
      record.reading.position - record.covered > journal.PIECE
    )
    is_fresh = record.state is State.READ and not has_begun
    (self._fresh if is_fresh else self._long).append(name)

  def _complete(
    self,
    name: str,
    record: _Record,
    reading: journal.Reading,
    files: JournalFiles,
  ) -> None:
    """Acts on a journal that was read up to where it ended at first."""
    if files.is_being_written:
      self._follow(name, record, files)
      self._condense(record, reading, files)
      return
    size = files.extent().size
    found = reading.record(files)
    if size != reading.position:
      reading.extend(files)
      self._queue(name, record)
    elif found.version:
      self._judge(name, record, found)
    else:
      record.state = State.AWAITED
      record.reading = None
      self._schedule(name, _PATIENCE)

  @staticmethod
  def _condense(
    record: _Record,
    reading: journal.Reading,
    files: JournalFiles,
  ) -> None:
    """Gives back what was read of a journal that is being written."""
    digest = reading.digest
    position = digest.position
    behind = files.extent().size - position
    if behind > max(_OUTPACED, position - record.covered):
      raise journal_files.JournalError("it is written faster than it is read")
    record.reading = None
    try:
      files.give_back(digest)
    except BlockingIOError:
      return
    except FileNotFoundError:
      raise
    except OSError as err:
      record.instance.complain(
        "cannot keep its journal short (%s): if its user shuts it down on a"
        " full file system, that may be taken for a crash",
        err.strerror,
      )
    record.covered = position

  def _check_growth(self, name: str) -> None:
    """Sees to it that a journal has room, and does not take all there is."""
    record = self._records[name]
    if self.directory is None or record.state not in {
      State.WRITTEN,
      State.USELESS,
    }:
      return
    extent = journal_files.extent(self.directory, name)
    now = time.monotonic()
    if extent is None:
      self._look(name)
      return
    grown = extent.size - record.extent.size
    elapsed = now - record.looked
    record.extent, record.looked = extent, now
    if record.state is State.USELESS:
      delay = _CUT_INTERVAL if grown > _OUTPACED else _SPACE_INTERVAL
      self._schedule(name, 0.0 if self._cut(name) else delay)
      return
    ahead = extent.allocated - (extent.size - record.covered)
    if extent.allocated > _LONG or extent.size - record.covered > _LONG:
      self._queue(name, record)
    elif ahead < journal_files.RESERVED - _USED_UP:
      self._open(name, self._reserve)
      if self._records.get(name) is not record:
        return
    # At this pace it may use up what is reserved before the next rescan.
    lasts = journal_files.RESERVED / 2 * elapsed / max(1, grown)
    if grown > 0 and lasts < _HURRY and not record.delay:
      self._schedule(name, max(_SPACE_INTERVAL, lasts))
    if extent.size - record.covered > _OUTPACED and self._is_space_scarce():
      self._distrust(
        name,
        journal_files.JournalError(
          "it is long, and the file system nearly full"
        ),
      )

  def _reserve(self, name: str, files: JournalFiles) -> None:
    try:
      files.reserve()
    except OSError as err:
      if err.errno != errno.ENOSPC:
        raise
      # What it does not need any more makes room.
      self._queue(name, self._records[name])

  def _cut(self, name: str) -> bool:
    """Gives back some of what a journal takes that is of no use.

    @return: whether there is more

    """
    assert self.directory is not None
    with contextlib.suppress(journal_files.JournalError, OSError):
      with journal_files.opened(self.directory, name) as files:
        if files.extent().allocated > _LONG:
          files.cut()
          return files.extent().allocated > _LONG
    return False

  def _is_space_scarce(self) -> bool:
    if self.directory is None:
      return False
    found = os.fstatvfs(self.directory.descriptor)
    return found.f_bavail < found.f_blocks * _SCARCE

  def _judge(self, name: str, record: _Record, found: journal.Record) -> None:
    """Gives the verdict on an instance whose QEMU has ended."""
    assert self.directory is not None
    assert record.life is not None
    record.reading = None
    self._part_with(name, record)
    if self.directory.is_journal_outdated(name, found.written_at):
      self._pass_over(name, record, found)
      return
    self._listeners.judged(name)
    record.state = State.JUDGED
    # A process that was killed says nothing at its end, which was later then.
    is_announced = found.lifecycle.announced is not None
    ended = found.written_at if is_announced else time.time_ns()
    record.instance.conclude(
      found.lifecycle, (ended - record.life.born) / 1e9, self.directory
    )
    self._judged.add(name)
    # Where many end at once, all are judged before the first is tidied up.
    self._next_settling = 0.0

  def _pass_over(
    self, name: str, record: _Record, found: journal.Record
  ) -> None:
    """Does not let a journal speak of a life that came after it."""
    assert self.directory is not None
    assert record.life is not None
    record.instance.log_verdict(
      found.lifecycle.outcome,
      max(0, found.written_at - record.life.born) / 1e9,
      "; that is not marked, as it seems to have been started since without a"
      " journal",
    )
    self._forget(name)
    with contextlib.suppress(OSError):
      journal_files.remove_life(self.directory, name, record.life)
    self._listeners.absent(name)

  def _settle(self, name: str) -> None:
    """Delivers a verdict; after that the journal is of no use any more."""
    record = self._records[name]
    record.instance.settle(self.directory)
    if record.instance.is_settled:
      if self.directory is not None and record.life is not None:
        try:
          journal_files.remove_life(self.directory, name, record.life)
        except OSError:
          # The hypervisor is at work there, say; it is tried again.
          return
      self._forget(name)

  def _lose(self, name: str) -> None:
    """Gives up a journal that is there no longer."""
    record = self._records.get(name)
    if record is None:
      return
    if record.state is State.JUDGED:
      # There is a verdict still to be delivered.
      self._settle(name)
      return
    self._forget(name)
    if record.was_written and record.state in _FOLLOWED:
      assert record.life is not None
      record.instance.conclude(
        journal.lost(self._rule),
        (time.time_ns() - record.life.born) / 1e9,
        self.directory,
      )
    if record.state is State.AWAITED:
      self._listeners.absent(name)

  def _forget(self, name: str) -> None:
    record = self._records.pop(name, None)
    self._judged.discard(name)
    if record is not None:
      self._part_with(name, record)

  def _part_with(self, name: str, record: _Record) -> None:
    """Lets go of a process, whose number may soon be another's."""
    self._processes.end(record.instance.process, name, time.monotonic())

  def _distrust(self, name: str, err: journal_files.JournalError) -> None:
    """Does without a journal that something is wrong with."""
    if self.directory is None:
      return
    record = self._record(name, self.directory.journaled_life(name))
    if record.state is State.USELESS:
      return
    record.state = State.USELESS
    record.reading = None
    record.instance.complain(
      "its journal is of no use: %s; listening to its monitor instead", err
    )
    self._schedule(name, 0.0 if self._cut(name) else _SPACE_INTERVAL)
    self._listeners.absent(name)

  def _drop_useless(self, name: str, files: JournalFiles) -> None:
    """Removes a journal that is of no use, if no QEMU has it open."""
    assert self.directory is not None
    if not files.is_being_written:
      with contextlib.suppress(BlockingIOError):
        journal_files.remove_life(self.directory, name, files.life)
        self._forget(name)

  def _complain(self, name: str, err: OSError) -> None:
    """Tries again later: nothing is known, so nothing is judged."""
    record = self._records.get(name)
    if record is None:
      record = self._record(name, None)
    record.instance.complain(
      "cannot look at its journal %s: %s; trying again",
      err.filename,
      err.strerror,
    )
    if record.deadline == float("inf"):
      self._schedule(name, _PATIENCE)

  def _tidy(self, name: str) -> None:
    """Removes what is left of a journal."""
    if self.directory is not None:
      with contextlib.suppress(OSError):
        journal_files.remove_rest(self.directory, name)

  def _guard(self, act: Callable[[str], None], name: str) -> None:
    """Does something for an instance, so that a fault harms no other."""
    try:
      act(name)
    except Exception as fault:  # noqa: BLE001
      instance.log_fault(name, fault)
      self._forget(name)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The instances followed by their journals: when to look at which.

As long as a QEMU writes its journal there is nothing to do but to keep it
short. It is read when it is closed; and those that were closed while no daemon
ran are read at the start. How long a journal is, its QEMU decides: so each is
read for a few milliseconds at a time, and others come in between.

What is found out is reported; what that means for the following, and for the
monitor, is decided elsewhere (L{following.TRANSITIONS}).
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core.following import Fact, State
from ganeti.kvmd.core.timers import Timers
from ganeti.kvmd.follow.journal_keeper import JournalKeeper, Wish
from ganeti.kvmd.follow.journal_reader import Calls, JournalReader
from ganeti.kvmd.follow.journaled import Journaled
from ganeti.kvmd.node import journal_files
from ganeti.kvmd.node.ctrldir import MissingDirectoryError
from ganeti.kvmd.node.journal_files import JournalError
from ganeti.kvmd.node.processes import is_alive

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd.follow.record import Do, Record
  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.ctrldir import Life
  from ganeti.kvmd.node.journal_files import JournalFiles


class JournalFollower:
  """Follows instances by their journals."""

  def __init__(
    self, shared: Shared, report: Callable[[Record, Fact], None]
  ) -> None:
    """Follows nobody yet.

    @param report: called with what becomes known of a journal; who is called
      sees to the record's state, and to its monitor

    """
    self._shared = shared
    self._timing = shared.timing
    self._report = report
    self._timers = Timers()
    self._keeper = JournalKeeper(shared, self._timers)
    calls = Calls(report, self.forget, self._report_open)
    self._reader = JournalReader(shared, self._timers, calls)
    # The names of all that have a journal.
    self._names: set[str] = set()

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    due = min(self._timers.due, self._reader.due)
    return min(due, self._keeper.due) if self._names else due

  def run(self, now: float, do: Do) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock
    @param do: what to do it with

    """
    for name in self._timers.take(now):
      do(self._look_when_due, name)
    self._work(now + self._timing.journals, do)
    if self._names:
      self._keeper.look_around(now, self._names)
    self._reader.remove_judged(now, do)

  def look(self, record: Record) -> None:
    """Finds out about the journal of one that something has become of."""
    self._open(record, self._look_into)

  def look_after_closing(self, record: Record) -> None:
    """Looks at a journal that was closed after writing.

    The kernel tells of that just before it counts: six times in 20,000 the
    daemon was faster. So it looks again later if the journal counts as open.

    """
    self.look(record)
    known = record.journal
    if known is None or record.state is not State.WRITTEN:
      return
    known.delay = 2 * known.delay or self._timing.retry
    if known.delay < self._timing.opening:
      self._schedule(record, known.delay)
    else:
      known.delay = 0.0

  def look_again(self, record: Record, *, thoroughly: bool) -> None:
    """Sees whether anything of one was missed.

    @param thoroughly: also where there is no sign of that: the number of a
      process may be that of another by now

    """
    known = record.journal
    if (
      thoroughly
      or known is None
      or record.state is not State.WRITTEN
      or not is_alive(known.instance.process)
    ):
      self.look(record)
    if record.journal is None:
      # What is left of a journal.
      with contextlib.suppress(OSError):
        journal_files.remove_rest(self._shared.place.directory, record.name)
    elif record.state is State.WRITTEN:
      self._check_growth(record)

  def forget(self, record: Record) -> None:
    """Follows one no longer by its journal."""
    self._timers.cancel(record.name)
    self._names.discard(record.name)
    self._reader.forget(record.name)
    known, record.journal = record.journal, None
    if known is not None:
      known.part()

  def _work(self, stop: float, do: Do) -> None:
    """Reads, and looks at who fills the disk, until it is time to stop."""
    for take, act in (
      (self._reader.take, self._read),
      (self._keeper.take, self._check_growth),
    ):
      while (name := take()) is not None:
        do(act, name)
        if time.monotonic() >= stop:
          return

  def _schedule(self, record: Record, delay: float) -> None:
    self._timers.set(record.name, time.monotonic() + delay)

  def _look_when_due(self, record: Record) -> None:
    """Looks at what was to be looked at again."""
    known = record.journal
    if known is None:
      return
    if record.state is State.AWAITED:
      self.look(record)
      if record.journal is known and record.state is State.AWAITED:
        self.forget(record)
        self._report(record, Fact.OVERDUE)
    elif record.state is State.READ:
      self._reader.queue(record, known)
    elif record.state is State.WRITTEN and known.delay:
      self.look_after_closing(record)
    else:
      self._check_growth(record)

  def _open(
    self, record: Record, act: Callable[[Record, JournalFiles], None]
  ) -> None:
    """Does something with a journal, and acts on what is wrong with it."""
    try:
      with journal_files.opened(
        self._shared.place.directory, record.name
      ) as files:
        act(record, files)
    except MissingDirectoryError:
      return
    except FileNotFoundError:
      self._reader.lose(record)
    except JournalError as err:
      self._distrust(record, err)
    except OSError as err:
      self._complain(record, err)

  def _look_into(self, record: Record, files: JournalFiles) -> None:
    known = self._identify(record, files.life)
    if record.is_journaled or record.state is State.MONITOR:
      self._find_state(record, known, files)
    elif record.state is State.USELESS and not files.is_being_written:
      with contextlib.suppress(BlockingIOError):
        known.remove()
        self.forget(record)
        self._report(record, Fact.GONE)

  def _identify(self, record: Record, life: Optional[Life]) -> Journaled:
    """Returns what is known of a life by its journal; it may be a new one."""
    known = record.journal
    if known is not None and known.life is None and life is not None:
      known.identify(life)
    elif known is not None and known.life != life:
      self._reader.supersede(record)
    if record.journal is None:
      record.journal = Journaled(record.name, life, self._shared)
      self._names.add(record.name)
    return record.journal

  def _find_state(
    self, record: Record, known: Journaled, files: JournalFiles
  ) -> None:
    before = record.state
    if files.is_being_written:
      self._report_open(record, known, files)
    elif files.extent().size:
      self._report(record, Fact.CLOSED)
      if before is not State.READ:
        # Most are short: then that is all.
        self._reader.read(record, known, files, seconds=0.0)
    else:
      self._report(record, Fact.EMPTY)
      if before is not State.AWAITED or record.name not in self._timers:
        self._schedule(record, self._timing.opening)

  def _report_open(
    self, record: Record, known: Journaled, files: JournalFiles
  ) -> None:
    """Takes note that a QEMU writes its journal."""
    if not known.was_written:
      known.open(files)
      known.instance.log("its QEMU keeps a journal, and is not connected to")
    self._report(record, Fact.OPEN)
    known.meet()

  def _read(self, record: Record) -> None:
    """Reads on in a journal."""
    if record.journal is not None:
      record.journal.is_queued = False
      if record.state in {State.WRITTEN, State.READ}:
        self._open(record, self._read_into)

  def _read_into(self, record: Record, files: JournalFiles) -> None:
    known = record.journal
    if known is not None and files.life == known.life:
      self._reader.read(record, known, files, self._timing.journals)
    else:
      self._look_into(record, files)

  def _check_growth(self, record: Record) -> None:
    """Sees to it that a journal has room, and does not take all there is."""
    wish = self._keeper.check(record)
    if wish is Wish.LOOK:
      self.look(record)
    elif wish is Wish.READ and record.journal is not None:
      self._reader.queue(record, record.journal)
    elif wish is Wish.RESERVE:
      self._open(record, self._reserve)
    elif wish is Wish.DISTRUST:
      err = JournalError("it is long, and the file system nearly full")
      self._distrust(record, err)

  def _reserve(self, record: Record, files: JournalFiles) -> None:
    if not self._keeper.reserve(files) and record.journal is not None:
      # What it does not need any more makes room.
      self._reader.queue(record, record.journal)

  def _distrust(self, record: Record, err: JournalError) -> None:
    """Does without a journal that something is wrong with."""
    if record.state in {State.JUDGED, State.USELESS}:
      return
    life = self._shared.place.directory.journaled_life(record.name)
    known = self._identify(record, life)
    known.reading = None
    known.instance.complain(
      "its journal is of no use: %s; listening to its monitor instead", err
    )
    self._report(record, Fact.USELESS)
    self._keeper.cut(record.name, self._timing.space)

  def _complain(self, record: Record, err: OSError) -> None:
    """Tries again later: nothing is known, so nothing is judged."""
    known = record.journal or self._identify(record, None)
    known.instance.complain(
      "cannot look at its journal %s: %s; trying again",
      err.filename,
      err.strerror,
    )
    self._report(record, Fact.UNKNOWN)
    if record.name not in self._timers:
      self._schedule(record, self._timing.opening)

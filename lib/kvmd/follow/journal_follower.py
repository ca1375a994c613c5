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
from ganeti.kvmd.follow.journal_keeper import JournalKeeper
from ganeti.kvmd.follow.journal_reader import JournalReader
from ganeti.kvmd.follow.journaled import Journaled
from ganeti.kvmd.node import journal_files
from ganeti.kvmd.node.ctrldir import MissingDirectoryError
from ganeti.kvmd.node.journal_files import JournalError
from ganeti.kvmd.node.processes import is_alive

if TYPE_CHECKING:
  from collections.abc import Callable, Iterator
  from typing import Optional, Union

  from ganeti.kvmd.follow.record import Do, Record
  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.ctrldir import Life
  from ganeti.kvmd.node.journal_files import JournalFiles


#: With these a journal is over and done with.
_LAST = {Fact.OVERDUE, Fact.OUTDATED, Fact.GONE, Fact.DELIVERED}


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
    self._reader = JournalReader(shared, self._timers, self._note)

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    return min(self._timers.due, self._reader.due, self._keeper.due)

  def run(self, now: float, do: Do) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock
    @param do: what to do it with

    """
    for name in self._timers.take(now):
      do(self._look_when_due, name)
    self._work(now + self._timing.journals, do)
    self._keeper.look_around(now)
    self._reader.remove_judged(now, do)

  def look(self, record: Record) -> None:
    """Finds out about the journal of one that something has become of."""
    with self._troubles(record), self._opened(record) as files:
      self._look_into(record, files)

  def look_after_closing(self, record: Record) -> None:
    """Looks at a journal that was closed after writing."""
    if record.journal is not None:
      record.journal.delay = 0.0
    self._look_until_closed(record)

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
    self._keeper.forget(record.name)
    self._reader.forget(record.name)
    known, record.journal = record.journal, None
    if known is not None:
      known.part()

  def _note(self, record: Record, fact: Fact) -> None:
    """Reports what became known; of a journal that is over nothing is kept."""
    if fact in _LAST:
      self.forget(record)
    self._report(record, fact)

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
        self._note(record, Fact.OVERDUE)
    elif record.state is State.READ:
      self._reader.queue(record, known)
    elif record.state is State.WRITTEN and known.delay:
      self._look_until_closed(record)
    else:
      self._check_growth(record)

  def _look_until_closed(self, record: Record) -> None:
    """Looks at a journal, and looks again later if it counts as open.

    The kernel tells of the closing just before it counts: six times in 20,000
    the daemon was faster.

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

  @contextlib.contextmanager
  def _troubles(self, record: Record) -> Iterator[None]:
    """Acts on what is wrong with a journal."""
    try:
      yield
    except (JournalError, OSError) as err:
      self._act_on(record, err)

  def _act_on(self, record: Record, err: Union[JournalError, OSError]) -> None:
    if isinstance(err, JournalError):
      self._distrust(record, err)
    elif not isinstance(err, FileNotFoundError):
      self._complain(record, err)
    elif not isinstance(err, MissingDirectoryError):
      self._reader.lose(record)

  def _opened(
    self, record: Record
  ) -> contextlib.AbstractContextManager[JournalFiles]:
    return journal_files.opened(self._shared.place.directory, record.name)

  def _look_into(self, record: Record, files: JournalFiles) -> None:
    known = self._identify(record, files.life)
    if record.is_journaled or record.state is State.MONITOR:
      self._reader.look(record, known, files)
    elif record.state is State.USELESS and not files.is_being_written:
      with contextlib.suppress(BlockingIOError):
        known.remove()
        self._note(record, Fact.GONE)

  def _identify(self, record: Record, life: Optional[Life]) -> Journaled:
    """Returns what is known of a life by its journal; it may be a new one."""
    known = record.journal
    if known is not None and known.life != life:
      if known.life is None:
        known.identify(life)
      else:
        self._reader.supersede(record, known)
    if record.journal is None:
      record.journal = Journaled(record.name, life, self._shared)
      self._keeper.add(record.name)
    return record.journal

  def _read(self, record: Record) -> None:
    """Reads on in a journal."""
    known = record.journal
    if known is None or record.state not in {State.WRITTEN, State.READ}:
      return
    with self._troubles(record), self._opened(record) as files:
      if files.life == known.life:
        self._reader.read(record, known, files, self._timing.journals)
      else:
        self._look_into(record, files)

  def _check_growth(self, record: Record) -> None:
    """Sees to it that a journal has room, and does not take all there is."""
    # All journals are looked at like this: a context takes a tenth of it.
    try:
      if self._keeper.check(record) and record.journal is not None:
        self._reader.queue(record, record.journal)
    except (JournalError, OSError) as err:
      self._act_on(record, err)

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
    self._note(record, Fact.USELESS)
    self._keeper.cut(record.name, self._timing.space)

  def _complain(self, record: Record, err: OSError) -> None:
    """Tries again later: nothing is known, so nothing is judged."""
    known = record.journal or self._identify(record, None)
    known.instance.complain(
      "cannot look at its journal %s: %s; trying again",
      err.filename,
      err.strerror,
    )
    self._note(record, Fact.UNKNOWN)
    if record.name not in self._timers:
      self._schedule(record, self._timing.opening)

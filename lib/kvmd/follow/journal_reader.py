# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Journals are read, a part at a time, and judged when that is all.

How long one is, its QEMU decides: so each is read for a few milliseconds, and
others come in between. When the verdict is delivered the journal is removed.
"""

from __future__ import annotations

import collections
import contextlib
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core.following import Fact, State
from ganeti.kvmd.follow.journaled import Progress
from ganeti.kvmd.node import journal
from ganeti.kvmd.node.ctrldir import MissingDirectoryError
from ganeti.kvmd.node.journal_files import JournalError

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd.core.timers import Timers
  from ganeti.kvmd.follow.journaled import Journaled
  from ganeti.kvmd.follow.record import Do, Record
  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.journal_files import JournalFiles


class JournalReader:
  """Reads journals, and gives verdicts by them."""

  def __init__(
    self, shared: Shared, timers: Timers, note: Callable[[Record, Fact], None]
  ) -> None:
    """Has nothing to read yet.

    @param timers: where to note when a journal is to be looked at again
    @param note: called with what becomes known of a journal

    """
    self._shared = shared
    self._timers = timers
    self._note = note
    # Those whose journal is to be read: nothing was read of it yet, or it takes
    # longer. In the order of their turns; the values mean nothing.
    self._fresh: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._long: collections.OrderedDict[str, None] = collections.OrderedDict()
    # Those whose journal is to be removed, as the verdict is given.
    self._judged: set[str] = set()
    self._next = 0.0

  @property
  def due(self) -> float:
    """When there is something to do, by the monotonic clock."""
    if self._fresh or self._long:
      return 0.0
    return self._next if self._judged else float("inf")

  def queue(self, record: Record, known: Journaled) -> None:
    """Lets a journal be read, or read on, when it is its turn."""
    if record.name not in self._fresh and record.name not in self._long:
      is_fresh = record.state is State.READ and not known.has_begun
      (self._fresh if is_fresh else self._long)[record.name] = None

  def take(self) -> Optional[str]:
    """Takes the name of the one whose journal is to be read next, if any."""
    queue = self._fresh or self._long
    return queue.popitem(last=False)[0] if queue else None

  def look(self, record: Record, known: Journaled, files: JournalFiles) -> None:
    """Finds out how far a journal has come.

    @raise JournalError: if it is of no use, and a QEMU has it open
    @raise OSError: if it cannot be read

    """
    if files.is_being_written:
      self._meet(record, known, files)
    elif not files.extent().size:
      self._expect(record)
    elif record.state is not State.READ:
      self._note(record, Fact.CLOSED)
      # Most are short: then that is all.
      self.read(record, known, files, seconds=0.0)

  def read(
    self,
    record: Record,
    known: Journaled,
    files: JournalFiles,
    seconds: float,
  ) -> None:
    """Reads a piece of a journal, and acts on it when that was the last.

    @param seconds: how long it may take
    @raise JournalError: if it is of no use, and a QEMU has it open
    @raise OSError: if it cannot be read

    """
    try:
      progress = known.read_on(files, seconds)
      if progress is Progress.UP_TO_DATE:
        self._meet(record, known, files)
        known.condense(files)
    except JournalError as err:
      if files.is_being_written:
        raise
      found = journal.useless(files, self._shared.rule, err)
      self._judge(record, known, found)
      return
    if progress is Progress.UNFINISHED:
      self.queue(record, known)
    elif progress is Progress.COMPLETE:
      assert known.reading is not None
      self._judge(record, known, known.reading.record(files))
    elif progress is Progress.SILENT:
      self._expect(record)

  def remove_judged(self, now: float, do: Do) -> None:
    """Removes the journals of those whose verdict is delivered.

    @param now: seconds of the monotonic clock
    @param do: what to do it with

    """
    # While ends are written down, that comes first.
    if self._judged and now >= self._next and now < self._shared.history.due:
      self._next = now + self._shared.timing.delivery
      for name in list(self._judged):
        do(self.remove, name)
      self._next = min(self._next, self._shared.history.due)

  def lose(self, record: Record) -> None:
    """Gives up a journal that is there no longer."""
    known = record.journal
    if known is None:
      return
    if record.state is State.JUDGED:
      self.remove(record)
      return
    if known.was_written and record.is_journaled:
      self._end(known, journal.lost(self._shared.rule))
    self._note(record, Fact.GONE)

  def remove(self, record: Record) -> None:
    """Removes a journal that is of no use any more, as it is judged."""
    known = record.journal
    if (
      record.state is not State.JUDGED
      or known is None
      or self._shared.verdicts.is_late(known.instance)
      or self._shared.history.is_pending(record.name)
    ):
      return
    try:
      known.remove()
    except MissingDirectoryError:
      pass
    except OSError:
      # The hypervisor is at work there, say; it is tried again.
      return
    if known.life is not None:
      self._shared.verdicts.tidy_up(record.name, known.life, known.last)
    self._note(record, Fact.DELIVERED)

  def supersede(self, record: Record, known: Journaled) -> None:
    """Gives up a journal in whose place there is another."""
    if record.state is not State.JUDGED:
      self.lose(record)
      return
    # What cannot be delivered now is of no use any more.
    self._shared.verdicts.settle(known.instance)
    self._shared.verdicts.forget(known.instance)
    self._note(record, Fact.DELIVERED)

  def forget(self, name: str) -> None:
    """Neither reads nor removes a journal."""
    self._judged.discard(name)
    for queue in self._fresh, self._long:
      queue.pop(name, None)

  def _meet(
    self, record: Record, known: Journaled, files: JournalFiles
  ) -> None:
    """Takes note that a QEMU writes its journal."""
    if not known.was_written:
      known.open(files)
    self._note(record, Fact.OPEN)
    # Not before its monitor is left, which forgets the process.
    known.meet()

  def _expect(self, record: Record) -> None:
    """Takes note that no QEMU has opened its journal yet."""
    was_expected = record.state is State.AWAITED and record.name in self._timers
    self._note(record, Fact.EMPTY)
    if not was_expected:
      opening = self._shared.timing.opening
      self._timers.set(record.name, time.monotonic() + opening)

  def _judge(
    self, record: Record, known: Journaled, found: journal.Record
  ) -> None:
    """Gives the verdict on an instance whose QEMU has ended."""
    self._note(record, Fact.CLOSED)
    known.reading = None
    directory = self._shared.place.directory
    if directory.is_journal_outdated(record.name, found.written_at):
      self._pass_over(record, known, found)
      return
    self._note(record, Fact.COMPLETE)
    self._end(known, found)
    self._judged.add(record.name)
    # Where many end at once, all are judged before the first is tidied up.
    self._next = 0.0

  def _end(self, known: Journaled, found: journal.Record) -> None:
    known.part()
    known.conclude(found)
    self._shared.verdicts.end(known.instance)

  def _pass_over(
    self, record: Record, known: Journaled, found: journal.Record
  ) -> None:
    """Does not let a journal speak of a life that came after it."""
    known.conclude(found)
    ending = known.instance.end()
    known.instance.report(
      ending,
      "; that is not marked, as it seems to have been started since without a"
      " journal",
    )
    with contextlib.suppress(OSError):
      known.remove()
    self._note(record, Fact.OUTDATED)

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
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core.following import Fact, State
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.follow.instance import Ending
from ganeti.kvmd.follow.journaled import Progress
from ganeti.kvmd.node import journal, mark_files
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


class Calls(NamedTuple):
  """Whom to tell what.

  @ivar report: what becomes known of a journal
  @ivar forget: that one is not followed by its journal any more
  @ivar opened: that a QEMU has a journal open

  """

  report: Callable[[Record, Fact], None]
  forget: Callable[[Record], None]
  opened: Callable[[Record, Journaled, JournalFiles], None]


class JournalReader:
  """Reads journals, and gives verdicts by them."""

  def __init__(self, shared: Shared, timers: Timers, calls: Calls) -> None:
    """Has nothing to read yet.

    @param timers: where to note when a journal is to be looked at again

    """
    self._shared = shared
    self._timers = timers
    self._report, self._forget, self._opened = calls
    # Those whose journal is to be read: nothing was read of it yet, or it takes
    # longer.
    self._fresh: collections.deque[str] = collections.deque()
    self._long: collections.deque[str] = collections.deque()
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
    if not known.is_queued:
      known.is_queued = True
      is_fresh = record.state is State.READ and not known.has_begun
      (self._fresh if is_fresh else self._long).append(record.name)

  def take(self) -> Optional[str]:
    """Takes the name of the one whose journal is to be read next, if any."""
    queue = self._fresh or self._long
    return queue.popleft() if queue else None

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
    marked = mark_files.marked_at(
      self._shared.place.directory, Mark.POWERDOWN, record.name, files.life
    )
    rule = self._shared.rule
    try:
      progress = known.read_on(files, rule, marked, seconds)
      if progress is Progress.UP_TO_DATE:
        self._opened(record, known, files)
        known.condense(files)
    except JournalError as err:
      if files.is_being_written:
        raise
      self._judge(record, known, journal.useless(files, rule, err))
      return
    if progress is Progress.UNFINISHED:
      self.queue(record, known)
    elif progress is Progress.COMPLETE:
      assert known.reading is not None
      self._judge(record, known, known.reading.record(files))
    elif progress is Progress.SILENT:
      self._report(record, Fact.EMPTY)
      opening = self._shared.timing.opening
      self._timers.set(record.name, time.monotonic() + opening)

  def remove_judged(self, now: float, do: Do) -> None:
    """Removes the journals of those whose verdict is delivered.

    @param now: seconds of the monotonic clock
    @param do: what to do it with

    """
    if self._judged and now >= self._next:
      self._next = now + self._shared.timing.delivery
      for name in list(self._judged):
        do(self.remove, name)

  def lose(self, record: Record) -> None:
    """Gives up a journal that is there no longer."""
    known = record.journal
    if known is None:
      return
    if record.state is State.JUDGED:
      self.remove(record)
      return
    was_followed = known.was_written and record.is_journaled
    self._forget(record)
    if was_followed:
      state = journal.lost(self._shared.rule)
      known.instance.conclude(state, known.seconds(time.time_ns()))
      self._shared.verdicts.end(known.instance)
    self._report(record, Fact.GONE)

  def remove(self, record: Record) -> None:
    """Removes a journal that is of no use any more, as it is judged."""
    known = record.journal
    if (
      record.state is not State.JUDGED
      or known is None
      or self._shared.verdicts.is_late(known.instance)
    ):
      return
    try:
      known.remove()
    except MissingDirectoryError:
      pass
    except OSError:
      # The hypervisor is at work there, say; it is tried again.
      return
    self._forget(record)
    self._report(record, Fact.DELIVERED)

  def supersede(self, record: Record) -> None:
    """Gives up a journal in whose place there is another."""
    known = record.journal
    if known is None or record.state is not State.JUDGED:
      self.lose(record)
      return
    # What cannot be delivered now is of no use any more.
    self._shared.verdicts.settle(known.instance)
    self._shared.verdicts.forget(known.instance)
    self._forget(record)
    self._report(record, Fact.DELIVERED)

  def forget(self, name: str) -> None:
    """Does not remove a journal."""
    self._judged.discard(name)

  def _judge(
    self, record: Record, known: Journaled, found: journal.Record
  ) -> None:
    """Gives the verdict on an instance whose QEMU has ended."""
    self._report(record, Fact.CLOSED)
    known.reading = None
    known.part()
    directory = self._shared.place.directory
    if directory.is_journal_outdated(record.name, found.written_at):
      self._pass_over(record, known, found)
      return
    self._report(record, Fact.COMPLETE)
    # A process that was killed says nothing at its end, which was later then.
    is_announced = found.lifecycle.announced is not None
    ended = found.written_at if is_announced else time.time_ns()
    known.instance.conclude(found.lifecycle, known.seconds(ended))
    self._shared.verdicts.end(known.instance)
    self._judged.add(record.name)
    # Where many end at once, all are judged before the first is tidied up.
    self._next = 0.0

  def _pass_over(
    self, record: Record, known: Journaled, found: journal.Record
  ) -> None:
    """Does not let a journal speak of a life that came after it."""
    ending = Ending(found.lifecycle.outcome, known.seconds(found.written_at))
    known.instance.log_verdict(
      ending,
      "; that is not marked, as it seems to have been started since without a"
      " journal",
    )
    self._forget(record)
    with contextlib.suppress(OSError):
      known.remove()
    self._report(record, Fact.OUTDATED)

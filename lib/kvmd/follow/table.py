# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The instances of this node: one table that knows them all.

What is seen of the control directory, and what those find out who follow
instances, comes together here, and here it is decided who follows whom
(L{following.TRANSITIONS}). A fault over one instance harms no other.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from ganeti.kvmd.core.following import TRANSITIONS, Monitor, State
from ganeti.kvmd.follow.journal_follower import JournalFollower
from ganeti.kvmd.follow.monitor_follower import MonitorFollower
from ganeti.kvmd.follow.record import Record

if TYPE_CHECKING:
  import select
  from collections.abc import Callable, Mapping

  from ganeti.kvmd.core.following import Fact
  from ganeti.kvmd.follow.instance import Instance
  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.ctrldir import Instances
  from ganeti.kvmd.node.processes import Processes


class Table:
  """All instances of the node, and who follows them."""

  def __init__(self, epoll: select.epoll, shared: Shared) -> None:
    """Knows nobody yet.

    @param epoll: where to register connections

    """
    self._shared = shared
    self._records: dict[str, Record] = {}
    self._monitors = MonitorFollower(epoll, shared)
    self._journals = JournalFollower(shared, self._report)
    self._acts: Mapping[Monitor, Callable[[Record], None]] = {
      Monitor.LISTEN: self._listen,
      Monitor.LEAVE: functools.partial(self._monitors.leave, is_dead=False),
      Monitor.LEAVE_DEAD: functools.partial(self._monitors.leave, is_dead=True),
    }

  def close(self) -> None:
    """Lets go of everything, without a verdict on anybody."""
    self._monitors.close()

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    return min(
      self._monitors.due, self._journals.due, self._shared.verdicts.due
    )

  @property
  def processes(self) -> Processes:
    """Which process is which instance's."""
    return self._shared.processes

  def run(self, now: float) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock

    """
    self._monitors.run(now, self._do)
    for instance in self._shared.verdicts.retry(now):
      self._do(functools.partial(self._settle, instance), instance.name)
    self._journals.run(now, self._do)

  def read(self, descriptor: int) -> bool:
    """Reads from the connection to a monitor.

    @return: whether the descriptor is one of those

    """
    record = self._monitors.connected.get(descriptor)
    if record is None:
      return False
    self._do(self._monitors.read, record.name)
    return True

  def journal_appeared(self, name: str) -> None:
    """Takes note that an instance has got a journal."""
    self._do(self._journals.look, name)

  def journal_closed(self, name: str) -> None:
    """Takes note that an instance's journal was closed after writing."""
    self._do(self._journals.look_after_closing, name)

  def monitor_appeared(self, name: str) -> None:
    """Takes note that an instance has made its monitor."""
    self._do(self._look_at_monitor, name)

  def rescan(
    self, found: Instances, *, thoroughly: bool, elsewhere: bool
  ) -> None:
    """Looks at all instances.

    @param found: those that have something to follow
    @param thoroughly: whether also at what shows no sign of a change
    @param elsewhere: whether the control directory is another than before, so
      that what is missing in it says nothing

    """
    for name, record in list(self._records.items()):
      if record.journal is not None and name not in found.journaled:
        self._do(self._forget if elsewhere else self._journals.look, name)
    look = functools.partial(self._journals.look_again, thoroughly=thoroughly)
    for name in found.journaled:
      self._do(look, name)
    self._monitors.begin_rescan()
    unmarked = functools.partial(self._take_up, is_marked=False)
    marked = functools.partial(self._take_up, is_marked=True)
    for name in found.monitored:
      known = self._records.get(name)
      if known is None or not known.is_journaled:
        self._do(marked if name in found.marked else unmarked, name)
    for name in self._records.keys() - found.monitored:
      self._do(self._monitors.miss, name)

  def shortage(self) -> str:
    """Says how many cannot be followed, if any, and what to do."""
    return self._monitors.shortage()

  def _do(self, act: Callable[[Record], None], name: str) -> None:
    """Does something with what is known of a name."""
    record = self._records.get(name)
    if record is None:
      record = self._records[name] = Record(name)
    try:
      act(record)
    except Exception as fault:
      logging.error(
        "instance %s: a fault of the daemon, please report it; the instance is"
        " followed anew at the next rescan",
        name,
        exc_info=fault,
      )
      self._monitors.drop(record)
      self._forget(record)
    if record.monitor is None and record.journal is None:
      self._records.pop(name, None)

  def _report(self, record: Record, fact: Fact) -> None:
    """Acts on what became known of a journal."""
    move = TRANSITIONS[record.state].get(fact)
    if move is not None:
      record.state = move.state
      act = self._acts.get(move.monitor)
      if act is not None:
        act(record)

  def _listen(self, record: Record) -> None:
    """Listens to a monitor of which something new is known."""
    if record.monitor is not None:
      record.monitor.attempts = 0
    self._monitors.listen(record)

  def _look_at_monitor(self, record: Record) -> None:
    self._journals.look(record)
    if not record.is_journaled:
      self._listen(record)

  def _take_up(self, record: Record, *, is_marked: bool) -> None:
    """Listens to one that has a monitor.

    @param is_marked: whether it has a mark as well

    """
    is_new = record.monitor is None
    self._monitors.listen(record)
    if is_new and record.monitor is not None:
      record.monitor.instance.may_be_marked = is_marked

  def _settle(self, instance: Instance, _: Record) -> None:
    self._shared.verdicts.settle(instance)

  def _forget(self, record: Record) -> None:
    """Follows one no longer by its journal, whatever becomes of that."""
    self._journals.forget(record)
    record.state = State.MONITOR

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The event loop: descriptors, times and signals.

Everything happens in one thread, when the kernel reports it: bytes from a
monitor, a name in the control directory, a signal, or the time for another
look. The loop decides when something is done; of instances it knows nothing.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.history import History
from ganeti.kvmd.follow.lookout import Lookout
from ganeti.kvmd.follow.shared import Shared
from ganeti.kvmd.follow.table import Table
from ganeti.kvmd.follow.verdicts import Verdicts
from ganeti.kvmd.node import exits
from ganeti.kvmd.node.evidence import Directories
from ganeti.kvmd.node.history_files import HistoryFiles
from ganeti.kvmd.node.place import Place
from ganeti.kvmd.node.processes import Processes

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd.core import lifecycle
  from ganeti.kvmd.process.signals import Signals


class Settings(NamedTuple):
  """What the daemon is to do.

  @ivar path: of the control directory
  @ivar monitor_suffix: what the names of monitor sockets end in
  @ivar rule: how a shutdown is judged
  @ivar timing: how often it does what
  @ivar history: the file in which the ends of instances are written down; None
    for none
  @ivar directories: where more may be known of an end

  """

  path: str
  monitor_suffix: str
  rule: lifecycle.Rule
  timing: Timing = Timing()
  history: Optional[str] = None
  directories: Directories = Directories()


class Daemon:
  """Watches one control directory and follows the instances in it."""

  def __init__(self, settings: Settings) -> None:
    """Begins to watch; nothing that happens from now on is lost.

    @raise lockfile.LockedError: if the control directory has a daemon
    @raise OSError: if the control directory cannot be used

    """
    self._rule = settings.rule
    self._timing = settings.timing
    self._place = Place(
      settings.path, settings.monitor_suffix, settings.rule, settings.timing
    )
    self._on_rescan: Callable[[], None] = lambda: None
    self._epoll = select.epoll()
    self._quota = Quota()
    self._history = History(
      None if settings.history is None else HistoryFiles(settings.history),
      os.uname().nodename,
      settings.timing,
      settings.directories,
    )
    # When it may be said again that the kernel did not tell of all ends.
    self._next_regret = 0.0
    self._lookout = Lookout(self._place, self._new_table, settings.timing)
    self._exits = _listen_for_exits()
    self._handlers = {self._place.watch.fileno(): self._lookout.look}
    if self._exits is not None:
      self._history.hears_exits = True
      self._handlers[self._exits.fileno()] = self._report_exits
    for descriptor in self._handlers:
      self._epoll.register(descriptor, select.EPOLLIN)

  def close(self) -> None:
    """Lets go of everything, without a verdict on anybody."""
    self._sum_up(float("inf"))
    self._lookout.table.close()
    self._history.close()
    if self._exits is not None:
      self._exits.close()
    self._epoll.close()
    self._place.close()

  @property
  def has_directory(self) -> bool:
    """Whether the control directory exists."""
    return self._place.has_directory

  def run(
    self,
    signals: Signals,
    on_hangup: Callable[[], None],
    on_rescan: Callable[[], None],
  ) -> None:
    """Works until SIGTERM or SIGINT.

    @param signals: the signals
    @param on_hangup: called for each SIGHUP
    @param on_rescan: called whenever everything is looked at again

    """
    self._on_rescan = on_rescan
    self._epoll.register(signals.fileno(), select.EPOLLIN)
    try:
      while True:
        self.turn()
        for number in signals.take():
          if number == signal.SIGHUP:
            on_hangup()
          else:
            logging.info("ending, on %s", signal.Signals(number).name)
            return
    finally:
      self._epoll.unregister(signals.fileno())

  def turn(self, limit: Optional[float] = None) -> None:
    """Waits until there is something to do and does it.

    @param limit: the longest to wait, in seconds; None for any time

    """
    due = min(
      self._lookout.due,
      self._lookout.table.due,
      self._quota.due,
      self._history.due,
    )
    wait = max(0.0, due - time.monotonic())
    if limit is not None:
      wait = min(wait, limit)
    ready = self._epoll.poll(wait)
    # Monitors come before names: what an instance has said belongs before
    # what a new one of its name does.
    table = self._lookout.table
    others = [
      descriptor for descriptor, _ in ready if not table.read(descriptor)
    ]
    for descriptor in others:
      if descriptor in self._handlers:
        self._attempt(self._handlers[descriptor])
    now = time.monotonic()
    # All that was said comes before all that is due, but not for ever: where
    # many instances end at once, each has its file before the first verdict.
    if ready and now < due + self._timing.reading:
      return
    if now >= self._lookout.due:
      self._attempt(self._lookout.look_again)
      self._attempt(self._on_rescan)
      self._sum_up(now)
    # Before what it tells of is removed.
    if now >= self._history.due:
      self._history.run(now)
    self._lookout.table.run(now)
    if now >= self._quota.due:
      self._sum_up(now)

  def _new_table(self) -> Table:
    """Makes a table that knows nobody."""
    shared = Shared(
      place=self._place,
      verdicts=Verdicts(self._place, self._timing.delivery),
      processes=Processes(),
      history=self._history,
      quota=self._quota,
      rule=self._rule,
      timing=self._timing,
    )
    return Table(self._epoll, shared)

  def _attempt(self, act: Callable[[], None]) -> None:
    """Does something of which no fault may end the daemon."""
    try:
      act()
    except Exception as fault:
      logging.error(
        "a fault of the daemon, please report it; it looks at everything again"
        " in %.0f s",
        max(0.0, self._lookout.due - time.monotonic()),
        exc_info=fault,
      )

  def _report_exits(self) -> None:
    """Logs how QEMUs ended that could not say it themselves."""
    assert self._exits is not None
    processes = self._lookout.table.processes
    told = self._exits.read(processes)
    for end in told.exits:
      name = processes.take(end.process, end.ended)
      if name is not None:
        self._history.tell_exit(end.process, end.how)
      if name is not None and self._quota.admit_line(name, time.monotonic()):
        logging.info(
          "instance %s: its process %d %s", name, end.process, end.how
        )
    now = time.monotonic()
    if told.lost and now >= self._next_regret:
      self._next_regret = now + self._timing.repeat
      logging.warning(
        "more processes failed at once than the kernel could tell of: of some"
        " instances it may not be logged how their QEMU ended (the verdicts do"
        " not depend on that)"
      )

  def _sum_up(self, now: float) -> None:
    """Logs how much was left out of the log.

    @param now: seconds of the monotonic clock; infinite at the end

    """
    for summary in self._quota.summaries(now):
      logging.warning("instance %s: %s", summary.name, summary.text)
      if summary.verdicts:
        self._history.note_more(summary.name, summary.verdicts)


def _listen_for_exits() -> Optional[exits.Exits]:
  try:
    return exits.Exits()
  except OSError as err:
    logging.info(
      "cannot learn how QEMUs end that are killed (%s): that takes root, and a"
      " kernel with a process connector, outside of containers",
      err.strerror,
    )
    return None

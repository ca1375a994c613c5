# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The instances followed by their monitors: when to connect to which."""

from __future__ import annotations

import resource
import select
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Optional

from ganeti.kvmd.core import session
from ganeti.kvmd.core.timers import Timers
from ganeti.kvmd.follow.monitored import Monitored, Reading
from ganeti.kvmd.node import connection

if TYPE_CHECKING:
  from ganeti.kvmd.follow.record import Do, Record
  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.ctrldir import Life

#: How often the delay is doubled; what comes of it exceeds any interval.
_MAX_DOUBLINGS = 24

#: Descriptors that are kept from monitors, for files, the log and so on.
_RESERVED = 24


class _Judged(NamedTuple):
  """A life that was over by what its journal told.

  @ivar life: as it is told from others by the monitor
  @ivar deadline: when its QEMU has gone for certain, by the monotonic clock

  """

  life: Life
  deadline: float


class MonitorFollower:
  """Follows instances by their monitors.

  @ivar connected: whose monitor each descriptor is a connection to

  """

  def __init__(self, epoll: select.epoll, shared: Shared) -> None:
    """Follows nobody yet.

    @param epoll: where to register connections

    """
    self._epoll = epoll
    self._shared = shared
    self._timing = shared.timing
    self._limit = _raise_descriptor_limit()
    self.connected: dict[int, Record] = {}
    self._timers = Timers()
    # Those whose monitor there is no descriptor for.
    self._crowded: set[str] = set()
    self._judged: dict[str, _Judged] = {}

  def close(self) -> None:
    """Lets go of all connections, without a verdict on anybody."""
    for record in list(self.connected.values()):
      assert record.monitor is not None
      self._disconnect(record.monitor)

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    return self._timers.due

  def run(self, now: float, do: Do) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock
    @param do: what to do it with

    """
    for name in self._timers.take(now):
      do(self._look_after, name)

  def begin_rescan(self) -> None:
    """Takes note that all that have a monitor are about to be listened to."""
    now = time.monotonic()
    self._crowded.clear()
    self._judged = {
      name: judged
      for name, judged in self._judged.items()
      if judged.deadline > now
    }

  def listen(self, record: Record) -> None:
    """Listens to one that has a monitor, or has a new one."""
    if record.monitor is None:
      record.monitor = Monitored(record.name, self._shared)
    elif record.monitor.connection is not None:
      if not record.monitor.is_superseded():
        return
      self._read_out(record.monitor)
      record.monitor.attempts = 0
    self._connect(record, record.monitor)

  def miss(self, record: Record) -> None:
    """Acts on it that no file has the name of its monitor."""
    monitor = record.monitor
    if monitor is None or monitor.connection is not None:
      return
    if monitor.instance.life is None:
      # Nothing is known of it; it may have waited for a place in vain.
      self.drop(record)
    else:
      self._connect(record, monitor)

  def leave(self, record: Record, *, is_dead: bool) -> None:
    """Listens to one no longer, as its journal is there.

    If that tells of another life than the one that was listened to, the verdict
    on that is given now: later it would undo what is found out about the other.

    @param is_dead: whether the life is over that the journal tells of

    """
    if record.monitor is not None:
      self._take_leave(record.monitor)
      self.drop(record)
    life = self._life(record.name) if is_dead else None
    if life is not None:
      self._judged[record.name] = _Judged(
        life, time.monotonic() + self._timing.lingering
      )

  def drop(self, record: Record) -> None:
    """Listens to one no longer."""
    self._timers.cancel(record.name)
    self._crowded.discard(record.name)
    monitor, record.monitor = record.monitor, None
    if monitor is not None:
      self._disconnect(monitor)
      self._shared.verdicts.forget(monitor.instance)

  def read(self, record: Record) -> None:
    """Reads once from the connection to one, and acts on what was said."""
    monitor = record.monitor
    assert monitor is not None
    made = monitor.connection
    assert made is not None
    reading = monitor.read()
    if reading is Reading.DATA or reading is Reading.NOTHING:
      return
    if (
      reading is Reading.END
      and made.session.state is session.State.ATTACHED
      and time.monotonic() - made.made >= self._timing.good
    ):
      monitor.attempts = 0
    self._disconnect(monitor)
    self._retry(monitor)

  def shortage(self) -> str:
    """Says how many cannot be listened to, if any, and what to do."""
    if not self._crowded:
      return ""
    return (
      f"{len(self._crowded)} instances cannot be watched, as no more than"
      f" {self._limit} files may be open: raise that limit (ulimit -n, or"
      " LimitNOFILE= of a systemd unit) and restart the daemon"
    )

  def _look_after(self, record: Record) -> None:
    """Does what is due for one that nothing was heard of."""
    monitor = record.monitor
    assert monitor is not None
    if monitor.connection is None:
      self._connect(record, monitor)
    else:
      monitor.complain_of_waiting()

  def _connect(self, record: Record, monitor: Monitored) -> None:
    name = record.name
    is_full = len(self.connected) >= self._limit - _RESERVED
    if is_full and monitor.instance.life is None:
      self._crowded.add(name)
      return
    if self._judged and self._lingers(name):
      self._schedule(name, self._timing.lingering)
      return
    monitor.attempts += 1
    attempt = connection.connect(self._shared.place.directory, name)
    made = monitor.connection = attempt.connection
    if made is not None:
      made.send()
      descriptor = made.fileno()
      self.connected[descriptor] = record
      self._epoll.register(descriptor, select.EPOLLIN)
      self._timers.set(name, made.made + self._timing.greeting)
    meaning = monitor.judge(attempt)
    if meaning.is_tried_again:
      self._retry(monitor)
    elif made is None and not self._shared.verdicts.is_late(monitor.instance):
      self.drop(record)
    if made is None and self._crowded and not is_full:
      self._take_crowded()

  def _take_crowded(self) -> None:
    """Lets one of those connect soon that wait for a descriptor."""
    self._schedule(self._crowded.pop(), 0.0)

  def _take_leave(self, monitor: Monitored) -> None:
    """Gives the verdict on a life if the journal is that of another."""
    instance = monitor.instance
    if instance.life is None or self._shared.verdicts.is_journaled(instance):
      return
    made = monitor.connection
    if made is not None:
      if not monitor.is_superseded() and not made.has_hung_up:
        return
      self._read_out(monitor)
    process = instance.process
    attempt = connection.connect(self._shared.place.directory, instance.name)
    if attempt.connection is not None:
      attempt.connection.close()
    monitor.judge(attempt)
    self._shared.processes.end(process, instance.name, time.monotonic())

  def _read_out(self, monitor: Monitored) -> None:
    """Hangs up; what was said till then still counts."""
    monitor.read_out()
    self._disconnect(monitor)

  def _lingers(self, name: str) -> bool:
    """Tells whether a monitor may be there only for a moment longer."""
    judged = self._judged.get(name)
    return (
      judged is not None
      and judged.deadline > time.monotonic()
      and self._life(name) == judged.life
    )

  def _life(self, name: str) -> Optional[Life]:
    """Returns the present life; None if that cannot be found out."""
    try:
      return self._shared.place.directory.life(name)
    except OSError:
      return None

  def _retry(self, monitor: Monitored) -> None:
    """Connects soon if all was well so far, else later and later."""
    delay = 0.0
    if monitor.attempts:
      # Doubling forever would leave the range of a float, after a day or so.
      doublings = min(monitor.attempts - 1, _MAX_DOUBLINGS)
      delay = self._timing.retry * 2**doublings
    name = monitor.instance.name
    if delay < self._timing.rescan:
      self._schedule(name, delay)
    else:
      # The next rescan does it, not the end of the wait for a greeting.
      self._timers.cancel(name)

  def _schedule(self, name: str, delay: float) -> None:
    self._timers.set(name, time.monotonic() + delay)

  def _disconnect(self, monitor: Monitored) -> None:
    """Hangs up, if there is a connection. What was learnt is kept."""
    made, monitor.connection = monitor.connection, None
    if made is not None:
      del self.connected[made.fileno()]
      made.close()
      if self._crowded:
        self._take_crowded()


def _raise_descriptor_limit() -> int:
  """Allows as many open files as an unprivileged process may.

  @return: how many that are

  """
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  return sys.maxsize if hard == resource.RLIM_INFINITY else hard

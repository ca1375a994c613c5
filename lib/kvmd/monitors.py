# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""All monitors of the node: which to connect to, and when to try again."""

from __future__ import annotations

import heapq
import resource
import select
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import instance, monitor

if TYPE_CHECKING:
  from collections.abc import Callable, Container, Iterable
  from typing import Optional

  from ganeti.kvmd import lifecycle
  from ganeti.kvmd.ctrldir import ControlDirectory, Life
  from ganeti.kvmd.processes import Processes
  from ganeti.kvmd.quota import Quota

#: Seconds before the second attempt to connect; doubled for each further one.
_FIRST_DELAY = 0.01

#: How often the delay is doubled; what comes of it exceeds any interval.
_MAX_DOUBLINGS = 24

#: How often a connection that was superseded is read, to learn what is left
#: in it; the kernel keeps less than that.
_LAST_READS = 64

#: Seconds that a monitor may be silent before the log says that we wait.
_PATIENCE = 3.0

#: Seconds that a QEMU may listen on when it has closed its journal.
_LINGERING = 1.0

#: Seconds after which it is tried again to write or remove marks.
_SETTLING_INTERVAL = 1.0

#: Descriptors that are kept from monitors, for files, the log and so on.
_RESERVED = 24


class _Judged(NamedTuple):
  """A life that was over by what its journal told.

  @ivar life: as it is told from others by the monitor
  @ivar deadline: when its QEMU has gone for certain, by the monotonic clock

  """

  life: Life
  deadline: float


class Monitors:
  """Follows instances by their monitors.

  @ivar directory: the control directory; None while it is missing

  """

  def __init__(
    self,
    epoll: select.epoll,
    rule: lifecycle.Rule,
    longest_delay: float,
    processes: Processes,
    quota: Quota,
  ) -> None:
    """Follows nothing yet.

    @param epoll: where to register connections
    @param rule: how a shutdown is judged
    @param longest_delay: after more seconds than that L{rescan} is called
      anyway
    @param processes: where to note which process is which instance's
    @param quota: how much is logged of each instance

    """
    self.directory: Optional[ControlDirectory] = None
    self._epoll = epoll
    self._rule = rule
    self._longest_delay = longest_delay
    self._processes = processes
    self._quota = quota
    self._limit = _raise_descriptor_limit()
    self._by_name: dict[str, monitor.Monitor] = {}
    self._by_descriptor: dict[int, monitor.Monitor] = {}
    # Instances to look after and when, earliest first. An entry counts only
    # while it says the same as its monitor's deadline.
    self._timers: list[tuple[float, str]] = []
    # Instances whose monitor there is no descriptor for.
    self._crowded: set[str] = set()
    # Instances that could not be marked as they are to be.
    self._unsettled: set[str] = set()
    self._next_settling = 0.0
    self._judged: dict[str, _Judged] = {}

  def close(self) -> None:
    """Lets go of all connections, without a verdict on anybody."""
    for follower in self._by_descriptor.values():
      follower.disconnect()
    self._by_descriptor.clear()

  @property
  def due(self) -> float:
    """When L{run_timers} is to be called, by the monotonic clock."""
    due = self._timers[0][0] if self._timers else float("inf")
    return min(due, self._next_settling) if self._unsettled else due

  def read(self, descriptor: int) -> bool:
    """Reads from a connection.

    @return: whether it is one of ours

    """
    follower = self._by_descriptor.get(descriptor)
    if follower is None:
      return False
    self._guard(self._read, follower.instance.name)
    return True

  def appear(self, name: str) -> None:
    """Takes note that an instance has made its monitor."""
    if name in self._by_name:
      self._by_name[name].attempts = 0
    self._guard(self._take_up, name)

  def rescan(self, names: Iterable[str], marked: Container[str]) -> None:
    """Sees to it that all instances are followed that have a monitor.

    @param names: the names of these instances
    @param marked: the names of the instances that have a mark

    """
    found = set(names)
    now = time.monotonic()
    for name, judged in list(self._judged.items()):
      if judged.deadline <= now:
        del self._judged[name]
    self._crowded.clear()
    for name in found:
      is_new = name not in self._by_name
      self._guard(self._take_up, name)
      if is_new and name in self._by_name:
        self._by_name[name].instance.may_be_marked = name in marked
    for name in self._by_name.keys() - found:
      follower = self._by_name[name]
      if follower.state is not monitor.State.APART:
        continue
      if follower.instance.life is None:
        # Nothing is known of it; it may have waited for a place in vain.
        self.drop(name)
      else:
        self._guard(self._look_after, name)

  def give_way(self, name: str, *, is_over: bool) -> None:
    """Follows an instance no longer, as its journal is there.

    If that tells of another life than the one that was followed, the verdict on
    that is given now: later it would undo what is found out about the other.

    @param name: the instance's
    @param is_over: whether the life is over that the journal tells of

    """
    if name in self._by_name:
      self._guard(self._take_leave, name)
      self.drop(name)
    if is_over and self.directory is not None:
      self._judged[name] = _Judged(
        self.directory.life(name), time.monotonic() + _LINGERING
      )

  def drop(self, name: str) -> None:
    """Follows an instance no longer."""
    follower = self._by_name.pop(name, None)
    if follower is not None and follower.state is not monitor.State.APART:
      self._disconnect(follower)

  def run_timers(self, now: float) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock

    """
    while self._timers and self._timers[0][0] <= now:
      deadline, name = heapq.heappop(self._timers)
      follower = self._by_name.get(name)
      if follower is not None and follower.deadline == deadline:
        self._guard(self._look_after, name)
    if self._unsettled and now >= self._next_settling:
      self._next_settling = now + _SETTLING_INTERVAL
      names, self._unsettled = self._unsettled, set()
      for name in names & self._by_name.keys():
        self._guard(self._settle, name)

  def shortage(self) -> str:
    """Says how many instances cannot be followed, if any, and what to do."""
    if not self._crowded:
      return ""
    return (
      f"{len(self._crowded)} instances cannot be watched, as no more than"
      f" {self._limit} files may be open: raise that limit (ulimit -n, or"
      " LimitNOFILE= of a systemd unit) and restart the daemon"
    )

  def _take_up(self, name: str) -> None:
    """Follows an instance that has a monitor, or has a new one."""
    follower = self._by_name.get(name)
    if follower is None:
      follower = monitor.Monitor(
        instance.Instance(name, self._rule, self._quota)
      )
      self._by_name[name] = follower
    elif follower.state is not monitor.State.APART:
      if self.directory is None or follower.is_meant(self.directory):
        return
      # Somebody else took the name.
      self._read_out(follower)
      follower.attempts = 0
    self._connect(follower)

  def _lingers(self, name: str) -> bool:
    """Tells whether a monitor may be there only for a moment longer."""
    judged = self._judged.get(name)
    return (
      judged is not None
      and judged.deadline > time.monotonic()
      and self.directory is not None
      and self.directory.life(name) == judged.life
    )

  def _take_leave(self, name: str) -> None:
    """Gives the verdict on an instance if its journal is another life's."""
    follower = self._by_name[name]
    life = follower.instance.life
    if (
      self.directory is None
      or life is None
      or self.directory.journal_tells_of(name, life)
    ):
      return
    if follower.state is not monitor.State.APART:
      if follower.is_meant(self.directory) and not follower.has_hung_up():
        return
      self._read_out(follower)
    process = follower.instance.process
    if follower.connect(self.directory) is monitor.Attempt.CONNECTED:
      follower.disconnect()
    self._processes.end(process, name, time.monotonic())

  def _read_out(self, follower: monitor.Monitor) -> None:
    """Hangs up; what was said till then still counts."""
    for _ in range(_LAST_READS):
      if follower.read(self.directory) is not monitor.Reading.DATA:
        break
    self._disconnect(follower)

  def _connect(self, follower: monitor.Monitor) -> None:
    name = follower.instance.name
    if follower.instance.life is None and not self._has_room:
      self._crowded.add(name)
      return
    if self._lingers(name):
      self._schedule(follower, _LINGERING)
      return
    process = follower.instance.process
    attempt = follower.connect(self.directory)
    if follower.instance.is_over or follower.instance.process != process:
      self._processes.end(process, name, time.monotonic())
    if attempt is monitor.Attempt.CONNECTED:
      self._by_descriptor[follower.fileno()] = follower
      self._epoll.register(follower.fileno(), select.EPOLLIN)
      self._schedule(follower, _PATIENCE)
    elif attempt is monitor.Attempt.FAILED:
      self._retry(follower)
    elif follower.instance.is_settled:
      del self._by_name[name]
    if not follower.instance.is_settled:
      self._unsettled.add(name)

  @property
  def _has_room(self) -> bool:
    return len(self._by_descriptor) < self._limit - _RESERVED

  def _retry(self, follower: monitor.Monitor) -> None:
    """Connects soon if all was well so far, else later and later."""
    delay = 0.0
    if follower.attempts:
      # Doubling forever would leave the range of a float, after a day or so.
      delay = _FIRST_DELAY * 2 ** min(follower.attempts - 1, _MAX_DOUBLINGS)
    if delay < self._longest_delay:
      self._schedule(follower, delay)

  def _schedule(self, follower: monitor.Monitor, delay: float) -> None:
    follower.deadline = time.monotonic() + delay
    heapq.heappush(self._timers, (follower.deadline, follower.instance.name))

  def _look_after(self, name: str) -> None:
    """Does what is due for an instance that nothing was heard of."""
    follower = self._by_name[name]
    if follower.state is monitor.State.APART:
      self._connect(follower)
    else:
      follower.complain_of_waiting()

  def _read(self, name: str) -> None:
    follower = self._by_name[name]
    before = follower.state
    reading = follower.read(self.directory)
    if follower.state is not before:
      self._processes.begin(follower.instance.process, name)
    if not follower.instance.is_settled:
      self._unsettled.add(name)
    if reading is monitor.Reading.END:
      self._disconnect(follower)
      self._retry(follower)
      while self._crowded and self._has_room:
        self._take_up(self._crowded.pop())

  def _settle(self, name: str) -> None:
    follower = self._by_name[name]
    follower.instance.settle(self.directory)
    if not follower.instance.is_settled:
      self._unsettled.add(name)

  def _disconnect(self, follower: monitor.Monitor) -> None:
    del self._by_descriptor[follower.fileno()]
    follower.disconnect()

  def _guard(self, act: Callable[[str], None], name: str) -> None:
    """Does something for an instance, so that a fault harms no other.

    @param act: what to do
    @param name: the instance's name

    """
    try:
      act(name)
    except Exception as fault:  # noqa: BLE001
      instance.log_fault(name, fault)
      self.drop(name)


def _raise_descriptor_limit() -> int:
  """Allows as many open files as an unprivileged process may.

  @return: how many that are

  """
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  return sys.maxsize if hard == resource.RLIM_INFINITY else hard

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The event loop: owns the watch, the monitors, the timers and the signals.

Everything happens in one thread, when the kernel reports it: bytes from a
monitor, a name in the control directory, a signal, or the time for another
look. The loop decides who is to act; what it means is decided elsewhere.
"""

from __future__ import annotations

import heapq
import logging
import resource
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import ctrldir, monitor, watch
from ganeti.kvmd.instance import Instance

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd import lifecycle
  from ganeti.kvmd.signals import Signals

#: Seconds before the second attempt to connect; doubled for each further one.
_FIRST_DELAY = 0.01

#: How often the delay is doubled; what comes of it exceeds any interval.
_MAX_DOUBLINGS = 24

#: How often a connection that was superseded is read, to learn what is left
#: in it; the kernel keeps less than that.
_LAST_READS = 64

#: Seconds after which a control directory that cannot be used is tried again.
_TROUBLE_INTERVAL = 1.0

#: Seconds that a monitor may be silent before the log says that we wait.
_PATIENCE = 3.0

#: Seconds after which it is tried again to write or remove shutdown files.
_SETTLING_INTERVAL = 1.0

#: Descriptors that are kept from monitors, for files, the log and so on.
_RESERVED = 24


class Settings(NamedTuple):
  """What the daemon is to do.

  @ivar path: of the control directory
  @ivar monitor_suffix: what the names of monitor sockets end in
  @ivar rule: how a shutdown is judged
  @ivar rescan_interval: seconds after which everything is looked at again

  """

  path: str
  monitor_suffix: str
  rule: lifecycle.Rule
  rescan_interval: float


class Daemon:
  """Watches one control directory and follows the instances in it."""

  def __init__(self, settings: Settings) -> None:
    """Begins to watch; nothing that happens from now on is lost.

    @raise OSError: if the control directory cannot be used

    """
    self._settings = settings
    self._watch = watch.Watch(settings.path)
    self._watch.follow()
    self._directory = self._find_directory()
    if self._directory is not None:
      self._directory.check_access()
    self._trouble = ""
    self._monitors: dict[str, monitor.Monitor] = {}
    self._by_descriptor: dict[int, monitor.Monitor] = {}
    # Instances to look after and when, earliest first. An entry counts only
    # while it says the same as its monitor's deadline.
    self._timers: list[tuple[float, str]] = []
    self._next_rescan = self._next_settling = time.monotonic()
    self._room = _raise_descriptor_limit() - _RESERVED
    # Instances whose monitor there is no descriptor for.
    self._crowded: set[str] = set()
    # Instances whose shutdown file could not be written or removed.
    self._unsettled: set[str] = set()
    self._epoll = select.epoll()
    self._epoll.register(self._watch.fileno(), select.EPOLLIN)

  def close(self) -> None:
    """Lets go of everything, without a verdict on anybody."""
    for follower in self._by_descriptor.values():
      follower.disconnect()
    self._by_descriptor.clear()
    self._epoll.close()
    self._watch.close()

  @property
  def has_directory(self) -> bool:
    """Whether the control directory exists."""
    return self._directory is not None

  def run(self, signals: Signals, on_hangup: Callable[[], None]) -> None:
    """Works until SIGTERM or SIGINT.

    @param signals: the signals
    @param on_hangup: called for each SIGHUP

    """
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
    # Monitors come before names: what an instance has said belongs before
    # what a new one of its name does.
    names_changed = False
    for descriptor, _ in self._epoll.poll(self._wait(limit)):
      follower = self._by_descriptor.get(descriptor)
      if follower is not None:
        self._guard(self._read, follower.instance.name)
      elif descriptor == self._watch.fileno():
        names_changed = True
    if names_changed:
      self._look()
    now = time.monotonic()
    if now >= self._next_rescan:
      self._next_rescan = now + self._settings.rescan_interval
      self._follow()
      self._rescan()
    if self._unsettled and now >= self._next_settling:
      self._next_settling = now + _SETTLING_INTERVAL
      self._settle()
    self._run_timers(now)

  def _wait(self, limit: Optional[float]) -> float:
    """Returns for how many seconds nothing is due."""
    due = self._next_rescan
    if self._timers:
      due = min(due, self._timers[0][0])
    if self._unsettled:
      due = min(due, self._next_settling)
    wait = max(0.0, due - time.monotonic())
    return wait if limit is None else min(wait, limit)

  def _look(self) -> None:
    """Acts on what the watch has seen."""
    changes = self._watch.read()
    if changes.lost:
      logging.warning("lost track of what appeared in %s", self._watch.path)
    if (changes.path or changes.lost) and self._follow():
      self._rescan()
    elif changes.lost:
      self._rescan()
    elif self._directory is not None:
      for file_name in changes.names:
        name = self._directory.monitored_by(file_name)
        if name is not None:
          if name in self._monitors:
            self._monitors[name].attempts = 0
          self._guard(self._take_up, name)

  def _follow(self) -> bool:
    """Follows the path of the control directory anew.

    @return: whether it leads to another directory now

    """
    before = self.has_directory
    try:
      if not self._watch.follow():
        return False
    except OSError as err:
      self._report(f"cannot use {err.filename}: {err.strerror}")
      self._next_rescan = time.monotonic() + _TROUBLE_INTERVAL
    self._directory = self._find_directory()
    if self._directory is not None:
      self._report(f"{self._watch.path} is there now", logging.INFO)
    elif before:
      self._report(f"{self._watch.path} is gone; waiting for it to come back")
    return True

  def _find_directory(self) -> Optional[ctrldir.ControlDirectory]:
    if self._watch.directory is None:
      return None
    return ctrldir.ControlDirectory(
      self._watch.path, self._watch.directory, self._settings.monitor_suffix
    )

  def _rescan(self) -> None:
    """Looks at everything, as if nothing had been reported."""
    found: set[str] = set()
    if self._directory is not None:
      try:
        found = self._directory.monitored()
      except OSError as err:
        self._report(f"cannot list {self._watch.path}: {err.strerror}")
        return
    self._crowded.clear()
    for name in found:
      self._guard(self._take_up, name)
    for name in self._monitors.keys() - found:
      self._guard(self._look_after, name)
    if self._crowded:
      self._report(
        f"{len(self._crowded)} instances cannot be watched, as no more than"
        f" {self._room + _RESERVED} files may be open: raise that limit"
        " (ulimit -n, or LimitNOFILE= of its systemd unit) and restart it"
      )

  def _take_up(self, name: str) -> None:
    """Follows an instance that has a monitor, or has a new one."""
    follower = self._monitors.get(name)
    if follower is None:
      follower = monitor.Monitor(Instance(name, self._settings.rule))
      self._monitors[name] = follower
    elif follower.state is not monitor.State.APART:
      if self._directory is None or follower.is_meant(self._directory):
        return
      # Somebody else took the name. What the old one has said still counts.
      for _ in range(_LAST_READS):
        if follower.read(self._directory) is not monitor.Reading.DATA:
          break
      self._disconnect(follower)
      follower.attempts = 0
    self._connect(follower)

  def _connect(self, follower: monitor.Monitor) -> None:
    is_new = follower.instance.life is None
    if is_new and len(self._by_descriptor) >= self._room:
      self._crowded.add(follower.instance.name)
      return
    attempt = follower.connect(self._directory)
    if attempt is monitor.Attempt.CONNECTED:
      self._by_descriptor[follower.fileno()] = follower
      self._epoll.register(follower.fileno(), select.EPOLLIN)
      self._schedule(follower, _PATIENCE)
    elif attempt is monitor.Attempt.FAILED:
      self._retry(follower)
    elif follower.instance.is_settled:
      del self._monitors[follower.instance.name]
    if not follower.instance.is_settled:
      self._unsettled.add(follower.instance.name)

  def _settle(self) -> None:
    """Tries again where a shutdown file could not be written or removed."""
    names, self._unsettled = self._unsettled, set()
    for name in names & self._monitors.keys():
      self._guard(self._settle_one, name)

  def _settle_one(self, name: str) -> None:
    instance = self._monitors[name].instance
    instance.settle(self._directory)
    if not instance.is_settled:
      self._unsettled.add(name)

  def _retry(self, follower: monitor.Monitor) -> None:
    """Connects at once if all was well so far, else later and later."""
    if not follower.attempts:
      self._connect(follower)
      return
    # Doubling forever would leave the range of a float, after a day or so.
    delay = _FIRST_DELAY * 2 ** min(follower.attempts - 1, _MAX_DOUBLINGS)
    if delay < self._settings.rescan_interval:
      self._schedule(follower, delay)

  def _schedule(self, follower: monitor.Monitor, delay: float) -> None:
    follower.deadline = time.monotonic() + delay
    heapq.heappush(self._timers, (follower.deadline, follower.instance.name))

  def _run_timers(self, now: float) -> None:
    while self._timers and self._timers[0][0] <= now:
      deadline, name = heapq.heappop(self._timers)
      follower = self._monitors.get(name)
      if follower is not None and follower.deadline == deadline:
        self._guard(self._look_after, name)

  def _look_after(self, name: str) -> None:
    """Does what is due for an instance that nothing was heard of."""
    follower = self._monitors[name]
    if follower.state is monitor.State.APART:
      self._connect(follower)
    else:
      follower.complain_of_waiting()

  def _read(self, name: str) -> None:
    follower = self._monitors[name]
    reading = follower.read(self._directory)
    if not follower.instance.is_settled:
      self._unsettled.add(name)
    if reading is monitor.Reading.END:
      self._disconnect(follower)
      self._retry(follower)
      if self._crowded:
        self._take_up(self._crowded.pop())

  def _guard(self, act: Callable[[str], None], name: str) -> None:
    """Does something for an instance, so that a fault harms no other.

    @param act: what to do
    @param name: the instance's name

    """
    try:
      act(name)
    except Exception:
      logging.exception(
        "instance %s: a fault of the daemon, please report it; it is followed"
        " anew at the next rescan",
        name,
      )
      follower = self._monitors.pop(name, None)
      if follower is not None and follower.state is not monitor.State.APART:
        self._disconnect(follower)

  def _disconnect(self, follower: monitor.Monitor) -> None:
    del self._by_descriptor[follower.fileno()]
    follower.disconnect()

  def _report(self, text: str, level: int = logging.WARNING) -> None:
    """Logs the state of the directory, when it is another than before."""
    if text != self._trouble:
      self._trouble = text
      logging.log(level, "%s", text)


def _raise_descriptor_limit() -> int:
  """Allows as many open files as an unprivileged process may.

  @return: how many that are

  """
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  return sys.maxsize if hard == resource.RLIM_INFINITY else hard

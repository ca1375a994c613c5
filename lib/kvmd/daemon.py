# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The event loop: owns the watch, the monitors, the timers and the signals.

Everything happens in one thread, when the kernel reports it: bytes from a
monitor, a name in the control directory, a signal, or the time for another
look. The loop decides who is to act; what it means is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import (
  ctrldir,
  exits,
  journals,
  lifecycle,
  lockfile,
  monitors,
  processes,
  quota,
  watch,
)

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd.signals import Signals

#: Seconds after which a control directory that cannot be used is tried again,
#: and one that cannot be watched is looked at.
_TROUBLE_INTERVAL = 1.0

#: Seconds that what is due may have to wait for what there is to be read.
_LONGEST_DELAY = 0.1

#: Seconds in which it is said once that the kernel did not tell of something.
_REGRET_INTERVAL = 3600.0

#: At so many files of instances the daemon looks at a time, in some 3 ms.
_MAX_ACTS = 24

#: It reads so often what the watch has seen, if there are no such files in it.
_MAX_READS = 40

#: Of a second a daemon that cannot watch spends no larger part on looking.
_LOOKING = 0.1

#: A rescan is thorough after so many intervals.
_THOROUGH = 10

#: Seconds after which it is worth a line that somebody keeps us from changing
#: files that belong together.
_LONG = 60.0


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

    @raise lockfile.LockedError: if the control directory has a daemon
    @raise OSError: if the control directory cannot be used

    """
    self._settings = settings
    self._watch = watch.Watch(settings.path)
    try:
      self._watch.follow()
      self._found = self._find_directory()
      if self._found is not None:
        self._found.check_access()
        # If it is removed at this moment the watch will tell.
        with contextlib.suppress(FileNotFoundError):
          self._found.claim()
    except BaseException:
      self._watch.close()
      raise
    # What there is, if we may follow it.
    self._directory = self._found
    self._trouble = ""
    # Why the directory cannot be watched, as far as that was logged.
    self._blindness = ""
    self._last_rescan = float("-inf")
    self._rescan_took = 0.0
    self._is_rule_said = True
    self._kept_out_since: Optional[float] = None
    self._on_rescan: Callable[[], None] = lambda: None
    self._next_rescan = time.monotonic()
    self._next_thorough = self._next_rescan + self._thorough_interval
    self._epoll = select.epoll()
    self._quota = quota.Quota()
    # When it may be said again that the kernel did not tell of all ends, or of
    # all names.
    self._next_regret = 0.0
    self._next_loss = 0.0
    self._exits = _listen_for_exits()
    self._handlers = {self._watch.fileno(): self._look}
    if self._exits is not None:
      self._handlers[self._exits.fileno()] = self._report_exits
    for descriptor in self._handlers:
      self._epoll.register(descriptor, select.EPOLLIN)
    self._follow_nobody()
    self._hand_out_directory()
    self._see()
    self._say_rule()

  def close(self) -> None:
    """Lets go of everything, without a verdict on anybody."""
    self._sum_up(float("inf"))
    self._monitors.close()
    if self._exits is not None:
      self._exits.close()
    self._epoll.close()
    if self._found is not None:
      self._found.release()
    self._watch.close()

  @property
  def _thorough_interval(self) -> float:
    return _THOROUGH * self._settings.rescan_interval

  @property
  def has_directory(self) -> bool:
    """Whether the control directory exists."""
    return self._found is not None

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
      self._next_rescan,
      self._monitors.due,
      self._journals.due,
      self._quota.due,
    )
    wait = max(0.0, due - time.monotonic())
    if limit is not None:
      wait = min(wait, limit)
    ready = self._epoll.poll(wait)
    # Monitors come before names: what an instance has said belongs before
    # what a new one of its name does.
    others = [
      descriptor
      for descriptor, _ in ready
      if not self._monitors.read(descriptor)
    ]
    for descriptor in others:
      if descriptor in self._handlers:
        self._attempt(self._handlers[descriptor])
    now = time.monotonic()
    # All that was said comes before all that is due, but not for ever: where
    # many instances end at once, each has its file before the first verdict.
    if ready and now < due + _LONGEST_DELAY:
      return
    if now >= self._next_rescan:
      self._next_rescan = now + self._settings.rescan_interval
      self._attempt(self._look_again)
    self._monitors.run_timers(now)
    self._journals.run_timers(now)
    if now >= self._quota.due:
      self._sum_up(now)

  def _attempt(self, act: Callable[[], None]) -> None:
    """Does something of which no fault may end the daemon."""
    try:
      act()
    except Exception as fault:
      logging.error(
        "a fault of the daemon, please report it; it looks at everything again"
        " in %.0f s",
        max(0.0, self._next_rescan - time.monotonic()),
        exc_info=fault,
      )

  def _look_again(self) -> None:
    """Looks whether anything was missed."""
    self._on_rescan()
    moved = self._follow()
    self._rescan(
      thoroughly=moved or time.monotonic() >= self._next_thorough,
      elsewhere=moved,
    )

  def _look(self) -> None:
    """Acts on what the watch has seen, or on the first part of it."""
    acts = 0
    for _ in range(_MAX_READS):
      changes = self._watch.read()
      if not changes.number:
        return
      self._look_at_lock(changes)
      is_replaced = ctrldir.LOCK_FILE in changes.names
      moved = (
        bool(changes.path or changes.lost or is_replaced) and self._follow()
      )
      if moved or (changes.lost and self._regain_track()):
        self._rescan(thoroughly=True, elsewhere=moved)
        return
      if self._directory is not None:
        acts += self._look_at(changes, self._directory)
      if acts >= _MAX_ACTS:
        return

  def _look_at_lock(self, changes: watch.Changes) -> None:
    """Looks again soon where another daemon may have ended."""
    if self._is_left_to_others and ctrldir.LOCK_FILE in changes.closed:
      # The kernel tells of that just before the lock is free.
      soon = time.monotonic() + _TROUBLE_INTERVAL
      self._next_rescan = min(self._next_rescan, soon)

  def _look_at(
    self, changes: watch.Changes, directory: ctrldir.ControlDirectory
  ) -> int:
    """Looks at what has appeared or was closed.

    @return: how many files of instances that were

    """
    acts = 0
    for file_name in changes.names | changes.closed:
      name = directory.journaled_by(file_name)
      if name is None:
        continue
      acts += 1
      if file_name in changes.names:
        self._journals.look(name)
      else:
        self._journals.closed(name)
    for file_name in changes.names:
      name = directory.monitored_by(file_name)
      if name is None:
        continue
      acts += 1
      self._journals.look(name)
      if not self._journals.follows(name):
        self._monitors.appear(name)
    return acts

  def _regain_track(self) -> bool:
    """Sees to it that everything is looked at, after names were lost.

    Where a stranger makes names all the time, in a directory that the path
    leads through, that is not done all the time.

    @return: whether it is to be done at once

    """
    now = time.monotonic()
    if now >= self._next_loss:
      self._next_loss = now + _REGRET_INTERVAL
      logging.warning(
        "lost track of what appeared in %s, as more happened at once than the"
        " kernel could tell of; looking at everything instead",
        self._watch.path,
      )
    again = self._last_rescan + _TROUBLE_INTERVAL
    if now >= again:
      return True
    self._next_thorough = now
    self._next_rescan = min(self._next_rescan, again)
    return False

  def _report_exits(self) -> None:
    """Logs how QEMUs ended that could not say it themselves."""
    assert self._exits is not None
    told = self._exits.read(self._processes)
    for end in told.exits:
      name = self._processes.take(end.process, end.ended)
      if name is not None and self._quota.admit_line(name, time.monotonic()):
        logging.info(
          "instance %s: its process %d %s", name, end.process, end.how
        )
    now = time.monotonic()
    if told.lost and now >= self._next_regret:
      self._next_regret = now + _REGRET_INTERVAL
      logging.warning(
        "more processes failed at once than the kernel could tell of: of some"
        " instances it may not be logged how their QEMU ended (the verdicts do"
        " not depend on that)"
      )

  def _follow(self) -> bool:
    """Follows the path of the control directory anew, if we may.

    @return: whether we follow another directory now, or none

    """
    was_left = self._is_left_to_others
    before = self._directory
    self._find()
    self._directory = self._claim()
    if self._is_left_to_others and not was_left:
      # The other daemon cannot listen to whom we are connected to.
      self._monitors.close()
      self._follow_nobody()
    if self._directory is before:
      return False
    if self._directory is not None and was_left:
      self._report(f"{self._watch.path} is followed from now on", logging.INFO)
    self._hand_out_directory()
    return True

  def _find(self) -> None:
    """Looks where the path of the control directory leads."""
    before = self._found
    try:
      moved = self._watch.follow()
    except OSError as err:
      self._report(f"cannot use {err.filename}: {err.strerror}")
      self._next_rescan = time.monotonic() + _TROUBLE_INTERVAL
      moved = True
    self._see()
    if not moved:
      return
    if before is not None:
      before.release()
    self._found = self._find_directory()
    if self._found is not None:
      self._report(f"{self._watch.path} is there now", logging.INFO)
    elif before is not None:
      self._report(f"{self._watch.path} is gone; waiting for it to come back")

  def _claim(self) -> Optional[ctrldir.ControlDirectory]:
    """Sees to it that no other daemon follows the directory.

    @return: the directory, if we may follow it

    """
    if self._found is None:
      return None
    try:
      self._found.claim()
    except lockfile.LockedError as err:
      self._report(
        f"{self._watch.path} belongs to another ganeti-kvmd ({err}), which"
        " gives the verdicts; this one waits until that ends: see which of the"
        " two is to stay, and end the other"
      )
      return None
    except OSError as err:
      # It may have been removed with its directory just now.
      if not isinstance(err, FileNotFoundError):
        self._report(
          f"cannot use {err.filename}: {err.strerror}; without that lock there"
          f" might be two daemons, and {self._watch.path} is not followed anew"
        )
      # Another user's file may mean another daemon. Else, whom we follow
      # already would only be lost.
      if self._directory is self._found and not isinstance(
        err, PermissionError
      ):
        return self._found
      self._next_rescan = time.monotonic() + _TROUBLE_INTERVAL
      return None
    return self._found

  @property
  def _is_left_to_others(self) -> bool:
    """Whether there is a directory, and we may not follow it."""
    return self._found is not None and self._directory is None

  def _see(self) -> None:
    """Looks again soon, if that is the only way to see anything."""
    blindness = self._watch.blindness
    if blindness:
      delay = max(_TROUBLE_INTERVAL, self._rescan_took / _LOOKING)
      self._next_rescan = min(self._next_rescan, time.monotonic() + delay)
    if blindness == self._blindness:
      return
    self._blindness = blindness
    if blindness:
      logging.warning(
        "cannot watch %s: %s. Looking at it every second instead: what is"
        " started or ends is noticed up to a second later. Raise that limit;"
        " nothing has to be restarted",
        self._watch.path,
        blindness,
      )
    else:
      logging.info("watching %s again", self._watch.path)

  def _follow_nobody(self) -> None:
    """Begins anew, without a verdict on anybody."""
    self._processes = processes.Processes()
    self._monitors = monitors.Monitors(
      self._epoll,
      self._settings.rule,
      self._settings.rescan_interval,
      self._processes,
      self._quota,
    )
    self._journals = journals.Journals(
      self._settings.rule,
      journals.Listeners(
        served=functools.partial(self._monitors.give_way, is_over=False),
        judged=functools.partial(self._monitors.give_way, is_over=True),
        absent=self._monitors.appear,
      ),
      processes=self._processes,
      quota=self._quota,
    )

  def _hand_out_directory(self) -> None:
    self._monitors.directory = self._directory
    self._journals.directory = self._directory

  def _say_rule(self) -> None:
    """Lets the hypervisor know by which rule the daemon judges."""
    if self._directory is None:
      return
    rule = self._settings.rule
    is_usual = rule is lifecycle.Rule.CAUSE
    try:
      self._directory.say_rule(None if is_usual else rule.value)
      self._is_rule_said = True
    except OSError as err:
      if self._is_rule_said:
        logging.warning(
          "cannot say in %s that the rule is %s (%s: %s): while no daemon runs,"
          " Ganeti may judge by another; trying again in %.0f s",
          self._watch.path,
          rule.value,
          err.filename,
          err.strerror,
          self._settings.rescan_interval,
        )
      self._is_rule_said = False

  def _find_directory(self) -> Optional[ctrldir.ControlDirectory]:
    if self._watch.directory is None:
      return None
    return ctrldir.ControlDirectory(
      self._watch.path, self._watch.directory, self._settings.monitor_suffix
    )

  def _rescan(self, *, thoroughly: bool, elsewhere: bool) -> None:
    """Looks at everything, as if nothing had been reported.

    @param thoroughly: also at what shows no sign of a change
    @param elsewhere: whether the directory is another than before

    """
    self._last_rescan = time.monotonic()
    if thoroughly:
      self._next_thorough = self._last_rescan + self._thorough_interval
    self._say_rule()
    found = ctrldir.Instances(set(), set(), set())
    if self._directory is not None:
      try:
        found = self._directory.instances()
      except OSError as err:
        self._report(f"cannot list {self._watch.path}: {err.strerror}")
        self._next_rescan = time.monotonic() + _TROUBLE_INTERVAL
        return
    self._journals.rescan(
      found.journaled, thoroughly=thoroughly, elsewhere=elsewhere
    )
    self._monitors.rescan(
      (name for name in found.monitored if not self._journals.follows(name)),
      found.marked,
    )
    now = time.monotonic()
    self._processes.sweep(now)
    self._sum_up(now)
    self._complain_of_lock()
    shortage = self._monitors.shortage()
    if shortage:
      self._report(shortage)
    self._rescan_took = time.monotonic() - self._last_rescan

  def _sum_up(self, now: float) -> None:
    """Logs how much was left out of the log.

    @param now: seconds of the monotonic clock; infinite at the end

    """
    for summary in self._quota.summaries(now):
      logging.warning("instance %s: %s", summary.name, summary.text)

  def _complain_of_lock(self) -> None:
    """Logs once that somebody keeps us from changing journals for long."""
    kept_out = None if self._directory is None else self._directory.kept_out
    if (
      kept_out is not None
      and kept_out.last - kept_out.first > _LONG
      and kept_out.first != self._kept_out_since
    ):
      self._kept_out_since = kept_out.first
      logging.warning(
        "for %.0f s no journal could be made shorter, or be removed after it"
        " was read: %s; verdicts are right, but journals grow until that ends:"
        " see what it waits for (is it stopped?), or end it",
        kept_out.last - kept_out.first,
        kept_out.reason,
      )

  def _report(self, text: str, level: int = logging.WARNING) -> None:
    """Logs the state of the directory, when it is another than before."""
    if text != self._trouble:
      self._trouble = text
      logging.log(level, "%s", text)


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

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What is seen of the control directory, and when everything is looked at.

What inotify tells is passed on, a part at a time; what it cannot tell, or may
have lost, is found by looking at everything again.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.node import ctrldir
from ganeti.kvmd.node.place import Change

if TYPE_CHECKING:
  from collections.abc import Callable

  from ganeti.kvmd.core.timing import Timing
  from ganeti.kvmd.follow.table import Table
  from ganeti.kvmd.node.place import Place
  from ganeti.kvmd.node.watch import Changes

#: At so many files of instances the daemon looks at a time, in some 3 ms.
_MAX_ACTS = 24

#: It reads so often what the watch has seen, if there are no such files in it.
_MAX_READS = 40


class Lookout:
  """Sees what becomes of the control directory.

  @ivar table: the instances of the node

  """

  def __init__(
    self, place: Place, new_table: Callable[[], Table], timing: Timing
  ) -> None:
    """Has seen nothing yet.

    @param new_table: makes a table that knows nobody

    """
    self.table = new_table()
    self._new_table = new_table
    self._place = place
    self._watch = place.watch
    self._timing = timing
    self._last_rescan = float("-inf")
    self._rescan_took = 0.0
    self._next_rescan = self._next_thorough = time.monotonic()
    # When it may be said again that the kernel did not tell of all names.
    self._next_loss = 0.0

  @property
  def due(self) -> float:
    """When L{look_again} is to be called, by the monotonic clock."""
    return self._next_rescan

  def look_again(self) -> None:
    """Looks whether anything was missed."""
    self._next_rescan = time.monotonic() + self._timing.rescan
    moved = self._follow()
    self._rescan(
      thoroughly=moved or time.monotonic() >= self._next_thorough,
      elsewhere=moved,
    )

  def look(self) -> None:
    """Acts on what the watch has seen, or on the first part of it."""
    acts = 0
    for _ in range(_MAX_READS):
      changes = self._watch.read()
      if not changes.number:
        return
      if self._place.is_left_to_others and ctrldir.LOCK_FILE in changes.closed:
        # Another daemon may have ended: the kernel tells of that just before
        # the lock is free.
        self._look_again_in(self._timing.trouble)
      is_replaced = ctrldir.LOCK_FILE in changes.names
      moved = (
        bool(changes.path or changes.lost or is_replaced) and self._follow()
      )
      if moved or (changes.lost and self._regain_track()):
        self._rescan(thoroughly=True, elsewhere=moved)
        return
      if not self._place.is_left_to_others:
        acts += self._look_at(changes)
      if acts >= _MAX_ACTS:
        return

  def _look_at(self, changes: Changes) -> int:
    """Looks at what has appeared or was closed.

    @return: how many files of instances that were

    """
    directory = self._place.directory
    acts = 0
    for file_name in changes.names | changes.closed:
      name = directory.journaled_by(file_name)
      if name is not None:
        acts += 1
        if file_name in changes.names:
          self.table.journal_appeared(name)
        else:
          self.table.journal_closed(name)
    for file_name in changes.names:
      name = directory.monitored_by(file_name)
      if name is not None:
        acts += 1
        self.table.monitor_appeared(name)
    return acts

  def _regain_track(self) -> bool:
    """Sees to it that everything is looked at, after names were lost.

    Where a stranger makes names all the time, in a directory that the path
    leads through, that is not done all the time.

    @return: whether it is to be done at once

    """
    now = time.monotonic()
    if now >= self._next_loss:
      self._next_loss = now + self._timing.repeat
      logging.warning(
        "lost track of what appeared in %s, as more happened at once than the"
        " kernel could tell of; looking at everything instead",
        self._watch.path,
      )
    again = self._last_rescan + self._timing.trouble
    if now >= again:
      return True
    self._next_thorough = now
    self._next_rescan = min(self._next_rescan, again)
    return False

  def _follow(self) -> bool:
    """Follows the path of the control directory anew.

    @return: whether it leads to another directory now, or to none

    """
    change = self._place.follow()
    self._look_again_in(self._place.patience)
    if change is Change.LEFT:
      self.table.close()
      self.table = self._new_table()
    return change is not Change.NONE

  def _look_again_in(self, seconds: float) -> None:
    """Looks at everything again soon, if that is sooner than it would."""
    if self._watch.blindness:
      # To look is the only way to see anything.
      seconds = max(seconds, self._rescan_took / self._timing.looking)
    self._next_rescan = min(self._next_rescan, time.monotonic() + seconds)

  def _rescan(self, *, thoroughly: bool, elsewhere: bool) -> None:
    """Looks at everything, as if nothing had been reported.

    @param thoroughly: also at what shows no sign of a change
    @param elsewhere: whether the directory is another than before

    """
    self._last_rescan = time.monotonic()
    if thoroughly:
      interval = self._timing.thorough * self._timing.rescan
      self._next_thorough = self._last_rescan + interval
    self._place.say_rule()
    try:
      found = self._place.directory.instances()
    except ctrldir.MissingDirectoryError:
      found = ctrldir.Instances(set(), set(), set())
    except OSError as err:
      self._place.report(f"cannot list {self._watch.path}: {err.strerror}")
      self._look_again_in(self._timing.trouble)
      return
    self.table.rescan(found, thoroughly=thoroughly, elsewhere=elsewhere)
    self.table.processes.sweep(time.monotonic())
    self._place.complain_of_lock()
    shortage = self.table.shortage()
    if shortage:
      self._place.report(shortage)
    self._rescan_took = time.monotonic() - self._last_rescan

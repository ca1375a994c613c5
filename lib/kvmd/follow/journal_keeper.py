# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How much of the file system all journals take.

That is for their QEMUs to decide, so it is looked after: what a journal needs
is done about it, and one that is of no use is cut, a part at a time.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core.following import State
from ganeti.kvmd.node import journal_files
from ganeti.kvmd.node.journal_files import JournalError
from ganeti.kvmd.node.journal_space import LONG

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.core.timers import Timers
  from ganeti.kvmd.follow.record import Record
  from ganeti.kvmd.follow.shared import Shared

#: The file system is nearly full when less than that share of it is free.
_SCARCE = 1 / 16


#: Those whose journal a QEMU may have open.
_GROWING = frozenset({State.WRITTEN, State.USELESS})


class JournalKeeper:
  """Looks after how much of the file system journals take."""

  def __init__(self, shared: Shared, timers: Timers) -> None:
    """Has nothing to look after yet.

    @param timers: where to note when a journal is to be looked at again

    """
    self._shared = shared
    self._timing = shared.timing
    self._timers = timers
    # Those who have a journal.
    self._names: set[str] = set()
    # Those whose growth is to be looked at, as the file system is full.
    self._suspects: collections.deque[str] = collections.deque()
    self._next = 0.0

  @property
  def due(self) -> float:
    """When L{look_around} is to be called, by the monotonic clock."""
    if not self._names:
      return float("inf")
    return 0.0 if self._suspects else self._next

  def add(self, name: str) -> None:
    """Looks after an instance's journal from now on."""
    self._names.add(name)

  def forget(self, name: str) -> None:
    """Looks after an instance's journal no longer."""
    self._names.discard(name)

  def look_around(self, now: float) -> None:
    """Suspects all, now and then, where the file system is nearly full.

    @param now: seconds of the monotonic clock

    """
    if now >= self.due:
      self._next = now + self._timing.space
      if not self._suspects and self._is_scarce():
        self._suspects.extend(self._names)

  def take(self) -> Optional[str]:
    """Takes the name of the one to L{check} next, if any."""
    return self._suspects.popleft() if self._suspects else None

  def check(self, record: Record) -> bool:
    """Sees to it that a journal has room, and does not take all there is.

    @return: whether it has to be read for that
    @raise JournalError: if there is no room for it
    @raise OSError: if that cannot be found out, or made

    """
    known = record.journal
    if known is None or record.state not in _GROWING:
      return False
    directory = self._shared.place.directory
    needed = known.measure(journal_files.extent(directory, record.name))
    if record.state is State.USELESS:
      delay = self._timing.cut if needed.is_fast else self._timing.space
      self.cut(record.name, delay)
      return False
    if needed.lasts < self._timing.hurry and not known.delay:
      self._schedule(record.name, max(self._timing.space, needed.lasts))
    if needed.is_behind and self._is_scarce():
      raise JournalError("it is long, and the file system nearly full")
    if needed.is_long:
      return True
    return needed.is_short_of_room and not self._reserve(record.name)

  def cut(self, name: str, delay: float) -> None:
    """Gives back some of what a journal takes that is of no use.

    @param name: the instance's
    @param delay: when to look again, in seconds, if there is no more

    """
    more = False
    with contextlib.suppress(JournalError, OSError):
      with journal_files.opened(self._shared.place.directory, name) as files:
        if files.extent().allocated > LONG:
          files.cut()
          more = files.extent().allocated > LONG
    self._schedule(name, 0.0 if more else delay)

  def _reserve(self, name: str) -> bool:
    """Makes room for last words, and tells whether there is any."""
    try:
      with journal_files.opened(self._shared.place.directory, name) as files:
        files.reserve()
    except OSError as err:
      if err.errno != errno.ENOSPC:
        raise
      # What it does not need any more makes room.
      return False
    return True

  def _schedule(self, name: str, delay: float) -> None:
    self._timers.set(name, time.monotonic() + delay)

  def _is_scarce(self) -> bool:
    """Tells whether the file system is known to be nearly full."""
    try:
      found = os.fstatvfs(self._shared.place.directory.descriptor)
    except OSError:
      return False
    return found.f_bavail < found.f_blocks * _SCARCE

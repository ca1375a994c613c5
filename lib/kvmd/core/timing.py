# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How often the daemon tries what, and how long it waits for whom."""

from __future__ import annotations

from typing import NamedTuple


class Timing(NamedTuple):
  """All times of the daemon, in seconds.

  @ivar rescan: after which everything is looked at again
  @ivar thorough: the same, also at what shows no sign of a change, in rescans
  @ivar trouble: after which a control directory that cannot be used is tried
    again, and one that cannot be watched is looked at
  @ivar looking: the largest part of the time that is spent on looking, where
    nothing can be watched
  @ivar reading: that what is due may have to wait for what is to be read
  @ivar journals: that one turn of the daemon reads journals
  @ivar retry: before the second attempt; doubled for each further one
  @ivar good: that a connection lasted after which the next attempt is the first
    again
  @ivar greeting: that a monitor may be silent before the log says so
  @ivar opening: that a QEMU may take from making its sockets to opening its
    journal, and a journal that was closed may count as open
  @ivar lingering: that a QEMU may listen on when it has closed its journal
  @ivar exit: to wait for the kernel's word on how a process ended
  @ivar delivery: after which it is tried again to leave marks, and to remove
    the journals of those that are judged, and to write the history
  @ivar space: between two looks at who fills the file system
  @ivar cut: between two cuts of a journal whose QEMU fills it
  @ivar hurry: that the room for last words has to last, unless it is looked at
    before the next rescan
  @ivar repeat: in which it is said once that the kernel did not tell of all
  @ivar lock: after which it is worth a line that somebody keeps us from
    changing files that belong together

  """

  rescan: float = 60.0
  thorough: int = 10
  trouble: float = 1.0
  looking: float = 0.1
  reading: float = 0.1
  journals: float = 0.005
  retry: float = 0.01
  good: float = 1.0
  greeting: float = 3.0
  opening: float = 1.0
  lingering: float = 1.0
  exit: float = 0.5
  delivery: float = 1.0
  space: float = 1.0
  cut: float = 0.02
  hurry: float = 30.0
  repeat: float = 3600.0
  lock: float = 60.0

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Signals, as something that an event loop can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket

#: More signals than the socket has room for: all are taken at once.
_MAX_SIGNALS = 4096


class Signals:
  """The signals that the daemon takes, from when it is made."""

  def __init__(self) -> None:
    self._numbers: list[int] = []
    self._reader, self._writer = socket.socketpair()
    self._reader.setblocking(False)
    self._writer.setblocking(False)
    # Without this a signal would not end the wait, only interrupt it.
    signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      signal.signal(number, lambda number, _: self._numbers.append(number))

  def fileno(self) -> int:
    """Returns the descriptor that becomes readable when there are signals."""
    return self._reader.fileno()

  def take(self) -> list[int]:
    """Returns the numbers of the signals since the last call."""
    with contextlib.suppress(BlockingIOError):
      self._reader.recv(_MAX_SIGNALS)
    taken, self._numbers = self._numbers, []
    return taken

  def close(self) -> None:
    """Stops taking signals; they have no effect any more."""
    signal.set_wakeup_fd(-1)
    self._reader.close()
    self._writer.close()

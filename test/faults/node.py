# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What Ganeti's hypervisor does on a node, and what it sees: the real code."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import signal
import time
from unittest import mock

from ganeti.hypervisor.hv_kvm import control, inquiry, stock
from ganeti.kvmd.node import ctrldir

#: No instance may keep others waiting for so long, in seconds, nor Ganeti:
#: far more than they should take, for the sake of busy machines.
PATIENCE = 5.0


class TooLongError(Exception):
  """Ganeti was kept waiting."""


class Hypervisor:
  """The hypervisor, as far as the control directory is concerned.

  @ivar waited: for how long it has waited for others so far, in seconds

  """

  def __init__(self, ctrl_dir: pathlib.Path) -> None:
    self.waited = 0.0

    class _Stock(stock.KVMHypervisor):  # type: ignore[misc]
      _CTRL_DIR = str(ctrl_dir)

    self._control = control.Control(str(ctrl_dir))
    self._budget = inquiry.Budget()
    self._runtimes = ctrl_dir.parent / "conf"
    self._stock = _Stock

  @contextlib.contextmanager
  def _counting_waits(self) -> collections.abc.Iterator[None]:
    sleep = time.sleep

    def count(seconds: float) -> None:
      self.waited += seconds
      sleep(seconds)

    with mock.patch("time.sleep", count):
      yield

  def prepare_start(self, name: str) -> None:
    """Do what comes before any start."""
    with self._counting_waits():
      self._control.clear(name)

  def prepare_stock_start(self, name: str) -> None:
    """Do what Ganeti's own code does before any start."""
    self._stock._ClearUserShutdown(name)
    # It also saves what QEMU is started with.
    with contextlib.suppress(OSError):
      self._runtimes.mkdir(exist_ok=True)
      (self._runtimes / f"{name}.runtime").write_bytes(b"")

  def prepare_journal(self, name: str, shift: int = 0) -> bool:
    """Make the files of a journal.

    @param shift: seconds that the clock is wrong by
    @return: whether they could be made

    """
    with self._counting_waits(), _wrong_clock(shift):
      return bool(self._control.prepare_journal(name))

  def prepare_stop(self, name: str) -> None:
    """Do what comes before an administrator's powerdown."""
    self._control.mark(name, ctrldir.Mark.POWERDOWN)

  def finish_stop(self, name: str) -> None:
    """Do what comes after each attempt to stop an instance."""
    self._control.clear(name, [ctrldir.Mark.SHUTDOWN])

  def clean_up(self, name: str) -> None:
    """Do what comes after the end of an instance that was stopped."""
    self._control.clear(name)

  def is_user_down(self, name: str) -> bool:
    """Tell what Ganeti thinks of an instance that is down.

    @raise TooLongError: if it thinks for too long

    """
    with _limited():
      return self._control.is_user_shutdown(name, self._budget)


@contextlib.contextmanager
def _wrong_clock(shift: int) -> collections.abc.Iterator[None]:
  """Lets a journal be begun at another date.

  Who watches the directory looks at what it was begun with as soon as there is
  something to write to.

  """
  make = os.open
  date = time.time_ns() + shift * 10**9

  def backdate_and_make(path: str, flags: int, *args: int, **at: int) -> int:
    if flags & os.O_CREAT and path.endswith(ctrldir.JOURNAL_EVENTS):
      name = path[: -len(ctrldir.JOURNAL_EVENTS)]
      os.utime(name + ctrldir.JOURNAL_DIGEST, ns=(date, date), **at)
    return make(path, flags, *args, **at)

  with (
    mock.patch("os.open", backdate_and_make)
    if shift
    else (contextlib.nullcontext())
  ):
    yield


@contextlib.contextmanager
def _limited() -> collections.abc.Iterator[None]:
  """Lets something that may have no end take no longer than it may."""

  def give_up(*_: object) -> None:
    raise TooLongError(f"Ganeti was kept waiting for {PATIENCE} s")

  before = signal.signal(signal.SIGALRM, give_up)
  signal.setitimer(signal.ITIMER_REAL, PATIENCE)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)

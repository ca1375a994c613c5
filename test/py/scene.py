# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A daemon in the test's own thread, and monitors that do what no QEMU does."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import NamedTuple

import ctrl_files
import fake_monitor
import kvmd_log
import pytest
from fake_monitor import (
  Connection,
  FakeMonitor,
)
from ganeti.kvmd import daemon
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.node import (
  journal_files,
)

PATIENCE = 10.0


class Qemu(NamedTuple):
  """A fake QEMU that the daemon is attached to."""

  monitor: FakeMonitor
  connection: Connection

  def event(self, name, data=None):
    self.connection.event(name, data)

  def die(self):
    self.monitor.die()

  def quit(self):
    self.monitor.quit()


class Scene:
  """A control directory, a daemon, and what the daemon has logged."""

  def __init__(self, ctrl_dir, log):
    self.ctrl_dir = ctrl_dir
    self._log = log
    self._fences = 0
    self.daemon = None
    self.timing = Timing()

  def start(self, timing=None, **options):
    """Starts a daemon; one that runs ends before.

    @param timing: what is otherwise than usual of its timing

    """
    self.timing = self.timing._replace(**(timing or {}))
    self.stop()
    chosen = {
      "path": str(self.ctrl_dir),
      "monitor_suffix": ".kvmd",
      "rule": Rule.CAUSE,
      **options,
    }
    self.daemon = daemon.Daemon(daemon.Settings(timing=self.timing, **chosen))
    # All that is there is found at once; what comes later is told.
    self.turn()

  def hurry(self, **timing):
    """Lets the daemon try some things more often than usual."""
    self.timing = self.timing._replace(**timing)
    if self.daemon is not None:
      self.start()

  def stop(self):
    if self.daemon is not None:
      self.daemon.close()
      self.daemon = None

  def turn(self):
    """Lets the daemon do what is due now."""
    self.daemon.turn(0.0)

  def until(self, condition, *arguments):
    """Lets the daemon work until a condition holds; returns its result."""
    end = time.monotonic() + PATIENCE
    while True:
      result = condition(*arguments)
      if result:
        return result
      assert time.monotonic() < end, self.lines
      self.daemon.turn(0.02)

  @property
  def lines(self):
    return [record.getMessage() for record in self._log.records]

  def count(self, words):
    return sum(words in line for line in self.lines)

  def says(self, words):
    self.until(self.count, words)

  def verdicts(self, name):
    return [each.verdict for each in kvmd_log.verdicts(self.lines, name)]

  def causes(self, name):
    return [each.cause for each in kvmd_log.verdicts(self.lines, name)]

  def verdict(self, name, number=1):
    """Waits for the verdict on a life of an instance."""
    self.until(lambda: len(self.verdicts(name)) >= number)
    return self.verdicts(name)[number - 1]

  def file(self, name):
    return self.ctrl_dir / f"{name}.shutdown"

  def has_file(self, name):
    return os.path.lexists(self.file(name))

  def accept(self, monitor):
    """Waits until the daemon connects to a monitor."""
    return self.until(monitor.accept)

  def serve(self, monitor, commands=1):
    """Lets the daemon attach to a monitor, as QEMU does."""
    connection = self.accept(monitor)
    connection.greet()
    self.until(lambda: connection.receive() >= commands)
    assert connection.commands == [{"execute": "qmp_capabilities"}]
    before = self.count("attached")
    connection.answer()
    self.until(lambda: self.count("attached") > before)
    return Qemu(monitor, connection)

  def attach(self, name, **options):
    """Starts an instance and lets the daemon attach to it."""
    return self.serve(FakeMonitor(self.ctrl_dir, name, **options))

  def fence(self):
    """Waits until the daemon has done all that it had to do before this."""
    self._fences += 1
    qemu = self.attach(f"fence{self._fences}")
    qemu.quit()
    self.verdict(f"fence{self._fences}")


@pytest.fixture
def scene(ctrl_dir, caplog, monkeypatch):
  caplog.set_level(logging.INFO)
  # The ends of this machine's other processes would come in between.
  monkeypatch.setattr(daemon, "_listen_for_exits", lambda: None)
  before = len(os.listdir("/proc/self/fd"))
  play = Scene(ctrl_dir, caplog)
  play.start()
  yield play
  play.stop()
  fake_monitor.end_all()
  assert len(os.listdir("/proc/self/fd")) == before


def begin_journal(directory, name):
  """Begins a journal as the hypervisor and QEMU do.

  @return: the file that QEMU writes to

  """
  with ctrl_files.opened(directory) as held:
    journal_files.prepare(held, name)
  journal = fake_monitor.open_journal(directory / f"{name}.journal.out")
  return os.fdopen(journal, "r+b", buffering=0)


def play_qemu(directory, name, *, has_journal=False):
  """Does what a QEMU does, in a process of its own.

  @return: its number

  """
  child = os.fork()
  if child:
    return child
  try:
    # Whatever becomes of the test, it ends.
    signal.alarm(30)
    monitor = FakeMonitor(directory, name)
    if has_journal:
      with begin_journal(directory, name):
        signal.pause()
    while (connection := monitor.accept()) is None:
      time.sleep(0.01)
    connection.greet()
    while not connection.receive():
      time.sleep(0.01)
    connection.answer()
    signal.pause()
  finally:
    os._exit(1)


def stale(scene, monitor, *, age):
  """Leaves a shutdown file that is so many seconds older than a socket."""
  born = monitor.path.lstat().st_mtime_ns
  date = born - int(age * 10**9)
  scene.file(monitor.instance).touch()
  os.utime(scene.file(monitor.instance), ns=(date, date))

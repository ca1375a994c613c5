# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when journals are looked at, and what becomes of them."""

from __future__ import annotations

import errno
import os
import time

from fake_monitor import FakeMonitor
from ganeti.kvmd.core.following import State
from ganeti.kvmd.node import ctrldir, journal_files, own_files
from journal_scene import PAGE
from written_journals import CHATTER, END


def test_user_shutdown(node):
  qemu = node.attach()
  assert node.found == ["web1"]
  assert node.follows()
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]
  assert not node.follows()
  node.work()
  assert node.files() == ["web1.shutdown"]


def test_journal_that_is_written_faster_than_it_is_read(node, monkeypatch):
  """It is cut, and the daemon is free again; the monitor is listened to."""
  qemu = node.attach()
  qemu.write(CHATTER * 4000)
  read = journal_files.JournalFiles.read

  def flood(files, length, position):
    qemu.write(CHATTER * 2000)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", flood)
  node.rescan()
  for _ in range(200):
    node.turn()
    if node.absent:
      break
  assert node.absent == ["web1"]
  assert node.count("its journal is of no use: it is written faster") == 1
  assert not node.follows()
  assert node.allocated() <= PAGE
  monkeypatch.undo()
  # It goes on, and gets nothing.
  for _ in range(3):
    qemu.write(CHATTER * 40000)
    if (record := node.record()) is not None:
      node.journals._timers.set("web1", 0.0)
      assert record.state is State.USELESS
    node.turn()
    assert node.allocated() <= PAGE
  qemu.write(END)
  node.end(qemu)
  assert node.files() == []
  assert node.verdicts() == []


def test_life_that_was_not_seen_to_begin(node):
  """The daemon was stopped: both have a verdict, and the right process."""
  first = node.attach()
  node.record().journal.instance.process = 7
  node.processes.begin(7, "web1")
  first.close()
  monitor = FakeMonitor(node.path, "web1")
  second = node.start()
  node.table.journal_closed("web1")
  node.table.journal_appeared("web1")
  assert node.verdicts() == ["unknown"]
  assert node.count("removed before it could be read") == 1
  now = time.monotonic()
  assert node.processes.take(7, now + 9) is None
  assert node.processes.take(os.getpid(), now) == "web1"
  assert node.found == ["web1", "web1"]
  second.write(END)
  node.end(second)
  assert node.verdicts() == ["unknown", "user"]
  monitor.quit()


def test_journal_that_is_elsewhere_now(node):
  """Its directory was moved away; that is no end."""
  node.attach()
  nothing = ctrldir.Instances(set(), set(), set())
  node.table.rescan(nothing, thoroughly=True, elsewhere=True)
  assert node.verdicts() == []
  assert not node.follows()


def test_trouble_is_told_once(node, monkeypatch):
  qemu = node.start()
  real = own_files.open_own

  def refuse(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(own_files, "open_own", refuse)
  for _ in range(5):
    node.rescan()
  assert node.count("cannot look at its journal") == 1
  monkeypatch.setattr(own_files, "open_own", real)
  node.rescan()
  assert node.follows()
  # Nobody was told that there is no journal.
  assert node.absent == []
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]


def test_no_descriptor_for_what_it_needs(node, monkeypatch):
  """That is no fault of the journal, nor of the daemon."""
  qemu = node.attach()
  qemu.write(CHATTER * 400)

  def refuse(_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(journal_files.JournalFiles, "reserve", refuse)
  node.rescan()
  assert node.count("fault of the daemon") == 0
  assert node.count("Too many open files; trying again") == 1
  assert node.follows()
  monkeypatch.undo()
  qemu.write(END)
  node.end(qemu)
  node.work()
  assert node.verdicts() == ["user"]

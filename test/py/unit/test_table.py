# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of who follows whom."""

from __future__ import annotations

import errno
import os
import time
from unittest import mock

import pytest
from fake_monitor import (
  GREETING,
  USER,
  FakeMonitor,
  encode,
  event,
)
from ganeti.kvmd.core import qmp
from ganeti.kvmd.node import (
  journal_files,
)
from scene import begin_journal


def test_fault_of_the_daemon_harms_no_other_instance(scene, caplog):
  faulty = scene.attach("web1")
  sound = scene.attach("db1")
  with mock.patch.object(qmp.Decoder, "feed", side_effect=ZeroDivisionError):
    faulty.event("STOP")
    scene.says("instance web1: a fault of the daemon")
  caplog.clear()
  sound.event("SHUTDOWN", USER)
  sound.quit()
  assert scene.verdict("db1") == "user"
  # Where it is followed anew depends on the next look at everything.
  (scene.ctrl_dir / "web1.kvmd").rename(scene.ctrl_dir / "moved")
  (scene.ctrl_dir / "moved").rename(scene.ctrl_dir / "web1.kvmd")
  again = scene.serve(faulty.monitor)
  again.event("SHUTDOWN", USER)
  again.quit()
  assert scene.verdict("web1") == "user"


@pytest.mark.parametrize("times", [1, 3])
def test_journal_counts_as_open_when_its_closing_is_told(
  scene, monkeypatch, times
):
  """The kernel does that: it tells first, and counts then."""
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    file.write(event("SHUTDOWN", USER))
  answers = [True] * times
  ask = journal_files.JournalFiles.is_being_written.fget
  monkeypatch.setattr(
    journal_files.JournalFiles,
    "is_being_written",
    property(lambda self: answers.pop() if answers else ask(self)),
  )
  # Not only at the next rescan, that is.
  assert scene.verdict("web1") == "user"
  assert answers == []
  assert scene.has_file("web1")


@pytest.mark.parametrize("leaves_socket", [True, False])
@pytest.mark.parametrize("is_attached", [True, False])
@pytest.mark.parametrize(
  ("ends", "clock"),
  # Of two that are gone nothing but the date tells which was the first.
  [(True, "right"), (False, "right"), (False, "wrong")],
)
def test_journal_comes_before_the_daemon_has_looked_at_the_life_before(
  scene, leaves_socket, is_attached, ends, clock
):
  """The verdict on the one undoes nothing of that on the other."""
  old = FakeMonitor(scene.ctrl_dir, "web1")
  if clock == "wrong":
    tomorrow = time.time() + 86400
    os.utime(old.path, (tomorrow, tomorrow))
  if is_attached:
    scene.serve(old)
  else:
    scene.accept(old)
  if leaves_socket:
    old.die()
  else:
    old.quit()
  first = "killed or crashed" if is_attached else "unknown"
  with begin_journal(scene.ctrl_dir, "web1") as file:
    new = FakeMonitor(scene.ctrl_dir, "web1")
    if ends:
      file.write(event("SHUTDOWN", USER))
    else:
      scene.says("instance web1: its QEMU keeps a journal")
      assert scene.verdicts("web1") == [first]
      file.write(event("SHUTDOWN", USER))
    new.quit()
  assert scene.verdict("web1", 2) == "user"
  scene.until(lambda: not (scene.ctrl_dir / "web1.journal.out").exists())
  assert scene.verdicts("web1") == [first, "user"]
  assert scene.has_file("web1")
  scene.fence()
  assert scene.has_file("web1")


def test_journal_of_the_same_life_comes_late(scene, monkeypatch):
  """Nothing has ended then."""
  scene.hurry(opening=0.01)
  with begin_journal(scene.ctrl_dir, "web1") as file:
    os.truncate(file.fileno(), 0)
    file.seek(0)
    with mock.patch.object(
      journal_files.JournalFiles, "is_being_written", new=False
    ):
      qemu = scene.attach("web1")
    file.write(encode(GREETING) + encode({"return": {}}))
    scene.daemon._lookout._next_rescan = 0.0
    scene.says("instance web1: its QEMU keeps a journal")
    scene.until(lambda: not qemu.connection.is_open)
    assert scene.verdicts("web1") == []
    file.write(event("SHUTDOWN", USER))
    qemu.quit()
  assert scene.verdict("web1") == "user"
  scene.fence()
  assert scene.verdicts("web1") == ["user"]


def test_monitor_listens_on_when_the_journal_is_closed(scene, monkeypatch):
  """As the process ends, the one is closed before the other."""
  scene.hurry(lingering=60.0)
  scene.start(timing={"rescan": 0.01})
  with begin_journal(scene.ctrl_dir, "web1") as file:
    monitor = FakeMonitor(scene.ctrl_dir, "web1")
    scene.says("instance web1: its QEMU keeps a journal")
    file.write(event("SHUTDOWN", USER))
  assert scene.verdict("web1") == "user"
  for _ in range(3):
    scene.fence()
  # It was only asked for its process.
  while (connection := monitor.accept()) is not None:
    assert not connection.is_open
  monitor.die()
  scene.fence()
  assert scene.verdicts("web1") == ["user"]
  assert scene.has_file("web1")
  # Who takes the name next, without a journal, is another one.
  scene.attach("web1").quit()
  assert scene.verdict("web1", 2) == "killed or crashed"


def test_monitor_of_another_life_than_the_journal(scene, monkeypatch):
  """It was started by who knows nothing of journals."""
  scene.hurry(lingering=0.01)
  scene.stop()
  with begin_journal(scene.ctrl_dir, "web1"):
    pass
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.start()
  assert scene.verdict("web1") == "killed or crashed"
  qemu = scene.serve(monitor)
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1", 2) == "user"
  assert scene.has_file("web1")


def test_journal_cannot_be_read_for_some_time(scene, monkeypatch):
  """Till then it is not said that nothing is known."""
  scene.hurry(opening=0.01)
  with begin_journal(scene.ctrl_dir, "web1") as file:
    with mock.patch.object(
      journal_files, "opened", side_effect=OSError(errno.EMFILE, "many", "x")
    ):
      monitor = FakeMonitor(scene.ctrl_dir, "web1")
      scene.accept(monitor)
      file.write(event("SHUTDOWN", USER))
      monitor.quit()
      scene.fence()
  assert scene.verdicts("web1") == []
  scene.start()
  assert scene.verdict("web1") == "user"
  scene.fence()
  assert scene.verdicts("web1") == ["user"]

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the marks that are left, and of what is tried again."""

from __future__ import annotations

import shutil

import ctrl_files
import forked
import pytest
from fake_monitor import (
  SIGNAL,
  USER,
  FakeMonitor,
  encode,
)
from scene import stale


@pytest.mark.parametrize("age", [1e-9, 0, 5, 10**6])
def test_file_of_an_earlier_life(scene, age):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  stale(scene, monitor, age=age)
  qemu = scene.serve(monitor)
  scene.until(lambda: not scene.has_file("web1"))
  scene.fence()
  qemu.connection.receive()
  assert len(qemu.connection.commands) == 1
  qemu.quit()
  assert scene.verdict("web1") == "killed or crashed"


@pytest.mark.parametrize(
  ("answer", "stays"),
  [
    ({"return": {"status": "running", "running": True}}, False),
    ({"return": {"status": "paused", "running": False}}, False),
    ({"return": {"status": "prelaunch"}}, False),
    ({"return": {"status": "shutdown", "running": False}}, True),
    ({"return": {}}, True),
    ({"return": None}, True),
    ({"return": []}, True),
    ({"error": {"class": "CommandNotFound", "desc": "no"}}, True),
    (None, True),
  ],
)
def test_file_of_this_life(scene, answer, stays):
  """An earlier daemon may have written it; the guest may run again by now."""
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  stale(scene, monitor, age=-1e-9)
  qemu = scene.serve(monitor)
  scene.until(lambda: qemu.connection.receive() == 2)
  query = qemu.connection.commands[1]
  assert query["execute"] == "query-status"
  if answer is not None:
    qemu.connection.send(encode({**answer, "id": query["id"]}))
  scene.fence()
  assert scene.has_file("web1") is stays
  qemu.quit()
  assert scene.verdict("web1") == ("user" if stays else "killed or crashed")
  assert scene.has_file("web1") is stays


@pytest.mark.parametrize("ident", ["other", None, 7, ["status"]])
def test_answer_to_another_command_says_nothing(scene, ident):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  stale(scene, monitor, age=-1)
  qemu = scene.serve(monitor)
  qemu.connection.send(encode({"return": {"status": "running"}, "id": ident}))
  scene.fence()
  assert scene.has_file("web1")


@pytest.mark.parametrize(
  ("event_name", "data", "verdict"),
  [
    ("RESET", None, "killed or crashed"),
    ("SHUTDOWN", SIGNAL, "user"),
    ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}, "guest panic"),
  ],
)
def test_event_after_a_file_of_this_life(scene, event_name, data, verdict):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  stale(scene, monitor, age=-1)
  qemu = scene.serve(monitor)
  qemu.event(event_name, data)
  qemu.quit()
  assert scene.verdict("web1") == verdict
  assert scene.has_file("web1") is (verdict == "user")


def test_late_answer_takes_nothing_back_that_was_announced_since(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  stale(scene, monitor, age=-1)
  qemu = scene.serve(monitor)
  qemu.event("RESET")
  qemu.event("SHUTDOWN", USER)
  qemu.connection.answer({"status": "running"}, "status")
  scene.fence()
  assert scene.has_file("web1")


def test_daemon_is_restarted_between_announcement_and_end(scene):
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  qemu.connection.close()
  scene.start()
  again = scene.serve(qemu.monitor)
  scene.until(lambda: again.connection.receive() == 2)
  again.quit()
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")


def test_daemon_is_restarted_between_powerdown_and_shutdown(scene):
  qemu = scene.attach("web1")
  qemu.event("POWERDOWN")
  scene.fence()
  qemu.connection.close()
  scene.start()
  again = scene.serve(qemu.monitor)
  again.event("SHUTDOWN", USER)
  again.quit()
  assert scene.verdict("web1") == "administrator"
  scene.fence()
  assert ctrl_files.names(scene.ctrl_dir) == set()


def test_powerdown_of_an_earlier_life_is_forgotten(scene):
  scene.attach("web1").event("POWERDOWN")
  scene.fence()
  scene.start()
  new = scene.attach("web1")
  new.event("SHUTDOWN", USER)
  new.quit()
  # The daemon was not attached to the old one.
  assert scene.verdict("web1", 2) == "user"
  assert scene.verdicts("web1") == ["unknown", "user"]
  scene.fence()
  assert ctrl_files.names(scene.ctrl_dir) == {"web1.shutdown"}


def test_daemon_is_restarted_after_the_end(scene):
  """Nobody is attached to then, and what was decided stays."""
  for name, data in ("web1", USER), ("db1", SIGNAL):
    qemu = scene.attach(name)
    qemu.event("SHUTDOWN", data)
    qemu.die()
    scene.verdict(name)
  scene.start()
  scene.fence()
  assert scene.has_file("web1")
  assert not scene.has_file("db1")


def test_end_of_the_daemon_is_no_verdict(scene):
  qemu = scene.attach("web1")
  scene.stop()
  assert not qemu.connection.is_open
  assert scene.verdicts("web1") == []


def test_mark_that_cannot_be_written_at_once(scene, monkeypatch):
  scene.hurry(delivery=0.01)
  qemu = scene.attach("web1")
  scene.file("web1").mkdir()
  qemu.event("SHUTDOWN", USER)
  scene.says("instance web1: cannot write its file web1.shutdown")
  qemu.quit()
  assert scene.verdict("web1") == "user"
  for _ in range(3):
    scene.fence()
  assert scene.count("cannot") == 1
  scene.file("web1").rmdir()
  scene.until(lambda: scene.file("web1").is_file())


def test_mark_that_cannot_be_written_while_qemu_lives(scene, monkeypatch):
  scene.hurry(delivery=0.01)
  qemu = scene.attach("web1")
  scene.file("web1").mkdir()
  qemu.event("SHUTDOWN", USER)
  scene.says("instance web1: cannot write its file web1.shutdown")
  scene.file("web1").rmdir()
  scene.until(lambda: scene.file("web1").is_file())
  assert scene.verdicts("web1") == []


def test_mark_that_can_neither_be_removed_nor_written_at_once(
  scene, monkeypatch
):
  scene.hurry(delivery=0.01)
  scene.file("web1").mkdir()
  qemu = scene.attach("web1")
  scene.says("instance web1: cannot ")
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  scene.file("web1").rmdir()
  scene.until(lambda: scene.file("web1").is_file())


def test_mark_that_cannot_be_removed_at_once(scene, monkeypatch):
  scene.hurry(delivery=0.01)
  qemu = scene.attach("web1")
  scene.file("web1").mkdir()
  (scene.file("web1") / "content").mkdir()
  qemu.event("SHUTDOWN", SIGNAL)
  qemu.quit()
  assert scene.verdict("web1") == "administrator"
  scene.says("instance web1: cannot remove its file web1.shutdown")
  shutil.rmtree(scene.file("web1"))
  scene.file("web1").touch()
  scene.until(lambda: not scene.has_file("web1"))


def test_disk_is_full(scene, monkeypatch):
  """Real: a file system that has room for so many files."""
  scene.stop()
  scene.hurry(delivery=0.01)

  def check():
    # The lock file, a monitor, and one more
    forked.mount_small(str(scene.ctrl_dir), files=3)
    scene.start()
    qemu = scene.attach("web1")
    (scene.ctrl_dir / "full").touch()
    qemu.event("SHUTDOWN", USER)
    scene.says("No space left on device")
    assert not scene.has_file("web1")
    qemu.die()
    assert scene.verdict("web1") == "user"
    (scene.ctrl_dir / "full").unlink()
    scene.until(scene.has_file, "web1")
    assert scene.count("No space left") == 1
    scene.stop()

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_directory_is_away_when_the_user_shuts_down(
  scene, scratch, monkeypatch
):
  scene.hurry(delivery=0.01)
  qemu = scene.attach("web1")
  scene.ctrl_dir.rename(scratch / "away")
  scene.says("is gone")
  qemu.event("SHUTDOWN", USER)
  qemu.die()
  assert scene.verdict("web1") == "user"
  (scratch / "away").rename(scene.ctrl_dir)
  scene.says("is there now")
  scene.until(scene.has_file, "web1")


def test_directory_is_away_when_an_instance_crashes(
  scene, scratch, monkeypatch
):
  scene.hurry(delivery=0.01)
  qemu = scene.attach("web1")
  scene.file("web1").touch()
  scene.ctrl_dir.rename(scratch / "away")
  scene.says("is gone")
  qemu.die()
  assert scene.verdict("web1") == "killed or crashed"
  (scratch / "away").rename(scene.ctrl_dir)
  scene.until(lambda: not scene.has_file("web1"))

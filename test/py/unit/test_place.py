# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of where the control directory is, and whose."""

from __future__ import annotations

import os
import shutil
from unittest import mock

import ctrl_files
import forked
import pytest
from fake_monitor import (
  GREETING,
  SIGNAL,
  USER,
  FakeMonitor,
  encode,
  event,
)
from ganeti.kvmd import daemon
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.node import (
  ctrldir,
  directory_locks,
  journal_files,
)
from ganeti.kvmd.node.lockfile import LockedError


def test_rule(scene):
  scene.start(rule=Rule.SEQUENCE)
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", SIGNAL)
  qemu.quit()
  assert scene.verdict("web1") == "user"


def said_rule(scene):
  path = scene.ctrl_dir / ctrldir.RULE
  return path.read_text() if path.exists() else None


def test_rule_is_left_to_be_read(scene):
  """By the hypervisor, which has to judge by the same without a daemon."""
  assert said_rule(scene) is None
  scene.start(rule=Rule.SEQUENCE)
  assert said_rule(scene) == "sequence\n"
  scene.stop()
  assert said_rule(scene) == "sequence\n"
  scene.start()
  assert said_rule(scene) is None


def test_rule_is_left_before_the_daemon_is_ready(ctrl_dir):
  started = daemon.Daemon(
    daemon.Settings(str(ctrl_dir), ".kvmd", Rule.SEQUENCE)
  )
  assert (ctrl_dir / ctrldir.RULE).exists()
  started.close()


def test_rule_is_left_in_each_new_directory(scene, scratch):
  shutil.rmtree(scene.ctrl_dir)
  scene.start(rule=Rule.SEQUENCE)
  for number in range(2):
    scene.ctrl_dir.mkdir()
    scene.until(said_rule, scene)
    scene.ctrl_dir.rename(scratch / f"away{number}")
    scene.says("is gone")


def test_rule_that_cannot_be_left(scene):
  """It is said once, and tried again."""
  (scene.ctrl_dir / ctrldir.RULE).mkdir()
  scene.start(rule=Rule.SEQUENCE, timing={"rescan": 0.01})
  for _ in range(5):
    scene.fence()
  words = f"cannot say in {scene.ctrl_dir} that the rule is sequence"
  assert scene.count(words) == 1
  (line,) = (line for line in scene.lines if words in line)
  assert f"({ctrldir.RULE}: Is a directory)" in line
  (scene.ctrl_dir / ctrldir.RULE).rmdir()
  scene.until(said_rule, scene)


def test_directory_comes_late(scene):
  shutil.rmtree(scene.ctrl_dir)
  scene.start()
  assert not scene.daemon.has_directory
  scene.ctrl_dir.mkdir()
  qemu = scene.attach("web1")
  assert scene.daemon.has_directory
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")


def test_directory_is_moved_into_place_with_all_in_it(scene, scratch):
  shutil.rmtree(scene.ctrl_dir)
  scene.start()
  (scratch / "new").mkdir()
  monitor = FakeMonitor(scratch / "new", "web1")
  scene.turn()
  (scratch / "new").rename(scene.ctrl_dir)
  scene.serve(monitor)


def test_directory_is_removed_and_made_anew(scene):
  qemu = scene.attach("web1")
  for _ in range(3):
    shutil.rmtree(scene.ctrl_dir)
    scene.ctrl_dir.mkdir()
    scene.fence()
  assert scene.verdicts("web1") == []
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  qemu.die()
  assert scene.verdict("web1") == "user"


def test_directory_is_exchanged(scene, scratch):
  old = scene.attach("web1")
  scene.ctrl_dir.rename(scratch / "old")
  scene.ctrl_dir.mkdir()
  new = scene.attach("web1")
  assert scene.verdicts("web1") == ["killed or crashed"]
  old.die()
  new.event("SHUTDOWN", USER)
  new.quit()
  assert scene.verdict("web1", 2) == "user"
  assert ctrl_files.names(scratch / "old") == {"web1.kvmd"}


def test_directory_becomes_a_file(scene):
  shutil.rmtree(scene.ctrl_dir)
  scene.ctrl_dir.touch()
  scene.says(f"cannot use {scene.ctrl_dir}: Not a directory")
  scene.ctrl_dir.unlink()
  scene.ctrl_dir.mkdir()
  scene.fence()


def test_something_is_mounted_over_the_directory(scene):
  """The kernel tells nobody; the next look at everything finds out."""
  scene.stop()

  def check():
    scene.start(timing={"rescan": 0.05})
    scene.attach("web1")
    forked.mount_small(str(scene.ctrl_dir), files=9)
    qemu = scene.attach("db1")
    qemu.event("SHUTDOWN", USER)
    scene.until(scene.has_file, "db1")
    scene.stop()

  forked.run(check, forked.Place.OWN_MOUNTS)


class Rival:
  """Another daemon of the same directory, as far as its claim goes."""

  def __init__(self, path):
    self._opened = os.open(path, os.O_RDONLY)
    self.directory = ctrldir.ControlDirectory(str(path), self._opened, ".kvmd")
    self.directory.locks.claim()

  def end(self):
    self.directory.locks.release()
    os.close(self._opened)


def test_directory_that_has_a_daemon(scene):
  scene.stop()
  rival = Rival(scene.ctrl_dir)
  before = len(os.listdir("/proc/self/fd"))
  with pytest.raises(LockedError, match=f"process {os.getpid()} holds "):
    scene.start()
  assert len(os.listdir("/proc/self/fd")) == before
  rival.end()
  scene.start()
  scene.attach("web1")


def test_directory_comes_late_and_with_a_daemon(scene, scratch):
  shutil.rmtree(scene.ctrl_dir)
  scene.start(timing={"rescan": 0.02})
  (scratch / "new").mkdir()
  rival = Rival(scratch / "new")
  monitor = FakeMonitor(scratch / "new", "web1")
  (scratch / "new").rename(scene.ctrl_dir)
  scene.says("belongs to another ganeti-kvmd")
  (line,) = [line for line in scene.lines if "belongs to another" in line]
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  assert f"process {os.getpid()} holds {path}" in line
  assert scene.daemon.has_directory
  for _ in range(5):
    scene.daemon.turn(0.02)
  assert monitor.accept() is None
  assert scene.count("belongs to another") == 1
  rival.end()
  scene.says(f"{scene.ctrl_dir} is followed from now on")
  scene.serve(monitor)


def test_directory_is_exchanged_for_one_that_has_a_daemon(scene, scratch):
  old = scene.attach("web1")
  (scratch / "new").mkdir()
  rival = Rival(scratch / "new")
  scene.ctrl_dir.rename(scratch / "old")
  scene.turn()
  scene.says("is gone")
  (scratch / "new").rename(scene.ctrl_dir)
  scene.says("belongs to another ganeti-kvmd")
  scene.until(lambda: not old.connection.is_open)
  assert scene.verdicts("web1") == []
  rival.end()


def test_lock_file_is_removed(scene):
  scene.start(timing={"rescan": 0.02})
  qemu = scene.attach("web1")
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  path.unlink()
  scene.until(path.exists)
  assert directory_locks.daemon_of(str(scene.ctrl_dir)) == os.getpid()
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.count("attached") == 1


def test_lock_file_is_opened_to_strangers(scene):
  scene.start(timing={"rescan": 0.02})
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  path.chmod(0o644)
  stranger = os.open(path, os.O_RDONLY)
  scene.until(lambda: path.stat().st_mode & 0o777 == 0o600)
  assert not os.path.samestat(path.stat(), os.fstat(stranger))
  os.close(stranger)
  scene.attach("web1")


def test_another_daemon_takes_over(scene, monkeypatch):
  """It is noticed at once, and it is noticed when that one ends."""
  scene.hurry(trouble=0.02)
  qemu = scene.attach("web1")
  (scene.ctrl_dir / ctrldir.LOCK_FILE).unlink()
  rival = Rival(scene.ctrl_dir)
  scene.says("belongs to another ganeti-kvmd")
  scene.until(lambda: not qemu.connection.is_open)
  # It is the other one's turn to listen.
  for _ in range(3):
    scene.turn()
  assert qemu.monitor.accept() is None
  assert scene.verdicts("web1") == []
  rival.end()
  scene.says(f"{scene.ctrl_dir} is followed from now on")
  again = scene.serve(qemu.monitor)
  again.event("SHUTDOWN", USER)
  again.quit()
  assert scene.verdict("web1") == "user"


def test_lock_file_that_cannot_be_made(scene, scratch, monkeypatch):
  scene.hurry(trouble=0.02)
  (scratch / "new").mkdir()
  path = scratch / "new" / ctrldir.LOCK_FILE
  path.mkdir()
  monitor = FakeMonitor(scratch / "new", "web1")
  shutil.rmtree(scene.ctrl_dir)
  (scratch / "new").rename(scene.ctrl_dir)
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  scene.says(f"cannot use {path}: Is a directory")
  for _ in range(5):
    scene.daemon.turn(0.02)
  assert monitor.accept() is None
  assert scene.count(f"cannot use {path}") == 1
  path.rmdir()
  scene.serve(monitor)


def test_lock_file_that_cannot_be_made_anew(scene):
  """That is no reason to lose whom we listen to."""
  scene.start(timing={"rescan": 0.02})
  qemu = scene.attach("web1")
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  path.unlink()
  path.mkdir()
  scene.says(f"cannot use {path}: Is a directory")
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")


def test_lock_file_of_another_user(scene, monkeypatch):
  """It may be that of another daemon, and cannot be looked into."""
  scene.hurry(trouble=0.02)
  scene.start(timing={"rescan": 0.02})
  qemu = scene.attach("web1")
  path = scene.ctrl_dir / ctrldir.LOCK_FILE
  with mock.patch("os.geteuid", return_value=os.geteuid() + 1):
    scene.says(f"cannot use {path}: it belongs to user {os.geteuid() - 1}")
    scene.until(lambda: not qemu.connection.is_open)
    assert scene.verdicts("web1") == []
  scene.says(f"{scene.ctrl_dir} is followed from now on")
  scene.serve(qemu.monitor)


def test_directory_is_removed_while_it_is_claimed(scene, monkeypatch):
  scene.stop()
  claim = directory_locks.DirectoryLocks.claim
  calls = []

  def remove_before(locks):
    if not calls:
      shutil.rmtree(scene.ctrl_dir)
    calls.append(locks)
    claim(locks)

  monkeypatch.setattr(directory_locks.DirectoryLocks, "claim", remove_before)
  scene.start()
  scene.ctrl_dir.mkdir()
  scene.attach("web1")
  assert scene.count("cannot use") == 0


def is_long(control, name):
  """Tells whether there is more to a journal than is reserved, and a little."""
  found = journal_files.extent(control, name)
  return found.allocated > journal_files.RESERVED + 8192


def test_somebody_keeps_journals_from_being_made_short(scene, monkeypatch):
  scene.stop()
  held = os.open(scene.ctrl_dir, os.O_RDONLY)
  other = ctrldir.ControlDirectory(str(scene.ctrl_dir), held, ".kvmd")
  journal_files.prepare(other, "web1")
  with (scene.ctrl_dir / "web1.journal.out").open("r+b", buffering=0) as file:
    file.write(encode(GREETING) + encode({"return": {}}))
    file.write(event("RTC_CHANGE", {"offset": 1}) * 2000)
    scene.start(timing={"rescan": 0.02, "lock": 0.5})
    scene.says("instance web1: its QEMU keeps a journal")
    scene.until(lambda: not is_long(other, "web1"))
    assert other.locks.lock(0.0)
    file.write(event("RTC_CHANGE", {"offset": 1}) * 2000)
    for _ in range(5):
      scene.daemon.turn(0.02)
    # It may be for a moment only.
    assert scene.count("no journal could be made shorter") == 0
    scene.says("no journal could be made shorter")
    for _ in range(10):
      scene.daemon.turn(0.02)
    assert scene.count("no journal could be made shorter") == 1
    path = scene.ctrl_dir / ctrldir.LOCK_FILE
    assert scene.count(f"process {os.getpid()} holds {path}") == 1
    assert is_long(other, "web1")
    other.locks.unlock()
    scene.until(lambda: not is_long(other, "web1"))
  os.close(held)

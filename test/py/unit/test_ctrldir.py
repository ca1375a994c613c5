# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what a control directory tells of its instances."""

from __future__ import annotations

import errno
import os
import sys
import time
import types

import ctrl_files
import forked
import pytest
from ctrl_files import NAMES
from fake_monitor import FakeMonitor
from ganeti.kvmd.node import ctrldir, mark_files, rule_file
from ganeti.kvmd.node.ctrldir import LOCK_FILE, ControlDirectory, Life

SECOND = 10**9
LIFE = Life(1, 1795438800 * SECOND + 137)


def test_what_has_a_monitor(ctrl_dir, control, mark):
  for name in NAMES:
    (ctrl_dir / f"{name}.kvmd").touch()
    (ctrl_dir / f"{name}.qmp").touch()
  for other in (".kvmd", "kvmd", "a.kvmd.bak", "a.kvmdx", "akvmd", "a.KVMD"):
    (ctrl_dir / other).touch()
  mark_files.write(control, mark, "b", LIFE)
  for _ in range(2):
    assert control.instances().monitored == set(NAMES)
  opened = os.open(ctrl_dir, os.O_RDONLY)
  try:
    other = ControlDirectory(str(ctrl_dir), opened, ".qmp")
    assert other.instances().monitored == set(NAMES)
  finally:
    os.close(opened)


def test_instance_is_named_like_a_suffix(control, mark):
  assert control.monitored_by(".kvmd.kvmd") == ".kvmd"
  assert control.monitored_by("a.kvmd.kvmd") == "a.kvmd"
  assert control.monitored_by(f"a{mark.value}.kvmd") == f"a{mark.value}"
  assert control.monitored_by(f"a{mark.value}") is None
  assert control.monitored_by(".kvmd") is None
  assert control.monitored_by("") is None


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "loop"])
def test_what_is_no_socket_is_no_monitor(ctrl_dir, control, kind):
  path = ctrl_dir / "a.kvmd"
  if kind == "file":
    path.touch()
  elif kind == "directory":
    path.mkdir()
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "link":
    path.symlink_to(FakeMonitor(ctrl_dir, "b").path)
  else:
    path.symlink_to("a.kvmd")
  before = os.listdir("/proc/self/fd")
  for _ in range(3):
    with pytest.raises(OSError, match="socket") as caught:
      control.open_monitor("a")
    assert caught.value.errno == errno.ENOTSOCK
  assert len(os.listdir("/proc/self/fd")) == len(before)


def test_missing_monitor(control):
  with pytest.raises(FileNotFoundError):
    control.open_monitor("a")


def test_each_socket_is_another_life(ctrl_dir, control):
  lives = []
  for _ in range(5):
    monitor = FakeMonitor(ctrl_dir, "a")
    opened = control.open_monitor("a")
    os.close(opened.descriptor)
    assert opened.life == control.life("a")
    lives.append(opened.life)
    os.chmod(monitor.path, 0o777)
    assert control.life("a") == opened.life
    monitor.die()
  assert len(set(lives)) == len(lives)


def test_access(ctrl_dir, mark):
  ctrl_dir.chmod(0o755)

  def check():
    opened = os.open(ctrl_dir, os.O_RDONLY)
    control = ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    with pytest.raises(PermissionError) as caught:
      control.check_access()
    assert caught.value.filename == str(ctrl_dir)
    with pytest.raises(PermissionError):
      mark_files.write(control, mark, "a", LIFE)

  if os.geteuid():
    ctrl_dir.chmod(0o555)
  forked.run(check, forked.Place.UNPRIVILEGED)
  ctrl_dir.chmod(0o777)
  descriptor = os.open(ctrl_dir, os.O_RDONLY)
  ControlDirectory(str(ctrl_dir), descriptor, ".kvmd").check_access()
  os.close(descriptor)


@pytest.mark.parametrize(
  "name", ["a.kvmd", "a.mon", "a.qmp", "../pid/a", "../conf/a.runtime"]
)
def test_younger_life_is_known_of(tmp_path, name):
  (tmp_path / "ctrl").mkdir()
  (tmp_path / "pid").mkdir()
  (tmp_path / "conf").mkdir()
  descriptor = os.open(tmp_path / "ctrl", os.O_RDONLY)
  control = ctrldir.ControlDirectory("ctrl", descriptor, ".mon")
  path = tmp_path / "ctrl" / name
  commands = tmp_path / "ctrl" / ("a" + ctrldir.JOURNAL_COMMANDS)
  commands.touch()
  os.utime(commands, ns=(0, 0))
  assert not control.is_journal_outdated("a", 0)
  path.touch()
  date = path.stat().st_mtime_ns
  assert control.is_journal_outdated("a", date)
  assert not control.is_journal_outdated("a", date + 1)
  assert not control.is_journal_outdated("b", 0)
  # Its own, though the clock was set back since then.
  for read, own in (date, True), (date - 1, False):
    os.utime(commands, ns=(read, 0))
    assert control.is_journal_outdated("a", date - 60 * SECOND) is not own
  commands.unlink()
  assert not control.is_journal_outdated("a", 0)
  os.close(descriptor)


def test_rule_is_no_file_of_an_instance(control):
  rule_file.write(control, "sequence")
  assert control.instances() == ctrldir.Instances(set(), set(), set())


def test_lock_file_is_nobodys_monitor_journal_or_mark(control):
  control.locks.claim()
  assert control.instances() == ctrldir.Instances(set(), set(), set())
  assert control.monitored_by(LOCK_FILE) is None
  assert control.journaled_by(LOCK_FILE) is None
  control.locks.release()


def test_where_ganeti_has_it(monkeypatch):
  pathutils = types.SimpleNamespace(RUN_DIR="/run/ganeti")
  package = types.SimpleNamespace(pathutils=pathutils)
  monkeypatch.setitem(sys.modules, "ganeti", package)
  assert ctrldir.ganeti_path() == "/run/ganeti/kvm-hypervisor/ctrl"


def test_whose_journal_it_is(control):
  """Of its files that one tells which QEMU writes."""
  assert control.journaled_by("a.journal.out") == "a"
  assert control.journaled_by(".journal.out.journal.out") == ".journal.out"
  for name in ("", ".journal.out", "a.journal.in", "a.journal.digest", "a"):
    assert control.journaled_by(name) is None


def test_what_instances_there_are(ctrl_dir, control):
  for name in (
    *("a.kvmd", "b.journal.digest", "c.journal.out", "d.shutdown"),
    *("e.powerdown", ".kvmd", ".journal.digest", ".shutdown", "f.qmp", "g"),
    "h.journal.digest.new",
  ):
    (ctrl_dir / name).touch()
  assert control.instances() == ({"a"}, {"b"}, {"d", "e"})


def test_what_an_instance_has(ctrl_dir, control):
  for name in ("a.kvmd", "b.journal.out", "c.journal.digest"):
    (ctrl_dir / name).touch()
  assert [control.has_monitor(name) for name in "abc"] == [True, False, False]
  assert [control.has_journal(name) for name in "abc"] == [False, True, False]


def test_life_without_a_socket_is_older_than_now(control):
  before = time.time_ns()
  life = control.life("a")
  assert life.inode == 0
  assert before <= life.born <= time.time_ns()


def make_journal(ctrl_dir, date=LIFE.born):
  """Makes what tells of a life, and returns that."""
  events = ctrl_dir / ("a" + ctrldir.JOURNAL_EVENTS)
  digest = ctrl_dir / ("a" + ctrldir.JOURNAL_DIGEST)
  events.touch()
  digest.touch()
  os.utime(digest, ns=(0, date))
  return Life(events.stat().st_ino, date)


@pytest.mark.parametrize(
  "missing", [ctrldir.JOURNAL_EVENTS, ctrldir.JOURNAL_DIGEST]
)
def test_life_of_a_journal(ctrl_dir, control, missing):
  assert control.journaled_life("a") is None
  life = make_journal(ctrl_dir)
  assert control.journaled_life("a") == life
  (ctrl_dir / ("a" + missing)).unlink()
  assert control.journaled_life("a") is None
  assert not control.journal_tells_of("a", Life(0, LIFE.born + 1))


def test_of_which_life_a_journal_tells(ctrl_dir, control):
  make_journal(ctrl_dir)
  # Of the last monitor's no more is known than when it was made.
  for born, tells in (
    (LIFE.born - 1, False),
    (LIFE.born, False),
    (LIFE.born + 1, True),
  ):
    assert control.journal_tells_of("a", Life(1, born)) is tells
  FakeMonitor(ctrl_dir, "a")
  life = control.life("a")
  assert control.journal_tells_of("a", life)
  assert not control.journal_tells_of("a", life._replace(born=life.born + 1))
  assert not control.journal_tells_of("a", life._replace(inode=life.inode + 1))
  assert not control.journal_tells_of("b", life)


@pytest.mark.parametrize("has_journal", [False, True])
@pytest.mark.parametrize("has_monitor", [False, True])
def test_who_lives_anew(ctrl_dir, control, has_journal, has_monitor):
  """Whose life is neither that of the monitor nor that of the journal."""
  lives = []
  if has_journal:
    lives.append(make_journal(ctrl_dir))
  if has_monitor:
    FakeMonitor(ctrl_dir, "a")
    lives.append(control.life("a"))
  assert not any(control.is_reborn("a", life) for life in lives)
  assert control.is_reborn("a", Life(1, 1)) is bool(lives)


@pytest.mark.parametrize(
  ("made", "started", "last", "expected"),
  [
    (5, 4, 5, True),
    (5, 5, 5, False),
    (5, 4, 6, False),
    (5, 4, 4, True),
    (5, 6, 4, False),
  ],
)
def test_what_is_younger(ctrl_dir, control, made, started, last, expected):
  assert not control.is_outdated("a", started, last)
  (ctrl_dir / "a.qmp").touch()
  os.utime(ctrl_dir / "a.qmp", ns=(0, made))
  assert control.is_outdated("a", started, last) is expected


_MISSING = [
  ("descriptor", None),
  ("locks", None),
  ("check_access", ()),
  ("instances", ()),
  ("open_monitor", ("a",)),
  ("life", ("a",)),
  ("journaled_life", ("a",)),
  ("is_journal_outdated", ("a", 0)),
  ("is_outdated", ("a", 0, 0)),
  ("has_monitor", ("a",)),
  ("has_journal", ("a",)),
  ("journal_tells_of", ("a", LIFE)),
  ("is_reborn", ("a", LIFE)),
  ("find", ("a",)),
]


@pytest.mark.parametrize(("name", "arguments"), _MISSING)
def test_missing_directory(name, arguments):
  missing = ctrl_files.missing("/far/away")
  with pytest.raises(ctrldir.MissingDirectoryError) as caught:
    getattr(missing, name)(*arguments)
  assert isinstance(caught.value, FileNotFoundError)
  assert str(caught.value) == (
    f"[Errno {errno.ENOENT}] No such file or directory: '/far/away'"
  )


def test_whatever_is_done_in_a_missing_directory_has_a_row():
  """But for what names alone tell."""
  public = {name for name in vars(ControlDirectory) if name[0] != "_"}
  assert public == {name for name, _ in _MISSING} | {
    "monitored_by",
    "journaled_by",
  }

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the control directory's files."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from unittest import mock

import forked
import pytest
from fake_monitor import FakeMonitor
from ganeti.kvmd import ctrldir
from ganeti.kvmd.ctrldir import LOCK_FILE, ControlDirectory, Life, Mark
from ganeti.kvmd.lockfile import LockedError

SECOND = 10**9
LIFE = Life(1, 1795438800 * SECOND + 137)
NAMES = [
  "web1.example.com",
  "a",
  ".",
  "..",
  "-rf",
  "with space",
  "new\nline",
  "\x1b[2J",
  "ü",
  os.fsdecode(b"\xff\xfe\x80"),
  "x" * 245,
]


@pytest.fixture(params=Mark)
def mark(request):
  return request.param


@pytest.fixture
def descriptor(ctrl_dir):
  opened = os.open(ctrl_dir, os.O_RDONLY)
  yield opened
  os.close(opened)


@pytest.fixture
def control(ctrl_dir, descriptor):
  return ControlDirectory(str(ctrl_dir), descriptor, ctrldir.MONITOR_SUFFIX)


@pytest.fixture
def elsewhere(scratch):
  """A file that is nobody's business, and a check that it was let alone."""
  path = scratch / "elsewhere"
  path.write_text("precious")
  os.chmod(path, 0o640)
  os.utime(path, ns=(5 * SECOND, 7 * SECOND))
  before = os.lstat(path)
  yield path
  after = os.lstat(path)
  assert path.read_text() == "precious"
  for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ino"):
    assert getattr(after, field) == getattr(before, field), field


def names(ctrl_dir):
  return sorted(os.listdir(ctrl_dir))


def has(control, mark, name, life):
  """Tells in which life an instance is marked; None if it is not."""
  found = control.look(mark, name, life)
  return None if found is None else found.is_current


@pytest.mark.parametrize("name", NAMES)
def test_written_and_removed(ctrl_dir, control, mark, name):
  path = ctrl_dir / (name + mark.value)
  assert has(control, mark, name, LIFE) is None
  assert control.write(mark, name, LIFE)
  assert names(ctrl_dir) == [path.name]
  found = os.lstat(path)
  assert stat.S_ISREG(found.st_mode)
  assert stat.S_IMODE(found.st_mode) == 0o600
  assert found.st_size == 0
  assert has(control, mark, name, LIFE) is True
  assert control.write(mark, name, LIFE)
  assert has(control, mark, name, LIFE) is True
  assert control.remove(mark, name) is True
  assert names(ctrl_dir) == []
  assert control.remove(mark, name) is False


def test_marks_are_apart(ctrl_dir, control, mark):
  for each in Mark:
    control.write(each, "a", LIFE)
    control.write(each, "ab", LIFE)
  control.remove(mark, "a")
  assert names(ctrl_dir) == sorted(
    name + each.value
    for each in Mark
    for name in ("a", "ab")
    if (each, name) != (mark, "a")
  )


@pytest.mark.parametrize("length", [245, 246, 247, 250])
def test_name_too_long_for_a_mark(ctrl_dir, control, mark, length):
  """Its monitor's name, which is shorter, may exist."""
  name = "x" * length
  (ctrl_dir / (name + ctrldir.MONITOR_SUFFIX)).touch()
  if len(name + mark.value) <= 255:
    assert control.write(mark, name, LIFE) is False
    return
  assert has(control, mark, name, LIFE) is None
  assert control.remove(mark, name) is False


def test_name_too_long_is_an_error_to_write(control, mark):
  with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
    control.write(mark, "x" * 250, LIFE)


@pytest.mark.parametrize(
  ("date", "belongs"),
  [
    (LIFE.born - SECOND, False),
    (LIFE.born - 1, False),
    (LIFE.born, False),
    (LIFE.born + 1, True),
    (LIFE.born + 1000 * SECOND, True),
    (0, False),
  ],
)
def test_mark_belongs_to_a_life_by_its_date(
  ctrl_dir, control, mark, date, belongs
):
  path = ctrl_dir / f"a{mark.value}"
  path.touch()
  os.utime(path, ns=(date, date))
  assert has(control, mark, "a", LIFE) is belongs


def test_mark_is_never_of_a_later_life(control, mark):
  control.write(mark, "a", LIFE)
  assert has(control, mark, "a", LIFE)
  assert not has(control, mark, "a", Life(2, LIFE.born + 1))
  assert not has(control, mark, "a", Life(1, LIFE.born + SECOND))


def test_old_mark_is_made_new(ctrl_dir, control, mark):
  control.write(mark, "a", Life(1, LIFE.born - SECOND))
  assert has(control, mark, "a", LIFE) is False
  control.write(mark, "a", LIFE)
  assert has(control, mark, "a", LIFE) is True


def test_reborn_instance_is_not_marked(ctrl_dir, control, mark):
  old = FakeMonitor(ctrl_dir, "a")
  opened = control.open_monitor("a")
  os.close(opened.descriptor)
  assert control.write(mark, "a", opened.life)
  control.remove(mark, "a")
  old.die()
  new = FakeMonitor(ctrl_dir, "a")
  assert control.write(mark, "a", opened.life) is False
  assert has(control, mark, "a", opened.life) is None
  new.quit()
  assert control.write(mark, "a", opened.life)


def test_link_is_replaced_and_not_followed(ctrl_dir, control, mark, elsewhere):
  path = ctrl_dir / f"a{mark.value}"
  path.symlink_to(elsewhere)
  assert control.write(mark, "a", LIFE)
  assert stat.S_ISREG(os.lstat(path).st_mode)
  assert has(control, mark, "a", LIFE)


def test_dangling_link_is_replaced_and_not_followed(
  ctrl_dir, control, mark, scratch
):
  path = ctrl_dir / f"a{mark.value}"
  path.symlink_to(scratch / "missing")
  assert control.write(mark, "a", LIFE)
  assert stat.S_ISREG(os.lstat(path).st_mode)
  assert not (scratch / "missing").exists()


@pytest.mark.parametrize("content", ["", "precious"])
def test_hard_link_is_replaced(ctrl_dir, control, mark, elsewhere, content):
  elsewhere.write_text(content)
  os.utime(elsewhere, ns=(5 * SECOND, 7 * SECOND))
  path = ctrl_dir / f"a{mark.value}"
  os.link(elsewhere, path)
  assert control.write(mark, "a", LIFE)
  assert not path.samefile(elsewhere)
  assert path.stat().st_size == 0
  assert elsewhere.stat().st_mtime_ns == 7 * SECOND
  elsewhere.write_text("precious")
  os.utime(elsewhere, ns=(5 * SECOND, 7 * SECOND))


def test_file_with_content_is_replaced(ctrl_dir, control, mark):
  path = ctrl_dir / f"a{mark.value}"
  path.write_text("whatever")
  assert control.write(mark, "a", LIFE)
  assert path.stat().st_size == 0


def test_fifo_and_socket_are_replaced(ctrl_dir, control, mark):
  os.mkfifo(ctrl_dir / f"a{mark.value}")
  FakeMonitor(ctrl_dir, "b", suffix=mark.value).die()
  for name in "a", "b":
    assert control.write(mark, name, LIFE)
    assert stat.S_ISREG(os.lstat(ctrl_dir / f"{name}{mark.value}").st_mode)


@pytest.mark.parametrize("make", ["fifo", "link", "dangling", "socket"])
def test_whatever_it_is_it_is_removed(ctrl_dir, control, mark, elsewhere, make):
  path = ctrl_dir / f"a{mark.value}"
  if make == "fifo":
    os.mkfifo(path)
  elif make == "socket":
    FakeMonitor(ctrl_dir, "a", suffix=mark.value).die()
  else:
    path.symlink_to(elsewhere if make == "link" else "missing")
  assert has(control, mark, "a", LIFE) is not None
  assert control.remove(mark, "a")
  assert names(ctrl_dir) == []


def test_directory_stays_and_is_an_error(ctrl_dir, control, mark):
  path = ctrl_dir / f"a{mark.value}"
  (path / "file").mkdir(parents=True)
  with pytest.raises(OSError, match="directory"):
    control.write(mark, "a", LIFE)
  with pytest.raises(OSError, match="directory"):
    control.remove(mark, "a")
  assert (path / "file").is_dir()


def test_directory_that_was_removed_is_an_error_to_write_in(
  ctrl_dir, control, mark
):
  ctrl_dir.rmdir()
  ctrl_dir.mkdir()
  with pytest.raises(FileNotFoundError):
    control.write(mark, "a", LIFE)
  assert control.remove(mark, "a") is False
  assert control.instances().monitored == set()
  assert names(ctrl_dir) == []


def test_mark_that_is_removed_at_once(ctrl_dir, control, mark):
  """The hypervisor did it, and means it."""
  date = os.utime

  def remove_before(*arguments, **options):
    assert control.remove(mark, "a")
    date(*arguments, **options)

  with mock.patch("os.utime", remove_before):
    assert control.write(mark, "a", LIFE) is False
  assert os.listdir(ctrl_dir) == []


def test_mark_that_cannot_be_dated(control, mark, monkeypatch):
  fault = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
  monkeypatch.setattr(os, "utime", mock.Mock(side_effect=fault))
  with pytest.raises(PermissionError) as err:
    control.write(mark, "a", LIFE)
  assert err.value.filename == f"a{mark.value}"


def test_what_has_a_monitor(ctrl_dir, control, mark):
  for name in NAMES:
    (ctrl_dir / f"{name}.kvmd").touch()
    (ctrl_dir / f"{name}.qmp").touch()
  for other in (".kvmd", "kvmd", "a.kvmd.bak", "a.kvmdx", "akvmd", "a.KVMD"):
    (ctrl_dir / other).touch()
  control.write(mark, "b", LIFE)
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
      control.write(mark, "a", LIFE)

  if os.geteuid():
    ctrl_dir.chmod(0o555)
  forked.run(check, forked.Place.UNPRIVILEGED)
  ctrl_dir.chmod(0o777)
  descriptor = os.open(ctrl_dir, os.O_RDONLY)
  ControlDirectory(str(ctrl_dir), descriptor, ".kvmd").check_access()
  os.close(descriptor)


def test_no_room_on_the_disk(ctrl_dir, mark):
  def check():
    forked.mount_small(str(ctrl_dir), files=1)
    (ctrl_dir / "full").touch()
    opened = os.open(ctrl_dir, os.O_RDONLY)
    control = ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as err:
      control.write(mark, "a", LIFE)
    assert err.value.filename == f"a{mark.value}"
    (ctrl_dir / "full").unlink()
    assert control.write(mark, "a", LIFE)
    assert has(control, mark, "a", LIFE)

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_since_when_an_instance_is_marked(control):
  before = time.time()
  control.write(Mark.POWERDOWN, "a", LIFE)
  found = control.look(Mark.POWERDOWN, "a", LIFE)
  # The kernel's date may be a tick old.
  assert before - 0.02 <= found.at <= time.time()


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


# --- The daemon's rule ---


def rule_file(ctrl_dir):
  return ctrl_dir / ctrldir.RULE


def test_rule(ctrl_dir, control):
  assert control.rule() is None
  control.say_rule(None)
  assert names(ctrl_dir) == []
  control.say_rule("sequence")
  assert names(ctrl_dir) == [ctrldir.RULE]
  found = os.lstat(rule_file(ctrl_dir))
  assert stat.S_ISREG(found.st_mode)
  assert stat.S_IMODE(found.st_mode) == 0o600
  assert rule_file(ctrl_dir).read_text() == "sequence\n"
  assert control.rule() == "sequence"
  control.say_rule("other")
  assert control.rule() == "other"
  control.say_rule(None)
  assert names(ctrl_dir) == []


def test_rule_is_replaced_in_one_step(ctrl_dir, control):
  control.say_rule("sequence")
  with rule_file(ctrl_dir).open() as before:
    control.say_rule("other")
    assert before.read() == "sequence\n"


def test_rule_that_was_said_is_not_said_again(ctrl_dir, control):
  control.say_rule("sequence")
  before = os.lstat(rule_file(ctrl_dir))
  control.say_rule("sequence")
  assert os.lstat(rule_file(ctrl_dir)) == before


def test_rule_is_no_file_of_an_instance(control):
  control.say_rule("sequence")
  assert control.instances() == ctrldir.Instances(set(), set(), set())


@pytest.mark.parametrize(
  "make",
  [
    lambda path, other: path.symlink_to(other),
    lambda path, other: path.symlink_to(path.parent / "nothing"),
    lambda path, other: os.link(other, path),
    lambda path, _: os.mkfifo(path),
    lambda path, _: path.write_text("sequence\n") and path.chmod(0o620),
    lambda path, _: path.write_text("sequence\n") and path.chmod(0o602),
    lambda path, _: path.write_bytes(b""),
    lambda path, _: path.write_bytes(b"\xff\n"),
    lambda path, _: path.write_bytes(b"sequence" * 1000),
    lambda path, _: FakeMonitor(path.parent, "", suffix=path.name),
  ],
)
def test_what_is_not_the_daemons_says_no_rule(ctrl_dir, control, scratch, make):
  other = scratch / "other"
  other.write_text("sequence\n")
  os.chmod(other, 0o600)
  make(rule_file(ctrl_dir), other)
  assert control.rule() != "sequence"
  control.say_rule("sequence")
  assert control.rule() == "sequence"
  assert names(ctrl_dir) == [ctrldir.RULE]
  control.say_rule(None)
  assert names(ctrl_dir) == []
  assert other.read_text() == "sequence\n"


def test_strangers_say_no_rule(control, monkeypatch):
  control.say_rule("sequence")
  stranger = os.geteuid() + 1
  monkeypatch.setattr(os, "geteuid", lambda: stranger)
  assert control.rule() is None


@pytest.mark.parametrize("rule", [None, "sequence"])
def test_directory_in_place_of_the_rule_is_an_error(ctrl_dir, control, rule):
  rule_file(ctrl_dir).mkdir()
  assert control.rule() is None
  with pytest.raises(IsADirectoryError) as err:
    control.say_rule(rule)
  assert err.value.filename == ctrldir.RULE


def test_no_room_on_the_disk_for_the_rule(ctrl_dir):
  def check():
    forked.mount_small(str(ctrl_dir), files=1)
    (ctrl_dir / "full").touch()
    opened = os.open(ctrl_dir, os.O_RDONLY)
    control = ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as err:
      control.say_rule("sequence")
    assert err.value.filename == ctrldir.RULE
    assert control.rule() is None
    (ctrl_dir / "full").unlink()
    control.say_rule("sequence")
    assert control.rule() == "sequence"

  forked.run(check, forked.Place.OWN_MOUNTS)


@pytest.fixture
def other(ctrl_dir):
  """What another process knows of the directory."""
  opened = os.open(ctrl_dir, os.O_RDONLY)
  yield ControlDirectory(str(ctrl_dir), opened, ctrldir.MONITOR_SUFFIX)
  os.close(opened)


def test_one_daemon(ctrl_dir, control, other):
  assert ctrldir.daemon_of(str(ctrl_dir)) is None
  for _ in range(2):
    control.claim()
    assert ctrldir.daemon_of(str(ctrl_dir)) == os.getpid()
    with pytest.raises(LockedError) as caught:
      other.claim()
    path = ctrl_dir / LOCK_FILE
    assert str(caught.value) == f"process {os.getpid()} holds {path}"
  control.release()
  control.release()
  assert ctrldir.daemon_of(str(ctrl_dir)) is None
  other.claim()
  with pytest.raises(LockedError):
    control.claim()
  other.release()


def test_no_directory_no_daemon(scratch):
  assert ctrldir.daemon_of(str(scratch / "missing")) is None


def test_claim_costs_little_when_all_is_well(control):
  control.claim()
  with mock.patch("os.open", side_effect=AssertionError):
    control.claim()
  control.release()


@pytest.mark.parametrize("what", ["removed", "opened"])
def test_claim_is_renewed(ctrl_dir, control, other, what):
  control.claim()
  path = ctrl_dir / LOCK_FILE
  before = path.stat().st_ino
  if what == "removed":
    path.unlink()
    path.with_name("keeps the number").touch()
  else:
    path.chmod(0o644)
  control.claim()
  assert path.stat().st_ino != before
  with pytest.raises(LockedError):
    other.claim()
  control.release()


def test_claim_is_lost(ctrl_dir, control, other):
  control.claim()
  (ctrl_dir / LOCK_FILE).unlink()
  other.claim()
  before = len(os.listdir("/proc/self/fd"))
  with pytest.raises(LockedError):
    control.claim()
  assert len(os.listdir("/proc/self/fd")) == before - 1
  other.release()
  control.claim()
  control.release()


def test_claim_stays_where_it_cannot_be_renewed(ctrl_dir, control):
  control.claim()
  path = ctrl_dir / LOCK_FILE
  path.unlink()
  path.mkdir()
  with pytest.raises(IsADirectoryError) as caught:
    control.claim()
  assert caught.value.filename == str(path)
  path.rmdir()
  control.claim()
  control.release()


@pytest.mark.parametrize("is_daemon", [True, False])
def test_lock_for_changes(ctrl_dir, control, other, is_daemon):
  before = len(os.listdir("/proc/self/fd"))
  if is_daemon:
    control.claim()
  for mine, others in [(control, other), (other, control)] * 2:
    assert mine.lock(0.0)
    assert not others.lock(0.0)
    path = ctrl_dir / LOCK_FILE
    assert others.kept_out.reason == f"process {os.getpid()} holds {path}"
    mine.unlock()
    assert others.lock(0.0)
    assert others.kept_out is None
    others.unlock()
  if is_daemon:
    assert ctrldir.daemon_of(str(ctrl_dir)) == os.getpid()
  control.release()
  assert len(os.listdir("/proc/self/fd")) == before


def test_somebody_has_the_lock_for_long(control, other, monkeypatch):
  clock = mock.Mock(return_value=1000.0)
  monkeypatch.setattr(time, "monotonic", clock)
  assert other.lock(0.0)
  for now in (1000.0, 1010.0, 1070.0):
    clock.return_value = now
    assert not control.lock(0.0)
    assert (control.kept_out.first, control.kept_out.last) == (1000.0, now)
  other.unlock()
  assert control.lock(0.0)
  control.unlock()
  assert control.kept_out is None


def test_waiting_for_the_lock(control, other, monkeypatch):
  """In short naps, and for no longer than it is worth."""
  now = [0.0]
  naps = []

  def sleep(seconds):
    naps.append(seconds)
    now[0] += seconds
    if len(naps) == 150:
      other.unlock()

  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(time, "sleep", sleep)
  assert other.lock(0.0)
  assert not control.lock(1.0)
  assert 99 <= len(naps) <= 101
  assert control.lock(1.0)
  assert len(naps) == 150
  control.unlock()


def test_stopped_process_keeps_it(ctrl_dir, control):
  def hold():
    opened = os.open(ctrl_dir, os.O_RDONLY)
    held = ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    held.claim()
    assert held.lock(0.0)

  with forked.living_on(hold) as process:
    os.kill(process, signal.SIGSTOP)
    assert not control.lock(0.03)
    assert f"process {process} " in control.kept_out.reason
    with pytest.raises(LockedError, match=f"process {process} "):
      control.claim()
  control.claim()
  assert control.lock(0.0)
  control.unlock()
  control.release()


def test_lock_file_is_nobodys_monitor_journal_or_mark(control):
  control.claim()
  assert control.instances() == ctrldir.Instances(set(), set(), set())
  assert control.monitored_by(LOCK_FILE) is None
  assert control.journaled_by(LOCK_FILE) is None
  control.release()


def test_lock_file_is_made_by_whoever_comes_first(ctrl_dir, control, other):
  assert control.lock(0.0)
  before = (ctrl_dir / LOCK_FILE).stat().st_ino
  other.claim()
  assert (ctrl_dir / LOCK_FILE).stat().st_ino == before
  assert not other.lock(0.0)
  control.unlock()
  other.release()
  assert (ctrl_dir / LOCK_FILE).stat().st_ino == before


def test_mark_of_one_whose_socket_is_left(control, ctrl_dir):
  """It was killed, and the clock was set back before; that is no later life."""
  commands = ctrl_dir / ("a" + ctrldir.JOURNAL_COMMANDS)
  commands.touch()
  later = time.time_ns() + 86400 * SECOND
  os.utime(commands, ns=(later + 5, later))
  for ending, content in (
    (ctrldir.JOURNAL_DIGEST, b""),
    (
      ctrldir.JOURNAL_EVENTS,
      b"x",
    ),
  ):
    (ctrl_dir / ("a" + ending)).write_bytes(content)
  (ctrl_dir / "a.kvmd").touch()
  os.utime(ctrl_dir / "a.kvmd", ns=(later + 3, later + 3))
  life = Life((ctrl_dir / ("a" + ctrldir.JOURNAL_EVENTS)).stat().st_ino, later)
  os.utime(ctrl_dir / ("a" + ctrldir.JOURNAL_DIGEST), ns=(later, later))
  assert control.write(Mark.SHUTDOWN, "a", life)
  assert control.look(Mark.SHUTDOWN, "a", life).is_current
  assert control.is_marked(Mark.SHUTDOWN, "a")
  # Of a later life it says nothing.
  os.utime(ctrl_dir / "a.kvmd", ns=(later + 9, later + 9))
  assert not control.is_marked(Mark.SHUTDOWN, "a")

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of where the control directory is, and whose."""

from __future__ import annotations

import contextlib
import errno
import logging
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
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.node import (
  ctrldir,
  directory_locks,
  journal_files,
  rule_file,
  watch,
)
from ganeti.kvmd.node.lockfile import LockedError
from ganeti.kvmd.node.place import Change, Place

INFINITE = float("inf")
TROUBLE = 3.0


class Rival:
  """Another daemon of the same directory, as far as its claim goes."""

  def __init__(self, path):
    self._opened = os.open(path, os.O_RDONLY)
    self.directory = ctrldir.ControlDirectory(str(path), self._opened, ".kvmd")
    self.directory.locks.claim()

  def end(self):
    self.directory.locks.release()
    os.close(self._opened)


@pytest.fixture
def place(ctrl_dir, caplog):
  """A place of which nobody makes use."""
  caplog.set_level(logging.INFO)
  before = len(os.listdir("/proc/self/fd"))
  found = Place(
    str(ctrl_dir), ".kvmd", Rule.SEQUENCE, Timing(trouble=TROUBLE, lock=60.0)
  )
  yield found
  found.close()
  assert len(os.listdir("/proc/self/fd")) == before


def is_usable(place):
  """Tells whether the directory may be followed."""
  try:
    place.directory.check_access()
  except ctrldir.MissingDirectoryError:
    return False
  return True


def said(caplog):
  """Returns what was logged since the last time, with the levels."""
  lines = [(each.levelname, each.getMessage()) for each in caplog.records]
  caplog.clear()
  return lines


def test_place_where_nothing_happens(place, ctrl_dir, caplog):
  assert place.watch.path == str(ctrl_dir)
  before = place.directory
  for _ in range(2):
    assert place.follow() is Change.NONE
    assert place.directory is before
    assert place.patience == INFINITE
    assert (place.has_directory, place.is_left_to_others) == (True, False)
  assert said(caplog) == []


def test_place_comes_and_goes(place, ctrl_dir, caplog):
  for _ in range(2):
    shutil.rmtree(ctrl_dir)
    for change in (Change.ELSEWHERE, Change.NONE):
      assert place.follow() is change
      assert not is_usable(place)
      assert place.patience == INFINITE
      assert (place.has_directory, place.is_left_to_others) == (False, False)
    gone = f"{ctrl_dir} is gone; waiting for it to come back"
    assert said(caplog) == [("WARNING", gone)]
    ctrl_dir.mkdir()
    for change in (Change.ELSEWHERE, Change.NONE):
      assert place.follow() is change
      assert is_usable(place)
      assert directory_locks.daemon_of(str(ctrl_dir)) == os.getpid()
    assert said(caplog) == [("INFO", f"{ctrl_dir} is there now")]


def test_place_is_exchanged(place, ctrl_dir, scratch):
  ctrl_dir.rename(scratch / "old")
  ctrl_dir.mkdir()
  assert place.follow() is Change.ELSEWHERE
  assert directory_locks.daemon_of(str(ctrl_dir)) == os.getpid()
  # The other one may have another daemon now.
  assert directory_locks.daemon_of(str(scratch / "old")) is None


def test_place_that_cannot_be_followed(place, ctrl_dir, caplog):
  shutil.rmtree(ctrl_dir)
  ctrl_dir.touch()
  for change in (Change.ELSEWHERE, Change.NONE):
    assert place.follow() is change
    assert place.patience == TROUBLE
    assert not is_usable(place)
    assert (place.has_directory, place.is_left_to_others) == (False, False)
  assert said(caplog) == [
    ("WARNING", f"cannot use {ctrl_dir}: Not a directory")
  ]
  ctrl_dir.unlink()
  ctrl_dir.mkdir()
  assert place.follow() is Change.ELSEWHERE
  assert place.patience == INFINITE


def lose_lock(ctrl_dir):
  """Lets another daemon be quicker."""
  (ctrl_dir / ctrldir.LOCK_FILE).unlink()
  return Rival(ctrl_dir)


def test_place_is_left_to_another_daemon(place, ctrl_dir, caplog):
  rival = lose_lock(ctrl_dir)
  for change in (Change.LEFT, Change.NONE, Change.NONE):
    assert place.follow() is change
    assert not is_usable(place)
    # The kernel tells when the other one ends.
    assert place.patience == INFINITE
    assert (place.has_directory, place.is_left_to_others) == (True, True)
  ((level, line),) = said(caplog)
  assert level == "WARNING"
  assert line.startswith(f"{ctrl_dir} belongs to another ganeti-kvmd")
  rival.end()
  assert place.follow() is Change.ELSEWHERE
  assert is_usable(place)
  assert (place.has_directory, place.is_left_to_others) == (True, False)
  assert said(caplog) == [("INFO", f"{ctrl_dir} is followed from now on")]


def test_place_is_gone_while_it_is_another_daemons(place, ctrl_dir, caplog):
  rival = lose_lock(ctrl_dir)
  place.follow()
  said(caplog)
  shutil.rmtree(ctrl_dir)
  # Nobody was followed there.
  assert place.follow() is Change.NONE
  assert (place.has_directory, place.is_left_to_others) == (False, False)
  rival.end()
  ctrl_dir.mkdir()
  assert place.follow() is Change.ELSEWHERE
  assert [line.split()[-1] for _, line in said(caplog)] == ["back", "now"]


def test_place_of_another_daemon_is_exchanged_for_that_of_a_third(
  place, ctrl_dir, scratch
):
  rivals = [lose_lock(ctrl_dir)]
  assert place.follow() is Change.LEFT
  ctrl_dir.rename(scratch / "old")
  ctrl_dir.mkdir()
  rivals.append(Rival(ctrl_dir))
  assert place.follow() is Change.NONE
  for rival in rivals:
    rival.end()
  assert place.follow() is Change.ELSEWHERE


LOCKED = LockedError("there", 77)


@pytest.mark.parametrize(
  ("error", "is_new", "change", "patience", "words"),
  [
    (LOCKED, False, Change.LEFT, INFINITE, "belongs to another"),
    (LOCKED, True, Change.LEFT, INFINITE, "belongs to another"),
    # Whom we follow is not lost by that; but it is no reason to begin.
    (OSError(errno.EIO, "I/O", "it"), False, Change.NONE, INFINITE, "it: I/O"),
    (OSError(errno.EIO, "I/O", "it"), True, Change.LEFT, TROUBLE, "it: I/O"),
    # It may be another daemon's.
    (PermissionError(13, "no", "it"), False, Change.LEFT, TROUBLE, "it: no"),
    (PermissionError(13, "no", "it"), True, Change.LEFT, TROUBLE, "it: no"),
    # The directory was removed just now.
    (FileNotFoundError(2, "none", "it"), False, Change.NONE, INFINITE, ""),
    (FileNotFoundError(2, "none", "it"), True, Change.LEFT, TROUBLE, ""),
  ],
)
def test_place_that_cannot_be_claimed(
  place,
  ctrl_dir,
  scratch,
  monkeypatch,
  caplog,
  *,
  error,
  is_new,
  change,
  patience,
  words,
):
  """Depending on whether it was ours before."""
  if is_new:
    ctrl_dir.rename(scratch / "old")
    ctrl_dir.mkdir()
    place._trouble = f"{ctrl_dir} is there now"
  claim = mock.Mock(side_effect=error)
  monkeypatch.setattr(directory_locks.DirectoryLocks, "claim", claim)
  assert place.follow() is change
  assert place.patience == patience
  assert is_usable(place) is (change is Change.NONE)
  assert [words in line for _, line in said(caplog)] == [True] * bool(words)


def test_beginning_where_there_is_nothing(scratch):
  with contextlib.closing(
    Place(str(scratch / "missing"), ".kvmd", Rule.CAUSE, Timing())
  ) as place:
    assert not is_usable(place)
    assert (place.has_directory, place.is_left_to_others) == (False, False)
    assert place.follow() is Change.NONE


@pytest.mark.parametrize(
  ("what", "error"),
  [
    ("claim", LOCKED),
    ("claim", OSError(errno.EIO, "I/O")),
    ("check_access", PermissionError(errno.EACCES, "no")),
  ],
)
def test_beginning_that_fails_leaves_nothing_open(
  ctrl_dir, monkeypatch, what, error
):
  of = {
    "claim": directory_locks.DirectoryLocks,
    "check_access": ctrldir.ControlDirectory,
  }[what]
  monkeypatch.setattr(of, what, mock.Mock(side_effect=error))
  before = len(os.listdir("/proc/self/fd"))
  with pytest.raises(type(error)):
    Place(str(ctrl_dir), ".kvmd", Rule.CAUSE, Timing())
  assert len(os.listdir("/proc/self/fd")) == before


def test_end_lets_another_daemon_begin(ctrl_dir):
  place = Place(str(ctrl_dir), ".kvmd", Rule.CAUSE, Timing())
  with pytest.raises(LockedError):
    Place(str(ctrl_dir), ".kvmd", Rule.CAUSE, Timing())
  place.close()
  Place(str(ctrl_dir), ".kvmd", Rule.CAUSE, Timing()).close()


def test_place_that_cannot_be_watched(place, ctrl_dir, monkeypatch, caplog):
  """It is said when that changes, and the path is followed soon again."""
  blindness = ["", "out of this", "out of this", "out of that", "", ""]
  monkeypatch.setattr(
    watch.Watch, "follow", lambda mine: setattr(mine, "blindness", now) or False
  )
  lines = []
  for now in blindness:
    assert place.follow() is Change.NONE
    assert place.patience == (TROUBLE if now else INFINITE)
    lines.append([line.partition(". ")[0] for _, line in said(caplog)])
  assert lines == [
    [],
    [f"cannot watch {ctrl_dir}: out of this"],
    [],
    [f"cannot watch {ctrl_dir}: out of that"],
    [f"watching {ctrl_dir} again"],
    [],
  ]


@pytest.mark.parametrize(
  ("kept_out", "expected"),
  [
    # Since when, and until when at least, each time that is looked at.
    ([None], []),
    ([(7.0, 67.0)], []),
    ([(7.0, 69.0)], [62]),
    ([(7.0, 67.0), (7.0, 68.0), (7.0, 900.0)], [61]),
    ([(7.0, 68.0), None, (100.0, 160.0)], [61]),
    ([(7.0, 68.0), None, (100.0, 163.0)], [61, 63]),
  ],
)
def test_who_keeps_us_from_changes_is_told_of_once(
  place, caplog, kept_out, expected
):
  for each in kept_out:
    place.directory.locks.kept_out = each and directory_locks.KeptOut(
      *each, "process 77 holds it"
    )
    place.complain_of_lock()
  told = said(caplog)
  assert [level for level, _ in told] == ["WARNING"] * len(expected)
  for (_, line), seconds in zip(told, expected):
    assert line.startswith(f"for {seconds} s no journal could be made shorter")
    assert "process 77 holds it;" in line


def test_nobody_keeps_us_from_changes_where_there_is_nothing(place, ctrl_dir):
  locks = place.directory.locks
  locks.kept_out = directory_locks.KeptOut(0.0, 100.0, "process 77 holds it")
  shutil.rmtree(ctrl_dir)
  place.follow()
  place.complain_of_lock()


@pytest.mark.parametrize(
  ("rule", "written"), [(Rule.CAUSE, None), (Rule.SEQUENCE, "sequence")]
)
def test_which_rule_is_said(place, monkeypatch, rule, written):
  place._rule = rule
  write = mock.Mock()
  monkeypatch.setattr(rule_file, "write", write)
  place.say_rule()
  write.assert_called_once_with(place.directory, written)


def test_rule_that_cannot_be_said_is_an_event(place, monkeypatch, caplog):
  """What does not change is not repeated; a missing directory is nothing."""
  full = OSError(errno.ENOSPC, "full", "file")
  missing = ctrldir.MissingDirectoryError(2, "none", "there")
  results = [full, full, missing, full, None, full, full, None, None]
  monkeypatch.setattr(rule_file, "write", mock.Mock(side_effect=results))
  lines = []
  for _ in results:
    place.say_rule()
    lines.append(len(said(caplog)))
  assert lines == [1, 0, 0, 0, 0, 1, 0, 0, 0]


def test_state_is_logged_when_it_is_another(place, caplog):
  for text in ("one", "one", "two", "one"):
    place.report(text, logging.INFO if text == "two" else logging.WARNING)
  assert said(caplog) == [
    ("WARNING", "one"),
    ("INFO", "two"),
    ("WARNING", "one"),
  ]


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

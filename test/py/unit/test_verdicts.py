# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the marks that are left, and of what is tried again."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import shutil
import time
import types
from unittest import mock

import ctrl_files
import forked
import means
import pytest
from fake_monitor import (
  SIGNAL,
  USER,
  FakeMonitor,
  encode,
)
from ganeti.kvmd.core import qmp
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.follow import verdicts
from ganeti.kvmd.follow.instance import Instance
from ganeti.kvmd.node import ctrldir, mark_files
from ganeti.kvmd.node.ctrldir import Life
from scene import stale

#: Seconds between two attempts, where a test has a clock of its own
INTERVAL = 5.0


class Room:
  """A real control directory, and instances that nobody follows.

  @ivar now: what the time is, in seconds of the monotonic clock

  """

  def __init__(self, path, directory):
    self.path = path
    self.now = 1000.0
    self.place = types.SimpleNamespace(directory=directory)
    self.verdicts = verdicts.Verdicts(self.place, INTERVAL)
    self._births = itertools.count(time.time_ns() - 3600 * 10**9, 10**9)

  def instance(self, name="web1", said=(), *, is_attached=True):
    """One that has a new monitor, and has said something."""
    (self.path / f"{name}.kvmd").touch()
    os.utime(self.path / f"{name}.kvmd", ns=(0, next(self._births)))
    found = Instance(name, Rule.CAUSE, Quota(), means.no_history())
    found.begin(self.place.directory.life(name))
    found.meet()
    if is_attached:
      found.attach("7.2.19", 42)
    for event_name, data in said:
      found.receive(qmp.Event(event_name, data))
    return found

  def leave(self, name, *, is_current=True):
    """Leaves a file of this life, or of one before."""
    (self.path / name).touch()
    born = (self.path / f"{name.partition('.')[0]}.kvmd").stat().st_mtime_ns
    date = born + 1 if is_current else born
    os.utime(self.path / name, ns=(date, date))

  def block(self, name):
    """Lets a file neither be written nor removed."""
    (self.path / name).mkdir()

  def unblock(self, name):
    (self.path / name).rmdir()

  @property
  def marks(self):
    return ctrl_files.names(self.path) - {"web1.kvmd", "db1.kvmd"}

  def go_away(self):
    """Lets the control directory be missing; returns how it comes back."""
    before = self.place.directory
    self.place.directory = ctrldir.ControlDirectory(before.path, None, ".kvmd")
    return lambda: setattr(self.place, "directory", before)


@pytest.fixture
def room(ctrl_dir, monkeypatch):
  with ctrl_files.opened(ctrl_dir) as directory:
    found = Room(ctrl_dir, directory)
    clock = types.SimpleNamespace(monotonic=lambda: found.now)
    monkeypatch.setattr(verdicts, "time", clock)
    yield found


@pytest.fixture
def lines(caplog):
  caplog.set_level(logging.INFO)
  return lambda: [
    record.getMessage()
    for record in caplog.records
    if "attached to" not in record.getMessage()
  ]


SHUTDOWN_BY_USER = ("SHUTDOWN", USER)
SHUTDOWN_BY_SIGNAL = ("SHUTDOWN", SIGNAL)
POWERDOWN = ("POWERDOWN", {})


@pytest.mark.parametrize(
  ("said", "verdict", "left"),
  [
    ([], "killed or crashed", set()),
    ([SHUTDOWN_BY_USER], "user", {"web1.shutdown"}),
    ([SHUTDOWN_BY_SIGNAL], "administrator", set()),
    ([POWERDOWN, SHUTDOWN_BY_USER], "administrator", set()),
  ],
)
@pytest.mark.parametrize(
  "found", [[], ["web1.shutdown"], ["web1.powerdown", "web1.shutdown"]]
)
def test_end_that_was_heard(room, lines, said, verdict, left, found):
  """Whatever files there were before, they are as they are to be."""
  web1 = room.instance(said=said)
  for name in found:
    room.leave(name)
  room.verdicts.end(web1)
  assert room.marks == left
  assert lines()[-1].startswith(f"instance web1: verdict {verdict} (")
  # All is done, and nothing is known of another life.
  assert (web1.life, web1.is_over) == (None, False)
  assert room.verdicts.due == math.inf


@pytest.mark.parametrize(
  ("said", "is_current", "verdict", "left"),
  [
    ([], True, "migrated (no SHUTDOWN)", set()),
    ([], False, "killed or crashed (no SHUTDOWN)", {"web1.migrated"}),
    ([SHUTDOWN_BY_SIGNAL], True, "migrated (host-signal)", set()),
    ([POWERDOWN, SHUTDOWN_BY_SIGNAL], True, "migrated (host-signal)", set()),
    (
      [SHUTDOWN_BY_SIGNAL],
      False,
      "administrator (host-signal)",
      {"web1.migrated"},
    ),
    (
      [SHUTDOWN_BY_USER],
      True,
      "user (guest-shutdown)",
      {"web1.shutdown"},
    ),
  ],
)
def test_end_of_one_that_was_migrated(
  room, lines, said, is_current, verdict, left
):
  """One of another life stays: whoever starts the instance removes it."""
  web1 = room.instance(said=said)
  room.leave("web1.migrated", is_current=is_current)
  room.verdicts.end(web1)
  assert room.marks == left
  assert lines()[-1].startswith(f"instance web1: verdict {verdict} ")


def test_end_where_nobody_can_tell_whether_it_was_migrated(room, lines):
  web1 = room.instance(said=[SHUTDOWN_BY_SIGNAL])
  err = OSError(errno.EIO, os.strerror(errno.EIO), "web1.migrated")
  with mock.patch.object(mark_files, "marked_at", side_effect=err):
    room.verdicts.end(web1)
  complaint, verdict = lines()
  assert complaint == (
    "instance web1: cannot find out about its file web1.migrated: Input/output"
    " error"
  )
  assert "verdict administrator" in verdict


@pytest.mark.parametrize(
  ("found", "is_current", "verdict", "left"),
  [
    ([], True, "unknown", set()),
    (["web1.migrated"], True, "migrated", set()),
    (["web1.migrated"], False, "unknown", set()),
    (["web1.migrated", "web1.shutdown"], True, "user", {"web1.shutdown"}),
    (["web1.shutdown"], True, "user", {"web1.shutdown"}),
    (["web1.shutdown"], False, "unknown", set()),
    (["web1.powerdown"], True, "unknown", set()),
    (["web1.powerdown"], False, "unknown", set()),
    (["web1.powerdown", "web1.shutdown"], True, "user", {"web1.shutdown"}),
    (["web1.powerdown", "web1.shutdown"], False, "unknown", set()),
  ],
)
def test_end_that_nobody_heard(room, lines, found, is_current, verdict, left):
  """An earlier daemon may have heard that its user ended it."""
  web1 = room.instance(is_attached=False)
  for name in found:
    room.leave(name, is_current=is_current)
  room.verdicts.end(web1)
  assert room.marks == left
  assert lines()[-1].startswith(f"instance web1: verdict {verdict} (")


def test_end_that_the_journal_will_tell_of(room, lines):
  web1 = room.instance(is_attached=False)
  for name in ("web1.journal.out", "web1.journal.digest", "web1.shutdown"):
    (room.path / name).touch()
  room.verdicts.end(web1)
  assert lines() == []
  assert web1.is_met
  assert "web1.shutdown" in room.marks


def test_end_that_was_heard_is_not_left_to_a_journal(room, lines):
  web1 = room.instance()
  (room.path / "web1.journal.out").touch()
  (room.path / "web1.journal.digest").touch()
  room.verdicts.end(web1)
  assert lines()[-1].startswith("instance web1: verdict killed or crashed")


def test_end_where_nobody_can_tell_whether_there_is_a_journal(room, lines):
  web1 = room.instance(is_attached=False)
  come_back = room.go_away()
  room.verdicts.end(web1)
  assert [line.partition(" (")[0] for line in lines()] == [
    "instance web1: verdict unknown"
  ]
  assert room.verdicts.is_late(web1)
  come_back()
  assert room.verdicts.settle(web1)


def test_end_of_one_that_was_never_met(room, lines):
  web1 = Instance("web1", Rule.CAUSE, Quota(), means.no_history())
  (room.path / "web1.shutdown").touch()
  room.verdicts.end(web1)
  web1.begin(Life(1, 1))
  room.verdicts.end(web1)
  assert lines() == []
  assert room.marks == {"web1.shutdown"}


def test_marks_come_before_the_words(room, monkeypatch):
  """Who waits for the line in the log finds the file."""
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  there = []
  monkeypatch.setattr(Instance, "report", lambda *_: there.append(room.marks))
  room.verdicts.end(web1)
  assert there == [{"web1.shutdown"}]


def test_what_is_announced_is_marked_at_once(room, lines):
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  assert room.verdicts.settle(web1) is True
  assert room.marks == {"web1.shutdown"}
  web1.receive(qmp.Event("RESET", {}))
  assert room.verdicts.settle(web1) is True
  assert room.marks == set()
  assert lines() == [
    "instance web1: shutdown file written (guest-shutdown)",
    "instance web1: shutdown file removed (the guest runs)",
  ]
  # It is still followed.
  assert web1.life is not None


def test_what_is_as_it_is_to_be_is_not_touched(room, monkeypatch):
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  assert room.verdicts.settle(web1)
  monkeypatch.setattr(verdicts, "mark_files", None)
  assert room.verdicts.settle(web1)


def test_there_was_none_to_be_removed(room, lines):
  web1 = room.instance(said=[SHUTDOWN_BY_SIGNAL])
  assert room.verdicts.settle(web1)
  assert lines() == []


def test_instance_that_lives_anew_is_not_marked(room, lines):
  """The file would be taken for one of the new life; it is late no more."""
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  room.instance()
  assert room.verdicts.settle(web1) is True
  assert room.marks == set()
  assert lines() == []


@pytest.mark.parametrize(
  ("said", "is_over", "blocked", "complaint"),
  [
    (
      [SHUTDOWN_BY_USER],
      False,
      "web1.shutdown",
      (
        "cannot write its file web1.shutdown in {} (Is a directory); trying"
        " again every second, and till then Ganeti may take its end for a crash"
      ),
    ),
    (
      [SHUTDOWN_BY_SIGNAL],
      False,
      "web1.shutdown",
      (
        "cannot remove its file web1.shutdown in {} (Is a directory); trying"
        " again every second, and till then Ganeti may take its end for its"
        " user's shutdown"
      ),
    ),
    (
      [POWERDOWN],
      False,
      "web1.powerdown",
      (
        "cannot write its file web1.powerdown in {} (Is a directory); trying"
        " again every second, and till then its end may pass for its user's"
        " shutdown, should the daemon be restarted"
      ),
    ),
    (
      [SHUTDOWN_BY_USER],
      True,
      "web1.powerdown",
      (
        "cannot remove its file web1.powerdown in {} (Is a directory); trying"
        " again every second, and till then its user's shutdown may pass for an"
        " administrator's, should the daemon be restarted"
      ),
    ),
  ],
)
def test_trouble_with_a_mark(room, lines, said, is_over, blocked, complaint):
  web1 = room.instance(said=said)
  room.block(blocked)
  if is_over:
    room.verdicts.end(web1)
  for _ in range(3):
    assert room.verdicts.settle(web1) is False
  assert room.verdicts.is_late(web1)
  assert web1.is_over is is_over
  about = [line for line in lines() if "cannot" in line]
  assert about == ["instance web1: " + complaint.format(room.path)]
  room.unblock(blocked)
  assert room.verdicts.settle(web1) is True
  assert not room.verdicts.is_late(web1)
  assert web1.is_over is False
  assert (web1.life is None) is is_over


def test_one_mark_is_not_written_for_the_trouble_with_another(room):
  """Those that went well are not done again."""
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  room.block("web1.powerdown")
  room.verdicts.end(web1)
  assert room.marks == {"web1.shutdown", "web1.powerdown"}
  (room.path / "web1.shutdown").unlink()
  room.unblock("web1.powerdown")
  assert room.verdicts.settle(web1)
  assert room.marks == set()


def test_name_that_is_too_long_for_a_mark(room, lines):
  """There can be none, however often it is tried."""
  name = "x" * 250
  instance = room.instance(name, said=[SHUTDOWN_BY_USER])
  assert room.verdicts.settle(instance) is True
  assert not room.verdicts.is_late(instance)
  (line,) = lines()
  assert line.startswith(f"instance {name}: cannot write its file {name}.shut")
  assert "(File name too long)" in line


def test_disk_quota_is_used_up(room, lines):
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  trouble = OSError(errno.EDQUOT, "Disk quota exceeded", "web1.shutdown")
  with mock.patch.object(verdicts.mark_files, "write", side_effect=trouble):
    assert room.verdicts.settle(web1) is False
  assert "(Disk quota exceeded); trying again" in lines()[-1]
  assert room.verdicts.is_late(web1)


def test_directory_is_missing(room, lines):
  """That is said elsewhere, once for all instances."""
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  come_back = room.go_away()
  assert room.verdicts.settle(web1) is False
  room.verdicts.find(web1)
  room.verdicts.recall(web1)
  assert lines() == []
  come_back()
  assert room.verdicts.settle(web1) is True
  assert room.marks == {"web1.shutdown"}


def test_life_that_is_not_known_yet(room):
  """There is nothing that a mark could be dated by."""
  web1 = Instance("web1", Rule.CAUSE, Quota(), means.no_history())
  room.verdicts.find(web1)
  room.verdicts.recall(web1)
  assert room.verdicts.settle(web1) is True
  web1.receive(qmp.Event("SHUTDOWN", USER))
  assert room.verdicts.settle(web1) is False
  (room.path / "web1.kvmd").touch()
  web1.begin(room.place.directory.life("web1"))
  assert room.verdicts.settle(web1) is True
  assert room.marks == {"web1.shutdown"}


def test_those_that_are_late_are_tried_again(room):
  web1 = room.instance("web1", said=[SHUTDOWN_BY_USER])
  db1 = room.instance("db1", said=[SHUTDOWN_BY_USER])
  for name in ("web1.shutdown", "db1.shutdown"):
    room.block(name)
  assert room.verdicts.due == math.inf
  assert list(room.verdicts.retry(math.inf)) == []
  room.verdicts.settle(web1)
  assert room.verdicts.due == room.now + INTERVAL
  # Others, or the same again, do not put it off.
  room.now += 1.0
  room.verdicts.settle(db1)
  room.verdicts.settle(web1)
  due = room.now + INTERVAL - 1.0
  assert room.verdicts.due == due
  assert list(room.verdicts.retry(due - 0.001)) == []
  assert list(room.verdicts.retry(due)) == [web1, db1]
  assert room.verdicts.due == due + INTERVAL
  # Late itself, it does not try twice as often then.
  assert list(room.verdicts.retry(due + 10 * INTERVAL)) == [web1, db1]
  assert room.verdicts.due == due + 11 * INTERVAL
  room.unblock("web1.shutdown")
  for each in room.verdicts.retry(due + 11 * INTERVAL):
    room.verdicts.settle(each)
  assert not room.verdicts.is_late(web1)
  assert room.verdicts.is_late(db1)
  room.unblock("db1.shutdown")
  assert room.verdicts.settle(db1)
  assert room.verdicts.due == math.inf
  # The next one waits as long as the first.
  room.now += 100 * INTERVAL
  web1.receive(qmp.Event("RESET", {}))
  (room.path / "web1.shutdown").unlink()
  room.block("web1.shutdown")
  room.verdicts.settle(web1)
  assert room.verdicts.due == room.now + INTERVAL


def test_one_that_is_late_is_forgotten(room):
  web1 = room.instance(said=[SHUTDOWN_BY_USER])
  room.verdicts.forget(web1)
  room.block("web1.shutdown")
  room.verdicts.settle(web1)
  room.verdicts.forget(web1)
  assert not room.verdicts.is_late(web1)
  assert room.verdicts.due == math.inf


def test_one_that_is_late_is_replaced(room):
  """What is known of the later life of an instance is what counts."""
  old = room.instance(said=[SHUTDOWN_BY_USER])
  new = room.instance(said=[SHUTDOWN_BY_SIGNAL])
  room.block("web1.shutdown")
  room.verdicts.settle(old)
  room.verdicts.settle(new)
  assert not room.verdicts.is_late(old)
  room.verdicts.forget(old)
  assert room.verdicts.is_late(new)
  assert list(room.verdicts.retry(math.inf)) == [new]
  room.unblock("web1.shutdown")
  # Nor does it count for the later one that the earlier is done.
  assert room.verdicts.settle(old)
  assert room.verdicts.is_late(new)


@pytest.mark.parametrize("is_current", [True, False])
@pytest.mark.parametrize("name", ["web1.shutdown", "web1.powerdown"])
def test_one_is_found(room, lines, name, is_current):
  """Whether or not there is the other."""
  web1 = room.instance()
  room.leave(name, is_current=is_current)
  made = (room.path / name).stat().st_ctime_ns / 1e9
  room.verdicts.find(web1)
  assert room.marks == ({name} if is_current else set())
  is_shutdown = name == "web1.shutdown"
  assert web1.is_remembered is (is_current and is_shutdown)
  pressed = made if is_current and not is_shutdown else None
  assert web1.lifecycle.marked == pressed
  assert lines() == (
    ["instance web1: shutdown file removed (the guest runs)"]
    if is_shutdown and not is_current
    else []
  )


def test_one_that_was_found_is_taken_back(room):
  web1 = room.instance()
  room.leave("web1.shutdown")
  room.verdicts.find(web1)
  web1.receive(qmp.Event("RESET", {}))
  assert room.verdicts.settle(web1)
  assert room.marks == set()


@pytest.mark.parametrize("word", ["find", "recall"])
def test_trouble_with_finding_out(room, lines, word):
  web1 = room.instance()
  trouble = OSError(errno.EIO, "Input/output error", "web1.powerdown")
  with mock.patch.object(ctrldir.ControlDirectory, "find", side_effect=trouble):
    for _ in range(3):
      getattr(room.verdicts, word)(web1)
  (line,) = lines()
  assert line == (
    "instance web1: cannot find out about its file web1.powerdown:"
    " Input/output error"
  )


def test_old_mark_that_cannot_be_removed(room, lines):
  web1 = room.instance()
  room.block("web1.shutdown")
  os.utime(room.path / "web1.shutdown", ns=(0, 0))
  room.verdicts.find(web1)
  (line,) = lines()
  assert line == (
    "instance web1: cannot find out about its file web1.shutdown: Is a"
    " directory"
  )


def test_hypervisor_is_heard_before_the_guest(room):
  web1 = room.instance()
  room.verdicts.recall(web1)
  assert not web1.lifecycle.powerdown
  room.leave("web1.powerdown")
  room.verdicts.recall(web1)
  web1.receive(qmp.Event("SHUTDOWN", USER))
  room.verdicts.end(web1)
  assert room.marks == set()


@pytest.mark.parametrize("name", ["web1.shutdown", "web1.powerdown"])
def test_what_is_recalled_is_of_this_life_and_the_hypervisor(room, name):
  web1 = room.instance()
  room.leave(name, is_current=name == "web1.shutdown")
  room.verdicts.recall(web1)
  assert not web1.lifecycle.powerdown
  assert not web1.is_remembered
  # It stays till it is known what becomes of the life.
  assert room.marks == {name}


@pytest.mark.parametrize("said", [[], [POWERDOWN], [POWERDOWN, ("RESET", {})]])
def test_files_are_looked_at_only_where_that_tells_something(room, said):
  web1 = room.instance(said=said)
  with mock.patch.object(verdicts.mark_files, "marked_at") as looked:
    looked.return_value = None
    room.verdicts.recall(web1)
  assert looked.call_count == (said != [POWERDOWN])


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


@pytest.mark.parametrize("mark", [Mark.POWERDOWN, Mark.MIGRATED])
@pytest.mark.parametrize(
  ("later", "date"),
  [("", 0), (".kvmd", 4), (".kvmd", 5), (".kvmd", 6), (".journal.out", 4)],
)
def test_what_stays_beside_a_journal_goes_after_it(room, mark, later, date):
  """But what a later life has is its own."""
  mark_files.write(room.place.directory, mark, "web1", Life(1, 1))
  if later:
    (room.path / f"web1{later}").touch()
    os.utime(room.path / f"web1{later}", ns=(date, date))
  room.verdicts.tidy_up("web1", Life(1, 1), 5)
  stays = later == ".journal.out" or date > 5
  assert (f"web1{mark.value}" in room.marks) is stays

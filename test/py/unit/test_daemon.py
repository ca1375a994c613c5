# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the event loop, and of all that is behind it."""

from __future__ import annotations

import errno
import os
import select
import signal
import tempfile
import time
import types
from unittest import mock

import pytest
from fake_monitor import (
  USER,
  VERSION,
  FakeMonitor,
  event,
)
from ganeti.kvmd import daemon
from ganeti.kvmd.core import quota
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.node import (
  exits,
)
from histories import HISTORIES, judge
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import begin_journal, play_qemu


class Loop:
  """A daemon whose parts only write down what they are asked for.

  @ivar daemon: the daemon
  @ivar now: its clock, which passes where it waits
  @ivar waits: how long it was to wait each time, in seconds
  @ivar ready: the descriptors that are ready then
  @ivar asked: what its parts were asked for
  @ivar lookout, table, quota: its parts; each has a time C{due}

  """

  WATCH = 100
  EXITS = 101
  #: Of connections to monitors.
  CONNECTED = (200, 201, 202)

  def __init__(self, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: self.now)
    self.now = 1000.0
    self.waits = []
    self.ready = []
    self.asked = []
    self.registered = {}
    epoll = types.SimpleNamespace(
      poll=self._poll,
      register=self._register,
      unregister=self.registered.pop,
      close=self._note("close epoll"),
    )
    self.table = types.SimpleNamespace(
      processes=None,
      due=2000.0,
      read=self._read,
      run=self._run,
      close=self._note("close table"),
    )
    self.lookout = types.SimpleNamespace(
      due=2000.0,
      table=self.table,
      look=self._note("look"),
      look_again=self._note("look again"),
    )
    self.quota = types.SimpleNamespace(due=2000.0, summaries=self._summaries)
    self.exits = types.SimpleNamespace(
      fileno=lambda: self.EXITS,
      read=self._read_exits,
      close=self._note("close exits"),
    )
    self.place = types.SimpleNamespace(
      watch=types.SimpleNamespace(fileno=lambda: self.WATCH),
      close=self._note("close place"),
      has_directory=True,
    )
    monkeypatch.setattr(select, "epoll", lambda: epoll)
    monkeypatch.setattr(daemon, "Place", lambda *_: self.place)
    monkeypatch.setattr(daemon, "Lookout", lambda *_: self.lookout)
    monkeypatch.setattr(daemon, "Quota", lambda: self.quota)
    monkeypatch.setattr(daemon, "_listen_for_exits", lambda: self.exits)
    timing = Timing(reading=0.5, repeat=100.0)
    settings = daemon.Settings("/far/away", ".kvmd", Rule.CAUSE, timing)
    self.daemon = daemon.Daemon(settings)

  def _note(self, what):
    return lambda: self.asked.append(what)

  def _register(self, descriptor, events):
    assert events == select.EPOLLIN
    self.registered[descriptor] = events

  def _poll(self, seconds):
    self.waits.append(seconds)
    self.now += 0.0 if self.ready else seconds
    return [(descriptor, select.EPOLLIN) for descriptor in self.ready]

  def _read(self, descriptor):
    if descriptor in self.CONNECTED:
      self.asked.append(descriptor)
    return descriptor in self.CONNECTED

  def _run(self, now):
    assert now == self.now
    self.asked.append("run")

  def _summaries(self, now):
    self.asked.append(("sum up", now))
    return [quota.Summary("web1", "7 more")]

  def _read_exits(self, _):
    self.asked.append("exits")
    return exits.Told([], False)


@pytest.fixture
def loop(monkeypatch):
  return Loop(monkeypatch)


@pytest.mark.parametrize(
  ("dues", "limit", "wait"),
  [
    ((1003.0, 1002.0, 1001.0), None, 1.0),
    ((1001.0, 1002.0, 1003.0), None, 1.0),
    ((1002.0, 1001.0, 1003.0), None, 1.0),
    ((1002.0, 990.0, 1003.0), None, 0.0),
    ((1002.0, 1003.0, 1004.0), 0.5, 0.5),
    ((1002.0, 1003.0, 1004.0), 0.0, 0.0),
    ((1002.0, 1003.0, 1004.0), 5.0, 2.0),
    ((990.0, 1003.0, 1004.0), 5.0, 0.0),
  ],
)
def test_how_long_it_waits(loop, dues, limit, wait):
  loop.lookout.due, loop.table.due, loop.quota.due = dues
  loop.daemon.turn(limit)
  assert loop.waits == [wait]


@pytest.mark.parametrize(
  ("due", "expected"),
  [
    ((), ["run"]),
    (("lookout",), ["look again", ("sum up", 1000.0), "run"]),
    (("table",), ["run"]),
    (("quota",), ["run", ("sum up", 1000.0)]),
    (
      ("lookout", "quota"),
      ["look again", ("sum up", 1000.0), "run", ("sum up", 1000.0)],
    ),
  ],
)
def test_what_is_due(loop, caplog, due, expected):
  for name in due:
    getattr(loop, name).due = 1000.0
  loop.daemon.turn(0.0)
  assert loop.asked == expected
  summed_up = len(expected) - expected.count("run")
  assert caplog.messages == ["instance web1: 7 more"] * (
    summed_up - expected.count("look again")
  )


@pytest.mark.parametrize(
  ("ready", "expected"),
  [
    ([], []),
    ([200, 201], [200, 201]),
    # What is said comes first, whatever was ready first.
    ([100, 200, 101, 201], [200, 201, "look", "exits"]),
    # One that was closed in the same turn, or that of signals.
    ([300, 200, 100], [200, "look"]),
  ],
)
@pytest.mark.parametrize(
  ("due", "is_done"), [(2000.0, False), (999.625, False), (999.5, True)]
)
def test_all_that_was_said_comes_before_what_is_due(
  loop, ready, expected, due, is_done
):
  """But not for ever."""
  loop.ready = ready
  loop.table.due = due
  loop.daemon.turn(0.0)
  assert loop.asked == expected + (["run"] if is_done or not ready else [])


def test_each_rescan_is_told_of(loop):
  rescans = []

  def take():
    rescans.append(loop.asked.count("look again"))
    return [signal.SIGTERM] if len(rescans) == 4 else []

  signals = types.SimpleNamespace(fileno=lambda: 102, take=take)
  loop.lookout.due = 1000.0
  loop.daemon.run(
    signals,
    on_hangup=mock.Mock(side_effect=AssertionError),
    on_rescan=lambda: loop.asked.append("told"),
  )
  assert rescans == [1, 2, 3, 4]
  told = [each for each in loop.asked if each in {"told", "look again"}]
  assert told == ["look again", "told"] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(loop, caplog, number):
  """It ends at one of two, and does nothing after that."""
  caplog.set_level("INFO")
  hangups = []
  loop.ready = [102]
  taken = [[], [signal.SIGHUP], [signal.SIGHUP, number, signal.SIGHUP], None]
  registered = []

  def take():
    registered.append(102 in loop.registered)
    return taken.pop(0)

  signals = types.SimpleNamespace(fileno=lambda: 102, take=take)
  loop.daemon.run(
    signals, on_hangup=lambda: hangups.append(0), on_rescan=lambda: None
  )
  assert taken == [None]
  assert registered == [True] * 3
  assert len(hangups) == 2
  assert set(loop.registered) == {loop.WATCH, loop.EXITS}
  assert caplog.messages == [f"ending, on {number.name}"]


@pytest.mark.parametrize("part", ["look", "look again", "rescan"])
def test_fault_ends_nothing(loop, caplog, part):
  """All else is done, and it is said when all is looked at again."""

  def fail():
    loop.lookout.due = loop.now + 7.0
    raise KeyError(part)

  if part == "look":
    loop.daemon._handlers[loop.WATCH] = fail
  elif part == "look again":
    loop.lookout.look_again = fail
  else:
    loop.daemon._on_rescan = fail
  loop.lookout.due = 990.0
  loop.ready = [loop.WATCH]
  loop.daemon.turn(0.0)
  assert "run" in loop.asked
  (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
  assert record.getMessage().startswith("a fault of the daemon, please report")
  assert record.getMessage().endswith(" in 7 s")
  assert record.exc_info[0] is KeyError


def test_fault_while_all_is_looked_at_anew_at_once(loop, caplog):
  """A time that has passed is none to wait for."""
  loop.lookout.due = 990.0
  loop.lookout.look_again = mock.Mock(side_effect=KeyError)
  loop.daemon.turn(0.0)
  assert caplog.messages[0].endswith(" in 0 s")


@pytest.mark.parametrize("has_directory", [True, False])
def test_whether_there_is_a_directory(loop, has_directory):
  loop.place.has_directory = has_directory
  assert loop.daemon.has_directory is has_directory


@pytest.mark.parametrize("has_exits", [True, False])
def test_close(loop, monkeypatch, caplog, has_exits):
  if not has_exits:
    monkeypatch.setattr(daemon, "_listen_for_exits", lambda: None)
    loop.registered.clear()
    loop.daemon = daemon.Daemon(
      daemon.Settings("/far/away", ".kvmd", Rule.CAUSE)
    )
  assert set(loop.registered) == {loop.WATCH, *([loop.EXITS] * has_exits)}
  loop.daemon.close()
  assert loop.asked == [
    ("sum up", float("inf")),
    "close table",
    *(["close exits"] * has_exits),
    "close epoll",
    "close place",
  ]
  assert caplog.messages == ["instance web1: 7 more"]


@pytest.mark.parametrize(
  ("times", "lines"),
  [((0.0,), 1), ((0.0, 99.0), 1), ((0.0, 100.0), 2), ((0.0, 99.0, 101.0), 2)],
)
def test_how_often_a_loss_of_ends_is_told(loop, caplog, times, lines):
  loop.exits.read = lambda _: exits.Told([], lost=True)
  loop.ready = [loop.EXITS]
  began = loop.now
  for passed in times:
    loop.now = began + passed
    loop.daemon.turn(0.0)
  assert len(caplog.messages) == lines
  assert all(
    "more processes failed at once" in each for each in caplog.messages
  )


def test_ends_that_are_too_many_to_be_logged(loop, caplog):
  """They count, for all that."""
  caplog.set_level("INFO")
  admitted = iter([True, False, True])
  loop.quota.admit_line = lambda name, now: name == "web1" and next(admitted)
  processes = mock.Mock()
  processes.take.side_effect = ["web1", "web1", None, "web1"]
  loop.table.processes = processes
  told = [
    exits.Exit(number, 900.0 + number, f"ended {number}") for number in range(4)
  ]
  loop.exits.read = lambda known: exits.Told(told, known is not processes)
  loop.ready = [loop.EXITS]
  loop.daemon.turn(0.0)
  assert processes.take.mock_calls == [
    mock.call(number, 900.0 + number) for number in range(4)
  ]
  assert caplog.messages == [
    "instance web1: its process 0 ended 0",
    "instance web1: its process 3 ended 3",
  ]


def test_ends_that_nobody_tells_of(monkeypatch, caplog):
  caplog.set_level("INFO")
  refused = mock.Mock(side_effect=PermissionError(errno.EPERM, "not you"))
  monkeypatch.setattr(exits, "Exits", refused)
  assert daemon._listen_for_exits() is None
  (line,) = caplog.messages
  assert line.startswith("cannot learn how QEMUs end that are killed (not you)")
  monkeypatch.setattr(exits, "Exits", lambda: "exits")
  assert daemon._listen_for_exits() == "exits"


def test_instance_that_ends_and_begins_all_the_time(scene):
  for _ in range(quota.MAX_VERDICTS + 7):
    qemu = scene.attach("web1")
    qemu.die()
    scene.fence()
  assert scene.verdicts("web1") == ["killed or crashed"] * quota.MAX_VERDICTS
  assert scene.count("instance web1: more than 20 ends in an hour") == 1
  # Others are as they were.
  other = scene.attach("web2")
  other.event("SHUTDOWN", USER)
  other.quit()
  assert scene.verdict("web2") == "user"
  scene.stop()
  assert scene.count("instance web1: 7 more ends") == 1
  assert scene.count("killed or crashed 7") == 1


def test_monitor_that_hangs_up_all_the_time(scene, monkeypatch):
  scene.hurry(retry=0.0)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  for _ in range(quota.MAX_LINES + 20):
    connection = scene.accept(monitor)
    connection.greet()
    connection.answer()
    scene.turn()
    connection.close()
  scene.fence()
  lines = scene.count("instance web1: ")
  assert lines <= quota.MAX_LINES + 1
  assert scene.count("instance web1: more than 60 lines about it") == 1
  scene.stop()
  assert scene.count("more lines about it were left out") == 1


class Ends:
  """What the kernel tells of the ends of processes, here: what a test says."""

  def __init__(self):
    self._told = []
    self._lost = False
    self._reader, self._writer = os.pipe()

  def tell(self, *, seconds=0.0, lost=False):
    """Tells of the end of the process of all fake monitors, which is ours.

    @param seconds: how long from now it ended

    """
    ended = time.monotonic() + seconds
    self._told.append(exits.Exit(os.getpid(), ended, "was killed by SIGKILL"))
    self._lost = lost
    os.write(self._writer, b"x")

  def read(self, known):
    os.read(self._reader, 100)
    told, self._told = self._told, []
    matter = [each for each in told if each.process in known]
    return exits.Told(matter, self._lost)

  def fileno(self):
    return self._reader

  def close(self):
    os.close(self._reader)
    os.close(self._writer)


@pytest.fixture
def ends(scene, monkeypatch):
  made = Ends()
  monkeypatch.setattr(daemon, "_listen_for_exits", lambda: made)
  scene.start()
  return made


HOW = f"instance web1: its process {os.getpid()} was killed by SIGKILL"


@pytest.fixture(params=["monitor", "journal"])
def followed(scene, ends, request):
  """An instance that is followed; it ends when it is called."""
  if request.param == "monitor":
    return scene.attach("web1").die
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  file = begin_journal(scene.ctrl_dir, "web1")
  scene.says("instance web1: its QEMU keeps a journal")

  def end():
    monitor.die()
    file.close()

  return end


@pytest.mark.parametrize("told_first", [True, False])
def test_how_its_process_ended_is_logged(scene, ends, followed, told_first):
  if told_first:
    ends.tell()
    scene.turn()
  followed()
  assert scene.verdict("web1") == "killed or crashed"
  if not told_first:
    ends.tell()
  scene.says(HOW)
  # Whoever gets the number next is none of ours.
  ends.tell()
  scene.turn()
  assert scene.count("its process") == 1


def test_number_of_a_process_that_ended_well_is_given_out_again(
  scene, ends, followed
):
  followed()
  scene.verdict("web1")
  ends.tell(seconds=1.5)
  scene.turn()
  assert scene.count("its process") == 0


def test_number_is_given_out_again_while_the_mark_cannot_be_removed(
  scene, ends, monkeypatch
):
  qemu = scene.attach("web1")
  scene.file("web1").touch()
  unlink = mock.Mock(side_effect=OSError(errno.EROFS, "Read-only", "file"))
  monkeypatch.setattr(os, "unlink", unlink)
  qemu.die()
  scene.verdict("web1")
  monkeypatch.undo()
  ends.tell(seconds=1.5)
  scene.turn()
  assert scene.count("its process") == 0


def test_instance_that_is_started_anew_at_once(scene, ends):
  scene.attach("web1").die()
  second = scene.attach("web1")
  ends.tell()
  scene.says(HOW)
  second.die()
  scene.verdict("web1", 2)


def test_loss_of_ends_is_told_once(scene, ends):
  for _ in range(3):
    ends.tell(lost=True)
    scene.turn()
  assert scene.count("more processes failed at once") == 1


def test_real_process_is_killed(scene, monkeypatch):
  monkeypatch.undo()
  scene.start()
  says_how = not scene.count("cannot learn how QEMUs end")
  child = play_qemu(scene.ctrl_dir, "web1")
  scene.says(f"instance web1: attached to QEMU {VERSION}, process {child}")
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  assert scene.verdict("web1") == "killed or crashed"
  how = f"instance web1: its process {child} was killed by SIGKILL"
  if says_how:
    scene.says(how)
  assert scene.count("its process") == says_how


def test_any_history_over_any_connections(scene):
  """However it arrives, the verdict is what the whole history says."""

  @settings(max_examples=settings.default.max_examples // 2)
  @given(
    HISTORIES,
    st.lists(st.sampled_from(["on", "cut", "turn", "link"]), max_size=9),
  )
  def check(history, ways):
    name = os.path.basename(tempfile.mktemp(prefix="web"))
    qemu = scene.attach(name)
    for place, (event_name, data) in enumerate(history):
      text = event(event_name, data)
      way = ways[place] if place < len(ways) else "on"
      if way == "cut":
        qemu.connection.send(text[:30])
        scene.turn()
        text = text[30:]
      qemu.connection.send(text)
      if way == "turn":
        scene.turn()
        announced = judge(history[: place + 1]).value
        assert scene.has_file(name) is (announced == "user")
      elif way == "link":
        qemu.connection.close()
        qemu = scene.serve(qemu.monitor)
    qemu.quit()
    expected = judge(history).value
    assert scene.verdict(name) == expected
    scene.until(lambda: scene.has_file(name) is (expected == "user"))
    assert scene.verdicts(name) == [expected]

  check()

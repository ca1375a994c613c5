# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when to connect to which monitor."""

from __future__ import annotations

import os
import resource
import select
import socket
import time
import types
from typing import NamedTuple
from unittest import mock

import ctrl_files
import forked
import kvmd_log
import means
import pytest
from fake_monitor import (
  BEGINNING,
  SIGNAL,
  USER,
  VERSION,
  FakeMonitor,
  event,
)
from ganeti.kvmd.core import qmp
from ganeti.kvmd.follow import monitor_follower
from ganeti.kvmd.follow.monitor_follower import MonitorFollower
from ganeti.kvmd.follow.monitored import Monitored
from ganeti.kvmd.follow.record import Record
from ganeti.kvmd.node import connection
from ganeti.kvmd.node.connection import Attempt, Result
from ganeti.kvmd.node.ctrldir import ControlDirectory, Life
from scene import Qemu, stale

NOW = 5000.0
NEVER = float("inf")
LIFE = Life(7, 10**18)
OTHER = Life(7, 10**18 + 1)


class Alone:
  """One who follows monitors: of those there is only what comes of attempts.

  @ivar results: what comes of the next attempts, by the instance's name; the
    last of them also of all that come after it
  @ivar tried: the names of those whom it was tried to connect to
  @ivar lines: the connections that were made
  @ivar now: the time

  """

  def __init__(self, directory, monkeypatch, log, limit, timing):
    self.now = NOW
    self.results = {}
    self.tried = []
    self.lines = []
    self._log = log
    clock = types.SimpleNamespace(monotonic=lambda: self.now)
    monkeypatch.setattr(monitor_follower, "time", clock)
    monkeypatch.setattr(connection, "connect", self._connect)
    self.limits = mock.Mock(
      RLIMIT_NOFILE=resource.RLIMIT_NOFILE,
      RLIM_INFINITY=resource.RLIM_INFINITY,
    )
    self.limits.getrlimit.return_value = (20, limit)
    monkeypatch.setattr(monitor_follower, "resource", self.limits)
    self.epoll = mock.create_autospec(select.epoll, instance=True)
    self.directory = directory
    # What is there now is of the life that is known of.
    directory.life = lambda _: LIFE
    directory.journal_tells_of = lambda *_: False
    self.shared = means.shared(directory, **timing)
    self.follower = MonitorFollower(self.epoll, self.shared)

  def _connect(self, directory, name):
    assert directory is self.shared.place.directory
    self.tried.append(name)
    results = self.results.get(name, [Attempt(Result.CONNECTED, LIFE)])
    attempt = results[0] if len(results) == 1 else results.pop(0)
    if attempt.result is Result.CONNECTED:
      line = means.Line(number=1000 + len(self.lines), made=self.now)
      self.lines.append(line)
      attempt = attempt._replace(connection=line)
    return attempt

  def fail(self, name, *results):
    """Lets the next attempts fail."""
    self.results[name] = [
      Attempt(result, LIFE if result in {Result.REFUSED, Result.BUSY} else None)
      for result in results
    ]

  def listen(self, name="web1", *pieces):
    """Lets one be listened to, and reads what it says."""
    record = Record(name)
    self.follower.listen(record)
    for piece in pieces:
      self.lines[-1].pieces.append(piece)
      self.follower.read(record)
    return record

  @property
  def delay(self):
    """How long it is until somebody is due."""
    deadlines = self.follower._timers._deadlines.values()
    return round(min(deadlines, default=NEVER) - self.now, 6)

  def run(self, *records):
    """Waits until somebody is due; returns who was."""
    named = {record.name: record for record in records}
    due = []

    def do(act, name):
      due.append(name)
      act(named[name])

    # What was called off is taken for due as well.
    while not due and self.follower.due < NEVER:
      self.now = max(self.now, self.follower.due)
      self.follower.run(self.now, do)
    return due

  @property
  def lines_of_log(self):
    return [each.getMessage() for each in self._log.records]

  @property
  def verdicts(self):
    return [each.verdict for each in kvmd_log.verdicts(self.lines_of_log)]

  @property
  def process_is_known(self):
    """Whether a process is that of a life that is not over."""
    return self.shared.processes.take(means.PROCESS, NEVER) is not None


@pytest.fixture
def alone(ctrl_dir, monkeypatch, caplog):
  caplog.set_level("INFO")
  with ctrl_files.opened(ctrl_dir) as directory:
    yield lambda limit=1000, **timing: Alone(
      directory, monkeypatch, caplog, limit, timing
    )


@pytest.mark.parametrize(
  ("result", "delay", "stays"),
  [
    (Result.CONNECTED, 3.0, True),
    (Result.REFUSED, 0.01, True),
    (Result.BUSY, 0.01, True),
    (Result.FAILED, 0.01, True),
    (Result.NO_SOCKET, NEVER, False),
    (Result.NOT_A_SOCKET, 0.01, True),
    (Result.UNREACHABLE, 0.01, True),
    (Result.NO_DIRECTORY, 0.01, True),
  ],
)
def test_first_attempt(alone, result, delay, stays):
  play = alone()
  if result is not Result.CONNECTED:
    play.fail("web1", result)
  record = play.listen()
  assert play.tried == ["web1"]
  assert play.delay == delay
  assert (record.monitor is not None) is stays
  if result is Result.CONNECTED:
    (line,) = play.lines
    assert line.sent == qmp.CAPABILITIES
    assert play.follower.connected == {1000: record}
    play.epoll.register.assert_called_once_with(1000, select.EPOLLIN)
    assert record.monitor.connection is line
  else:
    assert play.follower.connected == {}
    assert not play.epoll.register.called


@pytest.mark.parametrize(
  ("rescan", "delays"),
  [
    (0.1, [0.01, 0.02, 0.04, 0.08, NEVER]),
    (0.08, [0.01, 0.02, 0.04, NEVER]),
    # It is the rescan that tries.
    (0.01, [NEVER]),
  ],
)
def test_attempts_are_later_and_later(alone, rescan, delays):
  play = alone(rescan=rescan)
  play.fail("web1", Result.REFUSED)
  record = play.listen()
  for delay in delays:
    assert play.delay == delay
    if delay < NEVER:
      assert play.run(record) == ["web1"]
  assert len(play.tried) == len(delays)


def test_attempts_without_end(alone):
  """More than there are doublings in a number."""
  play = alone(rescan=NEVER)
  play.fail("web1", Result.REFUSED)
  record = play.listen()
  for attempts in 26, 5000:
    record.monitor.attempts = attempts
    play.run(record)
    assert play.delay == pytest.approx(
      0.01 * 2**monitor_follower._MAX_DOUBLINGS
    )


class End(NamedTuple):
  """A connection that ends.

  @ivar pieces: what comes over it
  @ivar age: how old it is then, in seconds
  @ivar delay: after which it is connected again; None if it did not end

  """

  pieces: list
  age: float
  delay: float


@pytest.mark.parametrize(
  "end",
  [
    End([BEGINNING, None], 50.0, None),
    End([BEGINNING, event("STOP")], 50.0, None),
    # All was well.
    End([BEGINNING, b""], 50.0, 0.0),
    End([BEGINNING, b""], 1.0, 0.0),
    End([BEGINNING, b""], 0.99, 0.04),
    # It never was.
    End([b""], 50.0, 0.04),
    End([BEGINNING, b"garbage"], 50.0, 0.04),
  ],
)
def test_connection_ends(alone, end):
  play = alone()
  record = play.listen()
  record.monitor.attempts = 3
  (line,) = play.lines
  line.pieces += end.pieces
  play.now += end.age
  play.follower.read(record)
  if end.pieces[0] == BEGINNING:
    play.follower.read(record)
  assert play.verdicts == []
  if end.delay is None:
    assert line.is_open
    assert play.follower.connected == {1000: record}
    return
  assert not line.is_open
  assert record.monitor.connection is None
  assert play.follower.connected == {}
  assert play.delay == end.delay
  assert play.run(record) == ["web1"]
  assert play.follower.connected == {1001: record}


@pytest.mark.parametrize(
  ("before", "after", "verdict"),
  [
    ([("POWERDOWN", None)], [("SHUTDOWN", USER)], "administrator"),
    ([("SHUTDOWN", USER)], [], "user"),
    ([("SHUTDOWN", USER)], [("SHUTDOWN", SIGNAL)], "user"),
    ([("SHUTDOWN", USER)], [("RESET", None)], "killed or crashed"),
    ([("SHUTDOWN", SIGNAL)], [], "administrator"),
    ([("POWERDOWN", None), ("RESET", None)], [("SHUTDOWN", USER)], "user"),
    ([], [], "killed or crashed"),
  ],
)
def test_connection_is_made_anew(alone, before, after, verdict):
  """What was learnt is kept, over any number of connections."""
  play = alone()
  record = play.listen("web1", BEGINNING, *(event(*each) for each in before))
  for number in range(3):
    play.lines[-1].pieces.append(b"")
    play.follower.read(record)
    assert play.run(record) == ["web1"]
    assert len(play.lines) == number + 2
    play.lines[-1].pieces.append(BEGINNING)
    play.follower.read(record)
  again = "instance web1: attached to QEMU 9.8.7 again"
  assert play.lines_of_log.count(again) == 3
  for each in after:
    play.lines[-1].pieces.append(event(*each))
    play.follower.read(record)
  assert play.verdicts == []
  play.lines[-1].pieces.append(b"")
  play.follower.read(record)
  play.fail("web1", Result.NO_SOCKET)
  assert play.run(record) == ["web1"]
  assert play.verdicts == [verdict]
  assert record.monitor is None


def test_monitor_that_always_sends_garbage(alone):
  """However long each connection was good before."""
  play = alone(good=0.0, rescan=1.0)
  record = play.listen()
  delays = []
  for _ in range(8):
    for piece in BEGINNING, b"garbage":
      play.lines[-1].pieces.append(piece)
      play.follower.read(record)
    delays.append(play.delay)
    play.run(record)
  assert delays == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, NEVER]
  assert len(play.lines) == len(delays)
  assert len(play.lines_of_log) <= 2 * len(delays)


def test_monitor_lets_us_wait(alone):
  play = alone(greeting=5.0)
  record = play.listen()
  assert play.delay == 5.0
  assert play.run(record) == ["web1"]
  assert "waiting for its monitor" in play.lines_of_log[-1]
  assert play.tried == ["web1"]
  assert play.delay == NEVER


def test_one_that_is_listened_to_is_left_alone(alone, monkeypatch):
  play = alone()
  record = play.listen()
  monkeypatch.setattr(Monitored, "is_superseded", lambda _: False)
  play.follower.listen(record)
  assert play.tried == ["web1"]
  assert play.lines[0].is_open


def test_monitor_is_superseded(alone, monkeypatch):
  """The last words on the old one count; the new one is a new beginning."""
  play = alone()
  record = play.listen("web1", BEGINNING)
  record.monitor.attempts = 9
  monkeypatch.setattr(Monitored, "is_superseded", lambda _: True)
  play.lines[0].pieces.append(event("SHUTDOWN", USER))
  play.results["web1"] = [Attempt(Result.REFUSED, OTHER)]
  play.follower.listen(record)
  assert not play.lines[0].is_open
  assert play.follower.connected == {}
  assert play.verdicts == ["user"]
  assert record.monitor.instance.life == OTHER
  assert play.run(record) == ["web1"]
  assert play.now == pytest.approx(NOW + 0.01)


@pytest.mark.parametrize(
  ("known", "tried", "stays"),
  [
    ("nothing", [], False),
    ("a life", ["web1"], True),
    ("connected", [], True),
  ],
)
def test_no_file_has_the_name_of_its_monitor(alone, known, tried, stays):
  play = alone()
  if known != "connected":
    play.fail(
      "web1", Result.REFUSED if known == "a life" else Result.UNREACHABLE
    )
  record = play.listen()
  play.tried.clear()
  play.follower.miss(record)
  assert play.tried == tried
  assert (record.monitor is not None) is stays
  assert play.verdicts == []
  play.follower.miss(Record("web2"))
  assert play.tried == tried


def test_end_that_is_found_out_by_a_missing_file(alone):
  play = alone()
  record = play.listen("web1", BEGINNING)
  play.fail("web1", Result.NO_SOCKET)
  play.lines[0].pieces.append(b"")
  play.follower.read(record)
  play.follower.miss(record)
  assert play.verdicts == ["killed or crashed"]
  assert record.monitor is None
  assert play.run(record) == []


def test_verdict_that_waits_for_its_delivery(alone, ctrl_dir):
  """Till then the instance is known, and nobody tries to connect."""
  play = alone()
  record = play.listen("web1", BEGINNING, b"")
  play.shared.place.directory = ControlDirectory(str(ctrl_dir), None, ".kvmd")
  play.fail("web1", Result.NO_DIRECTORY)
  assert play.run(record) == ["web1"]
  assert play.verdicts == ["killed or crashed"]
  assert record.monitor is not None
  assert play.shared.verdicts.is_late(record.monitor.instance)
  assert play.run(record) == []
  instance = record.monitor.instance
  play.follower.drop(record)
  assert not play.shared.verdicts.is_late(instance)


def test_dropped(alone):
  play = alone()
  record = play.listen()
  play.follower.drop(record)
  assert record.monitor is None
  assert not play.lines[0].is_open
  assert play.follower.connected == {}
  assert play.run(record) == []
  play.follower.drop(record)
  assert play.verdicts == []


def test_closed(alone):
  play = alone()
  for name in "web1", "web2":
    play.listen(name, BEGINNING)
  play.follower.close()
  assert [line.is_open for line in play.lines] == [False, False]
  assert play.follower.connected == {}
  assert play.verdicts == []


class Leave(NamedTuple):
  """An instance that is listened to, and the journal that comes.

  @ivar tells_of_it: whether the journal is that of the life that is known of
  @ivar pieces: what came before over the connection, whose end b"" is
  @ivar left: what is left in it
  @ivar superseded: whether somebody else took the name of the monitor
  @ivar hung_up: whether the other end is closed
  @ivar attempt: what comes of an attempt then; None if there is none
  @ivar verdicts: the verdicts
  @ivar process_is_known: whether its process belongs to a life that goes on

  """

  tells_of_it: bool = False
  pieces: tuple = (BEGINNING,)
  left: tuple = ()
  superseded: bool = False
  hung_up: bool = False
  attempt: Attempt = None
  verdicts: tuple = ()
  process_is_known: bool = True


LAST_WORDS = (event("SHUTDOWN", USER),)
CRASHED = ("killed or crashed",)


@pytest.mark.parametrize("is_dead", [True, False])
@pytest.mark.parametrize(
  "case",
  [
    Leave(tells_of_it=True),
    Leave(tells_of_it=True, hung_up=True, superseded=True),
    Leave(tells_of_it=True, pieces=(BEGINNING, b"")),
    # It goes on, whatever the journal tells.
    Leave(),
    Leave(
      superseded=True,
      left=LAST_WORDS,
      attempt=Attempt(Result.CONNECTED, OTHER),
      verdicts=("user",),
      process_is_known=False,
    ),
    Leave(
      hung_up=True,
      left=LAST_WORDS,
      attempt=Attempt(Result.NO_SOCKET),
      verdicts=("user",),
      process_is_known=False,
    ),
    Leave(
      hung_up=True,
      attempt=Attempt(Result.REFUSED, LIFE),
      verdicts=CRASHED,
      process_is_known=False,
    ),
    Leave(
      pieces=(BEGINNING, b""),
      attempt=Attempt(Result.CONNECTED, OTHER),
      verdicts=CRASHED,
      process_is_known=False,
    ),
    # Nobody can tell, but for the journal: that is another's.
    Leave(
      pieces=(BEGINNING, b""),
      attempt=Attempt(Result.BUSY, LIFE),
      process_is_known=False,
    ),
  ],
)
def test_left_for_its_journal(alone, monkeypatch, case, is_dead):
  play = alone()
  record = play.listen("web1", *case.pieces)
  line = play.lines[0]
  line.has_hung_up = case.hung_up
  line.pieces += case.left
  monkeypatch.setattr(Monitored, "is_superseded", lambda _: case.superseded)
  play.directory.journal_tells_of = lambda name, life: (
    (name, life) == ("web1", LIFE) and case.tells_of_it
  )
  play.tried.clear()
  play.results["web1"] = [case.attempt]
  play.follower.leave(record, is_dead=is_dead)
  assert play.tried == ([] if case.attempt is None else ["web1"])
  assert play.verdicts == list(case.verdicts)
  assert record.monitor is None
  assert not any(line.is_open for line in play.lines)
  assert play.follower.connected == {}
  assert play.process_is_known is case.process_is_known
  assert play.run(record) == []


@pytest.mark.parametrize("result", [None, Result.UNREACHABLE])
def test_left_though_nothing_is_known(alone, result):
  """The journal is not even asked."""
  play = alone()
  play.directory.journal_tells_of = None
  record = Record("web1")
  if result is not None:
    play.fail("web1", result)
    play.follower.listen(record)
  play.tried.clear()
  play.follower.leave(record, is_dead=False)
  assert play.tried == []
  assert record.monitor is None


@pytest.mark.parametrize("rescans", [True, False])
@pytest.mark.parametrize(
  ("is_dead", "life", "seconds", "is_tried"),
  [
    # It may listen a moment longer than it writes its journal.
    (True, LIFE, 0.0, False),
    (True, LIFE, 1.99, False),
    (True, LIFE, 2.0, True),
    (True, OTHER, 0.0, True),
    (False, LIFE, 0.0, True),
  ],
)
def test_one_that_is_dead_lingers(
  alone, is_dead, life, seconds, is_tried, rescans
):
  play = alone(lingering=2.0)
  record = Record("web1")
  play.follower.leave(record, is_dead=is_dead)
  play.directory.life = lambda _: life
  play.now += seconds
  if rescans:
    play.follower.begin_rescan()
  play.follower.listen(record)
  # Others are none of it.
  other = play.listen("web2")
  assert play.tried == (["web1", "web2"] if is_tried else ["web2"])
  assert play.delay == (3.0 if is_tried else 2.0)
  if not is_tried:
    assert play.run(record, other) == ["web1"]
    assert play.tried == ["web2", "web1"]


def test_what_lingered_is_forgotten(alone):
  play = alone(lingering=2.0)
  play.follower.leave(Record("web0"), is_dead=True)
  play.now += 1.0
  play.follower.leave(Record("web1"), is_dead=True)
  play.now += 1.0
  play.follower.leave(Record("web2"), is_dead=True)
  play.now += 1.0
  play.follower.begin_rescan()
  assert list(play.follower._judged) == ["web2"]


def shortage(number, limit):
  return (
    f"{number} instances cannot be watched, as no more than {limit} files may"
    " be open: raise that limit (ulimit -n, or LimitNOFILE= of a systemd unit)"
    " and restart the daemon"
  )


def test_more_than_there_is_room_for(alone):
  play = alone(limit=26)
  # As many are kept for other things.
  records = [play.listen(f"web{number}") for number in range(26 - 24 + 2)]
  assert play.tried == ["web0", "web1"]
  assert play.follower.shortage() == shortage(2, 26)
  # One takes the place of another.
  play.lines[0].pieces.append(b"")
  play.follower.read(records[0])
  assert play.follower.shortage() == shortage(1, 26)
  (name,) = play.run(*records)
  assert name in {"web2", "web3"}
  assert play.now == NOW
  assert play.tried == ["web0", "web1", name]
  # The first is known, and is tried all the same, lest it be lost.
  assert play.run(*records) == ["web0"]
  assert play.tried == ["web0", "web1", name, "web0"]
  # That is one more than there is room for.
  records.append(play.listen("web4"))
  assert play.follower.shortage() == shortage(2, 26)
  play.follower.drop(records.pop())
  (waiting,) = {"web2", "web3"} - {name}
  play.follower.drop(records[int(waiting[-1])])
  assert play.follower.shortage() == ""
  for record in records:
    play.follower.drop(record)
  assert play.run(*records) == []


def test_room_that_one_does_not_need(alone):
  """All that wait for it are tried, not only the first of them."""
  play = alone(limit=25)
  records = [play.listen(f"web{number}") for number in range(4)]
  assert play.follower.shortage() == shortage(3, 25)
  for record in records:
    play.fail(record.name, Result.NO_SOCKET)
  play.lines[0].pieces.append(b"")
  play.follower.read(records[0])
  for _ in records:
    play.run(*records)
  assert sorted(play.tried) == ["web0", "web0", "web1", "web2", "web3"]
  assert play.follower.shortage() == ""
  assert [record.monitor for record in records] == [None] * 4


def test_shortage_is_found_out_anew(alone):
  play = alone(limit=25)
  records = [play.listen(name) for name in ("web1", "web2")]
  assert play.follower.shortage() == shortage(1, 25)
  play.follower.begin_rescan()
  assert play.follower.shortage() == ""
  # Nobody waits any more for one that goes.
  play.follower.drop(records[0])
  assert play.run(*records) == []
  play.follower.listen(records[1])
  assert play.tried == ["web1", "web2"]


@pytest.mark.parametrize("limit", [30, resource.RLIM_INFINITY])
def test_limit(alone, limit):
  play = alone(limit=limit)
  play.limits.getrlimit.assert_called_once_with(resource.RLIMIT_NOFILE)
  play.limits.setrlimit.assert_called_once_with(
    resource.RLIMIT_NOFILE, (limit, limit)
  )
  for number in range(10):
    play.listen(f"web{number}")
  assert len(play.tried) == (6 if limit == 30 else 10)


def test_instance_that_was_there_before(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.start()
  scene.serve(monitor)
  (attached,) = filter(None, map(kvmd_log.attached, scene.lines))
  assert attached == ("web1", VERSION, os.getpid())


def test_instance_that_appears_later(scene):
  scene.turn()
  scene.attach("web1")


def test_instance_that_is_moved_into_place(scene, scratch):
  monitor = FakeMonitor(scratch, "web1")
  scene.turn()
  monitor.path.rename(scene.ctrl_dir / "web1.kvmd")
  scene.serve(monitor)


def test_suffix(scene):
  scene.start(monitor_suffix=".qmp")
  other = FakeMonitor(scene.ctrl_dir, "web1")
  qemu = scene.attach("web1", suffix=".qmp")
  assert other.accept() is None
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  other.quit()


@pytest.mark.parametrize("existed", [True, False])
def test_socket_before_qemu_listens(scene, existed):
  if existed:
    scene.stop()
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False)
  if existed:
    scene.start()
  # Several attempts, each later than the one before.
  for _ in range(4):
    scene.daemon.turn(0.02)
  monitor.listen()
  scene.serve(monitor).quit()
  assert scene.verdict("web1") == "killed or crashed"
  assert scene.verdicts("web1") == ["killed or crashed"]


def test_qemu_that_never_listens_gets_no_verdict(scene):
  FakeMonitor(scene.ctrl_dir, "web1", listens=False).quit()
  monitor = FakeMonitor(scene.ctrl_dir, "web2", listens=False)
  scene.fence()
  monitor.quit()
  scene.fence()
  assert not scene.count("web")


def test_stale_socket_is_replaced_by_a_new_one(scene):
  FakeMonitor(scene.ctrl_dir, "web1").die()
  scene.start()
  scene.fence()
  scene.attach("web1").quit()
  scene.verdict("web1")
  assert scene.verdicts("web1") == ["killed or crashed"]


def test_more_waiting_clients_than_the_monitor_takes(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False, backlog=0)
  monitor.listen()
  others = [socket.socket(socket.AF_UNIX) for _ in range(2)]
  for other in others:
    other.setblocking(False)
    try:
      other.connect(str(monitor.path))
    except BlockingIOError:
      break
  scene.says("clients")
  assert scene.verdicts("web1") == []
  while (waiting := monitor.accept()) is not None:
    if waiting.is_open:
      waiting.close()
    for other in others:
      other.close()
  scene.serve(monitor)
  assert scene.count("clients") == 1


@pytest.mark.parametrize("accepts", [True, False])
def test_monitor_that_does_not_greet(scene, monkeypatch, accepts):
  scene.hurry(greeting=0.01)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.says("instance web1: waiting for its monitor")
  connection = scene.accept(monitor) if accepts else None
  for _ in range(3):
    scene.fence()
  assert scene.count("waiting") == 1
  if connection is None:
    connection = scene.accept(monitor)
  connection.greet()
  scene.until(connection.receive)
  connection.answer()
  scene.says("web1: attached")
  connection.event("SHUTDOWN", USER)
  monitor.quit()
  assert scene.verdict("web1") == "user"


@pytest.mark.parametrize(
  "greets", [True, False], ids=["greets", "does not greet"]
)
@pytest.mark.parametrize(
  ("age", "verdict"),
  [(None, "unknown"), (1, "unknown"), (-1, "user")],
  ids=["no file", "file of an earlier life", "file of this life"],
)
@pytest.mark.parametrize("leaves_socket", [True, False])
def test_end_of_an_instance_that_was_never_attached(
  scene, greets, age, verdict, leaves_socket
):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  connection = scene.accept(monitor)
  if greets:
    connection.greet()
  if age is not None:
    stale(scene, monitor, age=age)
  scene.fence()
  assert scene.verdicts("web1") == []
  if leaves_socket:
    monitor.die()
  else:
    monitor.quit()
  assert scene.verdict("web1") == verdict
  assert scene.has_file("web1") is (verdict == "user")
  # Once, however often the socket that stays is tried.
  scene.start(timing={"rescan": 0.01})
  for _ in range(3):
    scene.fence()
  assert scene.verdicts("web1") == [verdict]
  assert scene.has_file("web1") is (verdict == "user")


def test_end_while_another_client_holds_the_monitor(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False, backlog=0)
  monitor.listen()
  other = socket.socket(socket.AF_UNIX)
  other.connect(str(monitor.path))
  scene.says("clients")
  monitor.quit()
  other.close()
  assert scene.verdict("web1") == "unknown"
  scene.fence()
  assert scene.verdicts("web1") == ["unknown"]


def test_end_before_the_next_is_started(scene):
  """Which life it was is known, if nothing else is."""
  old = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(old)
  old.die()
  new = scene.attach("web1")
  new.event("SHUTDOWN", USER)
  new.quit()
  assert scene.verdict("web1", 2) == "user"
  assert scene.verdicts("web1") == ["unknown", "user"]


def test_directory_is_away_when_one_ends_that_was_never_attached(
  scene, scratch
):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(monitor)
  stale(scene, monitor, age=-1)
  scene.ctrl_dir.rename(scratch / "away")
  scene.says("is gone")
  monitor.die()
  for _ in range(10):
    scene.daemon.turn(0.01)
  # It may live and only have hung up; and its user may have ended it.
  assert scene.verdicts("web1") == []
  (scratch / "away").rename(scene.ctrl_dir)
  assert scene.verdict("web1") == "user"
  for _ in range(3):
    scene.fence()
  assert scene.verdicts("web1") == ["user"]
  assert scene.has_file("web1")


def test_monitor_that_greets_and_hangs(scene, monkeypatch):
  scene.hurry(greeting=0.01)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  connection = scene.accept(monitor)
  connection.greet()
  scene.says("instance web1: waiting for QEMU")
  for _ in range(3):
    scene.fence()
  assert scene.count("waiting") == 1
  connection.answer()
  scene.says("web1: attached")


def test_waiting_takes_no_time(scene):
  """No turn is taken for a monitor that says nothing."""
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(monitor)
  scene.fence()
  turns = 0
  end = time.monotonic() + 0.1
  while time.monotonic() < end:
    scene.daemon.turn(0.2)
    turns += 1
  # Some are taken for what others do in the parents of the directory.
  assert turns < 50


@pytest.mark.parametrize(
  "kind", ["file", "directory", "fifo", "link", "broken"]
)
def test_what_is_no_socket(scene, kind, scratch):
  """It is named once, and followed no more than any other file."""
  path = scene.ctrl_dir / "web1.kvmd"
  if kind == "file":
    path.touch()
  elif kind == "directory":
    path.mkdir()
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "link":
    path.symlink_to(FakeMonitor(scratch, "elsewhere").path)
  else:
    path.symlink_to("missing")
  scene.says("instance web1: cannot reach its monitor web1.kvmd: ")
  for _ in range(2):
    scene.fence()
  assert scene.count("web1") == 1
  if kind == "directory":
    path.rmdir()
  else:
    path.unlink()
  scene.attach("web1")


def test_socket_of_another_kind(scene):
  listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  with listener:
    listener.bind(str(scene.ctrl_dir / "web1.kvmd"))
    listener.listen()
    scene.says("instance web1: cannot connect to its monitor")
    scene.fence()
    assert scene.count("web1") == 1


@pytest.mark.parametrize(
  "name",
  [".", "..", "-rf", "$(reboot)", "ü", os.fsdecode(b"\xff\x80"), "a.kvmd"],
)
def test_name(scene, name):
  qemu = scene.attach(name)
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, name)
  qemu.quit()
  assert scene.verdict(name) == "user"


def test_name_with_white_space(scene):
  qemu = scene.attach("a b\nc")
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "a b\nc")


@pytest.mark.parametrize("length", [238, 246, 247, 250])
@pytest.mark.parametrize("events", [[], [("SHUTDOWN", USER)]])
def test_long_name(scene, scratch, length, events, monkeypatch):
  """Some are too long for a shutdown file, with the monitor's shorter name."""
  scene.hurry(delivery=0.01)
  name = "x" * length
  fits = len(scene.file(name).name) <= 255
  monitor = FakeMonitor(scratch, "short")
  monitor.path.rename(scene.ctrl_dir / f"{name}.kvmd")
  qemu = scene.serve(monitor)
  for event_name, data in events:
    qemu.event(event_name, data)
  qemu.die()
  assert scene.verdict(name) == ("user" if events else "killed or crashed")
  for _ in range(3):
    scene.fence()
  if fits:
    assert scene.has_file(name) is bool(events)
  assert scene.count("too long") == (0 if fits else len(events))


def test_many_instances(scene):
  before = len(os.listdir("/proc/self/fd"))
  machines = [FakeMonitor(scene.ctrl_dir, f"web{n}") for n in range(200)]
  scene.start()
  qemus = [scene.serve(machine) for machine in machines]
  for number, qemu in enumerate(qemus):
    if number % 2:
      qemu.event("SHUTDOWN", USER)
    qemu.quit()
  for number in range(200):
    expected = "user" if number % 2 else "killed or crashed"
    assert scene.verdict(f"web{number}") == expected
  scene.fence()
  assert ctrl_files.names(scene.ctrl_dir) == {
    f"web{number}.shutdown" for number in range(1, 200, 2)
  }
  assert len(os.listdir("/proc/self/fd")) == before


def test_instances_that_come_and_go_leave_nothing(scene):
  before = len(os.listdir("/proc/self/fd"))
  for number in range(50):
    qemu = scene.attach(f"web{number % 7}")
    if number % 3:
      qemu.event("SHUTDOWN", USER)
    if number % 2:
      qemu.quit()
    else:
      qemu.die()
    scene.until(lambda n=number: len(kvmd_log.verdicts(scene.lines)) == n + 1)
  assert len(os.listdir("/proc/self/fd")) == before


def test_out_of_descriptors(scene):
  scene.stop()

  def check():
    # The fakes live in this process, too, and need theirs.
    machines = [FakeMonitor(scene.ctrl_dir, f"web{n:02}") for n in range(40)]
    in_use = len(os.listdir("/proc/self/fd"))
    room = 2 * 20 + monitor_follower._RESERVED + in_use
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    reserved = monitor_follower._RESERVED
    with mock.patch.object(
      monitor_follower, "_RESERVED", reserved + in_use + 20
    ):
      scene.start(timing={"rescan": 0.05})
      attached = {}

      def serve_all():
        for machine in machines:
          connection = machine.accept()
          if connection is not None:
            connection.greet()
            connection.answer()
            attached[machine.instance] = Qemu(machine, connection)
        return len(attached)

      scene.until(lambda: serve_all() == 20)
      scene.says("20 instances cannot be watched")
      for _ in range(20):
        scene.daemon.turn(0.01)
      assert serve_all() == 20
      assert scene.count("cannot be watched") == 1
      # One that waits for a place in vain may go.
      waiting = [each for each in machines if each.instance not in attached]
      for machine in waiting[:5]:
        machine.quit()
        machines.remove(machine)
      scene.says("15 instances cannot be watched")
      # As some end, others take their places.
      first = list(attached)
      for name in first:
        attached[name].event("SHUTDOWN", USER)
        attached[name].quit()
        machines.remove(attached[name].monitor)
        assert scene.verdict(name) == "user"
      scene.until(lambda: serve_all() == 35)
      assert scene.count("web") >= 35
      scene.stop()

  forked.run(check)


@pytest.mark.parametrize("left", range(4))
def test_hardly_a_descriptor_is_left(scene, scratch, left, monkeypatch):
  """Others may have taken them all; it works on as soon as there are some."""
  scene.hurry(trouble=0.05)
  scene.hurry(opening=0.05)
  scene.stop()

  def check():
    monitor = FakeMonitor(scratch, "web1")
    scene.start()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is one for numbers, and the lowest free number is taken first.
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + left, hard))
    monitor.path.rename(scene.ctrl_dir / "web1.kvmd")
    if left:
      for _ in range(5):
        scene.turn()
    else:
      scene.says("Too many open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    qemu = scene.serve(monitor)
    qemu.event("SHUTDOWN", USER)
    qemu.quit()
    assert scene.verdict("web1") == "user"
    scene.stop()

  forked.run(check)

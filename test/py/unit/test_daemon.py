# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the daemon with monitors that do what no QEMU does on demand.

The daemon runs in the test's own thread, a turn at a time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import resource
import select
import shutil
import signal
import socket
import stat
import tempfile
import time
from typing import NamedTuple
from unittest import mock

import ctrl_files
import fake_monitor
import forked
import kvmd_log
import pytest
from fake_monitor import (
  GREETING,
  SIGNAL,
  USER,
  VERSION,
  Connection,
  FakeMonitor,
  encode,
  event,
)
from ganeti.kvmd import daemon
from ganeti.kvmd.core import qmp, quota
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow import monitor_follower, monitored
from ganeti.kvmd.node import (
  ctrldir,
  directory_locks,
  exits,
  journal_files,
  watch,
)
from ganeti.kvmd.node.lockfile import LockedError
from histories import HISTORIES, judge
from hypothesis import given, settings
from hypothesis import strategies as st

PATIENCE = 10.0


class Qemu(NamedTuple):
  """A fake QEMU that the daemon is attached to."""

  monitor: FakeMonitor
  connection: Connection

  def event(self, name, data=None):
    self.connection.event(name, data)

  def die(self):
    self.monitor.die()

  def quit(self):
    self.monitor.quit()


class Scene:
  """A control directory, a daemon, and what the daemon has logged."""

  def __init__(self, ctrl_dir, log):
    self.ctrl_dir = ctrl_dir
    self._log = log
    self._fences = 0
    self.daemon = None
    self.timing = Timing()

  def start(self, timing=None, **options):
    """Starts a daemon; one that runs ends before.

    @param timing: what is otherwise than usual of its timing

    """
    self.timing = self.timing._replace(**(timing or {}))
    self.stop()
    chosen = {
      "path": str(self.ctrl_dir),
      "monitor_suffix": ".kvmd",
      "rule": Rule.CAUSE,
      **options,
    }
    self.daemon = daemon.Daemon(daemon.Settings(timing=self.timing, **chosen))
    # All that is there is found at once; what comes later is told.
    self.turn()

  def hurry(self, **timing):
    """Lets the daemon try some things more often than usual."""
    self.timing = self.timing._replace(**timing)
    if self.daemon is not None:
      self.start()

  def stop(self):
    if self.daemon is not None:
      self.daemon.close()
      self.daemon = None

  def turn(self):
    """Lets the daemon do what is due now."""
    self.daemon.turn(0.0)

  def until(self, condition, *arguments):
    """Lets the daemon work until a condition holds; returns its result."""
    end = time.monotonic() + PATIENCE
    while True:
      result = condition(*arguments)
      if result:
        return result
      assert time.monotonic() < end, self.lines
      self.daemon.turn(0.02)

  @property
  def lines(self):
    return [record.getMessage() for record in self._log.records]

  def count(self, words):
    return sum(words in line for line in self.lines)

  def says(self, words):
    self.until(self.count, words)

  def verdicts(self, name):
    return [each.verdict for each in kvmd_log.verdicts(self.lines, name)]

  def causes(self, name):
    return [each.cause for each in kvmd_log.verdicts(self.lines, name)]

  def verdict(self, name, number=1):
    """Waits for the verdict on a life of an instance."""
    self.until(lambda: len(self.verdicts(name)) >= number)
    return self.verdicts(name)[number - 1]

  def file(self, name):
    return self.ctrl_dir / f"{name}.shutdown"

  def has_file(self, name):
    return os.path.lexists(self.file(name))

  def accept(self, monitor):
    """Waits until the daemon connects to a monitor."""
    return self.until(monitor.accept)

  def serve(self, monitor, commands=1):
    """Lets the daemon attach to a monitor, as QEMU does."""
    connection = self.accept(monitor)
    connection.greet()
    self.until(lambda: connection.receive() >= commands)
    assert connection.commands == [{"execute": "qmp_capabilities"}]
    before = self.count("attached")
    connection.answer()
    self.until(lambda: self.count("attached") > before)
    return Qemu(monitor, connection)

  def attach(self, name, **options):
    """Starts an instance and lets the daemon attach to it."""
    return self.serve(FakeMonitor(self.ctrl_dir, name, **options))

  def fence(self):
    """Waits until the daemon has done all that it had to do before this."""
    self._fences += 1
    qemu = self.attach(f"fence{self._fences}")
    qemu.quit()
    self.verdict(f"fence{self._fences}")


@pytest.fixture
def scene(ctrl_dir, caplog, monkeypatch):
  caplog.set_level(logging.INFO)
  # The ends of this machine's other processes would come in between.
  monkeypatch.setattr(daemon, "_listen_for_exits", lambda: None)
  before = len(os.listdir("/proc/self/fd"))
  play = Scene(ctrl_dir, caplog)
  play.start()
  yield play
  play.stop()
  fake_monitor.end_all()
  assert len(os.listdir("/proc/self/fd")) == before


def begin_journal(directory, name):
  """Begins a journal as the hypervisor and QEMU do.

  @return: the file that QEMU writes to

  """
  with ctrl_files.opened(directory) as held:
    journal_files.prepare(held, name)
  journal = fake_monitor.open_journal(directory / f"{name}.journal.out")
  return os.fdopen(journal, "r+b", buffering=0)


def play_qemu(directory, name, *, has_journal=False):
  """Does what a QEMU does, in a process of its own.

  @return: its number

  """
  child = os.fork()
  if child:
    return child
  try:
    # Whatever becomes of the test, it ends.
    signal.alarm(30)
    monitor = FakeMonitor(directory, name)
    if has_journal:
      with begin_journal(directory, name):
        signal.pause()
    while (connection := monitor.accept()) is None:
      time.sleep(0.01)
    connection.greet()
    while not connection.receive():
      time.sleep(0.01)
    connection.answer()
    signal.pause()
  finally:
    os._exit(1)


# --- Attaching ---


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


def test_stale_socket_is_tried_for_ever(scene):
  """More often than a delay that doubles fits into a number."""
  scene.start(timing={"rescan": 1e-9})
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False)
  for _ in range(1200):
    scene.turn()
  assert not scene.count("web1")
  monitor.listen()
  scene.serve(monitor)


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


# --- Waiting ---


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


# --- Verdicts ---


@pytest.mark.parametrize(
  ("events", "verdict", "cause"),
  [
    ([("SHUTDOWN", USER)], "user", "guest-shutdown"),
    (
      [("POWERDOWN", None), ("SHUTDOWN", USER)],
      "administrator",
      "guest-shutdown after powerdown",
    ),
    ([("SHUTDOWN", SIGNAL)], "administrator", "host-signal"),
    (
      [("SHUTDOWN", {"guest": True, "reason": "guest-reset"})],
      "guest reboot",
      "guest-reset",
    ),
    (
      [("SHUTDOWN", {"guest": True, "reason": "guest-panic"})],
      "guest panic",
      "guest-panic",
    ),
    (
      [("SHUTDOWN", {"guest": False, "reason": "host-error"})],
      "other",
      "host-error",
    ),
    ([], "killed or crashed", "no SHUTDOWN"),
    ([("POWERDOWN", None)], "killed or crashed", "no SHUTDOWN"),
  ],
)
@pytest.mark.parametrize("leaves_socket", [True, False])
@pytest.mark.parametrize("had_file", [True, False])
def test_verdict(scene, events, verdict, cause, leaves_socket, had_file):
  qemu = scene.attach("web1")
  if had_file:
    scene.file("web1").touch()
  for name, data in events:
    qemu.event(name, data)
  if leaves_socket:
    qemu.die()
  else:
    qemu.quit()
  assert scene.verdict("web1") == verdict
  assert scene.causes("web1") == [cause]
  scene.fence()
  assert scene.verdicts("web1") == [verdict]
  assert scene.has_file("web1") is (verdict == "user")
  left = {"web1.kvmd"} if leaves_socket else set()
  left |= {"web1.shutdown"} if verdict == "user" else set()
  assert ctrl_files.names(scene.ctrl_dir) == left


def test_file_is_there_before_the_end(scene):
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  found = scene.file("web1").lstat()
  assert stat.S_ISREG(found.st_mode)
  assert found.st_size == 0
  assert scene.verdicts("web1") == []
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.count("shutdown file written (guest-shutdown)") == 1


def test_time_that_it_ran(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  hours_ago = time.time_ns() - 7200 * 10**9
  os.utime(monitor.path, ns=(hours_ago, hours_ago))
  scene.serve(monitor).quit()
  scene.verdict("web1")
  (verdict,) = kvmd_log.verdicts(scene.lines)
  assert 7200 <= verdict.seconds < 7200 + PATIENCE


def test_time_that_it_ran_when_the_clock_was_set_back(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  later = time.time_ns() + 7200 * 10**9
  os.utime(monitor.path, ns=(later, later))
  scene.serve(monitor).quit()
  scene.verdict("web1")
  (verdict,) = kvmd_log.verdicts(scene.lines)
  assert 0 <= verdict.seconds < PATIENCE


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


def test_guest_that_qemu_outlives(scene):
  """With -no-shutdown."""
  qemu = scene.attach("web1")
  for revival in "RESET", "RESUME":
    qemu.event("SHUTDOWN", USER)
    qemu.event("STOP")
    scene.until(scene.has_file, "web1")
    qemu.event(revival)
    scene.until(lambda: not scene.has_file("web1"))
  qemu.event("SHUTDOWN", USER)
  qemu.event("STOP")
  scene.until(scene.has_file, "web1")
  qemu.event("SHUTDOWN", SIGNAL)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")


# --- What monitors may send ---


@pytest.mark.parametrize("pieces", ["bytes", "pretty", "one"])
def test_form_of_messages(scene, pieces):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  connection = scene.accept(monitor)
  messages = [
    encode(GREETING),
    encode({"return": {}}),
    event("RTC_CHANGE", {"{": '"}\\'}),
    event("SHUTDOWN", USER),
  ]
  if pieces == "pretty":
    messages = [
      json.dumps(json.loads(text), indent=4).encode() + b"\r\n"
      for text in messages
    ]
  data = b"".join(messages)
  if pieces == "bytes":
    for place in range(len(data)):
      connection.send(data[place : place + 1])
      scene.turn()
  else:
    connection.send(data)
  scene.says("web1: attached")
  monitor.quit()
  assert scene.verdict("web1") == "user"


def test_half_a_message_at_the_end(scene):
  qemu = scene.attach("web1")
  qemu.connection.send(event("SHUTDOWN", USER)[:-10])
  qemu.quit()
  assert scene.verdict("web1") == "killed or crashed"


def test_half_a_message_is_no_part_of_the_next_connection(scene):
  qemu = scene.attach("web1")
  qemu.connection.send(b'{"event": "')
  qemu.connection.close()
  again = scene.serve(qemu.monitor)
  again.event("SHUTDOWN", USER)
  again.quit()
  assert scene.verdict("web1") == "user"


GARBAGE = [
  b"\0",
  b"SHUTDOWN\n",
  b"\x7fELF\x02\x01",
  "über".encode("utf-16"),
  b'{"event": NaN}',
  b"}" * 10000,
  b'{"a":' * 10000,
  encode({"event": "SHUTDOWN", "data": [USER]}),
  b'{"event": ["SHUTDOWN"]}\r\n',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda each: repr(each[:12]))
@pytest.mark.parametrize("when", ["at once", "after greeting", "attached"])
def test_garbage(scene, garbage, when):
  bystander = scene.attach("db1")
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  if when == "attached":
    connection = scene.serve(monitor).connection
  else:
    connection = scene.accept(monitor)
    if when == "after greeting":
      connection.greet()
      scene.until(connection.receive)
  connection.send(garbage)
  scene.until(lambda: not connection.is_open)
  assert scene.count("instance web1: its monitor sent") == 1
  assert scene.verdicts("web1") == []
  # It gets another chance.
  again = scene.serve(monitor)
  again.event("SHUTDOWN", USER)
  bystander.event("SHUTDOWN", SIGNAL)
  again.quit()
  bystander.quit()
  assert scene.verdict("web1") == "user"
  assert scene.verdict("db1") == "administrator"


def test_what_comes_before_garbage_counts(scene):
  qemu = scene.attach("web1")
  qemu.connection.send(event("SHUTDOWN", USER) + b"\xff")
  scene.until(lambda: not qemu.connection.is_open)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")


def test_message_without_an_end(scene):
  qemu = scene.attach("web1")
  qemu.connection.send(b'{"event": "')
  sent = 0
  block = b"x" * 8192
  while qemu.connection.is_open:
    sent += qemu.connection.try_send(block)
    scene.turn()
    assert sent < 2 * qmp.MAX_MESSAGE
  assert sent > qmp.MAX_MESSAGE / 2
  qemu.quit()
  assert scene.verdict("web1") == "killed or crashed"


def test_monitor_that_always_sends_garbage_is_not_tried_all_the_time(
  scene, monkeypatch
):
  """However long each connection was good before."""
  scene.hurry(good=0.0)
  machine = FakeMonitor(scene.ctrl_dir, "web1")
  attempts = 0
  end = time.monotonic() + 0.5
  while time.monotonic() < end:
    connection = machine.accept()
    if connection is not None:
      attempts += 1
      connection.greet()
      connection.answer()
      connection.send(b"garbage")
    scene.daemon.turn(0.01)
  assert 1 < attempts < 10
  assert len(scene.lines) < 30


@pytest.mark.parametrize(
  "data",
  [
    encode(GREETING) * 500,
    (encode(GREETING) + encode({"return": {}})) * 300,
    b"".join(
      encode({"error": {"class": "GenericError", "desc": f"{number} " * 300}})
      for number in range(60)
    ),
    encode({"return": {"status": "running"}, "id": "status"}) * 500,
    (event("SHUTDOWN", USER) + event("RESET")) * 300,
    (event("SHUTDOWN", USER) + event("STOP") + event("RESUME")) * 200,
    (event("POWERDOWN") + event("RESET")) * 400,
    event("SHUTDOWN", {"guest": True, "reason": "x" * 30000}) * 2,
  ],
  ids=[
    "greetings",
    "greetings and answers",
    "errors",
    "answers",
    "shutdown and reset",
    "shutdown and resume",
    "powerdown and reset",
    "long reason",
  ],
)
@pytest.mark.parametrize("when", ["at once", "attached"])
def test_flood_fills_no_log(scene, data, when):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  if when == "attached":
    connection = scene.serve(monitor).connection
  else:
    connection = scene.accept(monitor)
  while data and connection.is_open:
    data = data[connection.try_send(data) :]
    scene.turn()
  scene.fence()
  assert sum("web1" in line for line in scene.lines) < 60
  assert max(map(len, scene.lines)) < 1000
  monitor.quit()
  scene.fence()
  assert not scene.has_file("web1")


def test_last_word_in_a_flood_counts(scene):
  qemu = scene.attach("web1")
  flood = (event("SHUTDOWN", USER) + event("RESET")) * 100
  qemu.connection.send(flood + event("SHUTDOWN", USER))
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")


def test_flood_keeps_nobody_waiting(scene):
  """One that always has more to say gets no more than its turn."""
  flooders = [scene.attach(f"flood{number}") for number in range(3)]
  flood = event("RTC_CHANGE", {"offset": 7}) * 500

  # What did not fit goes first the next time, so that no event is cut off.
  rests = dict.fromkeys(flooders, flood)

  def pour():
    for flooder in flooders:
      while sent := flooder.connection.try_send(rests[flooder]):
        rests[flooder] = rests[flooder][sent:] or flood

  pour()
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  turns = 0
  connection = None
  end = time.monotonic() + PATIENCE
  while not scene.verdicts("web1"):
    scene.turn()
    turns += not scene.has_file("web1")
    pour()
    if connection is None:
      connection = monitor.accept()
      if connection is not None:
        connection.greet()
        connection.answer()
        connection.event("SHUTDOWN", USER)
        monitor.quit()
    # The file waits for its turn, the verdict a little longer.
    assert turns < 20
    assert time.monotonic() < end
  assert scene.verdicts("web1") == ["user"]


def test_flood_from_a_connection_that_was_superseded(scene):
  """It is read to its end, but not for ever."""
  old = scene.attach("web1")
  new = FakeMonitor(scene.ctrl_dir, "web1")
  reads = 0

  def always_more(*_):
    nonlocal reads
    reads += 1
    assert reads < 1000
    return monitored.Reading.DATA

  with mock.patch.object(monitored.Monitored, "read", always_more):
    scene.until(lambda: not old.connection.is_open)
  assert not scene.count("fault")
  scene.serve(new)
  assert scene.verdicts("web1") == ["killed or crashed"]


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


# --- Connections and lives ---


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
def test_link_is_restarted(scene, before, after, verdict):
  qemu = scene.attach("web1")
  for name, data in before:
    qemu.event(name, data)
  for _ in range(3):
    qemu.connection.close()
    qemu = scene.serve(qemu.monitor)
  assert scene.verdicts("web1") == []
  assert scene.count("web1: attached to QEMU 9.8.7 again") == 3
  for name, data in after:
    qemu.event(name, data)
  qemu.quit()
  assert scene.verdict("web1") == verdict
  assert scene.verdicts("web1") == [verdict]


def test_link_ends_and_qemu_with_it_before_the_next_greeting(scene):
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", USER)
  qemu.connection.close()
  scene.accept(qemu.monitor)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.verdicts("web1") == ["user"]


@pytest.mark.parametrize(
  ("last_words", "verdict"),
  [
    ([("SHUTDOWN", USER)], "user"),
    ([("POWERDOWN", None), ("SHUTDOWN", USER)], "administrator"),
    ([("SHUTDOWN", SIGNAL)], "administrator"),
    ([], "killed or crashed"),
  ],
)
@pytest.mark.parametrize("old_stays", [True, False])
def test_started_anew_before_the_daemon_has_looked(
  scene, last_words, verdict, old_stays
):
  """As QEMU's last words are not read yet, its name is another one's."""
  old = scene.attach("web1")
  for name, data in last_words:
    old.event(name, data)
  if not old_stays:
    old.die()
  new = scene.attach("web1")
  assert scene.verdicts("web1") == [verdict]
  if old_stays:
    assert not old.connection.is_open
  # Nothing of the old life is left.
  assert not scene.has_file("web1")
  new.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  new.quit()
  assert scene.verdict("web1", 2) == "user"


def test_file_of_a_life_that_is_over_when_the_next_begins(scene):
  """It was right, and it was read or not; now it would be wrong."""
  old = scene.attach("web1")
  old.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  old.quit()
  assert scene.verdict("web1") == "user"
  new = scene.attach("web1")
  scene.until(lambda: not scene.has_file("web1"))
  new.quit()
  assert scene.verdict("web1", 2) == "killed or crashed"


def test_file_appears_in_the_last_moment_of_a_life_that_crashed(scene):
  """Whoever made it."""
  qemu = scene.attach("web1")
  scene.file("web1").touch()
  qemu.die()
  scene.verdict("web1")
  scene.until(lambda: not scene.has_file("web1"))


def test_file_appears_between_announcement_and_end(scene):
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", SIGNAL)
  scene.fence()
  scene.file("web1").touch()
  qemu.quit()
  assert scene.verdict("web1") == "administrator"
  scene.until(lambda: not scene.has_file("web1"))


def test_socket_is_removed_while_qemu_lives_on(scene):
  qemu = scene.attach("web1")
  qemu.monitor.path.unlink()
  scene.fence()
  assert scene.verdicts("web1") == []
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  qemu.die()
  assert scene.verdict("web1") == "user"


def test_socket_gets_other_rights_and_owner(scene):
  scene.start(timing={"rescan": 0.01})
  qemu = scene.attach("web1")
  qemu.monitor.path.chmod(0o777)
  os.chown(qemu.monitor.path, os.geteuid(), os.getegid())
  scene.fence()
  assert scene.verdicts("web1") == []
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "user"


def test_socket_gets_another_date(scene):
  """As by touch(1), or a careless copy of the directory's dates."""
  scene.start(timing={"rescan": 0.01})
  qemu = scene.attach("web1")
  later = time.time_ns() + 10**9
  os.utime(qemu.monitor.path, ns=(later, later))
  for _ in range(3):
    scene.fence()
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  qemu.quit()
  assert scene.verdict("web1") == "user"
  assert scene.verdicts("web1") == ["user"]


# --- Files that were there before ---


def stale(scene, monitor, *, age):
  """Leaves a shutdown file that is so many seconds older than a socket."""
  born = monitor.path.lstat().st_mtime_ns
  date = born - int(age * 10**9)
  scene.file(monitor.instance).touch()
  os.utime(scene.file(monitor.instance), ns=(date, date))


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


# --- The daemon is restarted ---


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


# --- Trouble with the directory ---


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


def test_more_happens_than_the_kernel_tells(scene):
  limit = int(
    pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text()
  )
  one, two = scene.ctrl_dir / "one", scene.ctrl_dir / "two"
  one.touch()
  for _ in range(limit // 2 + 1):
    one.rename(two)
    two.rename(one)
  scene.attach("web1")
  scene.says("lost track")


def test_more_happens_all_the_time(scene, monkeypatch):
  """That takes neither the log nor all of the time."""
  nothing = watch.Changes(0, set(), set(), False, False)
  lost = nothing._replace(number=1, lost=True)
  rescans = []
  monkeypatch.setattr(
    scene.daemon._lookout,
    "_rescan",
    lambda *, thoroughly, elsewhere: rescans.append(thoroughly),
  )
  monkeypatch.setattr(
    scene.daemon._lookout, "_last_rescan", time.monotonic() - 2.0
  )
  monkeypatch.setattr(scene.daemon._place.watch, "read", [nothing, lost].pop)
  scene.daemon._lookout.look()
  assert rescans == [True]
  scene.daemon._lookout._last_rescan = time.monotonic()
  for _ in range(100):
    monkeypatch.setattr(scene.daemon._place.watch, "read", [nothing, lost].pop)
    scene.daemon._lookout.look()
  assert rescans == [True]
  assert scene.count("lost track") == 1
  # It is made up for as soon as that has been a while ago.
  assert scene.daemon._lookout._next_rescan < time.monotonic() + 1.1
  scene.daemon._lookout.look_again()
  assert rescans == [True, True]


def count_calls(monkeypatch, place, name):
  """Counts the calls of a method from now on."""
  counter = mock.Mock(wraps=getattr(place, name))
  monkeypatch.setattr(place, name, counter)
  return counter


@pytest.mark.parametrize(
  ("ending", "acts"), [(".kvmd", 24), (".journal.out", 24), (".other", 0)]
)
def test_names_without_end_keep_nobody_waiting(
  scene, monkeypatch, ending, acts
):
  for number in range(2000):
    (scene.ctrl_dir / f"guest{number}.example.com{ending}").mkdir()
  looks = count_calls(
    monkeypatch, scene.daemon._lookout.table._journals, "look"
  )
  reads = count_calls(monkeypatch, scene.daemon._place.watch, "read")
  names = 0
  turns = 0
  while select.select([scene.daemon._place.watch], [], [], 0)[0]:
    scene.turn()
    turns += 1
    assert reads.call_count <= 40
    # Those that were read together are looked at together.
    assert looks.call_count < acts + 32
    names += looks.call_count
    looks.reset_mock()
    reads.reset_mock()
  assert names == (2000 if acts else 0)
  assert turns < 200


# --- A kernel that has no more watches ---


@pytest.mark.parametrize(
  ("limits", "words"),
  [
    ({"instances": 0}, "out of inotify instances"),
    ({"watches": 0}, "out of inotify watches"),
    ({"watches": 3}, "out of inotify watches"),
  ],
)
def test_directory_that_cannot_be_watched(scene, monkeypatch, limits, words):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify(**limits)
    scene.start()
    assert scene.daemon.has_directory
    qemu = scene.attach("web1")
    qemu.event("SHUTDOWN", USER)
    scene.until(scene.has_file, "web1")
    qemu.quit()
    assert scene.verdict("web1") == "user"
    # It is made anew, and nobody tells.
    shutil.rmtree(scene.ctrl_dir)
    scene.ctrl_dir.mkdir()
    scene.attach("web2").quit()
    assert scene.verdict("web2") == "killed or crashed"
    assert scene.count(f"cannot watch {scene.ctrl_dir}: {words}") == 1
    assert scene.count("cannot watch") == 1
    forked.limit_inotify()
    scene.says(f"watching {scene.ctrl_dir} again")
    scene.attach("web3").quit()
    assert scene.verdict("web3") == "killed or crashed"
    # It does not look by itself any more than it has to.
    assert scene.daemon._lookout._next_rescan > time.monotonic() + 30.0
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_watches_run_out_while_the_directory_is_made_anew(scene, monkeypatch):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify()
    scene.start()
    shutil.rmtree(scene.ctrl_dir)
    scene.says("is gone")
    forked.limit_inotify(watches=1)
    scene.ctrl_dir.mkdir()
    scene.says("out of inotify watches")
    scene.attach("web1")
    forked.limit_inotify()
    scene.says(f"watching {scene.ctrl_dir} again")
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_journal_that_is_closed_while_nobody_tells(scene, monkeypatch):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify(watches=0)
    scene.start()
    child = play_qemu(scene.ctrl_dir, "web1", has_journal=True)
    scene.says("instance web1: its QEMU keeps a journal")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert scene.verdict("web1") == "killed or crashed"
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_looking_takes_no_more_than_its_part_of_the_time(scene, monkeypatch):
  scene.fence()
  scene.daemon._lookout._rescan_took = 0.5
  monkeypatch.setattr(scene.daemon._place.watch, "follow", lambda: False)
  scene.daemon._place.watch.blindness = "out of something"
  scene.daemon._lookout._follow()
  left = scene.daemon._lookout._next_rescan - time.monotonic()
  assert 4.5 < left <= 5.0


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


# --- Another daemon ---


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


# --- Many ---


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


# --- What one instance may have of the log ---


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


# --- Journals ---


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


# --- How processes ended ---


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


# --- Anything at all ---


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

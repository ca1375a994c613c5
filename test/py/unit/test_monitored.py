# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is known of an instance by its monitor."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import NamedTuple, Optional
from unittest import mock

import ctrl_files
import kvmd_log
import means
import pytest
from fake_monitor import (
  BEGINNING,
  GREETING,
  NEGOTIATED,
  SIGNAL,
  USER,
  FakeMonitor,
  encode,
  event,
)
from ganeti.kvmd.core import qmp
from ganeti.kvmd.follow import monitored
from ganeti.kvmd.follow.monitored import Monitored
from ganeti.kvmd.node.connection import Attempt, Result
from ganeti.kvmd.node.ctrldir import ControlDirectory, Life
from scene import PATIENCE

LIFE = Life(7, 10**18)
OTHER = Life(7, 10**18 + 1)


class Known:
  """An instance of which something is known, in a directory of its own."""

  def __init__(self, directory, log):
    self._log = log
    self.shared = means.shared(directory)
    self.monitored = Monitored("web1", self.shared)
    self.instance = self.monitored.instance

  def learn(self, what):
    """Lets it be known: nothing, seen, met, attached or over."""
    if what == "nothing":
      return
    self.instance.begin(LIFE)
    if what == "met":
      self.instance.meet()
    elif what in {"attached", "over"}:
      self.instance.attach("9.8.7", means.PROCESS)
      self.shared.processes.begin(means.PROCESS, "web1")
    if what == "over":
      # It is yet to be delivered.
      self.instance.end()
    self._log.clear()

  def connect(self, *pieces):
    """Lets it have a connection; returns that."""
    if self.instance.life is None:
      self.instance.begin(LIFE)
    self.monitored.connection = means.Line(*pieces)
    return self.monitored.connection

  @property
  def verdicts(self):
    said = [each.getMessage() for each in self._log.records]
    return [each.verdict for each in kvmd_log.verdicts(said, "web1")]

  def lines(self, level="INFO"):
    """What was said, but for verdicts."""
    said = [
      each.getMessage() for each in self._log.records if each.levelname == level
    ]
    return [each for each in said if kvmd_log.verdict(each) is None]


@pytest.fixture
def known(ctrl_dir, caplog):
  caplog.set_level("INFO")
  with ctrl_files.opened(ctrl_dir) as directory:
    yield Known(directory, caplog)


class Row(NamedTuple):
  """What an attempt means.

  @ivar result: what came of it
  @ivar unheard: the verdict on a life of which nothing was heard
  @ivar heard: the same, if something was
  @ivar meets: whether one is met of which nothing was known
  @ivar again: whether it is tried again
  @ivar complaint: what is logged

  """

  result: Result
  unheard: Optional[str]
  heard: Optional[str]
  meets: bool
  again: bool
  complaint: str = ""


DEAD = "unknown", "killed or crashed"
ALIVE = None, None

ROWS = [
  Row(Result.CONNECTED, *ALIVE, meets=True, again=False),
  Row(Result.REFUSED, *DEAD, meets=False, again=True),
  Row(
    Result.BUSY,
    *ALIVE,
    meets=True,
    again=True,
    complaint="more clients wait for its monitor than it takes",
  ),
  Row(
    Result.FAILED,
    *ALIVE,
    meets=False,
    again=True,
    complaint="cannot connect to its monitor: the trouble",
  ),
  Row(Result.NO_SOCKET, *DEAD, meets=False, again=False),
  Row(
    Result.NOT_A_SOCKET,
    *DEAD,
    meets=False,
    again=True,
    complaint="cannot reach its monitor the trouble",
  ),
  Row(
    Result.UNREACHABLE,
    *ALIVE,
    meets=False,
    again=True,
    complaint="cannot reach its monitor the trouble",
  ),
  # It may be back soon, and then tell of one that was never heard.
  Row(Result.NO_DIRECTORY, None, DEAD[1], meets=False, again=True),
]

#: Those that found a socket, which tells of a life.
SOCKETS = {Result.CONNECTED, Result.REFUSED, Result.BUSY, Result.FAILED}


def judge(known, row, life):
  """Judges an attempt, and checks what holds whatever was known."""
  attempt = Attempt(
    row.result, life if row.result in SOCKETS else None, None, "the trouble"
  )
  meaning = known.monitored.judge(attempt)
  assert known.lines("WARNING") == (
    [f"instance web1: {row.complaint}"] if row.complaint else []
  )
  return meaning


@pytest.mark.parametrize("what", ["nothing", "seen", "met", "attached", "over"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.result.name)
def test_attempt(known, what, row):
  known.learn(what)
  meaning = judge(known, row, LIFE)
  verdict = {"met": row.unheard, "attached": row.heard}.get(what)
  assert known.verdicts == ([verdict] if verdict else [])
  is_lost = row.result is Result.NO_DIRECTORY and what in {"attached", "over"}
  assert meaning.is_tried_again is (row.again and not is_lost)
  instance = known.instance
  assert instance.is_over is (what == "over")
  if verdict:
    # It is delivered.
    assert instance.life is None
    assert not instance.is_met
  elif what == "over":
    assert instance.life == LIFE
    assert not instance.is_met
  else:
    assert instance.is_met is (what in {"met", "attached"} or row.meets)
    has_life = what != "nothing" or row.result in SOCKETS
    assert instance.life == (LIFE if has_life else None)
  if what in {"attached", "over"}:
    ended = verdict or what == "over"
    assert known.shared.processes.take(means.PROCESS, float("inf")) == (
      None if ended else "web1"
    )


@pytest.mark.parametrize("what", ["nothing", "seen", "met", "attached", "over"])
@pytest.mark.parametrize(
  "row",
  [row for row in ROWS if row.result in SOCKETS],
  ids=lambda row: row.result.name,
)
def test_attempt_finds_another_life(known, what, row):
  known.learn(what)
  meaning = judge(known, row, OTHER)
  assert meaning.is_tried_again is row.again
  # Whatever became of the attempt.
  verdict = {"met": DEAD[0], "attached": DEAD[1]}.get(what)
  assert known.verdicts == ([verdict] if verdict else [])
  instance = known.instance
  assert instance.life == OTHER
  assert instance.is_met is row.meets
  assert not instance.is_over
  assert not instance.is_attached
  assert instance.process == 0
  assert known.shared.processes.take(means.PROCESS, float("inf")) is None


def test_nothing_is_known_at_first(known):
  assert known.monitored.attempts == 0
  assert known.monitored.connection is None
  assert known.instance.name == "web1"
  assert known.instance.life is None


def test_verdict_cannot_be_delivered(known, ctrl_dir):
  known.learn("attached")
  known.shared.place.directory = ControlDirectory(str(ctrl_dir), None, ".kvmd")
  judge(known, ROWS[-1], None)
  assert known.verdicts == [DEAD[1]]
  assert known.instance.is_over
  assert known.shared.verdicts.is_late(known.instance)
  assert known.shared.processes.take(means.PROCESS, float("inf")) is None


LONG = "x" * 100


@pytest.mark.parametrize(
  ("pieces", "readings", "info", "warning"),
  [
    ([], ["NOTHING"], [], []),
    ([b""], ["END"], [], []),
    ([encode(GREETING)], ["DATA"], [], []),
    (
      [BEGINNING, encode({"return": {"status": "running"}, "id": "status"})],
      ["DATA", "DATA", "NOTHING"],
      [f"attached to QEMU 9.8.7, process {means.PROCESS}"],
      [],
    ),
    (
      [encode(GREETING) + encode({"error": {"class": "x", "desc": LONG}})],
      ["DATA"],
      [f"attached to QEMU 9.8.7, process {means.PROCESS}"],
      [f"QEMU may send no events: {LONG[:80]}"],
    ),
    (
      [encode(GREETING) + b"\0"],
      ["GARBAGE"],
      [],
      ["its monitor sent"],
    ),
    # Within one piece
    ([event("SHUTDOWN", USER) + event("RESET")], ["DATA"], [], []),
    (
      [event("SHUTDOWN", USER), event("RESET")],
      ["DATA", "DATA"],
      [
        "shutdown file written (guest-shutdown)",
        "shutdown file removed (the guest runs)",
      ],
      [],
    ),
    (
      [event("SHUTDOWN", USER) + b"\0"],
      ["GARBAGE"],
      ["shutdown file written (guest-shutdown)"],
      ["its monitor sent"],
    ),
  ],
)
def test_reading(known, pieces, readings, info, warning):
  line = known.connect(*pieces)
  assert [known.monitored.read().name for _ in readings] == readings
  assert line.reads == len(readings)
  assert known.lines() == [f"instance web1: {each}" for each in info]
  assert len(known.lines("WARNING")) == len(warning)
  for said, expected in zip(known.lines("WARNING"), warning):
    assert said.startswith(f"instance web1: {expected}")
    assert said.endswith(expected) or "; hung up on it" in said
  is_attached = any(each.startswith("attached") for each in info)
  assert known.instance.is_attached is is_attached
  assert (means.PROCESS in known.shared.processes) is is_attached


def mark(ctrl_dir, ending, *, seconds):
  """Leaves a mark that was made so long after the life began."""
  path = ctrl_dir / f"web1{ending}"
  path.touch()
  at = LIFE.born + seconds * 10**9
  os.utime(path, ns=(at, at))
  return path


@pytest.mark.parametrize("seconds", [-1, 1])
@pytest.mark.parametrize("may_be_marked", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_mark_that_is_there(known, ctrl_dir, seconds, may_be_marked, is_first):
  """It is looked for once, unless it is known that there is none."""
  path = mark(ctrl_dir, ".shutdown", seconds=seconds)
  line = known.connect(BEGINNING)
  line.send()
  if not is_first:
    known.instance.attach("9.8.7", means.PROCESS)
  known.instance.may_be_marked = may_be_marked
  known.monitored.read()
  is_found = is_first and may_be_marked
  is_current = seconds > 0
  assert path.exists() is (is_current or not is_found)
  assert known.instance.is_remembered is (is_found and is_current)
  assert line.sent == qmp.CAPABILITIES + (
    qmp.QUERY_STATUS if is_found and is_current else b""
  )


@pytest.mark.parametrize("status", ["running", "shutdown"])
@pytest.mark.parametrize("between", [b"", event("SHUTDOWN", USER)])
def test_status_of_one_that_was_marked(known, ctrl_dir, status, between):
  path = mark(ctrl_dir, ".shutdown", seconds=1)
  answer = encode({"return": {"status": status}, "id": qmp.STATUS_ID})
  known.connect(BEGINNING, between + answer)
  known.monitored.read()
  known.monitored.read()
  # What is heard counts for more than what is asked.
  assert path.exists() is (status == "shutdown" or bool(between))


def test_powerdown_that_the_hypervisor_tells_of(known, ctrl_dir):
  known.connect(BEGINNING, event("SHUTDOWN", USER))
  known.monitored.read()
  mark(ctrl_dir, ".powerdown", seconds=1)
  known.monitored.read()
  assert not (ctrl_dir / "web1.shutdown").exists()
  known.monitored.judge(Attempt(Result.NO_SOCKET))
  assert known.verdicts == ["administrator"]


@pytest.mark.parametrize(
  ("pieces", "reads"),
  [
    ([], 1),
    ([b""], 1),
    ([encode(GREETING), b"", encode(GREETING)], 2),
    ([encode(GREETING), b"\0", encode(GREETING)], 2),
    ([event("STOP")] * 100, 64),
  ],
)
def test_reading_what_is_left(known, pieces, reads):
  line = known.connect(*pieces)
  known.monitored.read_out()
  assert line.reads == reads


@pytest.mark.parametrize(
  ("pieces", "complaint"),
  [
    (
      [],
      (
        "waiting for its monitor: another client holds it, or QEMU hangs; its"
        " end cannot be judged before that client has gone"
      ),
    ),
    ([encode(GREETING)], "waiting for QEMU: it has greeted, and hangs"),
    ([encode(GREETING), NEGOTIATED], ""),
  ],
)
def test_waiting(known, pieces, complaint):
  known.monitored.complain_of_waiting()
  known.connect(*pieces)
  known.monitored.read_out()
  for _ in range(2):
    known.monitored.complain_of_waiting()
  assert known.lines("WARNING") == (
    [f"instance web1: {complaint}"] if complaint else []
  )


def _touch(monitor):
  os.utime(monitor.path, ns=(0, 10**18))


@pytest.mark.parametrize(
  ("change", "hung_up", "superseded", "moved"),
  [
    (lambda _: None, False, False, False),
    (lambda _: None, True, False, False),
    (lambda monitor: monitor.path.unlink(), False, False, False),
    (_touch, False, False, True),
    # Its number may be given out again, then.
    (_touch, True, True, False),
    (
      lambda monitor: FakeMonitor(monitor.path.parent, "web1"),
      False,
      True,
      False,
    ),
  ],
)
def test_superseded(known, ctrl_dir, change, hung_up, superseded, moved):
  monitor = FakeMonitor(ctrl_dir, "web1")
  found = monitor.path.lstat()
  life = Life(found.st_ino, found.st_mtime_ns)
  known.instance.begin(life)
  known.connect().has_hung_up = hung_up
  # So that the number is not given out again.
  os.link(monitor.path, ctrl_dir / "link")
  before = len(os.listdir("/proc/self/fd"))
  new = change(monitor)
  after = before + (new is not None)
  assert known.monitored.is_superseded() is superseded
  assert known.instance.life == (life._replace(born=10**18) if moved else life)
  assert len(os.listdir("/proc/self/fd")) == after
  for each in filter(None, [monitor, new]):
    each.die()


def test_superseded_though_nothing_is_known(known, ctrl_dir):
  monitor = FakeMonitor(ctrl_dir, "web1")
  known.connect()
  known.instance.begin(None)
  assert known.monitored.is_superseded()
  monitor.die()


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


def test_link_is_restarted(scene):
  qemu = scene.attach("web1")
  qemu.event("POWERDOWN")
  for _ in range(3):
    qemu.connection.close()
    qemu = scene.serve(qemu.monitor)
  assert scene.verdicts("web1") == []
  assert scene.count("web1: attached to QEMU 9.8.7 again") == 3
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "administrator"
  assert scene.verdicts("web1") == ["administrator"]


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

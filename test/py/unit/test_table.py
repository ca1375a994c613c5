# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of who follows whom."""

from __future__ import annotations

import errno
import itertools
import os
import time
import types
from unittest import mock

import pytest
from fake_monitor import (
  GREETING,
  USER,
  FakeMonitor,
  encode,
  event,
)
from ganeti.kvmd.core import qmp
from ganeti.kvmd.core.following import (
  JOURNALED,
  TRANSITIONS,
  Fact,
  Monitor,
  State,
)
from ganeti.kvmd.follow import table
from ganeti.kvmd.node import ctrldir, journal_files
from ganeti.kvmd.node.ctrldir import Instances
from scene import begin_journal


class Followers:
  """A table whose followers only write down what they are asked for.

  @ivar table: the table
  @ivar asked: what for: the method, the name, and what else was given
  @ivar act: what they do beyond that, by the method's name

  """

  def __init__(self, monkeypatch):
    self.asked = []
    self.act = {}
    self.monitors = types.SimpleNamespace(
      due=1.0,
      connected={},
      close=self._one("close"),
      run=self._one("run monitors"),
      begin_rescan=self._one("begin_rescan"),
      shortage=lambda: "too few files",
    )
    self.journals = types.SimpleNamespace(
      due=2.0, run=self._one("run journals")
    )
    for name in "read", "listen", "leave", "miss", "drop":
      setattr(self.monitors, name, self._one(name))
    for name in "look", "look_again", "look_after_closing", "forget":
      setattr(self.journals, name, self._one(name))
    monkeypatch.setattr(table, "MonitorFollower", self._follow_monitors)
    monkeypatch.setattr(table, "JournalFollower", self._follow_journals)
    self.late = []
    self.verdicts = types.SimpleNamespace(
      due=3.0, retry=self._retry, settle=self._settle
    )
    shared = types.SimpleNamespace(verdicts=self.verdicts)
    self.table = table.Table("epoll", shared)

  def _follow_monitors(self, epoll, shared):
    assert epoll == "epoll"
    assert shared.verdicts is self.verdicts
    return self.monitors

  def _follow_journals(self, shared, report):
    assert shared.verdicts is self.verdicts
    self.report = report
    return self.journals

  def _one(self, method):
    def ask(*who, **how):
      names = [getattr(each, "name", each) for each in who]
      self.asked.append((method, *names, *how.values()))
      if method in self.act:
        self.act[method](*who)

    return ask

  def _retry(self, now):
    self.asked.append(("retry", now))
    return iter(self.late)

  def _settle(self, instance):
    self.asked.append(("settle", instance.name))
    if "settle" in self.act:
      self.act["settle"](instance)

  def know(self, name, *, state=State.MONITOR, monitor=None, journal=None):
    """Has the table know of a name, and returns what it knows."""
    known = []

    def take(record):
      record.state, record.monitor, record.journal = state, monitor, journal
      known.append(record)

    with mock.patch.dict(self.act, look=take):
      self.table.journal_appeared(name)
    self.asked.clear()
    return known[0]

  def known(self, name):
    """Tells whether the table knows of a name."""
    return name in self.table._records


@pytest.fixture
def followers(monkeypatch):
  return Followers(monkeypatch)


def monitored(attempts=7):
  return types.SimpleNamespace(
    attempts=attempts, instance=types.SimpleNamespace(may_be_marked=True)
  )


def journaled(delay=0.5):
  return types.SimpleNamespace(delay=delay)


WHAT_IS_DONE = {
  Monitor.AS_IT_IS: [],
  Monitor.LISTEN: [("listen", "web1")],
  Monitor.LEAVE: [("leave", "web1", False)],
  Monitor.LEAVE_DEAD: [("leave", "web1", True)],
}


@pytest.mark.parametrize("fact", Fact)
@pytest.mark.parametrize("state", State)
def test_report(followers, state, fact):
  record = followers.know(
    "web1", state=state, monitor=monitored(), journal=journaled()
  )
  move = TRANSITIONS[state].get(fact)
  followers.report(record, fact)
  if move is None:
    assert record.state is state
    assert followers.asked == []
  else:
    assert record.state is move.state
    assert followers.asked == WHAT_IS_DONE[move.monitor]
  # Something new is known of one that is listened to.
  is_new = followers.asked == WHAT_IS_DONE[Monitor.LISTEN]
  assert record.monitor.attempts == (0 if is_new else 7)


def test_report_of_one_without_a_monitor(followers):
  record = followers.know("web1", state=State.AWAITED, journal=journaled())
  followers.report(record, Fact.OVERDUE)
  assert followers.asked == [("listen", "web1")]


@pytest.mark.parametrize("becomes", State)
def test_monitor_appears(followers, becomes):
  record = followers.know("web1", monitor=monitored())
  followers.act["look"] = lambda record: setattr(record, "state", becomes)
  followers.table.monitor_appeared("web1")
  is_listened_to = becomes not in JOURNALED
  assert followers.asked == [
    ("look", "web1"),
    *([("listen", "web1")] if is_listened_to else []),
  ]
  assert record.monitor.attempts == (0 if is_listened_to else 7)


@pytest.mark.parametrize("journal", [None, journaled()])
def test_journal_is_closed(followers, journal):
  followers.know("web1", monitor=monitored(), journal=journal)
  followers.table.journal_closed("web1")
  assert followers.asked == [("look_after_closing", "web1")]


def test_journal_appears(followers):
  followers.table.journal_appeared("web1")
  assert followers.asked == [("look", "web1")]
  # Nothing was found.
  assert not followers.known("web1")


def test_reading(followers):
  record = followers.know("web1", monitor=monitored())
  followers.monitors.connected[5] = record
  assert followers.table.read(5) is True
  assert followers.table.read(6) is False
  assert followers.asked == [("read", "web1")]


@pytest.mark.parametrize("order", list(itertools.permutations([1.0, 2.0, 3.0])))
def test_when_something_is_due(followers, order):
  (
    followers.monitors.due,
    followers.journals.due,
    followers.verdicts.due,
  ) = order
  assert followers.table.due == 1.0


def test_what_is_due(followers):
  followers.know("web1", monitor=monitored())
  followers.late = [
    types.SimpleNamespace(name="web2"),
    types.SimpleNamespace(name="web1"),
  ]
  followers.table.run(7.0)
  do = followers.table._do
  assert followers.asked == [
    ("run monitors", 7.0, do),
    ("retry", 7.0),
    ("settle", "web2"),
    ("settle", "web1"),
    ("run journals", 7.0, do),
  ]


def test_what_is_said_of_all(followers):
  assert followers.table.shortage() == "too few files"
  followers.table.close()
  assert followers.asked == [("close",)]


def rescan(followers, *, thoroughly=False, elsewhere=False, **found):
  names = {"monitored": set(), "journaled": set(), "marked": set(), **found}
  followers.asked.clear()
  followers.table.rescan(
    Instances(**names), thoroughly=thoroughly, elsewhere=elsewhere
  )
  return followers.asked


@pytest.mark.parametrize("thoroughly", [True, False])
@pytest.mark.parametrize(
  ("known", "found", "elsewhere", "asked"),
  [
    ({}, {}, False, ["begin_rescan"]),
    # A journal that is there is looked at, whatever was known of it.
    ({}, {"journaled": {"web1"}}, False, ["look_again", "begin_rescan"]),
    (
      {"journal": journaled(), "state": State.WRITTEN},
      {"journaled": {"web1"}},
      False,
      ["look_again", "begin_rescan", "miss"],
    ),
    (
      {"journal": journaled(), "state": State.WRITTEN},
      {"journaled": {"web1"}},
      True,
      ["look_again", "begin_rescan", "miss"],
    ),
    # One that is gone is looked for, in a directory where it was.
    (
      {"journal": journaled(), "state": State.WRITTEN},
      {},
      False,
      ["look", "begin_rescan", "miss"],
    ),
    (
      {"journal": journaled(), "state": State.WRITTEN},
      {},
      True,
      ["forget", "begin_rescan", "miss"],
    ),
    # Monitors
    ({}, {"monitored": {"web1"}}, False, ["begin_rescan", "listen"]),
    (
      {"monitor": monitored()},
      {"monitored": {"web1"}},
      True,
      ["begin_rescan", "listen"],
    ),
    ({"monitor": monitored()}, {}, False, ["begin_rescan", "miss"]),
    ({"monitor": monitored()}, {}, True, ["begin_rescan", "miss"]),
    ({}, {"marked": {"web1"}}, False, ["begin_rescan"]),
    # Both
    *(
      (
        {"journal": journaled(), "state": state},
        {"journaled": {"web1"}, "monitored": {"web1"}},
        False,
        [
          "look_again",
          "begin_rescan",
          *([] if state in JOURNALED else ["listen"]),
        ],
      )
      for state in State
    ),
  ],
)
def test_rescan(followers, known, found, elsewhere, asked, thoroughly):
  if known:
    followers.know("web1", **known)
  how = {"begin_rescan": (), "look_again": ("web1", thoroughly)}
  assert rescan(
    followers, thoroughly=thoroughly, elsewhere=elsewhere, **found
  ) == [(each, *how.get(each, ("web1",))) for each in asked]


def test_rescan_looks_at_journals_first(followers):
  """Who follows whom is known then; and missing ones come last."""
  followers.know("gone", monitor=monitored())
  followers.know("old", journal=journaled(), state=State.READ)
  for name in "sound", "both":
    followers.know(name, monitor=monitored())
  asked = rescan(
    followers, journaled={"both", "new"}, monitored={"sound", "both"}
  )
  assert asked[0] == ("look", "old")
  assert {each[:2] for each in asked[1:3]} == {
    ("look_again", "both"),
    ("look_again", "new"),
  }
  assert asked[3] == ("begin_rescan",)
  assert set(asked[4:6]) == {("listen", "sound"), ("listen", "both")}
  assert set(asked[6:]) == {("miss", "gone"), ("miss", "old")}


@pytest.mark.parametrize("is_marked", [True, False])
def test_rescan_spares_looking_for_marks(followers, is_marked):
  """Of those that are new; of others a mark may have been made since."""
  old = followers.know("old", monitor=monitored())

  def listen(record):
    record.monitor = record.monitor or monitored()
    seen[record.name] = record.monitor.instance

  seen = {}
  followers.act["listen"] = listen
  names = {"old", "new"}
  rescan(followers, monitored=names, marked=names if is_marked else set())
  assert seen["new"].may_be_marked is is_marked
  assert old.monitor.instance.may_be_marked is True


def test_rescan_of_one_that_cannot_be_listened_to(followers, caplog):
  rescan(followers, monitored={"web1"})
  assert not followers.known("web1")
  assert not caplog.records


@pytest.mark.parametrize(
  ("monitor", "journal", "stays"),
  [
    (None, None, False),
    (monitored(), None, True),
    (None, journaled(), True),
    (monitored(), journaled(), True),
  ],
)
def test_which_records_stay(followers, monitor, journal, stays):
  followers.know("web1", monitor=monitor, journal=journal)
  assert followers.known("web1") is stays


def fail(*_):
  raise ZeroDivisionError


@pytest.mark.parametrize(
  ("method", "act"),
  [
    ("read", lambda table: table.read(5)),
    ("look", lambda table: table.journal_appeared("web1")),
    ("look_after_closing", lambda table: table.journal_closed("web1")),
    ("look", lambda table: table.monitor_appeared("web1")),
    ("listen", lambda table: table.monitor_appeared("web1")),
    ("settle", lambda table: table.run(7.0)),
    (
      "listen",
      lambda table: table.rescan(
        Instances({"web1"}, set(), set()), thoroughly=False, elsewhere=False
      ),
    ),
    (
      "look_again",
      lambda table: table.rescan(
        Instances(set(), {"web1"}, set()), thoroughly=False, elsewhere=False
      ),
    ),
    (
      "miss",
      lambda table: table.rescan(
        Instances(set(), set(), set()), thoroughly=False, elsewhere=False
      ),
    ),
  ],
)
def test_fault(followers, caplog, method, act):
  """It is told of, and all of the one is forgotten, and none of the other."""
  record = followers.know("web1", monitor=monitored())
  other = followers.know("db1", monitor=monitored())
  followers.monitors.connected[5] = record
  followers.late = [types.SimpleNamespace(name="web1")]
  # As after a transition that led to the fault
  followers.act[method] = lambda who: fail() if who.name == "web1" else None
  followers.act["drop"] = lambda record: setattr(record, "monitor", None)
  record.state = State.USELESS
  act(followers.table)
  at = followers.asked.index(("drop", "web1"))
  assert followers.asked[at : at + 2] == [("drop", "web1"), ("forget", "web1")]
  assert record.state is State.MONITOR
  assert not followers.known("web1")
  assert followers.known("db1")
  assert other.monitor is not None
  (line,) = caplog.records
  assert line.getMessage() == (
    "instance web1: a fault of the daemon, please report it; the instance is"
    " followed anew at the next rescan"
  )
  assert line.exc_info[0] is ZeroDivisionError


def test_work_of_the_followers_is_guarded(followers, caplog):
  """What they do of themselves, they do by the table."""
  followers.know("web1", monitor=monitored())
  followers.act["run monitors"] = lambda _, do: do(fail, "web1")
  followers.act["run journals"] = lambda _, do: do(fail, "web2")
  followers.table.run(7.0)
  assert len(caplog.records) == 2
  assert [
    each for each in followers.asked if each[0] in {"drop", "forget"}
  ] == [
    ("drop", "web1"),
    ("forget", "web1"),
    ("drop", "web2"),
    ("forget", "web2"),
  ]


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


def is_listened_to(scene):
  scene.attach("web1")


def has_hung_up(scene):
  """Its monitor is there, and nobody answers."""
  scene.hurry(retry=60.0)
  scene.attach("web1").die()
  scene.turn()


def has_a_monitor_that_nobody_looked_at(scene):
  FakeMonitor(scene.ctrl_dir, "web1")


def keeps_a_journal(scene):
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    yield
    file.write(event("STOP"))


def has_ended_and_left_a_monitor(scene):
  scene.hurry(lingering=60.0)
  FakeMonitor(scene.ctrl_dir, "web1")
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    file.write(event("SHUTDOWN", USER))
  scene.verdict("web1")


def has_got_a_journal_while_it_was_listened_to(scene):
  scene.attach("web1")
  with begin_journal(scene.ctrl_dir, "web1"):
    yield


def has_a_journal_of_no_use(scene):
  FakeMonitor(scene.ctrl_dir, "web1")
  with begin_journal(scene.ctrl_dir, "web1") as file:
    file.write(b"garbage\n" * 2)
    scene.turn()
    yield


@pytest.mark.parametrize(
  "error",
  [
    ctrldir.MissingDirectoryError(errno.ENOENT, "missing", "ctrl"),
    OSError(errno.EIO, "broken", "ctrl"),
  ],
  ids=["missing", "broken"],
)
@pytest.mark.parametrize("looks", ["at once", "for the first time then"])
@pytest.mark.parametrize(
  "situation",
  [
    is_listened_to,
    has_hung_up,
    has_a_monitor_that_nobody_looked_at,
    keeps_a_journal,
    has_ended_and_left_a_monitor,
    has_got_a_journal_while_it_was_listened_to,
    has_a_journal_of_no_use,
  ],
)
def test_directory_fails_whatever_is_told(
  scene, monkeypatch, situation, looks, error
):
  """It may do that at any moment: no fault of the daemon."""
  steps = situation(scene) or []
  for _ in itertools.islice(steps, 1):
    pass
  told = scene.daemon._lookout.table
  nobody = Instances(set(), set(), set())
  journaled = Instances(set(), {"web1"}, set())
  monitored = Instances({"web1"}, set(), {"web1"})
  facts = [
    lambda: told.monitor_appeared("web1"),
    lambda: told.journal_appeared("web1"),
    lambda: told.journal_closed("web1"),
    lambda: told.rescan(nobody, thoroughly=True, elsewhere=False),
    lambda: told.rescan(journaled, thoroughly=True, elsewhere=False),
    lambda: told.rescan(monitored, thoroughly=True, elsewhere=False),
    lambda: told.rescan(nobody, thoroughly=True, elsewhere=True),
    lambda: told.run(float("inf")),
  ]
  if looks == "at once":
    scene.turn()
  for fact in facts:
    with monkeypatch.context() as patch:
      patch.setattr(
        ctrldir.ControlDirectory,
        "descriptor",
        property(mock.Mock(side_effect=error)),
      )
      fact()
    fact()
  for _ in steps:
    pass
  assert scene.count("a fault of the daemon") == 0

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when journals are looked at, and what becomes of them."""

from __future__ import annotations

import errno
import logging
import os
import time
from unittest import mock

import ctrl_files
import pytest
from fake_monitor import FakeMonitor
from ganeti.kvmd.core.following import TRANSITIONS, Fact, State
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.journal_follower import JournalFollower
from ganeti.kvmd.follow.journal_keeper import JournalKeeper
from ganeti.kvmd.follow.journal_reader import JournalReader
from ganeti.kvmd.follow.journaled import Journaled
from ganeti.kvmd.follow.record import Record
from ganeti.kvmd.node import ctrldir, journal_files, own_files
from ganeti.kvmd.node.ctrldir import Life
from journal_scene import PAGE, shared_by_all
from written_journals import CHATTER, END, NAME

NEVER = float("inf")
TIMING = Timing(opening=1.0, retry=0.1, journals=5.0, space=7.0)


class Scene:
  """A follower, those it works with played, and one instance."""

  def __init__(self, control):
    self.control = control
    self.facts = []
    self.shared = shared_by_all(control, timing=TIMING)
    self.follower = JournalFollower(self.shared, self._report)
    self.timers = self.follower._timers
    self.reader = self.follower._reader = mock.create_autospec(
      JournalReader, instance=True, due=NEVER
    )
    self.reader.take.return_value = None
    self.reader.supersede.side_effect = lambda record, _: self.follower.forget(
      record
    )
    self.keeper = self.follower._keeper = mock.create_autospec(
      JournalKeeper, instance=True, due=NEVER
    )
    self.keeper.take.return_value = None
    self.keeper.check.return_value = False
    self.record = Record(NAME)

  def _report(self, record, fact):
    assert record is self.record
    self.facts.append(fact)
    move = TRANSITIONS[record.state].get(fact)
    record.state = record.state if move is None else move.state

  def prepare(self, state=State.MONITOR):
    """Lets there be a journal that is known of, in a state."""
    journal_files.prepare(self.control, NAME)
    life = self.control.journaled_life(NAME)
    self.record.journal = Journaled(NAME, life, self.shared)
    self.record.state = state
    return self.record.journal

  def do(self, act, name):
    assert name == NAME
    act(self.record)

  def deadline(self):
    """Returns when the instance is looked at again, in seconds from now."""
    return self.timers._deadlines.get(NAME, NEVER) - 100.0


@pytest.fixture
def play(ctrl_dir, caplog, monkeypatch):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(time, "monotonic", lambda: 100.0)
  with ctrl_files.opened(ctrl_dir) as control:
    yield Scene(control)


@pytest.fixture
def trouble(monkeypatch):
  """Lets no journal be opened from now on, for a reason."""

  def let(fault):
    monkeypatch.setattr(journal_files, "opened", mock.Mock(side_effect=fault))

  return let


@pytest.mark.parametrize("timer", [3.0, 6.0])
@pytest.mark.parametrize("reader", [2.0, 6.0])
@pytest.mark.parametrize("keeper", [1.0, 6.0])
def test_when_there_is_something_to_do(play, timer, reader, keeper):
  assert play.follower.due == NEVER
  play.timers.set(NAME, timer)
  play.reader.due = reader
  play.keeper.due = keeper
  assert play.follower.due == min(timer, reader, keeper)


def test_all_that_is_due_is_done(play):
  known = play.prepare(State.READ)
  play.timers.set(NAME, 50.0)
  play.follower.run(49.0, play.do)
  play.reader.queue.assert_not_called()
  play.follower.run(50.0, play.do)
  play.reader.queue.assert_called_once_with(play.record, known)
  assert play.keeper.look_around.mock_calls == [
    mock.call(49.0),
    mock.call(50.0),
  ]
  assert play.reader.remove_judged.mock_calls == [
    mock.call(49.0, play.do),
    mock.call(50.0, play.do),
  ]


@pytest.mark.parametrize(
  ("seconds", "reads", "checks"),
  [
    (0.0, 3, 2),
    (1.6, 3, 1),
    (1.7, 3, 0),
    (2.5, 2, 0),
    (5.0, 1, 0),
    (9.0, 1, 0),
  ],
)
def test_it_is_worked_until_it_is_time_to_stop(
  play, monkeypatch, seconds, reads, checks
):
  """Reading comes first, and one piece is read in any case."""
  done = []
  play.reader.take.side_effect = [NAME] * 3 + [None]
  play.keeper.take.side_effect = [NAME] * 2 + [None]

  def do(act, name):
    assert name == NAME
    done.append(act)

  monkeypatch.setattr(time, "monotonic", lambda: 100.0 + len(done) * seconds)
  play.follower.run(100.0, do)
  assert (
    done
    == [play.follower._read] * reads + [play.follower._check_growth] * checks
  )
  play.keeper.look_around.assert_called_once_with(100.0)


def test_journal_is_found(play):
  journal_files.prepare(play.control, NAME)
  play.follower.look(play.record)
  known = play.record.journal
  assert known.life == play.control.journaled_life(NAME)
  play.keeper.add.assert_called_once_with(NAME)
  ((record, looked_at, files),) = (
    call.args for call in play.reader.look.mock_calls
  )
  assert (record, looked_at, files.life) == (play.record, known, known.life)
  play.follower.look(play.record)
  assert play.record.journal is known


def test_its_life_becomes_known(play):
  known = play.prepare()
  life = known.life
  known.identify(None)
  play.follower.look(play.record)
  assert play.record.journal is known
  assert known.life == life
  play.reader.supersede.assert_not_called()


def test_there_is_another_in_its_place(play):
  known = play.prepare(State.WRITTEN)
  known.identify(Life(3, 5))
  play.follower.look(play.record)
  play.reader.supersede.assert_called_once_with(play.record, known)
  assert play.record.journal is not known
  assert play.record.journal.life == play.control.journaled_life(NAME)
  assert play.keeper.mock_calls == [mock.call.forget(NAME), mock.call.add(NAME)]


@pytest.mark.parametrize(
  ("state", "is_looked_at"),
  [
    (State.MONITOR, True),
    (State.AWAITED, True),
    (State.WRITTEN, True),
    (State.READ, True),
    (State.JUDGED, False),
    (State.USELESS, False),
  ],
)
def test_who_is_looked_at(play, state, is_looked_at):
  play.prepare(state)
  play.follower.look(play.record)
  assert play.reader.look.called is is_looked_at
  is_removed = not play.control.has_journal(NAME)
  assert is_removed is (state is State.USELESS)
  assert play.facts == [Fact.GONE] * is_removed
  assert (play.record.journal is None) is is_removed


@pytest.mark.parametrize("is_open", [True, False])
def test_one_of_no_use_is_not_removed_yet(play, monkeypatch, is_open):
  """Its QEMU has it open, or the hypervisor is at work there."""
  known = play.prepare(State.USELESS)
  if is_open:
    path = os.path.join(play.control.path, NAME + ctrldir.JOURNAL_EVENTS)
    with open(path, "ab"):
      play.follower.look(play.record)
  else:
    monkeypatch.setattr(play.control.locks, "lock", lambda _: False)
    play.follower.look(play.record)
  assert play.control.has_journal(NAME)
  assert play.record.journal is known
  assert play.facts == []


def test_directory_is_missing(play, trouble):
  known = play.prepare(State.WRITTEN)
  trouble(ctrldir.MissingDirectoryError(2, "missing", "ctrl"))
  play.follower.look(play.record)
  assert play.record.journal is known
  assert play.facts == []
  assert play.deadline() == NEVER
  play.reader.lose.assert_not_called()


def test_journal_is_gone(play):
  play.follower.look(play.record)
  play.reader.lose.assert_called_once_with(play.record)
  assert play.facts == []


@pytest.mark.parametrize(
  "state", [State.MONITOR, State.AWAITED, State.WRITTEN, State.READ]
)
def test_journal_is_of_no_use(play, trouble, caplog, state):
  known = play.prepare(state)
  known.reading = mock.Mock()
  trouble(journal_files.JournalError("it is odd"))
  play.follower.look(play.record)
  assert play.facts == [Fact.USELESS]
  assert known.reading is None
  assert (
    "instance web1: its journal is of no use: it is odd; listening to its"
    " monitor instead"
  ) in caplog.text
  play.keeper.cut.assert_called_once_with(NAME, 7.0)


@pytest.mark.parametrize("state", [State.JUDGED, State.USELESS])
def test_it_does_not_matter_any_more_that_it_is_of_no_use(
  play, trouble, caplog, state
):
  play.prepare(state)
  trouble(journal_files.JournalError("it is odd"))
  play.follower.look(play.record)
  assert play.facts == []
  assert caplog.text == ""
  play.keeper.cut.assert_not_called()


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("deadline", [NEVER, 0.25])
def test_nothing_can_be_found_out(play, trouble, caplog, is_known, deadline):
  known = play.prepare() if is_known else None
  if deadline < NEVER:
    play.timers.set(NAME, 100.0 + deadline)
  fault = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")
  trouble(fault)
  for _ in range(2):
    play.follower.look(play.record)
  reason = (
    "instance web1: cannot look at its journal web1.journal.out: Too many open"
    " files; trying again"
  )
  assert caplog.text.count(reason) == 1
  assert play.facts == [Fact.UNKNOWN] * 2
  assert play.deadline() == min(deadline, 1.0)
  if is_known:
    assert play.record.journal is known
  else:
    assert play.record.journal.life is None


def test_closing_is_waited_for(play):
  """For longer each time, but not for ever."""
  known = play.prepare(State.WRITTEN)
  known.delay = 0.8
  play.follower.look_after_closing(play.record)
  delays = [play.deadline()]
  while play.timers._deadlines.pop(NAME, None) is not None:
    play.follower._look_when_due(play.record)
    delays.append(play.deadline())
  assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, NEVER])
  assert known.delay == 0.0
  assert play.reader.look.call_count == 5


@pytest.mark.parametrize("state", set(State) - {State.WRITTEN})
def test_closing_counts_at_once(play, state):
  known = play.prepare(state)
  play.follower.look_after_closing(play.record)
  assert play.deadline() == NEVER
  assert known.delay == 0.0


def test_closing_of_one_that_is_not_known(play):
  play.follower.look_after_closing(play.record)
  play.reader.lose.assert_called_once_with(play.record)
  assert play.deadline() == NEVER


@pytest.mark.parametrize(
  ("thoroughly", "state", "is_alive", "is_looked_at"),
  [
    (False, State.WRITTEN, True, False),
    (False, State.WRITTEN, False, True),
    (False, State.AWAITED, True, True),
    (True, State.WRITTEN, True, True),
  ],
)
def test_signs_that_something_was_missed(
  play, thoroughly, state, is_alive, is_looked_at
):
  known = play.prepare(state)
  known.instance.process = os.getpid() if is_alive else 0
  play.follower.look_again(play.record, thoroughly=thoroughly)
  assert play.reader.look.called is is_looked_at
  is_written = state is State.WRITTEN
  assert play.keeper.check.mock_calls == [mock.call(play.record)] * is_written
  assert play.control.has_journal(NAME)


def test_one_that_was_missed(play):
  journal_files.prepare(play.control, NAME)
  play.follower.look_again(play.record, thoroughly=False)
  play.reader.look.assert_called_once()


@pytest.mark.parametrize("is_locked", [False, True])
def test_rest_of_a_journal_is_removed(play, ctrl_dir, monkeypatch, is_locked):
  rest = ctrl_dir / (NAME + ctrldir.JOURNAL_DIGEST)
  rest.touch()
  if is_locked:
    monkeypatch.setattr(play.control.locks, "lock", lambda _: False)
  play.follower.look_again(play.record, thoroughly=True)
  assert rest.exists() is is_locked
  play.keeper.check.assert_not_called()


def test_one_is_followed_no_longer(play):
  known = play.prepare(State.WRITTEN)
  known.instance.process = 7
  play.shared.processes.begin(7, NAME)
  play.timers.set(NAME, 7.0)
  for _ in range(2):
    play.follower.forget(play.record)
    assert play.record.journal is None
    assert NAME not in play.timers
    play.keeper.forget.assert_called_with(NAME)
    play.reader.forget.assert_called_with(NAME)
  assert play.shared.processes.take(7, 109.0) is None


@pytest.mark.parametrize("fact", Fact)
def test_what_ends_the_following(play, fact):
  known = play.prepare(State.WRITTEN)
  play.follower._note(play.record, fact)
  assert play.facts == [fact]
  ends = {Fact.OVERDUE, Fact.OUTDATED, Fact.GONE, Fact.DELIVERED}
  assert play.record.journal is (None if fact in ends else known)


def test_it_is_let_go_before_that_is_reported(play):
  """Who is told may look at it anew."""
  play.prepare(State.WRITTEN)
  play.follower._report = mock.Mock(
    side_effect=lambda record, _: play.facts.append(record.journal)
  )
  play.follower._note(play.record, Fact.GONE)
  assert play.facts == [None]


@pytest.mark.parametrize(
  ("state", "delay", "expected"),
  [
    (State.MONITOR, 0.0, "checked"),
    (State.WRITTEN, 0.0, "checked"),
    (State.WRITTEN, 0.1, "looked at"),
    (State.READ, 0.1, "queued"),
    (State.JUDGED, 0.1, "checked"),
    (State.USELESS, 0.1, "checked"),
  ],
)
def test_what_is_done_when_it_is_due(play, state, delay, expected):
  known = play.prepare(state)
  known.delay = delay
  play.follower._look_when_due(play.record)
  assert play.keeper.check.called is (expected == "checked")
  assert play.reader.look.called is (expected == "looked at")
  queued = [mock.call(play.record, known)] * (expected == "queued")
  assert play.reader.queue.mock_calls == queued
  assert play.record.journal is known


@pytest.mark.parametrize("comes", ["nobody", "its QEMU", "another"])
def test_qemu_is_overdue(play, comes):
  known = play.prepare(State.AWAITED)

  def look(record, *_):
    if comes == "its QEMU":
      record.state = State.WRITTEN
    elif comes == "another":
      record.journal = mock.create_autospec(Journaled, instance=True)

  play.reader.look.side_effect = look
  play.follower._look_when_due(play.record)
  assert play.facts == [Fact.OVERDUE] * (comes == "nobody")
  assert (play.record.journal is None) is (comes == "nobody")
  assert (play.record.journal is known) is (comes == "its QEMU")


def test_it_is_gone_when_it_is_due(play):
  play.follower._look_when_due(play.record)
  play.keeper.check.assert_not_called()


@pytest.mark.parametrize("state", State)
def test_who_is_read(play, state):
  known = play.prepare(state)
  play.follower._read(play.record)
  if state in {State.WRITTEN, State.READ}:
    play.reader.read.assert_called_once_with(play.record, known, mock.ANY, 5.0)
  else:
    play.reader.read.assert_not_called()


def test_there_is_nothing_to_read(play):
  play.record.state = State.WRITTEN
  play.follower._read(play.record)
  play.reader.read.assert_not_called()


def test_another_is_there_when_it_is_to_be_read(play):
  known = play.prepare(State.READ)
  known.identify(Life(3, 5))
  play.follower._read(play.record)
  play.reader.read.assert_not_called()
  play.reader.supersede.assert_called_once_with(play.record, known)
  play.reader.look.assert_called_once()


def test_it_is_damaged_where_it_is_read(play):
  play.prepare(State.WRITTEN)
  play.reader.read.side_effect = journal_files.JournalError("it is odd")
  play.follower._read(play.record)
  assert play.facts == [Fact.USELESS]


@pytest.mark.parametrize("is_to_be_read", [False, True])
def test_reading_makes_room(play, is_to_be_read):
  known = play.prepare(State.WRITTEN)
  play.keeper.check.return_value = is_to_be_read
  play.follower._check_growth(play.record)
  queued = [mock.call(play.record, known)] * is_to_be_read
  assert play.reader.queue.mock_calls == queued


@pytest.mark.parametrize(
  ("fault", "facts"),
  [
    (journal_files.JournalError("no room"), [Fact.USELESS]),
    (OSError(errno.EIO, os.strerror(errno.EIO), "web1"), [Fact.UNKNOWN]),
    (FileNotFoundError(), []),
  ],
)
def test_growth_cannot_be_seen_to(play, fault, facts):
  play.prepare(State.WRITTEN)
  play.keeper.check.side_effect = fault
  play.follower._check_growth(play.record)
  assert play.facts == facts
  assert play.reader.lose.called is (not facts)


def test_user_shutdown(node):
  qemu = node.attach()
  assert node.found == ["web1"]
  assert node.follows()
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]
  assert not node.follows()
  node.work()
  assert node.files() == ["web1.shutdown"]


def test_journal_that_is_written_faster_than_it_is_read(node, monkeypatch):
  """It is cut, and the daemon is free again; the monitor is listened to."""
  qemu = node.attach()
  qemu.write(CHATTER * 4000)
  read = journal_files.JournalFiles.read

  def flood(files, length, position):
    qemu.write(CHATTER * 2000)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", flood)
  node.rescan()
  for _ in range(200):
    node.turn()
    if node.absent:
      break
  assert node.absent == ["web1"]
  assert node.count("its journal is of no use: it is written faster") == 1
  assert not node.follows()
  assert node.allocated() <= PAGE
  monkeypatch.undo()
  # It goes on, and gets nothing.
  for _ in range(3):
    qemu.write(CHATTER * 40000)
    if (record := node.record()) is not None:
      node.journals._timers.set("web1", 0.0)
      assert record.state is State.USELESS
    node.turn()
    assert node.allocated() <= PAGE
  qemu.write(END)
  node.end(qemu)
  assert node.files() == []
  assert node.verdicts() == []


def test_life_that_was_not_seen_to_begin(node):
  """The daemon was stopped: both have a verdict, and the right process."""
  first = node.attach()
  node.record().journal.instance.process = 7
  node.processes.begin(7, "web1")
  first.close()
  monitor = FakeMonitor(node.path, "web1")
  second = node.start()
  node.table.journal_closed("web1")
  node.table.journal_appeared("web1")
  assert node.verdicts() == ["unknown"]
  assert node.count("removed before it could be read") == 1
  now = time.monotonic()
  assert node.processes.take(7, now + 9) is None
  assert node.processes.take(os.getpid(), now) == "web1"
  assert node.found == ["web1", "web1"]
  second.write(END)
  node.end(second)
  assert node.verdicts() == ["unknown", "user"]
  monitor.quit()


def test_journal_that_is_elsewhere_now(node):
  """Its directory was moved away; that is no end."""
  node.attach()
  nothing = ctrldir.Instances(set(), set(), set())
  node.table.rescan(nothing, thoroughly=True, elsewhere=True)
  assert node.verdicts() == []
  assert not node.follows()


def test_trouble_is_told_once(node, monkeypatch):
  qemu = node.start()
  real = own_files.open_own

  def refuse(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(own_files, "open_own", refuse)
  for _ in range(5):
    node.rescan()
  assert node.count("cannot look at its journal") == 1
  monkeypatch.setattr(own_files, "open_own", real)
  node.rescan()
  assert node.follows()
  # Nobody was told that there is no journal.
  assert node.absent == []
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]


def test_no_descriptor_for_what_it_needs(node, monkeypatch):
  """That is no fault of the journal, nor of the daemon."""
  qemu = node.attach()
  qemu.write(CHATTER * 400)

  def refuse(_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(journal_files.JournalFiles, "reserve", refuse)
  node.rescan()
  assert node.count("fault of the daemon") == 0
  assert node.count("Too many open files; trying again") == 1
  assert node.follows()
  monkeypatch.undo()
  qemu.write(END)
  node.end(qemu)
  node.work()
  assert node.verdicts() == ["user"]

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the reading of journals in turns, and of verdicts by them."""

from __future__ import annotations

import errno
import logging
import os
import time
from unittest import mock

import ctrl_files
import pytest
from fake_monitor import (
  BEGINNING,
  SIGNAL,
  USER,
  VERSION,
  encode,
  event,
  open_journal,
)
from ganeti.kvmd.core.following import TRANSITIONS, Fact, State
from ganeti.kvmd.core.lifecycle import Rule, Verdict
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.core.timers import Timers
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.instance import Instance
from ganeti.kvmd.follow.journal_reader import JournalReader
from ganeti.kvmd.follow.journaled import Journaled
from ganeti.kvmd.follow.record import Record
from ganeti.kvmd.node import ctrldir, journal, journal_files, mark_files
from journal_scene import shared_by_all
from scene import begin_journal
from written_journals import CHATTER, END, NAME

NEVER = float("inf")
TIMING = Timing(opening=3.0, delivery=5.0)
#: Two pieces and a bit.
LONG = CHATTER * (2 * journal.PIECE // len(CHATTER) + 9)


class Scene:
  """A reader, and one instance with a journal."""

  def __init__(self, control):
    self.control = control
    self.path = os.path.join(control.path, NAME + ctrldir.JOURNAL_EVENTS)
    self.facts = []
    self.timers = Timers()
    self.shared = shared_by_all(control, timing=TIMING)
    self.verdicts = self.shared.verdicts
    self.reader = JournalReader(self.shared, self.timers, self._note)
    self.record = Record(NAME)
    self._writer = None
    journal_files.prepare(control, NAME)
    self.known = self.record.journal = self.identify()

  def _note(self, record, fact):
    assert record is self.record
    self.facts.append(fact)
    move = TRANSITIONS[record.state].get(fact)
    record.state = record.state if move is None else move.state

  def identify(self):
    life = self.control.journaled_life(NAME)
    return Journaled(NAME, life, self.shared)

  def open(self):
    self._writer = open_journal(self.path)

  def write(self, data):
    """Writes to the journal, as its QEMU or as one that has ended."""
    with open(self.path, "ab", buffering=0) as file:
      assert file.write(data) == len(data)

  def close(self):
    if self._writer is not None:
      os.close(self._writer)
      self._writer = None

  def look(self):
    with journal_files.opened(self.control, NAME) as files:
      self.reader.look(self.record, self.known, files)

  def read(self, seconds=9.0):
    with journal_files.opened(self.control, NAME) as files:
      self.reader.read(self.record, self.known, files, seconds)

  def judge(self, content=END):
    """Lets the instance have its verdict."""
    self.write(BEGINNING + content)
    self.look()
    assert self.record.state is State.JUDGED
    self.facts.clear()

  def deadline(self):
    return self.timers._deadlines.get(NAME, NEVER)

  @property
  def outcome(self):
    """The verdict that was given."""
    self.verdicts.end.assert_called_once_with(self.known.instance)
    return self.known.instance.lifecycle.outcome


@pytest.fixture
def play(ctrl_dir, caplog):
  caplog.set_level(logging.INFO)
  with ctrl_files.opened(ctrl_dir) as control:
    scene = Scene(control)
    yield scene
    scene.close()


@pytest.fixture
def others(play):
  """Instances of which only the names matter, and what is known of them."""

  def queue(name, state=State.READ, begun=False):
    record = Record(name)
    record.state = state
    known = mock.create_autospec(Journaled, instance=True, has_begun=begun)
    play.reader.queue(record, known)

  return queue


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on by a millisecond for each piece that is read."""
  reads = []
  read = journal_files.JournalFiles.read

  def counted(files, length, position):
    reads.append(length)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", counted)
  monkeypatch.setattr(time, "monotonic", lambda: len(reads) * 0.001)
  return reads


def take_all(reader):
  names = []
  while (name := reader.take()) is not None:
    names.append(name)
  return names


def test_nothing_to_read_at_first(play):
  assert play.reader.due == NEVER
  assert play.reader.take() is None
  play.reader.remove_judged(time.monotonic(), mock.Mock(side_effect=KeyError))


def test_who_is_read_first(play, others):
  """Those that are closed and most likely short."""
  others("written", State.WRITTEN)
  others("long", begun=True)
  others("b")
  others("a")
  assert play.reader.due == 0.0
  assert [play.reader.take() for _ in range(2)] == ["b", "a"]
  assert play.reader.due == 0.0
  others("c")
  others("long", begun=True)
  assert take_all(play.reader) == ["c", "written", "long"]
  assert play.reader.due == NEVER


@pytest.mark.parametrize("begun", [False, True])
def test_nobody_has_two_turns(play, others, begun):
  for again in (begun, not begun):
    others("a", begun=again)
    others("b", begun=begun)
  assert take_all(play.reader) == ["a", "b"]
  others("a")
  assert take_all(play.reader) == ["a"]


@pytest.mark.parametrize("begun", [False, True])
def test_who_is_forgotten_is_not_read(play, others, begun):
  others("a", begun=begun)
  others("b", begun=begun)
  play.reader.forget("a")
  assert take_all(play.reader) == ["b"]
  play.reader.forget("a")


def test_open_one(play, caplog):
  play.open()
  for _ in range(2):
    with mock.patch.object(Journaled, "meet") as meet:
      play.look()
    meet.assert_called_once_with()
    assert play.known.was_written
  assert play.facts == [Fact.OPEN, Fact.OPEN]
  assert caplog.text.count("its QEMU keeps a journal") == 1
  assert play.reader.take() is None


def test_its_process_is_asked_for_when_its_monitor_is_left(play):
  play.open()
  with mock.patch.object(Journaled, "meet") as meet:
    meet.side_effect = lambda: play.facts.append("met")
    play.look()
  assert play.facts == [Fact.OPEN, "met"]


def test_empty_one_is_waited_for(play):
  """From the first look on."""
  before = time.monotonic()
  play.look()
  deadline = play.deadline()
  assert before + 3.0 <= deadline <= time.monotonic() + 3.0
  play.look()
  assert play.deadline() == deadline
  assert play.facts == [Fact.EMPTY, Fact.EMPTY]
  # It is due, and nobody waits any more.
  play.timers.cancel(NAME)
  play.look()
  assert play.deadline() > deadline
  # It was opened in between.
  play.record.state = State.WRITTEN
  deadline = play.deadline()
  play.look()
  assert play.deadline() > deadline


def test_short_one_is_read_at_once(play):
  play.write(BEGINNING + END)
  play.look()
  assert play.facts == [Fact.CLOSED, Fact.CLOSED, Fact.COMPLETE]
  assert play.outcome == (Verdict.USER, "guest-shutdown")
  assert play.known.reading is None


@pytest.mark.parametrize("turns", [1, 3])
def test_long_one_has_to_wait(play, turns):
  play.write(BEGINNING + LONG + END)
  for _ in range(turns):
    play.look()
  assert play.facts == [Fact.CLOSED]
  assert play.known.reading.position <= journal.PIECE
  assert take_all(play.reader) == [NAME]
  play.read(seconds=0.0)
  assert take_all(play.reader) == [NAME]
  play.read()
  assert play.facts == [Fact.CLOSED, Fact.CLOSED, Fact.COMPLETE]
  assert take_all(play.reader) == []
  assert play.outcome.verdict is Verdict.USER


def test_open_one_is_condensed(play):
  play.open()
  play.look()
  play.write(LONG)
  play.read()
  assert play.facts == [Fact.OPEN, Fact.OPEN]
  with journal_files.opened(play.control, NAME) as files:
    size = len(BEGINNING + LONG)
    assert files.read_digest().position == files.extent().size == size
  assert take_all(play.reader) == []


def test_one_that_was_not_seen_to_be_open_is_condensed(play):
  play.open()
  play.read()
  assert play.facts == [Fact.OPEN]
  assert play.known.was_written


def test_qemu_that_never_greeted(play):
  play.write(encode({"return": {}}))
  play.look()
  assert play.facts == [Fact.CLOSED, Fact.EMPTY]
  assert play.record.state is State.AWAITED
  assert play.deadline() > time.monotonic()


@pytest.mark.parametrize("is_open", [False, True])
def test_garbage(play, is_open):
  """What is open is not over: others have to say what becomes of it."""
  if is_open:
    play.open()
    play.look()
    play.write(b"garbage\n")
    with pytest.raises(journal_files.JournalError):
      play.read()
    play.verdicts.end.assert_not_called()
  else:
    play.write(BEGINNING + b"garbage\n")
    play.look()
    assert play.facts == [Fact.CLOSED, Fact.CLOSED, Fact.COMPLETE]
    assert play.outcome.verdict is Verdict.UNKNOWN
    assert "its journal is of no use" in play.outcome.cause


def test_rule_is_that_of_all(play):
  play.reader._shared = play.shared._replace(rule=Rule.SEQUENCE)
  with mock.patch.object(journal, "useless", wraps=journal.useless) as useless:
    play.write(b"garbage\n")
    play.look()
  assert useless.call_args.args[1] is Rule.SEQUENCE


@pytest.mark.parametrize("was_seen", [True, False])
@pytest.mark.parametrize(
  ("content", "from_file"),
  [(END, True), (b"", False), (event("POWERDOWN"), False)],
)
def test_when_it_ended(play, content, from_file, was_seen):
  """When the last was written, if that was the announcement."""
  born = play.known.life.born
  play.known.was_written = was_seen
  play.write(BEGINNING + content)
  os.utime(play.path, ns=(born + 7 * 10**9, born + 7 * 10**9))
  with mock.patch.object(Instance, "conclude") as conclude:
    with mock.patch.object(time, "time_ns", return_value=born + 9 * 10**9):
      play.look()
  ((told,), _) = conclude.call_args
  seconds = 7.0 if from_file else 9.0
  assert told.seconds == seconds
  assert told.version == VERSION
  is_known = from_file or was_seen
  assert told.ended == ((born / 1e9 + seconds) if is_known else None)
  assert told.heard == (None if is_known else born / 1e9 + 7.0)
  assert told.state.outcome.verdict is (
    Verdict.USER if from_file else Verdict.KILLED
  )
  assert play.known.instance.was_alive is was_seen


def test_process_is_over_with_the_journal(play):
  """Before the life is forgotten, and with it the number."""
  play.known.instance.process = 7
  play.shared.processes.begin(7, NAME)
  play.verdicts.end.side_effect = lambda instance: instance.begin(None)
  play.write(BEGINNING + END)
  play.look()
  assert play.shared.processes.take(7, time.monotonic() + 9.0) is None


def test_it_is_removed_when_the_verdict_is_delivered(play, ctrl_dir):
  play.judge()
  assert play.reader.due == 0.0
  play.verdicts.is_late.return_value = True
  remove = mock.Mock(side_effect=lambda act, _: act(play.record))
  play.reader.remove_judged(100.0, remove)
  play.verdicts.is_late.assert_called_once_with(play.known.instance)
  assert play.facts == []
  assert play.reader.due == 105.0
  play.verdicts.is_late.return_value = False
  play.reader.remove_judged(104.9, remove)
  assert play.facts == []
  play.reader.remove_judged(105.0, remove)
  assert play.facts == [Fact.DELIVERED]
  assert ctrl_files.names(ctrl_dir) == set()
  assert [each.args for each in remove.call_args_list] == [
    (play.reader.remove, NAME)
  ] * 2
  play.reader.forget(NAME)
  assert play.reader.due == NEVER


def test_next_judged_is_removed_without_delay(play):
  play.reader.remove_judged(100.0, mock.Mock())
  play.judge()
  play.reader.remove_judged(100.0, mock.Mock())
  assert play.reader.due == 105.0
  play.record.state = State.READ
  play.read()
  assert play.reader.due == 0.0


@pytest.mark.parametrize(
  ("fault", "is_delivered"),
  [
    (BlockingIOError(), False),
    (OSError(errno.EIO, os.strerror(errno.EIO)), False),
    (ctrldir.MissingDirectoryError(2, "missing", "ctrl"), True),
  ],
)
def test_it_cannot_be_removed(play, fault, is_delivered):
  play.judge()
  with mock.patch.object(Journaled, "remove", side_effect=fault):
    play.reader.remove(play.record)
  assert play.facts == [Fact.DELIVERED] * is_delivered


@pytest.mark.parametrize("state", set(State) - {State.JUDGED})
def test_only_who_is_judged_is_removed(play, state):
  play.record.state = state
  play.reader.remove(play.record)
  assert os.path.exists(play.path)
  assert play.facts == []


def test_there_is_nothing_to_remove(play):
  play.record.state = State.JUDGED
  play.record.journal = None
  play.reader.remove(play.record)
  assert play.facts == []


@pytest.mark.parametrize("state", set(State) - {State.JUDGED})
@pytest.mark.parametrize("was_written", [False, True])
def test_journal_is_lost(play, state, was_written):
  """Whoever was followed by it has a verdict: that nothing is known."""
  play.record.state = state
  play.known.was_written = was_written
  born = play.known.life.born
  journal_time = mock.Mock(time_ns=lambda: born + 3 * 10**9)
  with mock.patch.object(journal, "time", journal_time):
    with mock.patch.object(
      Instance, "conclude", autospec=True, side_effect=Instance.conclude
    ) as conclude:
      play.reader.lose(play.record)
  assert play.facts == [Fact.GONE]
  if was_written and state in {State.AWAITED, State.WRITTEN, State.READ}:
    assert conclude.call_args.args[1].seconds == 3.0
    assert play.outcome == (
      Verdict.UNKNOWN,
      "its journal was removed before it could be read",
    )
  else:
    play.verdicts.end.assert_not_called()


def test_journal_is_lost_of_one_that_has_none(play):
  play.record.journal = None
  play.reader.lose(play.record)
  assert play.facts == []


def test_journal_is_lost_of_one_that_is_judged(play):
  play.judge()
  journal_files.remove(play.control, NAME)
  play.verdicts.is_late.return_value = True
  play.reader.lose(play.record)
  assert play.facts == []
  play.verdicts.is_late.return_value = False
  play.reader.lose(play.record)
  assert play.facts == [Fact.DELIVERED]
  play.verdicts.end.assert_called_once_with(play.known.instance)


def test_another_is_in_its_place(play):
  play.known.was_written = True
  play.record.state = State.WRITTEN
  play.reader.supersede(play.record, play.known)
  assert play.facts == [Fact.GONE]
  assert play.outcome.verdict is Verdict.UNKNOWN
  play.verdicts.settle.assert_not_called()


def test_another_is_in_the_place_of_one_that_is_judged(play):
  """What cannot be delivered now is of no use any more."""
  play.judge()
  play.verdicts.is_late.return_value = True
  play.reader.supersede(play.record, play.known)
  assert play.facts == [Fact.DELIVERED]
  assert play.verdicts.method_calls[-2:] == [
    mock.call.settle(play.known.instance),
    mock.call.forget(play.known.instance),
  ]


@pytest.mark.parametrize("is_removed", [True, False])
def test_it_does_not_speak_of_a_later_life(play, caplog, is_removed):
  born = play.known.life.born
  play.write(BEGINNING + END)
  os.utime(play.path, ns=(born + 10**9, born + 10**9))
  sign = os.path.join(play.control.path, NAME + ".qmp")
  with open(sign, "wb"):
    os.utime(sign, ns=(born + 10**13, born + 10**13))
  faults = () if is_removed else OSError(errno.EIO, os.strerror(errno.EIO))
  with mock.patch.object(
    Journaled, "remove", autospec=True, side_effect=faults or Journaled.remove
  ):
    play.look()
  assert play.facts == [Fact.CLOSED, Fact.CLOSED, Fact.OUTDATED]
  assert "verdict user (guest-shutdown) after 1.0 s; that is not" in caplog.text
  play.verdicts.end.assert_not_called()
  assert os.path.exists(play.path) is not is_removed
  assert play.known.reading is None
  assert play.reader.due == NEVER


def test_long_one_is_read_in_many_turns(node, clock):
  """None keeps the daemon for longer than a few milliseconds."""
  qemu = node.attach()
  for _ in range(40):
    qemu.write(b"{}" * (journal.PIECE // 2))
  qemu.write(b"\n" + END)
  node.end(qemu)
  turns = 0
  while not node.verdicts():
    before = len(clock)
    node.turn()
    assert len(clock) - before <= 6
    turns += 1
  assert turns >= 7
  assert node.verdicts() == ["user"]


def test_others_do_not_wait_for_a_long_one(node, clock):
  long = node.attach("long")
  for _ in range(200):
    long.write(b"{}" * (journal.PIECE // 2))
  node.end(long)
  others = [node.attach(f"web{number}") for number in range(20)]
  for other in others:
    node.turn()
    other.write(END)
    node.end(other)
    assert node.verdicts(other.name) == ["user"]
  assert node.verdicts("long") == []
  node.work()
  assert node.verdicts("long") == ["killed or crashed"]


def test_those_that_are_longer_than_a_piece_come_before_a_long_one(node, clock):
  long = node.attach("long")
  for _ in range(500):
    long.write(CHATTER * 200)
  node.end(long)
  other = node.attach("web1")
  other.write(CHATTER * 300 + END)
  node.end(other)
  for _ in range(2):
    node.turn()
  assert node.verdicts("web1") == ["user"]
  assert node.verdicts("long") == []


def test_journal_that_was_removed_before_it_was_read(node):
  qemu = node.attach()
  qemu.close()
  journal_files.remove(node.control, "web1")
  node.table.journal_closed("web1")
  assert node.verdicts() == ["unknown"]
  node.rescan()
  assert node.verdicts() == ["unknown"]


def touch(node, name):
  path = node.path / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  later = time.time_ns() + 60 * 10**9
  os.utime(path, ns=(later, later))


@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("sign", ["web1.kvmd", "web1.qmp", "../pid/web1"])
def test_journal_of_an_earlier_life_does_not_speak_of_a_later_one(
  node, sign, is_followed
):
  """That one was started by who knows nothing of journals, and crashed."""
  qemu = node.attach() if is_followed else node.start()
  qemu.write(END)
  qemu.close()
  touch(node, sign)
  node.rescan()
  node.work()
  assert node.verdicts() == ["user"]
  assert node.count("that is not marked, as it seems to have been started") == 1
  assert not (node.path / "web1.shutdown").exists()
  assert not node.control.has_journal("web1")
  assert node.absent == ["web1"]


def test_clock_that_was_set_back_makes_no_other_life(node):
  """What a QEMU made at its start seems younger than its last words."""
  qemu = node.attach()
  touch(node, "web1.kvmd")
  commands = node.path / ("web1" + ctrldir.JOURNAL_COMMANDS)
  later = time.time_ns() + 61 * 10**9
  os.utime(commands, ns=(later, later))
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]
  assert node.count("is not marked") == 0


def test_next_life_begins_while_the_last_is_to_be_delivered(node, monkeypatch):
  """What was to be removed with that verdict is not removed with the next."""
  first = node.attach()
  first.write(END)
  node.end(first)
  assert node.verdicts() == ["user"]
  second = node.start()
  # The hypervisor is still at work there.
  monkeypatch.setattr(node.control.locks, "lock", lambda _: False)
  node.table.journal_appeared("web1")
  node.work()
  monkeypatch.undo()
  node.journals._reader._next = 0.0
  node.turn()
  node.work()
  second.write(event("POWERDOWN") + END)
  node.end(second)
  assert node.verdicts() == ["user", "administrator"]
  node.work()
  assert node.files() == []


@pytest.mark.parametrize("mark", [Mark.POWERDOWN, Mark.MIGRATED])
def test_daemon_is_killed_when_the_verdict_is_delivered(scene, mark):
  """Whoever reads the journal again finds what belongs to it."""
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    with ctrl_files.opened(scene.ctrl_dir) as directory:
      life = directory.journaled_life("web1")
      mark_files.write(directory, mark, "web1", life)
    is_users = mark is Mark.POWERDOWN
    with mock.patch.object(journal_files, "remove_life", side_effect=OSError):
      file.write(event("SHUTDOWN", USER if is_users else SIGNAL))
      file.close()
      verdict = scene.verdict("web1")
      scene.turn()
      scene.stop()
  assert verdict == ("administrator" if is_users else "migrated")
  for _ in range(2):
    with mock.patch.object(journal_files, "remove_life", side_effect=OSError):
      scene.start()
      scene.turn()
      scene.stop()
  scene.start()
  scene.until(lambda: not list(scene.ctrl_dir.glob("web1.*")))
  assert set(scene.verdicts("web1")) == {verdict}

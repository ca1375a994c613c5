# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when journals are read, and what becomes of them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import time
import types
from unittest import mock

import forked
import kvmd_log
import pytest
from fake_monitor import BEGINNING, USER, FakeMonitor, event, open_journal
from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.following import Monitor, State
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.shared import Shared
from ganeti.kvmd.follow.table import Table
from ganeti.kvmd.follow.verdicts import Verdicts
from ganeti.kvmd.node import (
  ctrldir,
  journal,
  journal_files,
  mark_files,
  own_files,
  space,
)
from ganeti.kvmd.node.processes import Processes

END = event("SHUTDOWN", USER)
CHATTER = event("RTC_CHANGE", {"offset": 1})
PAGE = os.sysconf("SC_PAGESIZE")


class Qemu:
  """What writes a journal."""

  def __init__(self, control, name):
    self.name = name
    self._path = os.path.join(control.path, name + ctrldir.JOURNAL_EVENTS)
    self._descriptor = open_journal(self._path)

  def write(self, data):
    assert os.write(self._descriptor, data) == len(data)

  def close(self):
    if self._descriptor is not None:
      os.close(self._descriptor)
      self._descriptor = None


class Place:
  """A control directory, its journals, and who follows them."""

  def __init__(self, path, log):
    self._log = log
    self._descriptor = os.open(path, os.O_RDONLY)
    self._qemus = []
    self.control = ctrldir.ControlDirectory(
      str(path), self._descriptor, ".kvmd"
    )
    self.path = path
    self.found = []
    self.absent = []
    self.processes = Processes()
    self.begin()

  def begin(self):
    """Begins to follow, as a daemon does that was just started."""
    where = types.SimpleNamespace(directory=self.control)
    self.table = Table(
      mock.create_autospec(select.epoll, instance=True),
      Shared(
        place=where,
        verdicts=Verdicts(where, Timing().delivery),
        processes=self.processes,
        quota=Quota(),
        rule=lifecycle.Rule.CAUSE,
        timing=Timing(),
      ),
    )
    self.journals = self.table._journals
    # Nobody listens to monitors here.
    self.table._acts = {
      Monitor.LEAVE: lambda record: self.found.append(record.name),
      Monitor.LISTEN: lambda record: self.absent.append(record.name),
    }

  def record(self, name="web1"):
    """Returns what is known of an instance; None if nothing is."""
    return self.table._records.get(name)

  def follows(self, name="web1"):
    """Tells whether an instance is followed by its journal."""
    record = self.record(name)
    return record is not None and record.is_journaled

  def due(self, name="web1"):
    """Returns when an instance is looked at next; infinite if at no time."""
    return self.journals._timers._deadlines.get(name, float("inf"))

  def start(self, name="web1"):
    """Lets an instance begin another life."""
    before = self.control.journaled_life(name)
    journal_files.prepare(self.control, name)
    while self.control.journaled_life(name) == before:
      journal_files.prepare(self.control, name)
    qemu = Qemu(self.control, name)
    self._qemus.append(qemu)
    return qemu

  def attach(self, name="web1"):
    qemu = self.start(name)
    self.table.journal_appeared(name)
    return qemu

  def end(self, qemu):
    qemu.close()
    self.table.journal_closed(qemu.name)

  def turn(self):
    self.table.run(time.monotonic())

  def rescan(self, **options):
    self.table.rescan(
      self.control.instances()._replace(monitored=set()),
      **{"thoroughly": True, "elsewhere": False, **options},
    )

  def work(self):
    """Lets all be done that is to be done at once."""
    while self.table.due == 0.0:
      self.turn()

  def close(self):
    for qemu in self._qemus:
      qemu.close()
    os.close(self._descriptor)

  @property
  def lines(self):
    return [record.getMessage() for record in self._log.records]

  def count(self, words):
    return sum(words in line for line in self.lines)

  def verdicts(self, name="web1"):
    return [each.verdict for each in kvmd_log.verdicts(self.lines, name)]

  def allocated(self, name="web1"):
    return journal_files.extent(self.control, name).allocated

  def files(self, name="web1"):
    return sorted(each for each in os.listdir(self.path) if name in each)


@pytest.fixture
def place(ctrl_dir, caplog):
  caplog.set_level(logging.INFO)
  with contextlib.closing(Place(ctrl_dir, caplog)) as made:
    yield made


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on by a millisecond for each piece that is read."""
  now = itertools.count()
  reads = []
  read = journal_files.JournalFiles.read

  def counted(files, length, position):
    reads.append((files.life, length))
    next(now)
    return read(files, length, position)

  current = [0.0]

  def monotonic():
    return current[0] + len(reads) * 0.001

  monkeypatch.setattr(journal_files.JournalFiles, "read", counted)
  monkeypatch.setattr(time, "monotonic", monotonic)
  return reads


def test_user_shutdown(place):
  qemu = place.attach()
  assert place.found == ["web1"]
  assert place.follows()
  qemu.write(END)
  place.end(qemu)
  assert place.verdicts() == ["user"]
  assert not place.follows()
  place.work()
  assert place.files() == ["web1.shutdown"]


def test_long_one_is_read_in_many_turns(place, clock):
  """None keeps the daemon for longer than a few milliseconds."""
  qemu = place.attach()
  for _ in range(40):
    qemu.write(b"{}" * (journal.PIECE // 2))
  qemu.write(b"\n" + END)
  place.end(qemu)
  turns = 0
  while not place.verdicts():
    before = len(clock)
    place.turn()
    assert len(clock) - before <= 6
    turns += 1
  assert turns >= 7
  assert place.verdicts() == ["user"]


def test_others_do_not_wait_for_a_long_one(place, clock):
  long = place.attach("long")
  for _ in range(200):
    long.write(b"{}" * (journal.PIECE // 2))
  place.end(long)
  others = [place.attach(f"web{number}") for number in range(20)]
  for other in others:
    place.turn()
    other.write(END)
    place.end(other)
    assert place.verdicts(other.name) == ["user"]
  assert place.verdicts("long") == []
  place.work()
  assert place.verdicts("long") == ["killed or crashed"]


def test_those_that_are_longer_than_a_piece_come_before_a_long_one(
  place, clock
):
  long = place.attach("long")
  for _ in range(500):
    long.write(CHATTER * 200)
  place.end(long)
  other = place.attach("web1")
  other.write(CHATTER * 300 + END)
  place.end(other)
  for _ in range(2):
    place.turn()
  assert place.verdicts("web1") == ["user"]
  assert place.verdicts("long") == []


def test_journal_that_is_written_faster_than_it_is_read(place, monkeypatch):
  """It is cut, and the daemon is free again; the monitor is listened to."""
  qemu = place.attach()
  qemu.write(CHATTER * 4000)
  read = journal_files.JournalFiles.read

  def flood(files, length, position):
    qemu.write(CHATTER * 2000)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", flood)
  place.rescan()
  for _ in range(200):
    place.turn()
    if place.absent:
      break
  assert place.absent == ["web1"]
  assert place.count("its journal is of no use: it is written faster") == 1
  assert not place.follows()
  assert place.allocated() <= PAGE
  monkeypatch.undo()
  # It goes on, and gets nothing.
  for _ in range(3):
    qemu.write(CHATTER * 40000)
    if (record := place.record()) is not None:
      place.journals._timers.set("web1", 0.0)
      assert record.state is State.USELESS
    place.turn()
    assert place.allocated() <= PAGE
  qemu.write(END)
  place.end(qemu)
  assert place.files() == []
  assert place.verdicts() == []


def test_nothing_is_read_that_came_after_the_reading_began(place, monkeypatch):
  qemu = place.start()
  size = os.fstat(qemu._descriptor).st_size
  read = journal_files.JournalFiles.read
  lengths = []

  def growing(files, length, position):
    qemu.write(CHATTER)
    lengths.append(length)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", growing)
  with journal_files.opened(place.control, "web1") as files:
    reading = journal.Reading(files, lifecycle.Rule.CAUSE)
    reading.advance(files, None, 10.0)
    assert reading.is_complete
  assert lengths == [size]


def test_long_honest_one_is_condensed(place):
  """No daemon ran for a long time."""
  qemu = place.start()
  for _ in range(300):
    qemu.write(CHATTER * 100)
  place.rescan()
  place.work()
  assert place.follows()
  assert place.allocated() <= journal_files.RESERVED + 2 * PAGE
  qemu.write(END)
  place.end(qemu)
  assert place.verdicts() == ["user"]


@pytest.mark.parametrize("length", [4, 20, 40, 60, 100, 200, 400])
def test_room_for_the_last_words(tmp_path, caplog, length):
  """The file system is full to the last byte, and QEMU has something to say."""

  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    place = Place(tmp_path, caplog)
    qemu = place.attach()
    written = len(BEGINNING)
    # At each time that the daemon looks there is room for a while.
    while written < length * 1024:
      qemu.write(CHATTER * 100)
      written += len(CHATTER * 100)
      place.rescan()
      place.work()
    _fill(tmp_path / "filler")
    qemu.write(END)
    place.end(qemu)
    place.work()
    assert place.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


@pytest.mark.parametrize("length", [4, 16, 40, 60])
def test_room_for_the_last_words_without_a_daemon(tmp_path, caplog, length):
  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    place = Place(tmp_path, caplog)
    qemu = place.start()
    qemu.write(CHATTER * (length * 1024 // len(CHATTER) - 10))
    _fill(tmp_path / "filler")
    qemu.write(END)
    qemu.close()
    os.unlink(tmp_path / "filler")
    place.rescan()
    place.work()
    assert place.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_room_is_made_on_a_full_file_system(tmp_path, caplog):
  """What a journal does not need any more is enough for what it needs."""

  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    place = Place(tmp_path, caplog)
    qemu = place.attach()
    _fill(tmp_path / "filler")
    for _ in range(30):
      qemu.write(CHATTER * 300)
      place.rescan()
      place.work()
    qemu.write(END)
    place.end(qemu)
    place.work()
    assert place.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_who_fills_the_file_system_loses_its_journal(tmp_path, caplog):
  def check():
    forked.mount_short(tmp_path, 4096)
    caplog.set_level(logging.INFO)
    place = Place(tmp_path, caplog)
    quiet, greedy = place.attach("quiet"), place.attach("greedy")
    with pytest.raises(AssertionError):
      while True:
        greedy.write(CHATTER * 1000)
    with pytest.raises(OSError, match="No space"):
      journal_files.prepare(place.control, "other")
    place.journals._keeper._next = 0.0
    place.turn()
    place.work()
    assert place.absent == ["greedy"]
    assert place.count("the file system nearly full") == 1
    # There is room for others again.
    other = place.attach("other")
    for qemu in quiet, other:
      qemu.write(END)
      place.end(qemu)
      assert place.verdicts(qemu.name) == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_long_one_is_cut_a_part_at_a_time(place, monkeypatch):
  """To give back a gigabyte at once takes a tenth of a second."""
  part = 16 * PAGE
  monkeypatch.setattr(space, "_MAX_CUT", part)
  qemu = place.attach()
  qemu.write(bytes(part * 5))
  before = place.allocated()
  place.rescan()
  place.work()
  cuts = 0
  while place.allocated() > 2 * journal_files.RESERVED:
    assert before - place.allocated() <= (cuts + 1) * part
    place.turn()
    cuts += 1
  assert place.count("its journal is of no use") == 1
  assert cuts >= 2


def test_what_is_reserved_is_cut_as_well(place):
  """Whoever has it open can do that, and it is in no byte of the file."""
  qemu = place.attach()
  os.posix_fallocate(qemu._descriptor, 0, 100)
  qemu.write(b"garbage")
  space.reserve(qemu._descriptor, 0, 1024 * 1024)
  place.rescan()
  place.work()
  for _ in range(5):
    place.turn()
  assert place.count("its journal is of no use") == 1
  assert place.allocated() <= 2 * journal_files.RESERVED


def test_journal_that_is_written_fast_is_looked_at_soon(place, monkeypatch):
  qemu = place.attach()
  place.rescan()
  known = place.record().journal
  assert place.due() == float("inf")
  known._looked -= 1.0
  qemu.write(CHATTER * 200)
  place.rescan()
  assert place.due() - time.monotonic() < 10
  place.journals._timers.cancel("web1")
  # One that says little is not.
  known._looked -= 60.0
  qemu.write(CHATTER)
  place.rescan()
  assert place.due() == float("inf")


def test_life_that_was_not_seen_to_begin(place):
  """The daemon was stopped: both have a verdict, and the right process."""
  first = place.attach()
  place.record().journal.instance.process = 7
  place.processes.begin(7, "web1")
  first.close()
  monitor = FakeMonitor(place.path, "web1")
  second = place.start()
  place.table.journal_closed("web1")
  place.table.journal_appeared("web1")
  assert place.verdicts() == ["unknown"]
  assert place.count("removed before it could be read") == 1
  now = time.monotonic()
  assert place.processes.take(7, now + 9) is None
  assert place.processes.take(os.getpid(), now) == "web1"
  assert place.found == ["web1", "web1"]
  second.write(END)
  place.end(second)
  assert place.verdicts() == ["unknown", "user"]
  monitor.quit()


def test_next_life_begins_while_the_last_is_to_be_delivered(place, monkeypatch):
  """What was to be removed with that verdict is not removed with the next."""
  first = place.attach()
  first.write(END)
  place.end(first)
  assert place.verdicts() == ["user"]
  second = place.start()
  # The hypervisor is still at work there.
  monkeypatch.setattr(place.control.locks, "lock", lambda _: False)
  place.table.journal_appeared("web1")
  place.work()
  monkeypatch.undo()
  place.journals._reader._next = 0.0
  place.turn()
  place.work()
  second.write(event("POWERDOWN") + END)
  place.end(second)
  assert place.verdicts() == ["user", "administrator"]
  place.work()
  assert place.files() == []


def test_journal_that_was_removed_before_it_was_read(place):
  qemu = place.attach()
  qemu.close()
  journal_files.remove(place.control, "web1")
  place.table.journal_closed("web1")
  assert place.verdicts() == ["unknown"]
  place.rescan()
  assert place.verdicts() == ["unknown"]


def test_journal_that_is_elsewhere_now(place):
  """Its directory was moved away; that is no end."""
  place.attach()
  nothing = ctrldir.Instances(set(), set(), set())
  place.table.rescan(nothing, thoroughly=True, elsewhere=True)
  assert place.verdicts() == []
  assert not place.follows()


def touch(place, name):
  path = place.path / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  later = time.time_ns() + 60 * 10**9
  os.utime(path, ns=(later, later))


@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("sign", ["web1.kvmd", "web1.qmp", "../pid/web1"])
def test_journal_of_an_earlier_life_does_not_speak_of_a_later_one(
  place, sign, is_followed
):
  """That one was started by who knows nothing of journals, and crashed."""
  qemu = place.attach() if is_followed else place.start()
  qemu.write(END)
  qemu.close()
  touch(place, sign)
  place.rescan()
  place.work()
  assert place.verdicts() == ["user"]
  assert (
    place.count("that is not marked, as it seems to have been started") == 1
  )
  assert not (place.path / "web1.shutdown").exists()
  assert not place.control.has_journal("web1")
  assert place.absent == ["web1"]


def test_clock_that_was_set_back_makes_no_other_life(place):
  """What a QEMU made at its start seems younger than its last words."""
  qemu = place.attach()
  touch(place, "web1.kvmd")
  commands = place.path / ("web1" + ctrldir.JOURNAL_COMMANDS)
  later = time.time_ns() + 61 * 10**9
  os.utime(commands, ns=(later, later))
  qemu.write(END)
  place.end(qemu)
  assert place.verdicts() == ["user"]
  assert place.count("is not marked") == 0


def test_powerdown_that_the_hypervisor_has_marked(place):
  qemu = place.attach()
  life = place.control.journaled_life("web1")
  mark_files.write(place.control, Mark.POWERDOWN, "web1", life)
  qemu.write(event("SHUTDOWN", USER))
  place.end(qemu)
  assert place.verdicts() == ["administrator"]


def test_powerdown_of_another_life(place):
  qemu = place.attach()
  life = place.control.journaled_life("web1")
  earlier = life._replace(born=life.born - 2)
  (place.path / "web1.powerdown").touch()
  os.utime(place.path / "web1.powerdown", ns=(earlier.born, earlier.born))
  qemu.write(event("SHUTDOWN", USER))
  place.end(qemu)
  assert place.verdicts() == ["user"]


def test_trouble_is_told_once(place, monkeypatch):
  qemu = place.start()
  real = own_files.open_own

  def refuse(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(own_files, "open_own", refuse)
  for _ in range(5):
    place.rescan()
  assert place.count("cannot look at its journal") == 1
  monkeypatch.setattr(own_files, "open_own", real)
  place.rescan()
  assert place.follows()
  # Nobody was told that there is no journal.
  assert place.absent == []
  qemu.write(END)
  place.end(qemu)
  assert place.verdicts() == ["user"]


def test_no_descriptor_for_what_it_needs(place, monkeypatch):
  """That is no fault of the journal, nor of the daemon."""
  qemu = place.attach()
  qemu.write(CHATTER * 400)

  def refuse(_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "web1.journal.out")

  monkeypatch.setattr(journal_files.JournalFiles, "reserve", refuse)
  place.rescan()
  assert place.count("fault of the daemon") == 0
  assert place.count("Too many open files; trying again") == 1
  assert place.follows()
  monkeypatch.undo()
  qemu.write(END)
  place.end(qemu)
  place.work()
  assert place.verdicts() == ["user"]


def test_who_has_the_commands_open_does_not_begin_another_life(place):
  """QEMU has, and may write to them."""
  qemu = place.attach()
  life = place.control.journaled_life("web1")
  commands = place.path / ("web1" + ctrldir.JOURNAL_COMMANDS)
  commands.write_bytes(b"x" * 100)
  os.utime(commands, (1, 1))
  place.rescan()
  assert place.control.journaled_life("web1") == life
  qemu.write(END)
  place.end(qemu)
  assert place.verdicts() == ["user"]


def test_life_keeps_its_date_when_it_is_condensed(place):
  qemu = place.attach()
  life = place.control.journaled_life("web1")
  qemu.write(CHATTER * 3000)
  place.rescan()
  place.work()
  assert (place.path / "web1.journal.digest").stat().st_size > 0
  assert place.control.journaled_life("web1") == life


def _fill(path):
  with open(path, "wb", buffering=0) as file:
    with pytest.raises(OSError, match="No space"):
      while True:
        file.write(b"x" * PAGE)

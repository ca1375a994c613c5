# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how much of the file system journals take."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
import types
from unittest import mock

import forked
import pytest
from fake_monitor import BEGINNING
from ganeti.kvmd.core.following import State
from ganeti.kvmd.core.timers import Timers
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.journal_keeper import JournalKeeper
from ganeti.kvmd.node import ctrldir, journal_files, space
from ganeti.kvmd.node.journal_files import RESERVED, Extent, JournalFiles
from ganeti.kvmd.node.journal_space import LONG, Need
from journal_scene import PAGE, Node, fill, shared_by_all
from written_journals import CHATTER, END, NAME

NEVER = float("inf")
TIMING = Timing(space=5.0, cut=0.5, hurry=30.0)
CONTENT = Need(
  is_long=False,
  is_short_of_room=False,
  is_behind=False,
  is_fast=False,
  lasts=NEVER,
)


@pytest.fixture(autouse=True)
def now(request, monkeypatch):
  """The clock stands still where no node is played."""
  if "keeper" in request.fixturenames:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)


@pytest.fixture
def timers():
  return Timers()


@pytest.fixture
def keeper(control, timers):
  return JournalKeeper(shared_by_all(control, timing=TIMING), timers)


@pytest.fixture
def free(monkeypatch):
  """Sets how many blocks are free, of 1600."""

  def set_free(blocks):
    found = types.SimpleNamespace(f_bavail=blocks, f_blocks=1600)
    monkeypatch.setattr(os, "fstatvfs", lambda _: found)

  set_free(1600)
  return set_free


@pytest.fixture
def events(control, ctrl_dir):
  journal_files.prepare(control, NAME)
  return ctrl_dir / (NAME + ctrldir.JOURNAL_EVENTS)


def record(state, delay=0.0, **needs):
  journal = types.SimpleNamespace(
    delay=delay, measure=mock.Mock(return_value=CONTENT._replace(**needs))
  )
  return types.SimpleNamespace(name=NAME, state=state, journal=journal)


def due(timers):
  """Returns when the instance is looked at again, in seconds from now."""
  return timers._deadlines.get(NAME, NEVER) - 100.0


def test_there_is_nothing_to_look_after_without_journals(keeper, free):
  free(0)
  assert keeper.due == NEVER
  keeper.look_around(1.0)
  assert keeper.take() is None
  keeper.add("web1")
  assert keeper.due == 0.0
  keeper.forget("web1")
  keeper.forget("web1")
  assert keeper.due == NEVER


@pytest.mark.parametrize(
  ("blocks", "is_scarce"), [(1600, False), (100, False), (99, True), (0, True)]
)
def test_all_are_suspects_where_little_is_free(keeper, free, blocks, is_scarce):
  free(blocks)
  keeper.add("web1")
  keeper.add("db1")
  keeper.look_around(100.0)
  assert keeper.due == (0.0 if is_scarce else 105.0)
  taken = {keeper.take() for _ in range(2)}
  assert taken == ({"web1", "db1"} if is_scarce else {None})
  assert keeper.take() is None
  assert keeper.due == 105.0


def test_it_is_looked_at_now_and_then(keeper, free):
  keeper.add("web1")
  keeper.look_around(100.0)
  free(0)
  keeper.look_around(104.9)
  assert keeper.take() is None
  keeper.look_around(105.0)
  assert keeper.take() == "web1"
  assert keeper.due == 110.0


def test_nobody_is_a_suspect_twice(keeper, free):
  free(0)
  keeper.add("web1")
  keeper.look_around(100.0)
  keeper.look_around(105.0)
  assert keeper.take() == "web1"
  assert keeper.take() is None


def test_directory_is_missing(ctrl_dir, timers):
  missing = ctrldir.ControlDirectory(str(ctrl_dir), None, ".kvmd")
  keeper = JournalKeeper(shared_by_all(missing), timers)
  keeper.add("web1")
  keeper.look_around(100.0)
  assert keeper.take() is None


@pytest.mark.parametrize("state", set(State) - {State.WRITTEN, State.USELESS})
def test_only_what_is_written_grows(keeper, timers, state):
  """Of the others there need not even be a file."""
  looked_at = record(state, is_long=True)
  assert not keeper.check(looked_at)
  looked_at.journal.measure.assert_not_called()
  assert due(timers) == NEVER


def test_one_without_a_journal(keeper):
  assert not keeper.check(
    types.SimpleNamespace(name=NAME, state=State.WRITTEN, journal=None)
  )


def test_growth_is_measured(keeper, events, free):
  looked_at = record(State.WRITTEN)
  os.truncate(events, 7)
  assert not keeper.check(looked_at)
  looked_at.journal.measure.assert_called_once_with(Extent(7, RESERVED))


def test_journal_is_gone(keeper):
  with pytest.raises(FileNotFoundError):
    keeper.check(record(State.WRITTEN))


@pytest.mark.parametrize("blocks", [100, 99])
@pytest.mark.parametrize(
  "needs", itertools.product([False, True], repeat=3), ids=str
)
def test_what_is_done_about_an_open_one(keeper, events, free, blocks, needs):
  free(blocks)
  is_behind, is_long, is_short = needs
  looked_at = record(
    State.WRITTEN,
    is_behind=is_behind,
    is_long=is_long,
    is_short_of_room=is_short,
  )
  with mock.patch.object(JournalFiles, "reserve") as reserve:
    if is_behind and blocks < 100:
      with pytest.raises(journal_files.JournalError, match="nearly full"):
        keeper.check(looked_at)
      reserve.assert_not_called()
    else:
      assert keeper.check(looked_at) is is_long
      assert reserve.call_count == (is_short and not is_long)


@pytest.mark.parametrize(
  ("delay", "lasts", "expected"),
  [
    (0.0, NEVER, NEVER),
    (0.0, 30.0, NEVER),
    (0.0, 29.5, 29.5),
    (0.0, 5.5, 5.5),
    (0.0, 5.0, 5.0),
    (0.0, 0.1, 5.0),
    # It is looked at soon anyway.
    (0.01, 0.1, NEVER),
  ],
)
def test_when_it_is_looked_at_again(
  keeper, timers, events, delay, lasts, expected
):
  assert not keeper.check(record(State.WRITTEN, delay, lasts=lasts))
  assert due(timers) == expected


@pytest.mark.parametrize(("is_fast", "expected"), [(True, 0.5), (False, 5.0)])
def test_one_of_no_use_is_cut(
  keeper, timers, control, events, is_fast, expected
):
  events.write_bytes(b"x" * (LONG + PAGE))
  looked_at = record(State.USELESS, is_fast=is_fast, is_long=True, lasts=0.0)
  assert not keeper.check(looked_at)
  looked_at.journal.measure.assert_called_once_with(
    Extent(LONG + PAGE, LONG + PAGE)
  )
  assert journal_files.extent(control, NAME).allocated == 0
  assert due(timers) == expected


@pytest.mark.parametrize("pages", [0, 1])
def test_it_is_cut_where_that_gains_something(
  keeper, timers, control, events, pages
):
  size = LONG + pages * PAGE
  events.write_bytes(b"x" * size)
  keeper.cut(NAME, 7.0)
  left = journal_files.extent(control, NAME).allocated
  assert left == (0 if pages else LONG)
  assert due(timers) == 7.0


def test_long_one_is_cut_on_at_once(
  keeper, timers, control, events, monkeypatch
):
  monkeypatch.setattr(space, "_MAX_CUT", LONG)
  events.write_bytes(b"x" * 3 * LONG)
  keeper.cut(NAME, 7.0)
  assert due(timers) == 0.0
  assert journal_files.extent(control, NAME).allocated == 2 * LONG
  keeper.cut(NAME, 7.0)
  assert due(timers) == 7.0


@pytest.mark.parametrize(
  "fault",
  [
    FileNotFoundError(),
    journal_files.JournalError("it is odd"),
    OSError(errno.EOPNOTSUPP, "no holes"),
  ],
)
def test_it_cannot_be_cut(keeper, timers, events, fault):
  events.write_bytes(b"x" * 2 * LONG)
  with mock.patch.object(JournalFiles, "cut", side_effect=fault):
    keeper.cut(NAME, 7.0)
  assert due(timers) == 7.0


def test_room_is_reserved(keeper, control, events, free):
  os.truncate(events, 5 * RESERVED)
  before = journal_files.extent(control, NAME).allocated
  assert not keeper.check(record(State.WRITTEN, is_short_of_room=True))
  now = journal_files.extent(control, NAME).allocated
  assert now == before + RESERVED


def test_no_room_to_be_reserved(keeper, events, free):
  """What it does not need any more makes room."""
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with mock.patch.object(JournalFiles, "reserve", side_effect=fault):
    assert keeper.check(record(State.WRITTEN, is_short_of_room=True))


def test_it_is_not_known_whether_there_is_room(keeper, events, free):
  fault = OSError(errno.EIO, os.strerror(errno.EIO))
  with mock.patch.object(JournalFiles, "reserve", side_effect=fault):
    with pytest.raises(OSError, match="Input/output error"):
      keeper.check(record(State.WRITTEN, is_short_of_room=True))


def test_long_honest_one_is_condensed(node):
  """No daemon ran for a long time."""
  qemu = node.start()
  for _ in range(300):
    qemu.write(CHATTER * 100)
  node.rescan()
  node.work()
  assert node.follows()
  assert node.allocated() <= journal_files.RESERVED + 2 * PAGE
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]


@pytest.mark.parametrize("length", [4, 20, 40, 60, 100, 200, 400])
def test_room_for_the_last_words(tmp_path, caplog, length):
  """The file system is full to the last byte, and QEMU has something to say."""

  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    node = Node(tmp_path, caplog)
    qemu = node.attach()
    written = len(BEGINNING)
    # At each time that the daemon looks there is room for a while.
    while written < length * 1024:
      qemu.write(CHATTER * 100)
      written += len(CHATTER * 100)
      node.rescan()
      node.work()
    fill(tmp_path / "filler")
    qemu.write(END)
    node.end(qemu)
    node.work()
    assert node.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


@pytest.mark.parametrize("length", [4, 16, 40, 60])
def test_room_for_the_last_words_without_a_daemon(tmp_path, caplog, length):
  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    node = Node(tmp_path, caplog)
    qemu = node.start()
    qemu.write(CHATTER * (length * 1024 // len(CHATTER) - 10))
    fill(tmp_path / "filler")
    qemu.write(END)
    qemu.close()
    os.unlink(tmp_path / "filler")
    node.rescan()
    node.work()
    assert node.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_room_is_made_on_a_full_file_system(tmp_path, caplog):
  """What a journal does not need any more is enough for what it needs."""

  def check():
    forked.mount_short(tmp_path, 256)
    caplog.set_level(logging.INFO)
    node = Node(tmp_path, caplog)
    qemu = node.attach()
    fill(tmp_path / "filler")
    for _ in range(30):
      qemu.write(CHATTER * 300)
      node.rescan()
      node.work()
    qemu.write(END)
    node.end(qemu)
    node.work()
    assert node.verdicts() == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_who_fills_the_file_system_loses_its_journal(tmp_path, caplog):
  def check():
    forked.mount_short(tmp_path, 4096)
    caplog.set_level(logging.INFO)
    node = Node(tmp_path, caplog)
    quiet, greedy = node.attach("quiet"), node.attach("greedy")
    with pytest.raises(AssertionError):
      while True:
        greedy.write(CHATTER * 1000)
    with pytest.raises(OSError, match="No space"):
      journal_files.prepare(node.control, "other")
    node.journals._keeper._next = 0.0
    node.turn()
    node.work()
    assert node.absent == ["greedy"]
    assert node.count("the file system nearly full") == 1
    # There is room for others again.
    other = node.attach("other")
    for qemu in quiet, other:
      qemu.write(END)
      node.end(qemu)
      assert node.verdicts(qemu.name) == ["user"]

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_long_one_is_cut_a_part_at_a_time(node, monkeypatch):
  """To give back a gigabyte at once takes a tenth of a second."""
  part = 16 * PAGE
  monkeypatch.setattr(space, "_MAX_CUT", part)
  qemu = node.attach()
  qemu.write(bytes(part * 5))
  before = node.allocated()
  node.rescan()
  node.work()
  cuts = 0
  while node.allocated() > 2 * journal_files.RESERVED:
    assert before - node.allocated() <= (cuts + 1) * part
    node.turn()
    cuts += 1
  assert node.count("its journal is of no use") == 1
  assert cuts >= 2


def test_what_is_reserved_is_cut_as_well(node):
  """Whoever has it open can do that, and it is in no byte of the file."""
  qemu = node.attach()
  os.posix_fallocate(qemu._descriptor, 0, 100)
  qemu.write(b"garbage")
  space.reserve(qemu._descriptor, 0, 1024 * 1024)
  node.rescan()
  node.work()
  for _ in range(5):
    node.turn()
  assert node.count("its journal is of no use") == 1
  assert node.allocated() <= 2 * journal_files.RESERVED


def test_journal_that_is_written_fast_is_looked_at_soon(node, monkeypatch):
  qemu = node.attach()
  node.rescan()
  known = node.record().journal
  assert node.due() == float("inf")
  known._looked -= 1.0
  qemu.write(CHATTER * 200)
  node.rescan()
  assert node.due() - time.monotonic() < 10
  node.journals._timers.cancel("web1")
  # One that says little is not.
  known._looked -= 60.0
  qemu.write(CHATTER)
  node.rescan()
  assert node.due() == float("inf")

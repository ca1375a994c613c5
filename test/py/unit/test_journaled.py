# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is known of an instance by its journal."""

from __future__ import annotations

import errno
import logging
import os
import time
from unittest import mock

import ctrl_files
import fake_monitor
import pytest
from fake_monitor import BEGINNING, USER, FakeMonitor, encode, event
from ganeti.kvmd.core.lifecycle import Rule, Verdict
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.follow.journaled import Journaled, Progress
from ganeti.kvmd.node import (
  connection,
  ctrldir,
  journal,
  journal_files,
  journal_space,
  mark_files,
)
from ganeti.kvmd.node.ctrldir import Life
from ganeti.kvmd.node.journal_files import Extent
from journal_scene import shared_by_all
from written_journals import CHATTER, END, NAME, condense, writing

#: A piece and a bit.
LONG = CHATTER * (journal.PIECE // len(CHATTER) + 9)


@pytest.fixture
def control(control, caplog):
  caplog.set_level(logging.INFO)
  return control


@pytest.fixture
def shared(control):
  return shared_by_all(control)


@pytest.fixture
def write(control):
  """A QEMU has its journal open."""
  with writing(control) as append:
    yield append


@pytest.fixture
def events(control, ctrl_dir):
  """The events of a journal that nobody has open."""
  journal_files.prepare(control, NAME)
  return ctrl_dir / (NAME + ctrldir.JOURNAL_EVENTS)


@pytest.fixture
def known(control, shared):
  return Journaled(NAME, control.journaled_life(NAME), shared)


def opened(control):
  return journal_files.opened(control, NAME)


def read(known, control, seconds=9.0):
  with opened(control) as files:
    return known.read_on(files, seconds)


def outcome(known, control):
  with opened(control) as files:
    return known.reading.record(files).lifecycle.outcome


def test_nothing_is_known_at_first(shared):
  life = Life(3, 5)
  known = Journaled("web1", life, shared)
  assert (known.life, known.instance.life) == (life, life)
  assert known.instance.name == "web1"
  assert known.reading is None
  assert known.delay == 0.0
  assert not known.was_written
  assert not known.has_begun
  with mock.patch.object(journal_space, "need") as need:
    known.measure(Extent(7, 9))
  assert need.call_args.args[:2] == (0, Extent(0, 0))


def test_what_was_logged_stays_said(shared, caplog):
  """Which life it is may be known later."""
  known = Journaled("web1", None, shared)
  known.instance.complain("trouble")
  known.identify(Life(3, 5))
  known.instance.complain("trouble")
  assert caplog.text.count("trouble") == 1
  assert known.life == known.instance.life == Life(3, 5)


def test_its_process_is_found_by_its_monitor(shared, ctrl_dir):
  monitor = FakeMonitor(ctrl_dir, NAME)
  known = Journaled(NAME, None, shared)
  known.meet()
  assert known.instance.process == os.getpid()
  assert os.getpid() in shared.processes
  with mock.patch.object(connection, "find_process", side_effect=KeyError):
    known.meet()
  known.part()
  now = time.monotonic()
  assert shared.processes.take(os.getpid(), now + 2.0) is None
  known.instance.process = 0
  known.meet()
  known.part()
  assert shared.processes.take(os.getpid(), now) == NAME
  monitor.quit()


def test_process_that_is_not_found(shared):
  known = Journaled(NAME, None, shared)
  known.meet()
  assert known.instance.process == 0
  known.part()
  assert len(shared.processes) == 0


@pytest.mark.parametrize(
  ("life", "ended", "seconds"),
  [
    (None, 10**18, 0.0),
    (Life(3, 10**18), 10**18 + 1_500_000_000, 1.5),
    # The clock was set back.
    (Life(3, 10**18), 10**18 - 1, 0.0),
  ],
)
def test_how_long_it_lasted(shared, life, ended, seconds):
  assert Journaled("web1", life, shared).seconds(ended) == seconds


def test_journal_is_removed(shared, events, known, ctrl_dir):
  known.remove()
  assert ctrl_files.names(ctrl_dir) == set()


@pytest.mark.parametrize("life", [None, Life(3, 5)])
def test_that_of_another_life_is_not_removed(shared, events, life):
  Journaled(NAME, life, shared).remove()
  assert events.exists()


def test_open_one(control, write, known, caplog):
  write(BEGINNING)
  condense(control)
  write(CHATTER * 3)
  with opened(control) as files:
    known.open(files)
    extent = files.extent()
  assert known.was_written
  assert "its QEMU keeps a journal, and is followed by it" in caplog.text
  with mock.patch.object(journal_space, "need") as need:
    known.measure(Extent(7, 9))
  covered, before, now, seconds = need.call_args.args
  assert covered == len(BEGINNING)
  assert (before, now) == (extent, Extent(7, 9))
  assert 0.0 <= seconds < 5.0


def test_open_one_of_no_use(control, write, known, ctrl_dir, caplog):
  (ctrl_dir / (NAME + ctrldir.JOURNAL_DIGEST)).write_bytes(b"[]")
  with opened(control) as files:
    with pytest.raises(journal_files.JournalError):
      known.open(files)
  assert not known.was_written
  assert caplog.text == ""


@pytest.mark.parametrize(
  ("content", "progress"),
  [
    (b"", Progress.SILENT),
    # A command's answer is none of what it says by itself.
    (encode({"return": {}}), Progress.SILENT),
    (BEGINNING, Progress.COMPLETE),
    (BEGINNING + END, Progress.COMPLETE),
    (BEGINNING + END[:9], Progress.COMPLETE),
  ],
)
def test_closed_one_is_read(control, events, known, content, progress):
  events.write_bytes(content)
  assert read(known, control) is progress
  assert (known.reading is None) is (progress is Progress.SILENT)


@pytest.mark.parametrize(
  ("content", "progress"),
  [
    (b"", Progress.UP_TO_DATE),
    (BEGINNING, Progress.UP_TO_DATE),
    (LONG, Progress.UNFINISHED),
  ],
)
def test_open_one_is_read(control, write, known, content, progress):
  write(content)
  assert read(known, control, seconds=0.0) is progress


def test_it_is_read_on_where_it_was_left(control, events, known):
  events.write_bytes(BEGINNING + LONG + END)
  assert read(known, control, seconds=0.0) is Progress.UNFINISHED
  before = known.reading
  assert read(known, control) is Progress.COMPLETE
  assert known.reading is before
  assert outcome(known, control).verdict is Verdict.USER


def test_it_became_longer_before_it_was_closed(control, events, known):
  events.write_bytes(BEGINNING + LONG)
  assert read(known, control, seconds=0.0) is Progress.UNFINISHED
  with events.open("ab") as file:
    file.write(END)
  assert read(known, control) is Progress.UNFINISHED
  assert read(known, control) is Progress.COMPLETE
  assert outcome(known, control).verdict is Verdict.USER


def test_it_became_shorter(control, events, known):
  events.write_bytes(BEGINNING + END)
  assert read(known, control) is Progress.COMPLETE
  os.truncate(events, 9)
  with pytest.raises(journal_files.JournalError, match="shorter"):
    read(known, control)


def test_rule_is_kept_to(control, events):
  events.write_bytes(BEGINNING + event("SHUTDOWN", fake_monitor.SIGNAL))
  shared = shared_by_all(control, rule=Rule.SEQUENCE)
  known = Journaled(NAME, control.journaled_life(NAME), shared)
  assert read(known, control) is Progress.COMPLETE
  assert outcome(known, control).verdict is Verdict.USER


@pytest.mark.parametrize(
  ("earlier", "verdict"), [(0, Verdict.ADMINISTRATOR), (2, Verdict.USER)]
)
def test_mark_of_the_hypervisor(control, events, known, earlier, verdict):
  """That of an earlier life says nothing."""
  life = control.journaled_life(NAME)
  life = life._replace(born=life.born - earlier)
  mark_files.write(control, Mark.POWERDOWN, NAME, life)
  events.write_bytes(BEGINNING + event("SHUTDOWN", USER))
  assert read(known, control) is Progress.COMPLETE
  assert outcome(known, control).verdict is verdict


@pytest.mark.parametrize("is_condensed", [False, True])
def test_who_has_begun(control, write, known, is_condensed):
  """One of which no more was read than a piece is as good as new."""
  if is_condensed:
    write(BEGINNING + LONG)
    condense(control)
  write(LONG * 2)
  assert not known.has_begun
  read(known, control, seconds=0.0)
  assert not known.has_begun
  read(known, control, seconds=0.0)
  assert known.has_begun


def test_it_is_condensed(control, write, known):
  text = BEGINNING + event("POWERDOWN") + LONG * 9
  write(text)
  before = journal_files.extent(control, NAME).allocated
  assert read(known, control) is Progress.UP_TO_DATE
  with opened(control) as files:
    known.condense(files)
    digest = files.read_digest()
  assert known.reading is None
  assert digest.position == len(text)
  assert [each.name for each in digest.events] == ["POWERDOWN"]
  assert journal_files.extent(control, NAME).allocated < before
  assert covered(known) == len(text)


def covered(known):
  """Returns how much the digest covers, as far as that is known."""
  with mock.patch.object(journal_space, "need") as need:
    known.measure(Extent(0, 0))
  return need.call_args.args[0]


def condense_with(known, control, fault):
  with opened(control) as files:
    with mock.patch.object(files, "give_back", side_effect=fault):
      known.condense(files)


def test_hypervisor_is_at_work(control, write, known):
  """Nothing is gained, and nothing said; another time, then."""
  write(BEGINNING)
  read(known, control)
  condense_with(known, control, BlockingIOError())
  assert covered(known) == 0
  assert known.reading is None


def test_it_cannot_be_condensed(control, write, known, caplog):
  """That is said once, and not tried without end."""
  write(BEGINNING)
  for _ in range(2):
    read(known, control)
    fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    condense_with(known, control, fault)
    assert covered(known) == len(BEGINNING)
  reason = "cannot keep its journal short (No space left on device)"
  assert caplog.text.count(reason) == 1


def test_it_was_removed_meanwhile(control, write, known):
  write(BEGINNING)
  read(known, control)
  with pytest.raises(FileNotFoundError):
    condense_with(known, control, FileNotFoundError())


@pytest.mark.parametrize("more", [0, 1])
def test_it_is_written_faster_than_it_is_read(control, write, known, more):
  write(BEGINNING)
  read(known, control)
  write(b" " * (1024 * 1024 + more))
  with opened(control) as files:
    if more:
      with pytest.raises(journal_files.JournalError, match="written faster"):
        known.condense(files)
    else:
      known.condense(files)
    assert (files.read_digest().position == 0) is bool(more)


def test_growth_is_that_since_the_last_look(shared, monkeypatch):
  known = Journaled(NAME, None, shared)
  monkeypatch.setattr(time, "monotonic", lambda: 10.0)
  known.measure(Extent(1, 2))
  monkeypatch.setattr(time, "monotonic", lambda: 14.0)
  with mock.patch.object(journal_space, "need") as need:
    assert known.measure(Extent(5, 6)) is need.return_value
  need.assert_called_once_with(0, Extent(1, 2), Extent(5, 6), 4.0)


def test_powerdown_that_the_hypervisor_has_marked(node):
  qemu = node.attach()
  life = node.control.journaled_life("web1")
  mark_files.write(node.control, Mark.POWERDOWN, "web1", life)
  qemu.write(event("SHUTDOWN", USER))
  node.end(qemu)
  assert node.verdicts() == ["administrator"]


def test_powerdown_of_another_life(node):
  qemu = node.attach()
  life = node.control.journaled_life("web1")
  earlier = life._replace(born=life.born - 2)
  (node.path / "web1.powerdown").touch()
  os.utime(node.path / "web1.powerdown", ns=(earlier.born, earlier.born))
  qemu.write(event("SHUTDOWN", USER))
  node.end(qemu)
  assert node.verdicts() == ["user"]


def test_life_keeps_its_date_when_it_is_condensed(node):
  qemu = node.attach()
  life = node.control.journaled_life("web1")
  qemu.write(CHATTER * 3000)
  node.rescan()
  node.work()
  assert (node.path / "web1.journal.digest").stat().st_size > 0
  assert node.control.journaled_life("web1") == life


def test_who_has_the_commands_open_does_not_begin_another_life(node):
  """QEMU has, and may write to them."""
  qemu = node.attach()
  life = node.control.journaled_life("web1")
  commands = node.path / ("web1" + ctrldir.JOURNAL_COMMANDS)
  commands.write_bytes(b"x" * 100)
  os.utime(commands, (1, 1))
  node.rescan()
  assert node.control.journaled_life("web1") == life
  qemu.write(END)
  node.end(qemu)
  assert node.verdicts() == ["user"]

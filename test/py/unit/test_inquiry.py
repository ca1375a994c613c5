# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what the hypervisor learns of a journal, and how long that takes."""

from __future__ import annotations

import errno
import os
import time
from unittest import mock

import pytest
from fake_monitor import BEGINNING, USER, event
from ganeti.hypervisor.hv_kvm import inquiry
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import ctrldir, journal, journal_files, mark_files
from written_journals import CHATTER, END


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on by a hundredth for each piece that is read."""
  reads = []
  read = journal_files.JournalFiles.read

  def counted(files, length, position):
    reads.append(position)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", counted)
  pauses = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: len(reads) * 0.01 + pauses[0])
  return reads, pauses


def write(control, content, name="web1"):
  """Leaves the journal of an instance that is down."""
  journal_files.prepare(control, name)
  path = os.path.join(control.path, name + ctrldir.JOURNAL_EVENTS)
  with open(path, "r+b") as file:
    file.write(content)
  return path


def ask(control, name="web1", *, budget=None, rule=Rule.CAUSE):
  budget = budget or inquiry.Budget()
  return inquiry.is_user_shutdown(control, name, rule, budget)


@pytest.mark.parametrize(
  ("content", "rule", "expected"),
  [
    (b"", Rule.CAUSE, None),
    (BEGINNING, Rule.CAUSE, False),
    (BEGINNING + END, Rule.CAUSE, True),
    (BEGINNING + event("POWERDOWN") + END, Rule.CAUSE, False),
    (BEGINNING + END + b"garbage", Rule.CAUSE, None),
    (BEGINNING + END + b"\0" * 5000, Rule.CAUSE, None),
    (
      BEGINNING + event("SHUTDOWN", {"guest": False, "reason": "host-signal"}),
      Rule.SEQUENCE,
      True,
    ),
  ],
)
def test_what_a_journal_says(control, content, rule, expected):
  write(control, content)
  assert ask(control, rule=rule) is expected


def test_no_journal(control):
  assert ask(control) is None


def test_mark_of_an_administrator_counts(control):
  """As it does for the daemon, by journal and by monitor."""
  journal_files.prepare(control, "web1")
  life = control.journaled_life("web1")
  mark_files.write(control, Mark.POWERDOWN, "web1", life)
  path = os.path.join(control.path, "web1" + ctrldir.JOURNAL_EVENTS)
  with open(path, "r+b") as file:
    file.write(BEGINNING + event("SHUTDOWN", USER))
  assert ask(control) is False


@pytest.mark.parametrize("sign", ["web1.kvmd", "web1.qmp"])
def test_journal_of_an_earlier_life(control, sign):
  write(control, BEGINNING + END)
  path = os.path.join(control.path, sign)
  with open(path, "xb"):
    later = time.time_ns() + 60 * 10**9
    os.utime(path, ns=(later, later))
  assert ask(control) is None


def test_long_one_is_gone_on_with_next_time(control, clock, caplog):
  """Each time by another process: what was read is left in the digest."""
  reads, _ = clock
  write(control, BEGINNING + CHATTER * 10000 + END)
  size = journal_files.extent(control, "web1").size
  answers = []
  while True:
    before = len(reads)
    answers.append(ask(control))
    assert len(reads) - before <= inquiry.ONE / 0.01 + 1
    if answers[-1]:
      break
    with journal_files.opened(control, "web1") as files:
      position = files.read_digest().position
    assert position >= len(answers) * 20 * journal.PIECE
  assert answers == [False] * (len(answers) - 1) + [True]
  assert len(answers) == -(-size // (25 * journal.PIECE))
  assert len(set(reads)) == len(reads)
  assert caplog.text.count("too long to be read at once") == len(answers) - 1


def test_all_that_are_asked_about_at_once_share_a_budget(control, clock):
  reads, pauses = clock
  names = [f"web{number}" for number in range(20)]
  for name in names:
    write(control, BEGINNING + CHATTER * 10000 + END, name)
  budget = inquiry.Budget()
  for name in names:
    assert ask(control, name, budget=budget) is False
  # One piece is read of each in any case.
  assert len(reads) <= inquiry.ALL / 0.01 + len(names) + 4
  # The next request has its own time.
  pauses[0] += 2.0
  before = len(reads)
  assert ask(control, names[0], budget=budget) is False
  assert len(reads) - before > 20


@pytest.mark.parametrize(
  ("pauses", "expected"),
  [
    # Each takes what it is given, and the next comes after so many seconds.
    ((0.0,) * 5, [0.25, 0.25, 0.25, 0.25, 0.0]),
    ((0.5,) * 5, [0.25, 0.25, 0.25, 0.25, 0.0]),
    ((0.0, 0.0, 1.0, 0.0, 0.9), [0.25, 0.25, 0.25, 0.25, 0.25]),
    ((1.0,) * 5, [0.25] * 5),
    ((1.5,) * 5, [0.25] * 5),
  ],
)
def test_budget(monkeypatch, pauses, expected):
  now = [1024.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  budget = inquiry.Budget()
  given = []
  for pause in pauses:
    with budget.use() as seconds:
      given.append(seconds)
      now[0] += seconds
    now[0] += pause
  assert given == expected


def test_budget_that_was_overdrawn(monkeypatch):
  """One piece is read in any case, however long that takes."""
  now = [1024.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  budget = inquiry.Budget()
  with budget.use():
    now[0] += 0.875
  with budget.use() as seconds:
    assert seconds == 0.125
    now[0] += 0.5
  with budget.use() as seconds:
    assert seconds == 0.0


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (PermissionError(errno.EACCES, "denied", "a"), "denied"),
    (journal_files.JournalError("it is damaged"), "it is damaged"),
    (FileNotFoundError(errno.ENOENT, "gone", "a"), None),
  ],
)
def test_journal_of_no_use(control, monkeypatch, caplog, error, words):
  write(control, BEGINNING + END)
  monkeypatch.setattr(
    journal_files.JournalFiles, "read", mock.Mock(side_effect=error)
  )
  assert ask(control) is None
  if words is None:
    assert not caplog.records
  else:
    (line,) = caplog.messages
    assert line.startswith("Instance web1: its journal is of no use: ")
    assert words in line


def test_nothing_is_read_that_comes_meanwhile(control, monkeypatch):
  path = write(control, BEGINNING + CHATTER)
  size = os.path.getsize(path)
  read = journal_files.JournalFiles.read
  pieces = []

  def growing(files, length, position):
    pieces.append(length)
    with open(path, "ab") as file:
      file.write(CHATTER * 1000)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", growing)
  assert ask(control) is False
  assert sum(pieces) == size


def test_more_than_is_ever_read(control, caplog):
  path = write(control, BEGINNING)
  os.truncate(path, journal.MAX_UNREAD + 2 * len(BEGINNING))
  assert ask(control) is None
  assert "more than 268435456 bytes" in caplog.text


@pytest.mark.parametrize("sign", ["web1.kvmd", "web1.qmp"])
def test_clock_that_was_set_back_makes_no_other_life(control, sign):
  """What a QEMU made at its start seems younger than its last words."""
  path = write(control, BEGINNING)
  commands = os.path.join(control.path, "web1" + ctrldir.JOURNAL_COMMANDS)
  with open(os.path.join(control.path, sign), "xb"):
    later = time.time_ns() + 86400 * 10**9
    os.utime(os.path.join(control.path, sign), ns=(later, later))
    # QEMU read them when it had made its sockets.
    os.utime(commands, ns=(later + 1, later))
  with open(path, "ab") as file:
    file.write(END)
  assert ask(control) is True

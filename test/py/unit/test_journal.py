# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the reading of journals, written as QEMU writes them."""

from __future__ import annotations

import os
import time
from unittest import mock

import ctrl_files
import pytest
from fake_monitor import BEGINNING, SIGNAL, USER, encode, event
from ganeti.kvmd.core.digest import Digest
from ganeti.kvmd.core.lifecycle import Rule, Verdict
from ganeti.kvmd.node import journal, journal_files
from ganeti.kvmd.node.ctrldir import JOURNAL_DIGEST, JOURNAL_EVENTS
from histories import HISTORIES, judge
from hypothesis import given
from hypothesis import strategies as st
from written_journals import (
  CHATTER,
  END,
  NAME,
  condense,
  read_whole,
  replay,
  writing,
)


@pytest.fixture
def write(control):
  with writing(control) as append:
    yield append


@pytest.fixture
def events(control, write, ctrl_dir):
  return ctrl_dir / (NAME + JOURNAL_EVENTS)


@pytest.fixture
def files(control, write):
  with journal_files.opened(control, NAME) as opened:
    yield opened


@pytest.fixture
def pieces(monkeypatch):
  """Of each piece that is read its position, and what it has."""
  found = []
  read = journal_files.JournalFiles.read

  def noted(files, length, position):
    piece = read(files, length, position)
    found.append((position, piece))
    return piece

  monkeypatch.setattr(journal_files.JournalFiles, "read", noted)
  return found


@pytest.fixture
def clock(monkeypatch, pieces):
  """A clock that goes on by a second for each piece that is read."""
  monkeypatch.setattr(time, "monotonic", lambda: 100.0 + len(pieces))


def begin(files, rule=Rule.CAUSE):
  return journal.Reading(files, rule)


def outcome(reading, files):
  return reading.record(files).lifecycle.outcome


def fill(write, pieces):
  """Writes so much that it takes so many pieces; the last one is short."""
  lines = (pieces * journal.PIECE - journal.PIECE // 2) // len(CHATTER)
  write(BEGINNING + CHATTER * lines)
  return len(BEGINNING) + len(CHATTER) * lines


def test_qemu_that_never_came(control):
  journal_files.prepare(control, NAME)
  record = replay(control)
  assert record.version == ""
  assert record.lifecycle.outcome.verdict is Verdict.KILLED


@pytest.mark.parametrize("rule", Rule)
def test_any_history_however_often_it_is_condensed(ctrl_dir, rule):
  """Nothing that counts is lost, wherever the reading stopped."""

  @given(
    HISTORIES,
    st.lists(
      st.tuples(st.integers(0, 300), st.booleans(), st.booleans()), max_size=9
    ),
  )
  def check(history, ways):
    journal_files.prepare(control, NAME)
    texts = [event(name, data) for name, data in history]
    with open(ctrl_dir / (NAME + JOURNAL_EVENTS), "wb", buffering=0) as writer:
      writer.write(BEGINNING)
      for place, text in enumerate(texts):
        part, pads, condenses = (
          ways[place] if place < len(ways) else (0, False, False)
        )
        if pads:
          # More than a page, so that some can be given back.
          writer.write(CHATTER * 50)
        writer.write(text[:part])
        if condenses:
          condense(control, rule)
        writer.write(text[part:])
    record = replay(control, rule)
    assert record.version == "9.8.7"
    assert record.lifecycle.outcome.verdict is judge(history, rule)
    condense(control, rule)
    again = replay(control, rule)
    assert again.lifecycle.outcome == record.lifecycle.outcome
    assert again.version == record.version

  with ctrl_files.opened(ctrl_dir) as control:
    check()


def test_word_that_is_not_finished_does_not_count(control, write):
  write(BEGINNING + END[:-5])
  assert replay(control).lifecycle.outcome.verdict is Verdict.KILLED
  condense(control)
  write(END[-5:])
  assert replay(control).lifecycle.outcome.verdict is Verdict.USER


@pytest.mark.parametrize(
  "text",
  [b"\0", b"garbage", b"[]", b'{"event": 1}', b"\xff\xfe", b"}", b"{" * 200],
)
def test_garbage_is_never_the_user(control, ctrl_dir, text):
  for content in (
    text + BEGINNING + END,
    BEGINNING + text + END,
    BEGINNING + END + text,
  ):
    journal_files.prepare(control, NAME)
    (ctrl_dir / (NAME + JOURNAL_EVENTS)).write_bytes(content)
    with pytest.raises(journal_files.JournalError):
      replay(control)
    with pytest.raises(journal_files.JournalError) as caught:
      condense(control)
    with journal_files.opened(control, NAME) as files:
      record = journal.useless(files, Rule.CAUSE, caught.value)
    assert record.lifecycle.outcome.verdict is Verdict.UNKNOWN
    assert "its journal is of no use" in record.lifecycle.outcome.cause


def test_nothing_is_read_before_it_is_asked_for(files, write, pieces):
  write(BEGINNING)
  reading = begin(files)
  assert reading.life == files.life
  assert not reading.is_complete
  assert (reading.position, pieces) == (0, [])
  reading.advance(files, None, 1.0)
  assert reading.is_complete
  assert reading.position == len(BEGINNING)


def test_empty_journal_is_read(files, pieces):
  reading = begin(files)
  assert reading.is_complete
  reading.advance(files, None, 1.0)
  assert pieces == []
  assert reading.record(files).version == ""
  assert reading.digest == Digest(files.life.inode, 0, "", [])


def test_what_is_told_of_a_journal(files, write, events):
  write(BEGINNING + END)
  os.utime(events, ns=(5, 7))
  record = read_whole(files).record(files)
  assert record.version == "9.8.7"
  assert record.written_at == 7
  assert record.lifecycle.outcome == (Verdict.USER, "guest-shutdown")


def test_greeting_without_a_version(files, write):
  """It is one all the same: QEMU has come."""
  write(encode({"QMP": {}}) + END)
  assert read_whole(files).record(files).version == "unknown"


@pytest.mark.parametrize("rule", Rule)
def test_rule_is_kept_to(files, write, rule):
  write(BEGINNING + event("SHUTDOWN", SIGNAL))
  expected = {
    Rule.CAUSE: Verdict.ADMINISTRATOR,
    Rule.SEQUENCE: Verdict.USER,
  }
  assert outcome(read_whole(files, rule), files).verdict is expected[rule]


def test_long_one_is_read_in_pieces(files, write, pieces):
  """Of whole lines, each of which is read once but where a piece ends."""
  size = fill(write, 4)
  write(END)
  reading = read_whole(files)
  assert reading.position == size + len(END)
  assert len(pieces) == 4
  for (position, piece), (following, _) in zip(pieces, pieces[1:]):
    assert len(piece) == journal.PIECE
    assert following == position + piece.rindex(b"\n") + 1
  last, piece = pieces[-1]
  assert last + len(piece) == size + len(END)
  assert outcome(reading, files).verdict is Verdict.USER


def test_line_that_is_longer_than_a_piece(files, write, pieces):
  write(BEGINNING + event("RTC_CHANGE", {"offset": "x" * 40000}) + END)
  reading = read_whole(files)
  assert outcome(reading, files).verdict is Verdict.USER
  assert len(pieces) <= 5
  assert all(len(piece) <= journal.PIECE for _, piece in pieces)


def test_line_that_is_longer_than_any(files, write):
  write(BEGINNING + event("RTC_CHANGE", {"offset": "x" * 70000}) + END)
  with pytest.raises(journal_files.JournalError, match=r"there is .* in it"):
    read_whole(files)


def test_torn_line_is_no_part_of_the_digest(files, write):
  """What reads on from there begins with a whole one."""
  write(BEGINNING + END[:20])
  reading = read_whole(files)
  assert reading.position == len(BEGINNING) + 20
  assert reading.digest == Digest(files.life.inode, len(BEGINNING), "9.8.7", [])
  write(END[20:])
  assert reading.is_complete
  reading.extend(files)
  assert not reading.is_complete
  reading.advance(files, None, 1.0)
  assert outcome(reading, files).verdict is Verdict.USER
  assert reading.digest.position == len(BEGINNING) + len(END)
  assert [kept.name for kept in reading.digest.events] == ["SHUTDOWN"]


@pytest.mark.parametrize(
  ("seconds", "expected"), [(0.0, 1), (0.5, 1), (1.0, 1), (1.5, 2), (9.0, 4)]
)
def test_time_is_up(files, write, pieces, clock, seconds, expected):
  fill(write, 4)
  reading = begin(files)
  reading.advance(files, None, seconds)
  assert len(pieces) == expected
  assert reading.is_complete is (expected == 4)
  before = reading.position
  reading.advance(files, None, 0.0)
  assert len(pieces) == min(4, expected + 1)
  assert (reading.position > before) is (expected < 4)


def test_another_goes_on_from_the_digest(files, write, pieces, clock):
  powerdown = event("POWERDOWN")
  write(powerdown)
  size = len(powerdown) + fill(write, 4) + len(END)
  write(END)
  first = begin(files)
  first.advance(files, None, 2.0)
  files.give_back(first.digest)
  second = begin(files)
  assert second.position == first.digest.position
  assert second.digest == first.digest
  second.advance(files, None, 9.0)
  assert second.position == size
  assert second.record(files).version == "9.8.7"
  assert outcome(second, files).cause == "guest-shutdown after powerdown"
  # But for the line at which a piece ended.
  assert sum(len(piece) for _, piece in pieces) - second.position < 4 * 200


def test_what_is_written_meanwhile_waits(files, write, pieces, monkeypatch):
  write(BEGINNING)
  reading = begin(files)
  write(END)
  reading.advance(files, None, 1.0)
  assert reading.is_complete
  assert reading.position == len(BEGINNING)
  assert outcome(reading, files).verdict is Verdict.KILLED
  reading.extend(files)
  reading.advance(files, None, 1.0)
  assert outcome(reading, files).verdict is Verdict.USER


def test_nothing_is_read_that_came_after_the_reading_began(
  files, write, monkeypatch
):
  write(BEGINNING)
  read = journal_files.JournalFiles.read
  lengths = []

  def growing(files, length, position):
    write(CHATTER)
    lengths.append(length)
    return read(files, length, position)

  monkeypatch.setattr(journal_files.JournalFiles, "read", growing)
  reading = begin(files)
  reading.advance(files, None, 10.0)
  assert reading.is_complete
  assert lengths == [len(BEGINNING)]


def test_mark_counts_for_what_comes_later(files, write):
  write(BEGINNING + event("SHUTDOWN", USER))
  now = time.time()
  for marked, verdict in (
    (None, Verdict.USER),
    (now - 60.0, Verdict.ADMINISTRATOR),
    (now + 60.0, Verdict.USER),
  ):
    reading = read_whole(files, marked=marked)
    assert outcome(reading, files).verdict is verdict


def test_mark_counts_for_what_the_digest_has(control, write):
  """Whoever read it so far and whatever is left to be read."""
  write(BEGINNING + event("SHUTDOWN", USER))
  now = time.time()
  for rest in (b"", CHATTER):
    condense(control)
    write(rest)
    for marked, verdict in (
      (None, Verdict.USER),
      (now - 60.0, Verdict.ADMINISTRATOR),
      (now + 60.0, Verdict.USER),
    ):
      found = replay(control, marked=marked).lifecycle.outcome
      assert found.verdict is verdict


@pytest.mark.parametrize("has_more", [False, True])
@pytest.mark.parametrize("marked", [False, True])
def test_digest_changes_meanwhile(control, files, write, has_more, marked):
  """What it covers is gone, and is in it."""
  fill(write, 2)
  write(END)
  reading = begin(files)
  condense(control)
  if has_more:
    write(CHATTER)
    reading.extend(files)
  since = 1.0 if marked else None
  reading.advance(files, since, 9.0)
  assert reading.is_complete
  verdict = Verdict.ADMINISTRATOR if marked else Verdict.USER
  assert outcome(reading, files).verdict is verdict
  assert reading.digest == read_whole(files).digest
  assert reading.record(files).version == "9.8.7"


def test_digest_changes_in_the_middle(control, files, write, clock):
  """Nothing counts twice: what was read before is in the digest as well."""
  write(BEGINNING + event("SHUTDOWN", SIGNAL) + CHATTER * 1000)
  reading = begin(files)
  reading.advance(files, None, 0.0)
  write(event("RESET") + event("POWERDOWN") + CHATTER * 1000)
  condense(control)
  write(END)
  reading.advance(files, None, 99.0)
  reading.extend(files)
  reading.advance(files, None, 99.0)
  assert outcome(reading, files).cause == "guest-shutdown after powerdown"
  assert reading.digest == read_whole(files).digest


def test_hole_that_no_digest_covers(control, files, write, events):
  fill(write, 2)
  write(END)
  text = events.read_bytes()
  with events.open("r+b") as file:
    file.write(bytes(4096))
  with pytest.raises(journal_files.JournalError, match=r"there is .* in it"):
    read_whole(files)
  # It is no better for those who look again.
  with events.open("r+b") as file:
    file.write(text[:4096])
  condense(control)
  write(bytes(4096) + END)
  with pytest.raises(journal_files.JournalError, match=r"there is .* in it"):
    read_whole(files)


def test_digest_is_damaged_meanwhile(files, write, events):
  write(BEGINNING + END)
  reading = begin(files)
  events.write_bytes(bytes(len(BEGINNING + END)))
  events.with_name(NAME + JOURNAL_DIGEST).write_bytes(b"[]")
  with pytest.raises(journal_files.JournalError, match="digest is damaged"):
    reading.advance(files, None, 1.0)


def test_journal_that_is_shorter_than_it_was(control, ctrl_dir, write):
  write(BEGINNING + END)
  condense(control)
  os.truncate(ctrl_dir / (NAME + JOURNAL_EVENTS), 10)
  with pytest.raises(journal_files.JournalError, match="shorter"):
    replay(control)


def test_journal_becomes_shorter(files, write, events):
  write(BEGINNING + END)
  reading = begin(files)
  os.truncate(events, 0)
  with pytest.raises(journal_files.JournalError, match="shorter"):
    reading.advance(files, None, 1.0)


def test_journal_is_shorter_than_what_was_read(files, write, events):
  write(BEGINNING + END)
  reading = read_whole(files)
  reading.extend(files)
  assert reading.is_complete
  os.truncate(events, reading.position - 1)
  with pytest.raises(journal_files.JournalError, match="shorter"):
    reading.extend(files)


@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize("is_more", [False, True])
def test_most_that_is_read(control, files, write, events, covered, is_more):
  write(BEGINNING)
  if covered:
    condense(control)
  begins = len(BEGINNING) if covered else 0
  os.truncate(events, begins + journal.MAX_UNREAD + is_more)
  if is_more:
    with pytest.raises(journal_files.JournalError, match="more than 268435456"):
      begin(files)
  else:
    assert not begin(files).is_complete


def test_trouble_with_the_file_is_no_fault_of_it(files, write, monkeypatch):
  write(BEGINNING + END)
  reading = begin(files)
  fault = OSError(5, "Input/output error")
  monkeypatch.setattr(os, "pread", mock.Mock(side_effect=fault))
  with pytest.raises(OSError, match="Input/output error"):
    reading.advance(files, None, 1.0)
  monkeypatch.undo()
  reading.advance(files, None, 1.0)
  assert outcome(reading, files).verdict is Verdict.USER


@pytest.mark.parametrize("rule", Rule)
def test_journal_of_no_use(files, events, rule):
  os.utime(events, ns=(5, 7))
  err = journal_files.JournalError("it is odd")
  record = journal.useless(files, rule, err)
  assert (record.version, record.written_at) == ("", 7)
  assert record.lifecycle.outcome == (
    Verdict.UNKNOWN,
    "its journal is of no use: it is odd",
  )


@pytest.mark.parametrize("rule", Rule)
def test_journal_that_was_not_read_in_time(rule):
  before = time.time_ns()
  record = journal.lost(rule)
  assert before <= record.written_at <= time.time_ns()
  assert record.version == ""
  assert record.lifecycle.outcome == (
    Verdict.UNKNOWN,
    "its journal was removed before it could be read",
  )

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the files of journals."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from unittest import mock

import ctrl_files
import forked
import pytest
from fake_monitor import event
from ganeti.kvmd import journal_files
from ganeti.kvmd.ctrldir import (
  JOURNAL_DIGEST,
  JOURNAL_EVENTS,
  LOCK_FILE,
  ControlDirectory,
)
from ganeti.kvmd.lifecycle import Verdict
from written_journals import (
  BEGINNING,
  END,
  NAME,
  condense,
  read_whole,
  replay,
  writing,
)


@pytest.fixture
def control(ctrl_dir):
  before = len(os.listdir("/proc/self/fd"))
  with ctrl_files.opened(ctrl_dir) as found:
    yield found
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def write(control):
  with writing(control) as append:
    yield append


def occupied(control):
  return journal_files.extent(control, NAME).allocated


def test_files_and_options(ctrl_dir, control):
  options = journal_files.prepare(control, "a,b")
  assert f"pipe,id=kvmdjournal,path={ctrl_dir}/a,,b.journal" in options
  files = {"a,b.journal.digest", "a,b.journal.in", "a,b.journal.out"}
  assert ctrl_files.names(ctrl_dir) == files
  for path in ctrl_dir.iterdir():
    assert path.lstat().st_mode & 0o777 == 0o600
  commands = (ctrl_dir / "a,b.journal.in").read_bytes()
  assert json.loads(commands) == {"execute": "qmp_capabilities"}
  assert (ctrl_dir / "a,b.journal.out").read_bytes() == b""
  journal_files.remove(control, "a,b")
  journal_files.remove(control, "a,b")
  assert ctrl_files.names(ctrl_dir) == set()


def test_nothing_of_an_earlier_life_is_left(ctrl_dir, control, write):
  write(BEGINNING + END)
  condense(control)
  journal_files.prepare(control, NAME)
  assert replay(control).version == ""
  assert (ctrl_dir / (NAME + JOURNAL_DIGEST)).read_bytes() == b""


def test_journal_of_a_later_life_is_not_removed(control):
  journal_files.prepare(control, NAME)
  with journal_files.opened(control, NAME) as found:
    earlier = found.life
  while control.journaled_life(NAME) == earlier:
    journal_files.prepare(control, NAME)
  journal_files.remove_life(control, NAME, earlier)
  with journal_files.opened(control, NAME) as found:
    assert found.life != earlier
  journal_files.remove_life(control, NAME, found.life)
  with pytest.raises(FileNotFoundError), journal_files.opened(control, NAME):
    pass


def test_digest_is_not_left_for_a_later_life(control, ctrl_dir, write):
  write(BEGINNING + END)
  with journal_files.opened(control, NAME) as found:
    while control.journaled_life(NAME) == found.life:
      journal_files.prepare(control, NAME)
    found.give_back(read_whole(found).digest)
  assert (ctrl_dir / (NAME + JOURNAL_DIGEST)).read_bytes() == b""


@pytest.fixture
def other(ctrl_dir):
  """What another process knows of the directory."""
  with ctrl_files.opened(ctrl_dir) as found:
    yield found


def test_hypervisor_is_about_to_make_a_journal(control, other, write):
  write(BEGINNING + END)
  assert other.locks.lock(0.0)
  with pytest.raises(BlockingIOError):
    condense(control)
  other.locks.unlock()
  condense(control)


def test_daemon_is_in_the_middle_of_something(
  control, ctrl_dir, write, monkeypatch
):
  """The hypervisor waits for it, but not for ever."""
  write(BEGINNING + END)
  patience = 0.05
  monkeypatch.setattr(journal_files, "_LOCK_PATIENCE", patience)

  def hold():
    descriptor = os.open(ctrl_dir, os.O_RDONLY)
    daemon = ControlDirectory(str(ctrl_dir), descriptor, ".kvmd")
    daemon.locks.claim()
    assert daemon.locks.lock(0.0)

  with forked.living_on(hold) as process:
    os.kill(process, signal.SIGSTOP)
    began = time.monotonic()
    journal_files.remove(control, NAME)
    assert time.monotonic() - began >= patience
    assert ctrl_files.names(ctrl_dir) == set()
    journal_files.prepare(control, NAME)
    assert time.monotonic() - began >= 2 * patience
    assert (
      f"process {process} holds {ctrl_dir}/" in control.locks.kept_out.reason
    )
  assert replay(control).version == ""


@pytest.mark.parametrize("kind", ["flock", "shared flock"])
def test_stranger_locks_the_directory(
  control, ctrl_dir, write, monkeypatch, kind
):
  """Nobody waits for him, and journals are kept short all the same."""
  monkeypatch.setattr(time, "sleep", mock.Mock(side_effect=AssertionError))
  ctrl_dir.chmod(0o775)
  write(BEGINNING + END)
  place = forked.Place.UNPRIVILEGED
  with forked.living_on(lambda: forked.lock_as_stranger(ctrl_dir, kind), place):
    condense(control)
    assert (ctrl_dir / (NAME + JOURNAL_DIGEST)).exists()
    with journal_files.opened(control, NAME) as found:
      journal_files.remove_life(control, NAME, found.life)
    assert ctrl_files.names(ctrl_dir) == set()
    journal_files.prepare(control, NAME)
    journal_files.remove(control, NAME)
  assert control.locks.kept_out is None


def test_stranger_cannot_lock_what_is_locked(control, ctrl_dir):
  ctrl_dir.chmod(0o775)
  journal_files.prepare(control, NAME)

  def attempt():
    for kind in forked.READER_LOCKS:
      with pytest.raises(PermissionError):
        forked.lock_as_stranger(ctrl_dir / LOCK_FILE, kind)

  forked.run(attempt, forked.Place.UNPRIVILEGED)


def test_no_lock_to_be_had(control, ctrl_dir, write):
  """A journal is made and removed all the same, and at once."""
  write(BEGINNING + END)
  (ctrl_dir / LOCK_FILE).unlink()
  (ctrl_dir / LOCK_FILE).mkdir()
  with pytest.raises(BlockingIOError):
    condense(control)
  with mock.patch("time.sleep", side_effect=AssertionError):
    journal_files.prepare(control, NAME)
    journal_files.remove(control, NAME)
  assert ctrl_files.names(ctrl_dir) == set()
  path = ctrl_dir / LOCK_FILE
  assert control.locks.kept_out.reason == f"cannot use {path}: Is a directory"


def test_hypervisor_looks_while_it_is_condensed(control, ctrl_dir):
  """That is no fault of the journal."""
  journal_files.prepare(control, NAME)
  path = ctrl_dir / (NAME + JOURNAL_EVENTS)
  path.write_bytes(BEGINNING + END)
  with open(path, "rb") as reader:
    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    with pytest.raises(BlockingIOError):
      condense(control)
  assert replay(control).lifecycle.outcome.verdict is Verdict.USER


def test_who_writes(ctrl_dir, control):
  journal_files.prepare(control, NAME)
  assert not journal_files.is_being_written(control, NAME)
  with open(ctrl_dir / (NAME + JOURNAL_EVENTS), "ab") as writer:
    assert journal_files.is_being_written(control, NAME)
    writer.write(BEGINNING + END)
  # Those who read are no matter.
  with open(ctrl_dir / (NAME + JOURNAL_EVENTS), "rb"):
    assert not journal_files.is_being_written(control, NAME)
  record = replay(control)
  assert record.version == "9.8.7"
  assert record.lifecycle.outcome.verdict is Verdict.USER


def test_what_was_read_is_given_back(control, ctrl_dir, write):
  path = ctrl_dir / (NAME + JOURNAL_EVENTS)
  write(BEGINNING + event("POWERDOWN"))
  for _ in range(20):
    before = occupied(control)
    write(event("RTC_CHANGE", {"offset": 1}) * 2000)
    assert occupied(control) > before
    condense(control)
    assert occupied(control) <= journal_files.RESERVED + 8192
  assert path.stat().st_size > 20 * 2000 * 50
  write(END)
  outcome = replay(control).lifecycle.outcome
  assert outcome.cause == "guest-shutdown after powerdown"


def _make_directory(path):
  path.unlink()
  path.mkdir()


def _make_fifo(path):
  path.unlink()
  os.mkfifo(path)


def _make_link(path):
  content = path.read_bytes()
  path.unlink()
  target = path.with_name("elsewhere")
  target.write_bytes(content)
  path.symlink_to(target.name)


def _make_dangling_link(path):
  path.unlink()
  path.symlink_to("missing")


def _link_twice(path):
  os.link(path, path.with_name("elsewhere"))


@pytest.mark.parametrize(
  "spoil",
  [_make_directory, _make_fifo, _make_link, _make_dangling_link, _link_twice],
)
@pytest.mark.parametrize("ending", [JOURNAL_EVENTS, JOURNAL_DIGEST])
def test_what_is_no_file_of_our_own(control, ctrl_dir, write, spoil, ending):
  write(BEGINNING + END)
  spoil(ctrl_dir / (NAME + ending))
  with pytest.raises(journal_files.JournalError):
    replay(control)


@pytest.mark.parametrize("ending", [JOURNAL_EVENTS, JOURNAL_DIGEST])
def test_what_is_missing(control, ctrl_dir, write, ending):
  (ctrl_dir / (NAME + ending)).unlink()
  with pytest.raises(FileNotFoundError):
    replay(control)


def test_name_too_long_for_a_journal(control):
  with pytest.raises(FileNotFoundError):
    with journal_files.opened(control, "x" * 250):
      pass
  assert not journal_files.is_being_written(control, "x" * 250)
  assert journal_files.extent(control, "x" * 250) is None


@pytest.mark.parametrize(
  "content",
  [
    b" ",
    b"garbage",
    b"null",
    b"[]",
    b"{}",
    b'[1, 2, "", []]',
    b'["INODE", 0, "", []]',
    b'[INODE, -1, "", []]',
    b'[INODE, 1.5, "", []]',
    b"[INODE, 0, null, []]",
    b'[INODE, 0, "", [1]]',
    b'[INODE, 0, "", [["SHUTDOWN", {}]]]',
    b'[INODE, 0, "", [["SHUTDOWN", 7, 0]]]',
    b'[INODE, 0, "", [["SHUTDOWN", {}, "x"]]]',
    b'[INODE, 0, "", {"a": 1}]',
    b'[INODE, 999999999, "", [["SHUTDOWN", {}, 0]]]',
    b"[" * 100000,
    b"\xff",
  ],
)
def test_damaged_digest(control, ctrl_dir, write, content):
  write(BEGINNING + event("STOP"))
  condense(control)
  inode = (ctrl_dir / (NAME + JOURNAL_EVENTS)).stat().st_ino
  path = ctrl_dir / (NAME + JOURNAL_DIGEST)
  path.write_bytes(content.replace(b"INODE", b"%d" % inode))
  with pytest.raises(journal_files.JournalError):
    replay(control)


@pytest.mark.parametrize("spoil", [_make_directory, _make_fifo, _make_link])
def test_digest_that_is_no_file(control, ctrl_dir, write, spoil):
  write(BEGINNING + END)
  condense(control)
  spoil(ctrl_dir / (NAME + JOURNAL_DIGEST))
  with pytest.raises(journal_files.JournalError):
    replay(control)


def test_digest_that_was_left_half_written(control, ctrl_dir, write):
  """The daemon was killed just then."""
  write(BEGINNING + event("POWERDOWN"))
  (ctrl_dir / f"{NAME}{JOURNAL_DIGEST}.new").write_bytes(b"[1, 2")
  write(END)
  condense(control)
  outcome = replay(control).lifecycle.outcome
  assert outcome.cause == "guest-shutdown after powerdown"
  journal_files.remove(control, NAME)
  assert ctrl_files.names(ctrl_dir) == set()

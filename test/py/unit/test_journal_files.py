# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the files of journals."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from unittest import mock

import ctrl_files
import forked
import pytest
from fake_monitor import BEGINNING, event
from ganeti.kvmd.core import digest
from ganeti.kvmd.core.lifecycle import Verdict
from ganeti.kvmd.node import journal_files, own_files, space
from ganeti.kvmd.node.ctrldir import (
  JOURNAL_DIGEST,
  JOURNAL_EVENTS,
  JOURNAL_NEW_DIGEST,
  LOCK_FILE,
  ControlDirectory,
  Life,
  MissingDirectoryError,
)
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
  with pytest.raises(FileNotFoundError):
    journal_files.extent(control, "x" * 250)


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


def test_rest_of_a_journal_is_removed(control, ctrl_dir):
  """But nothing of a journal that is there."""
  journal_files.prepare(control, NAME)
  journal_files.remove_rest(control, NAME)
  assert len(ctrl_files.names(ctrl_dir)) == 3
  (ctrl_dir / (NAME + JOURNAL_EVENTS)).unlink()
  journal_files.remove_rest(control, NAME)
  assert ctrl_files.names(ctrl_dir) == set()


def test_digest_that_was_left_is_not_there_for_the_next(control, ctrl_dir):
  (ctrl_dir / (NAME + JOURNAL_NEW_DIGEST)).touch()
  journal_files.prepare(control, NAME)
  assert not (ctrl_dir / (NAME + JOURNAL_NEW_DIGEST)).exists()


def test_journal_cannot_be_made(control, ctrl_dir, monkeypatch):
  """Then nothing of it is left."""
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(space, "reserve", mock.Mock(side_effect=fault))
  with pytest.raises(OSError, match="No space"):
    journal_files.prepare(control, NAME)
  assert ctrl_files.names(ctrl_dir) == set()


def test_room_for_the_last_words(control, ctrl_dir, write):
  path = ctrl_dir / (NAME + JOURNAL_EVENTS)

  def ahead():
    return occupied(control) - path.stat().st_size

  assert ahead() >= journal_files.RESERVED
  write(BEGINNING + CHATTER * 2000)
  assert ahead() < journal_files.RESERVED // 2
  with journal_files.opened(control, NAME) as files:
    files.reserve()
    assert ahead() >= journal_files.RESERVED - 8192
    assert files.extent() == journal_files.extent(control, NAME)
    found = path.stat()
    assert files.extent() == (found.st_size, found.st_blocks * 512)


def test_room_after_it_was_condensed(control, write):
  write(BEGINNING + CHATTER * 2000)
  condense(control)
  assert occupied(control) >= journal_files.RESERVED


def test_journal_is_cut(control, ctrl_dir, write):
  write(BEGINNING + CHATTER * 2000)
  before = occupied(control)
  with journal_files.opened(control, NAME) as files:
    files.cut()
  assert occupied(control) < before // 2
  size = len(BEGINNING) + 2000 * len(CHATTER)
  assert (ctrl_dir / (NAME + JOURNAL_EVENTS)).read_bytes() == bytes(size)


@pytest.mark.parametrize("act", ["reserve", "cut"])
def test_journal_was_replaced_by_that_of_another_life(control, act):
  journal_files.prepare(control, NAME)
  with journal_files.opened(control, NAME) as files:
    journal_files.prepare(control, NAME)
    before = occupied(control)
    with pytest.raises(FileNotFoundError) as caught:
      getattr(files, act)()
  assert caught.value.filename == NAME + JOURNAL_EVENTS
  assert occupied(control) == before


def test_when_it_was_written(control, ctrl_dir, write):
  os.utime(ctrl_dir / (NAME + JOURNAL_EVENTS), ns=(5, 7))
  with journal_files.opened(control, NAME) as files:
    assert files.written_at == 7


def test_nobody_is_kept_waiting_after_the_question_who_writes(
  control, ctrl_dir
):
  """And who was in between is no reason to end."""
  journal_files.prepare(control, NAME)
  with journal_files.opened(control, NAME) as files:
    with mock.patch("fcntl.fcntl", wraps=fcntl.fcntl) as asked:
      assert not files.is_being_written
    # The kernel forgets the signal with the lease.
    assert asked.mock_calls[0].args[1:] == (fcntl.F_SETSIG, signal.SIGURG)
    path = ctrl_dir / (NAME + JOURNAL_EVENTS)
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_file_system_without_leases(control, monkeypatch):
  journal_files.prepare(control, NAME)
  fault = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
  with journal_files.opened(control, NAME) as files:
    monkeypatch.setattr(fcntl, "fcntl", mock.Mock(side_effect=fault))
    with pytest.raises(journal_files.JournalError) as caught:
      assert files.is_being_written
    monkeypatch.undo()
  reason = "cannot tell whether QEMU writes it: Invalid argument"
  assert str(caught.value) == reason


def test_nobody_knows_who_writes(control, monkeypatch):
  """It is not removed then."""
  journal_files.prepare(control, NAME)
  fault = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
  monkeypatch.setattr(os, "open", mock.Mock(side_effect=fault))
  assert journal_files.is_being_written(control, NAME)


def test_digest_of_another_journal(control, ctrl_dir, write):
  write(BEGINNING)
  inode = (ctrl_dir / (NAME + JOURNAL_EVENTS)).stat().st_ino
  text = digest.Digest(inode + 1, 0, "", []).encode()
  (ctrl_dir / (NAME + JOURNAL_DIGEST)).write_bytes(text)
  with pytest.raises(journal_files.JournalError, match="belongs to another"):
    replay(control)


def test_daemon_does_not_wait(control, other, write):
  write(BEGINNING + END)
  assert other.locks.lock(0.0)
  with mock.patch("time.sleep", side_effect=AssertionError):
    with pytest.raises(BlockingIOError) as caught:
      condense(control)
  assert caught.value.filename == control.path
  other.locks.unlock()


def test_no_room_for_the_digest(ctrl_dir):
  """It takes what was reserved, and nothing that QEMU has written is lost."""

  def check():
    # For the lock, the commands, and what is reserved.
    forked.mount_short(str(ctrl_dir), pages=2 + 16)
    with ctrl_files.opened(ctrl_dir) as control, writing(control) as append:
      append(BEGINNING + END[:20])
      with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        condense(control)
      with journal_files.opened(control, NAME) as files:
        assert files.read_digest().position == len(BEGINNING)
      append(END[20:])
      assert replay(control).lifecycle.outcome.verdict is Verdict.USER

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_digest_cannot_be_written(control, write, monkeypatch):
  """For that nothing is given back."""
  write(BEGINNING + CHATTER * 2000)
  before = occupied(control)
  fault = mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))
  monkeypatch.setattr(own_files, "replace", fault)
  with pytest.raises(OSError, match="Input/output error"):
    condense(control)
  fault.assert_called_once()
  assert occupied(control) == before


def test_what_is_given_back_and_reserved(control, write, monkeypatch):
  """All that was read; where the digest has no room, first what is ahead."""
  text = BEGINNING + CHATTER * 2000
  write(text)
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  replace = mock.Mock(side_effect=[fault, None])
  monkeypatch.setattr(own_files, "replace", replace)
  with mock.patch.object(space, "punch_hole") as punch_hole:
    with mock.patch.object(space, "reserve") as reserve:
      condense(control)
  size, reserved = len(text), journal_files.RESERVED
  assert [each.args[1:] for each in punch_hole.mock_calls] == [
    (size + space.PAGE, 2 * reserved),
    (0, size),
  ]
  assert [each.args[1:] for each in reserve.mock_calls] == [(size, reserved)]
  assert replace.call_count == 2


@pytest.mark.parametrize("size", [0, 1, 70000])
def test_room_is_reserved_behind_the_end(control, write, size):
  write(b"x" * size)
  with journal_files.opened(control, NAME) as files:
    with mock.patch.object(space, "reserve") as reserve:
      files.reserve()
  reserve.assert_called_once_with(mock.ANY, size, 64 * 1024)


def test_what_is_no_file_of_our_own_is_written_by_nobody(control, ctrl_dir):
  journal_files.prepare(control, NAME)
  with open(ctrl_dir / (NAME + JOURNAL_EVENTS), "ab"):
    assert journal_files.is_being_written(control, NAME)
    _link_twice(ctrl_dir / (NAME + JOURNAL_EVENTS))
    assert not journal_files.is_being_written(control, NAME)


def test_digest_is_removed_while_it_is_looked_for(control, ctrl_dir, write):
  """What is read then will not count."""
  write(BEGINNING)
  condense(control)
  with journal_files.opened(control, NAME) as files:
    (ctrl_dir / (NAME + JOURNAL_DIGEST)).unlink()
    assert files.read_digest() == digest.Digest(files.life.inode, 0, "", [])


@pytest.mark.parametrize(
  "use",
  [
    lambda missing: journal_files.prepare(missing, NAME),
    lambda missing: journal_files.remove(missing, NAME),
    lambda missing: journal_files.remove_life(missing, NAME, Life(1, 1)),
    lambda missing: journal_files.remove_rest(missing, NAME),
    lambda missing: journal_files.opened(missing, NAME).__enter__(),
    lambda missing: journal_files.extent(missing, NAME),
  ],
)
def test_missing_directory(use):
  missing = ctrl_files.missing("/far/away")
  with pytest.raises(MissingDirectoryError) as caught:
    use(missing)
  assert caught.value.filename == "/far/away"


def test_nobody_writes_in_a_missing_directory():
  assert not journal_files.is_being_written(
    ctrl_files.missing("/far/away"), NAME
  )

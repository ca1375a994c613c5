# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the pidfile."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from unittest import mock

import forked
import pytest
from ganeti.kvmd.node.lockfile import LockedError
from ganeti.kvmd.process import pidfile


@pytest.fixture
def path(scratch):
  return scratch / "pid"


def test_held_while_it_is_there(path):
  lock = pidfile.PidFile(str(path))
  holder = os.getpid()

  # Only another process may look: the kernel takes a lock away as soon as its
  # holder closes the file, which it may have opened just to read it.
  def check():
    for _ in range(2):
      assert path.read_text() == f"{holder}\n"
      assert pidfile.holder(str(path)) == holder
      with pytest.raises(LockedError, match=f"process {holder} holds "):
        pidfile.PidFile(str(path))
      with pytest.raises(LockedError):
        pidfile.remove_stale(str(path))

  forked.run(check)
  lock.remove()
  assert not path.exists()


def test_nobody_holds_it(path):
  assert pidfile.holder(str(path)) is None
  path.write_text("1\n")
  assert pidfile.holder(str(path)) is None


def test_nobody_else_can_open_it(path):
  lock = pidfile.PidFile(str(path))
  assert path.stat().st_mode & 0o777 == 0o600

  def attempt():
    for kind in forked.READER_LOCKS:
      with pytest.raises(PermissionError):
        forked.lock_as_stranger(path, kind)

  forked.run(attempt, forked.Place.UNPRIVILEGED)
  lock.remove()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_kinds_of_locks(path, kind):
  """The stock daemon takes one kind, Ganeti's Python daemons the other."""
  path.write_text("77\n")
  path.chmod(0o600)
  with open(path, "r+b") as other:
    getattr(fcntl, kind)(other, fcntl.LOCK_EX)
    known = {"flock": 77, "lockf": os.getpid()}[kind]

    def check():
      for take in pidfile.PidFile, pidfile.remove_stale:
        with pytest.raises(LockedError, match=f"process {known} "):
          take(str(path))

    forked.run(check)
  assert path.read_text() == "77\n"
  pidfile.PidFile(str(path)).remove()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_both_kinds_are_taken(path, kind):
  lock = pidfile.PidFile(str(path))

  def check():
    with open(path, "r+b") as other, pytest.raises(BlockingIOError):
      getattr(fcntl, kind)(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

  forked.run(check)
  lock.remove()


def hold_like_before(path):
  """Does as earlier versions did, whose pidfile everybody can read."""
  path.write_text("77\n")
  path.chmod(0o644)
  descriptor = os.open(path, os.O_RDWR)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  fcntl.lockf(descriptor, fcntl.LOCK_EX)


def test_daemon_of_an_earlier_version(path):
  with forked.living_on(lambda: hold_like_before(path)) as process:
    assert pidfile.holder(str(path)) == process
    for take in pidfile.PidFile, pidfile.remove_stale:
      with pytest.raises(LockedError, match=f"process {process} "):
        take(str(path))
    assert path.read_text() == "77\n"
  assert pidfile.holder(str(path)) is None
  lock = pidfile.PidFile(str(path))
  assert path.stat().st_mode & 0o777 == 0o600
  lock.remove()


@pytest.mark.parametrize("kind", forked.READER_LOCKS)
def test_stranger_locks_what_an_earlier_version_has_left(path, kind):
  path.write_text("77\n")
  path.chmod(0o644)
  with forked.living_on(
    lambda: forked.lock_as_stranger(path, kind), forked.Place.UNPRIVILEGED
  ):
    assert pidfile.holder(str(path)) is None
    lock = pidfile.PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    lock.remove()
    assert not path.exists()


@pytest.mark.parametrize("kind", forked.READER_LOCKS)
def test_stranger_locks_a_stale_one(path, kind):
  path.write_text("77\n")
  path.chmod(0o644)
  with forked.living_on(
    lambda: forked.lock_as_stranger(path, kind), forked.Place.UNPRIVILEGED
  ):
    pidfile.remove_stale(str(path))
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o602, 0o660])
def test_lock_of_whoever_may_write_it(path, mode):
  """It may be anybody's."""
  path.touch()
  path.chmod(mode)

  def hold():
    fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)

  with forked.living_on(hold):
    assert pidfile.holder(str(path)) is None
    pidfile.PidFile(str(path)).remove()


def test_holder_is_killed(path):
  def check():
    pidfile.PidFile(str(path))
    os.kill(os.getpid(), signal.SIGKILL)

  with pytest.raises(AssertionError, match="status 9"):
    forked.run(check)
  assert path.exists()
  assert pidfile.holder(str(path)) is None
  pidfile.PidFile(str(path)).remove()


def test_stale_one_is_removed(path):
  pidfile.remove_stale(str(path))
  path.write_text("1\n")
  pidfile.remove_stale(str(path))
  assert not path.exists()


def test_longer_content_is_replaced(path):
  path.write_text("1234567890" * 10)
  lock = pidfile.PidFile(str(path))
  assert path.read_text() == f"{os.getpid()}\n"
  lock.remove()


def test_file_of_somebody_else_is_not_removed(path, scratch):
  lock = pidfile.PidFile(str(path))
  path.rename(scratch / "moved")
  path.write_text("77\n")
  lock.remove()
  assert path.read_text() == "77\n"


@pytest.mark.parametrize("what", ["removed", "replaced", "opened", "link"])
def test_restored(path, scratch, what):
  lock = pidfile.PidFile(str(path))
  assert not lock.restore()
  if what == "opened":
    path.chmod(0o644)
  else:
    path.unlink()
  if what == "replaced":
    path.write_text("77\n")
  elif what == "link":
    path.symlink_to(scratch / "elsewhere")
  before = len(os.listdir("/proc/self/fd"))
  assert lock.restore()
  assert not lock.restore()
  assert len(os.listdir("/proc/self/fd")) == before
  assert path.stat().st_mode & 0o777 == 0o600
  assert not (scratch / "elsewhere").exists()
  holder = os.getpid()

  # Another process: see above.
  def check():
    assert pidfile.holder(str(path)) == holder
    assert path.read_text() == f"{holder}\n"

  forked.run(check)
  lock.remove()
  assert not path.exists()


def test_not_restored_where_another_daemon_is(path):
  lock = pidfile.PidFile(str(path))
  path.unlink()
  with forked.living_on(lambda: hold_like_before(path)) as process:
    for _ in range(2):
      with pytest.raises(LockedError, match=f"process {process} "):
        lock.restore()
  assert lock.restore()
  lock.remove()


def test_cannot_be_restored(path, scratch):
  lock = pidfile.PidFile(str(path))
  path.unlink()
  path.mkdir()
  with pytest.raises(IsADirectoryError):
    lock.restore()
  lock.remove()
  assert path.is_dir()


def test_file_that_is_gone_already(path):
  lock = pidfile.PidFile(str(path))
  path.unlink()
  lock.remove()


def test_link_is_replaced_and_not_followed(path, scratch):
  (scratch / "precious").write_text("content")
  path.symlink_to("precious")
  assert pidfile.holder(str(path)) is None
  lock = pidfile.PidFile(str(path))
  assert not path.is_symlink()
  lock.remove()
  path.symlink_to("precious")
  pidfile.remove_stale(str(path))
  assert not path.is_symlink()
  assert (scratch / "precious").read_text() == "content"


def test_directory(path):
  path.mkdir()
  with pytest.raises(IsADirectoryError):
    pidfile.PidFile(str(path))


def test_directory_is_missing(scratch):
  with pytest.raises(FileNotFoundError):
    pidfile.PidFile(str(scratch / "missing" / "pid"))
  assert pidfile.holder(str(scratch / "missing" / "pid")) is None


def test_no_descriptor_is_left(path):
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(3):
    lock = pidfile.PidFile(str(path))

    def check():
      inner = len(os.listdir("/proc/self/fd"))
      with pytest.raises(LockedError):
        pidfile.PidFile(str(path))
      pidfile.holder(str(path))
      assert len(os.listdir("/proc/self/fd")) == inner

    forked.run(check)
    lock.remove()
  assert len(os.listdir("/proc/self/fd")) == before


def test_lock_of_a_file_that_others_can_read_and_run(path):
  path.touch()
  path.chmod(0o755)

  def hold():
    fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)

  with forked.living_on(hold) as process:
    assert pidfile.holder(str(path)) == process


def test_daemon_of_root_is_seen_by_others(path):
  with forked.living_on(lambda: hold_like_before(path)) as process:

    def check():
      assert pidfile.holder(str(path)) == process

    forked.run(check, forked.Place.UNPRIVILEGED)


def test_nothing_is_made_to_be_removed(path):
  before = path.parent.stat().st_mtime_ns
  pidfile.remove_stale(str(path))
  assert path.parent.stat().st_mtime_ns == before


@pytest.mark.parametrize("user", [0, 1, 1000])
def test_file_is_of_the_group_that_start_stop_daemon_believes(path, user):
  with mock.patch("os.geteuid", return_value=user):
    with mock.patch("os.fchown") as changed:
      lock = pidfile.PidFile(str(path))
  assert [call.args[1:] for call in changed.mock_calls] == (
    [] if user else [(0, 0)]
  )
  lock.remove()


@pytest.mark.parametrize("function", ["os.pwrite", "os.ftruncate"])
def test_cannot_be_written(path, function):
  before = os.listdir("/proc/self/fd")
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with mock.patch(function, side_effect=fault):
    with pytest.raises(OSError, match="No space left"):
      pidfile.PidFile(str(path))
  assert os.listdir("/proc/self/fd") == before
  pidfile.PidFile(str(path)).remove()


def test_cannot_be_locked(path):
  before = os.listdir("/proc/self/fd")
  fault = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
  with mock.patch("fcntl.flock", side_effect=fault):
    with pytest.raises(OSError, match="No locks available"):
      pidfile.PidFile(str(path))
  assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_locked_in_either_word(path, number):
  """See fcntl(2)."""
  before = os.listdir("/proc/self/fd")
  path.write_text("77\n")
  path.chmod(0o600)
  with mock.patch("fcntl.lockf", side_effect=OSError(number, "locked")):
    with pytest.raises(LockedError, match="process 77 holds "):
      pidfile.PidFile(str(path))
  assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("content", ["", "no number", "7 7"])
def test_locked_by_nobody_knows_whom(path, content):
  path.write_text(content)
  path.chmod(0o600)
  with open(path, "r+b") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match=r"process \(unknown\) holds "):
      pidfile.PidFile(str(path))

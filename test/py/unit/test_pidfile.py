# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the pidfile."""

from __future__ import annotations

import fcntl
import os
import signal

import forked
import pytest
from ganeti.kvmd import pidfile


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
      with pytest.raises(pidfile.LockedError, match=f"'{holder}'"):
        pidfile.PidFile(str(path))
      with pytest.raises(pidfile.LockedError):
        pidfile.remove_stale(str(path))

  forked.run(check)
  lock.remove()
  assert not path.exists()


def test_nobody_holds_it(path):
  assert pidfile.holder(str(path)) is None
  path.write_text("1\n")
  assert pidfile.holder(str(path)) is None


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_kinds_of_locks(path, kind):
  """The stock daemon takes one kind, Ganeti's Python daemons the other."""
  path.write_text("77\n")
  with open(path, "r+b") as other:
    getattr(fcntl, kind)(other, fcntl.LOCK_EX)

    def check():
      with pytest.raises(pidfile.LockedError, match="'77'"):
        pidfile.PidFile(str(path))

    forked.run(check)
  assert path.read_text() == "77\n"
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


def test_file_that_is_gone_already(path):
  lock = pidfile.PidFile(str(path))
  path.unlink()
  lock.remove()


def test_link_is_not_followed(path, scratch):
  (scratch / "precious").write_text("content")
  path.symlink_to("precious")
  with pytest.raises(OSError, match="symbolic links"):
    pidfile.PidFile(str(path))
  with pytest.raises(OSError, match="symbolic links"):
    pidfile.holder(str(path))
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
      with pytest.raises(pidfile.LockedError):
        pidfile.PidFile(str(path))
      pidfile.holder(str(path))
      assert len(os.listdir("/proc/self/fd")) == inner

    forked.run(check)
    lock.remove()
  assert len(os.listdir("/proc/self/fd")) == before

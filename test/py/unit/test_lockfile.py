# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of lock files."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
from unittest import mock

import forked
import pytest
from ganeti.kvmd.node import lockfile
from ganeti.kvmd.node.lockfile import LockedError, LockFile

#: How a file is in the way that is not only ours
FOREIGN = [
  "open to readers",
  "open to a group",
  "open to writers",
  "link",
  "dangling link",
  "link in a circle",
  "hard link",
  "fifo",
  "socket",
  "somebody else's",
]


@pytest.fixture(autouse=True)
def _nothing_is_left_open():
  before = len(os.listdir("/proc/self/fd"))
  yield
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(scratch):
  return scratch / "lock"


def make_foreign(path, kind):
  """Puts something in the way.

  @return: a file that is nobody's business

  """
  precious = path.parent / "precious"
  precious.write_text("content")
  precious.chmod(0o600)
  if kind == "link":
    path.symlink_to(precious)
  elif kind == "dangling link":
    path.symlink_to(path.parent / "missing")
  elif kind == "link in a circle":
    path.symlink_to(path.name)
  elif kind == "hard link":
    os.link(precious, path)
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "socket":
    with socket.socket(socket.AF_UNIX) as listener:
      listener.bind(str(path))
  else:
    path.write_text("4711\n")
    modes = {"readers": 0o604, "group": 0o640, "writers": 0o602}
    path.chmod(modes.get(kind.rpartition(" ")[2], 0o600))
    if kind == "somebody else's" and os.geteuid() == 0:
      os.chown(path, 65534, 65534)
  return precious


def test_one_has_it(path):
  lock = LockFile(str(path))
  found = path.lstat()
  assert stat.S_ISREG(found.st_mode)
  assert stat.S_IMODE(found.st_mode) == 0o600
  assert int(path.read_text()) == os.getpid()
  for _ in range(2):
    # That it was opened and closed again does not matter.
    assert lockfile.holder(str(path)) == os.getpid()
    with pytest.raises(LockedError) as caught:
      LockFile(str(path))
    assert caught.value.process == os.getpid()
    assert str(caught.value) == f"process {os.getpid()} holds {path}"
  lock.close()
  assert lockfile.holder(str(path)) is None
  assert path.exists()
  LockFile(str(path)).close()


def test_nobody_has_it(path):
  assert lockfile.holder(str(path)) is None
  path.write_text("1\n")
  path.chmod(0o600)
  assert lockfile.holder(str(path)) is None


def test_who_has_it_is_killed(path):
  with forked.living_on(lambda: LockFile(str(path))) as process:
    assert lockfile.holder(str(path)) == process
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(LockedError, match=f"process {process} "):
      LockFile(str(path))
  assert lockfile.holder(str(path)) is None
  LockFile(str(path)).close()


def test_a_look_is_in_nobodys_way(path):
  LockFile(str(path)).close()
  with mock.patch("os.close"):
    descriptors = []
    opened = os.open

    def note(*arguments, **options):
      descriptors.append(opened(*arguments, **options))
      return descriptors[-1]

    with mock.patch("os.open", note):
      assert lockfile.holder(str(path)) is None
  (looking,) = descriptors
  lock = LockFile(str(path))
  lock.close()
  os.close(looking)


def test_each_place_has_its_own(path):
  lock = LockFile(str(path), 0)
  other = LockFile(str(path), 1)
  assert not lock.lock(1)
  assert not other.lock(0)
  assert lockfile.holder(str(path), 2) is None
  other.unlock(1)
  assert lockfile.holder(str(path), 1) is None
  assert lock.lock(1)
  assert other.noted(1) == os.getpid()
  lock.unlock(1)
  assert lockfile.holder(str(path), 0) == os.getpid()
  lock.close()
  other.close()


def test_relative_to_a_directory(path, scratch):
  directory = os.open(scratch, os.O_RDONLY)
  lock = LockFile(path.name, directory=directory)
  assert lock.is_intact
  assert lockfile.holder(str(path)) == os.getpid()
  lock.remove()
  assert not path.exists()
  os.close(directory)


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_nobody_else_can_open_it(path, umask):
  before = os.umask(umask)
  try:
    LockFile(str(path)).close()
  finally:
    os.umask(before)
  assert path.stat().st_mode & 0o077 == 0

  def attempt():
    for kind in forked.READER_LOCKS:
      with pytest.raises(PermissionError):
        forked.lock_as_stranger(path, kind)

  forked.run(attempt, forked.Place.UNPRIVILEGED)


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_alone_is_replaced(path, kind):
  precious = make_foreign(path, kind)
  was = precious.stat()
  held = None
  if path.is_file() and not path.is_symlink():
    held = os.open(path, os.O_RDONLY)
  if kind != "somebody else's" or os.geteuid() == 0:
    # Else it is ours alone, as there is nobody else.
    assert lockfile.holder(str(path)) is None
  lock = LockFile(str(path))
  assert lock.is_intact
  assert int(path.read_text()) == os.getpid()
  if held is not None:
    if kind != "somebody else's" or os.geteuid() == 0:
      assert not os.path.samestat(os.fstat(held), path.stat())
    os.close(held)
  assert precious.read_text() == "content"
  assert precious.stat().st_mtime_ns == was.st_mtime_ns
  assert not (path.parent / "missing").exists()
  lock.close()


@pytest.mark.parametrize("kind", forked.READER_LOCKS)
def test_what_a_stranger_has_locked_is_replaced(path, kind):
  path.write_text("1\n")
  path.chmod(0o644)
  with forked.living_on(
    lambda: forked.lock_as_stranger(path, kind), forked.Place.UNPRIVILEGED
  ):
    assert lockfile.holder(str(path)) is None
    lock = LockFile(str(path))
    assert lockfile.holder(str(path)) == os.getpid()
    lock.close()
    assert lockfile.holder(str(path)) is None


def test_directory_is_left_alone(path):
  (path / "file").mkdir(parents=True)
  with pytest.raises(IsADirectoryError):
    LockFile(str(path))
  assert lockfile.holder(str(path)) is None
  assert (path / "file").is_dir()


def test_nothing_to_put_it_in(scratch):
  path = scratch / "missing" / "lock"
  assert lockfile.holder(str(path)) is None
  with pytest.raises(FileNotFoundError):
    LockFile(str(path))


def test_of_two_users_none_replaces_the_others(path):
  """Each of them might go on with that for ever."""
  path.touch(0o600)
  before = path.stat().st_ino
  with mock.patch("os.geteuid", return_value=os.geteuid() + 1):
    with pytest.raises(PermissionError) as caught:
      LockFile(str(path))
  assert caught.value.strerror == f"it belongs to user {os.geteuid()}"
  assert path.stat().st_ino == before


@pytest.mark.parametrize("what", ["removed", "replaced", "opened"])
def test_not_intact_any_more(path, what):
  lock = LockFile(str(path))
  if what == "opened":
    path.chmod(0o644)
  else:
    path.unlink()
  if what == "replaced":
    path.touch(0o600)
  assert not lock.is_intact
  other = LockFile(str(path))
  assert other.is_intact
  lock.remove()
  assert other.is_intact
  other.remove()
  assert not path.exists()


def test_replaced_while_it_is_locked(path):
  """The lock on the old file is worth nothing."""
  take = LockFile.lock
  calls = []

  def replace(self, place):
    if not calls:
      path.unlink()
      path.touch(0o600)
    calls.append(place)
    return take(self, place)

  with mock.patch.object(LockFile, "lock", replace):
    lock = LockFile(str(path))
  assert len(calls) == 2
  assert lock.is_intact
  assert lockfile.holder(str(path)) == os.getpid()
  lock.close()


def test_replaced_while_it_is_opened(path):
  path.touch(0o600)
  opened = os.open
  calls = []

  def replace(*arguments, **options):
    if not calls:
      path.unlink()
      path.symlink_to("elsewhere")
    calls.append(arguments)
    return opened(*arguments, **options)

  with mock.patch("os.open", replace):
    lock = LockFile(str(path))
  assert lock.is_intact
  assert not (path.parent / "elsewhere").exists()
  lock.close()


def test_no_room_for_a_note(path):
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with mock.patch("os.pwrite", side_effect=fault):
    lock = LockFile(str(path))
  assert lockfile.holder(str(path)) == 0
  with pytest.raises(LockedError, match=r"process \(unknown\) holds "):
    LockFile(str(path))
  lock.close()


def test_note_that_is_no_number(path):
  lock = LockFile(str(path))
  for text in ("", "x" * 40, "\0" * 20, "1 2", "\xff"):
    path.write_text(text)
    assert lockfile.holder(str(path)) == 0
  lock.close()


def test_a_child_that_has_it_too_does_not_keep_it(path):
  """Where a process is started in between, say."""
  lock = LockFile(str(path))
  with forked.living_on(lambda: None):
    lock.unlock(0)
    LockFile(str(path)).close()
  lock.close()


@pytest.mark.parametrize("bit", range(6))
def test_file_is_private_if_its_mode_gives_nothing_to_others(path, bit):
  path.touch(0o600)
  assert lockfile.is_private(path.stat())
  path.chmod(0o600 | 1 << bit)
  assert not lockfile.is_private(path.stat())


def test_note_is_a_line_of_its_own(path):
  lock = LockFile(str(path), 1)
  assert path.read_bytes() == b"\0" * 16 + b"%-15d\n" % os.getpid()
  lock.close()


def test_neighbours_are_not_concerned(path):
  lock = LockFile(str(path), 1)
  assert lock.lock(2)
  assert lockfile.holder(str(path), 0) is None
  lock.unlock(1)
  assert lockfile.holder(str(path), 1) is None
  assert lockfile.holder(str(path), 2) == os.getpid()
  assert lock.lock(0)
  lock.unlock(0)
  assert lockfile.holder(str(path), 2) == os.getpid()
  lock.close()


@pytest.mark.parametrize("start", [0, 1, 100])
@pytest.mark.parametrize(
  ("kind", "is_told"), [(fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)]
)
def test_writer_is_who_has_locked_any_part(path, start, kind, is_told):
  path.touch(0o600)

  def take():
    descriptor = os.open(path, os.O_RDWR)
    fcntl.lockf(descriptor, kind, 1, start)

  descriptor = os.open(path, os.O_RDWR)
  assert lockfile.writer(descriptor) is None
  with forked.living_on(take) as process:
    assert lockfile.writer(descriptor) == (process if is_told else None)
  assert lockfile.writer(descriptor) is None
  os.close(descriptor)


def test_writer_that_is_no_process(path):
  """A lock that belongs to an open file."""
  lock = LockFile(str(path))
  descriptor = os.open(path, os.O_RDWR)
  assert lockfile.writer(descriptor) == 0
  os.close(descriptor)
  lock.close()


def _replaced_after_a_look(path, function, make):
  """Has a file replaced as soon as it was looked at."""
  look = getattr(os, function)

  def look_and_replace(*arguments, **options):
    found = look(*arguments, **options)
    if not replaced:
      replaced.append(path)
      path.unlink()
      make()
    return found

  replaced = []
  return mock.patch.object(os, function, look_and_replace)


def test_fifo_in_place_of_what_was_looked_at(path):
  """It would be waited for."""
  path.touch(0o600)
  with _replaced_after_a_look(path, "lstat", lambda: os.mkfifo(path)):
    assert lockfile.holder(str(path)) is None
  path.unlink()
  path.touch(0o600)
  with _replaced_after_a_look(path, "stat", lambda: os.mkfifo(path)):
    LockFile(str(path)).close()
  assert path.is_file()


def test_link_in_place_of_what_was_looked_at(path, scratch):
  elsewhere = scratch / "elsewhere"
  lock = LockFile(str(elsewhere))
  path.touch(0o600)
  with _replaced_after_a_look(
    path, "lstat", lambda: path.symlink_to(elsewhere)
  ):
    with pytest.raises(OSError, match="symbolic links"):
      lockfile.holder(str(path))
  lock.close()


def test_made_by_another_in_between(path):
  opened = os.open
  calls = []

  def open_late(*arguments, **options):
    if not calls:
      calls.append(arguments)
      path.touch(0o600)
    return opened(*arguments, **options)

  with mock.patch("os.open", open_late):
    lock = LockFile(str(path))
  assert lock.is_intact
  lock.close()


def test_file_under_a_link_is_not_at_the_link(path, scratch):
  lock = LockFile(str(path))
  path.rename(scratch / "moved")
  assert not lock.is_intact
  path.symlink_to(scratch / "moved")
  assert not lock.is_intact
  lock.close()


def test_note_that_cannot_be_read(path):
  lock = LockFile(str(path))
  fault = OSError(errno.EIO, os.strerror(errno.EIO))
  with mock.patch("os.pread", side_effect=fault):
    assert lock.noted(0) == 0
  lock.close()


def test_notes_of_two_places_are_told_apart(path):
  lock = LockFile(str(path), 1)
  assert lock.noted(0) == 0
  with mock.patch("os.getpid", return_value=4711):
    assert lock.lock(0)
  assert (lock.noted(0), lock.noted(1)) == (4711, os.getpid())
  lock.close()

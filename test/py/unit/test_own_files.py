# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of files that nobody else can have written."""

from __future__ import annotations

import errno
import os
import stat
from unittest import mock

import pytest
from ganeti.kvmd.node import own_files

TOO_LONG = "x" * 256


@pytest.fixture
def directory(ctrl_dir):
  before = len(os.listdir("/proc/self/fd"))
  descriptor = os.open(ctrl_dir, os.O_RDONLY)
  yield descriptor
  os.close(descriptor)
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(ctrl_dir):
  return ctrl_dir / "file"


@pytest.fixture
def elsewhere(scratch):
  """What is nobody's business, and a check that it was let alone."""
  found = scratch / "elsewhere"
  found.write_text("precious")
  found.chmod(0o600)
  yield found
  assert found.read_text() == "precious"


def make(path, content=b"text", mode=0o600):
  path.write_bytes(content)
  path.chmod(mode)


@pytest.mark.parametrize("name", ["missing", TOO_LONG])
def test_there_is_none(directory, name):
  assert own_files.find(directory, name) is None
  assert own_files.remove(directory, name) is False
  for look in (
    lambda: own_files.open_own(directory, name, os.O_RDONLY),
    lambda: own_files.read(directory, name, 10),
  ):
    with pytest.raises(FileNotFoundError) as caught:
      look()
    assert caught.value.filename == name


def test_it_is_found(directory, path, elsewhere):
  make(path)
  assert own_files.find(directory, "file") == path.stat()
  path.unlink()
  path.symlink_to(elsewhere)
  assert stat.S_ISLNK(own_files.find(directory, "file").st_mode)
  assert own_files.remove(directory, "file") is True
  assert not path.is_symlink()


def test_it_cannot_be_found_out(directory, path):
  make(path)
  with pytest.raises(NotADirectoryError):
    own_files.find(directory, "file/file")
  with pytest.raises(NotADirectoryError):
    own_files.remove(directory, "file/file")


@pytest.mark.parametrize(
  ("mode", "is_own"),
  [
    (0o600, True),
    (0o400, True),
    (0o644, True),
    (0o755, True),
    (0o620, False),
    (0o602, False),
    (0o666, False),
  ],
)
def test_who_else_may_write_it(directory, path, mode, is_own):
  make(path, mode=mode)
  assert own_files.is_own(path.stat()) is is_own
  if is_own:
    assert own_files.read(directory, "file", 10) == b"text"
  else:
    with pytest.raises(own_files.UnusableError) as caught:
      own_files.read(directory, "file", 10)
    assert str(caught.value) == "file is no regular file of our own"


def test_strangers_file(directory, path, monkeypatch):
  make(path)
  stranger = os.geteuid() + 1
  monkeypatch.setattr(os, "geteuid", lambda: stranger)
  assert not own_files.is_own(path.stat())
  with pytest.raises(own_files.UnusableError, match="of our own"):
    own_files.open_own(directory, "file", os.O_RDONLY)


@pytest.mark.parametrize(
  "spoil",
  [
    lambda path, _: path.mkdir(),
    lambda path, _: os.mkfifo(path),
    lambda path, other: os.link(other, path),
    lambda path, other: path.symlink_to(other),
    lambda path, _: path.symlink_to("missing"),
    lambda path, _: path.symlink_to(path.name),
    lambda path, _: os.mknod(path, stat.S_IFSOCK | 0o600),
  ],
  ids=["directory", "fifo", "two names", "link", "dangling", "loop", "socket"],
)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_is_no_file_of_our_own(directory, path, elsewhere, spoil, flags):
  spoil(path, elsewhere)
  assert not own_files.is_own(path.lstat())
  with pytest.raises(own_files.UnusableError, match="file"):
    own_files.open_own(directory, "file", flags)


def test_it_is_removed_just_now(directory, path, monkeypatch):
  """Then there is none, which is no fault of what there was."""
  make(path)
  look = os.fstat

  def remove_before(descriptor):
    path.unlink()
    return look(descriptor)

  monkeypatch.setattr(os, "fstat", remove_before)
  with pytest.raises(FileNotFoundError) as caught:
    own_files.open_own(directory, "file", os.O_RDONLY)
  monkeypatch.undo()
  assert caught.value.filename == "file"


@pytest.mark.parametrize(
  ("number", "error"),
  [
    (errno.EAGAIN, OSError),
    (errno.EIO, OSError),
    (errno.EMFILE, OSError),
    (errno.ENFILE, OSError),
    (errno.ENOMEM, OSError),
    (errno.EACCES, own_files.UnusableError),
    (errno.EROFS, own_files.UnusableError),
  ],
)
def test_whose_trouble_it_is(directory, monkeypatch, number, error):
  fault = OSError(number, os.strerror(number), "file")
  monkeypatch.setattr(os, "open", mock.Mock(side_effect=fault))
  with pytest.raises(error) as caught:
    own_files.open_own(directory, "file", os.O_RDONLY)
  if error is OSError:
    assert caught.value is fault
  else:
    assert str(caught.value) == f"cannot open file: {os.strerror(number)}"


def test_it_is_opened_for_writing(directory, path):
  make(path)
  descriptor = own_files.open_own(directory, "file", os.O_RDWR)
  assert not os.get_inheritable(descriptor)
  os.pwrite(descriptor, b"T", 0)
  os.close(descriptor)
  assert path.read_bytes() == b"Text"


def test_no_more_is_read(directory, path):
  make(path)
  assert own_files.read(directory, "file", 3) == b"tex"


@pytest.mark.parametrize("content", [b"", b"text\n"])
@pytest.mark.parametrize(
  "before",
  [
    None,
    lambda path, _: make(path, b"a longer text", 0o666),
    lambda path, other: path.symlink_to(other),
    lambda path, other: os.link(other, path),
    lambda path, _: os.mkfifo(path),
  ],
  ids=["nothing", "file", "link", "two names", "fifo"],
)
def test_it_is_written(directory, path, elsewhere, before, content):
  if before is not None:
    before(path, elsewhere)
  own_files.write(directory, "file", content)
  assert path.read_bytes() == content
  assert stat.S_IMODE(path.lstat().st_mode) == 0o600
  assert own_files.is_own(path.lstat())


def test_it_is_made_by_somebody_else_just_now(directory, path, monkeypatch):
  """It may be open to him."""
  make_ours = os.open

  def make_before(name, *arguments, **options):
    make(path)
    return make_ours(name, *arguments, **options)

  monkeypatch.setattr(os, "open", make_before)
  with pytest.raises(FileExistsError):
    own_files.create(directory, "file")


def test_directory_in_its_place(directory, path):
  path.mkdir()
  with pytest.raises(IsADirectoryError):
    own_files.create(directory, "file")
  with pytest.raises(IsADirectoryError):
    own_files.remove(directory, "file")
  with pytest.raises(IsADirectoryError) as caught:
    own_files.replace(directory, "file", "new", b"text")
  assert caught.value.filename == "file"


@pytest.mark.parametrize("date", [None, 0, 7 * 10**9 + 1])
def test_it_is_replaced_in_one_step(ctrl_dir, directory, path, date):
  make(path, b"before")
  # Left by one who was killed.
  make(ctrl_dir / "new", b"half of", 0o666)
  with path.open("rb") as before:
    own_files.replace(directory, "file", "new", b"text", date)
    assert before.read() == b"before"
  assert path.read_bytes() == b"text"
  assert os.listdir(ctrl_dir) == ["file"]
  found = path.stat()
  assert stat.S_IMODE(found.st_mode) == 0o600
  if date is None:
    assert abs(found.st_mtime_ns - found.st_ctime_ns) < 10**9
  else:
    assert found.st_mtime_ns == date


@pytest.mark.parametrize("call", ["open", "utime", "rename"])
def test_it_cannot_be_replaced(directory, path, monkeypatch, call):
  make(path, b"before")
  fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(os, call, mock.Mock(side_effect=fault))
  with pytest.raises(OSError, match="No space") as caught:
    own_files.replace(directory, "file", "new", b"text", 7)
  assert caught.value.filename == "file"
  monkeypatch.undo()
  assert path.read_bytes() == b"before"

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the files of the history."""

from __future__ import annotations

import errno
import os
import stat
from unittest import mock

import pytest
from ganeti.kvmd.core.history_line import MAX_LINE
from ganeti.kvmd.node import history_files
from ganeti.kvmd.node.history_files import MAX_OLD, HistoryFiles


@pytest.fixture
def path(scratch):
  return scratch / "kvmd-history" / "history.jsonl"


@pytest.fixture
def files(path):
  before = len(os.listdir("/proc/self/fd"))
  found = HistoryFiles(str(path))
  yield found
  found.close()
  assert len(os.listdir("/proc/self/fd")) == before


def add(files, *lines):
  files.prepare()
  for line in lines:
    files.add(line)


def line(life):
  return b'{"instance":"web1","life":"%s","x":1}\n' % life.encode()


def test_directory_and_file_are_made(files, path):
  add(files, b"1\n", b"2\n")
  add(files, b"3\n")
  assert path.read_bytes() == b"1\n2\n3\n"
  assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_goes_on_where_another_stopped(files, path):
  path.parent.mkdir()
  path.write_bytes(b"1\n")
  add(files, b"2\n")
  assert path.read_bytes() == b"1\n2\n"


@pytest.mark.parametrize(
  ("before", "after"),
  [
    (b"", b""),
    (b"1\n", b"1\n"),
    (b"1\n{", b"1\n"),
    (b'{"version":1', b""),
    (b"1\n" + b"x" * (MAX_LINE - 1), b"1\n"),
    # It is no line of ours that is as long.
    (b"1\n" + b"x" * MAX_LINE, b"1\n" + b"x" * MAX_LINE + b"\n"),
  ],
)
def test_part_of_a_line_is_taken_away(files, path, before, after):
  path.parent.mkdir()
  path.write_bytes(before)
  add(files, b"2\n")
  assert path.read_bytes() == after + b"2\n"


@pytest.mark.parametrize(
  "written", [0, 1, 5, OSError(errno.ENOSPC, "No space left on device")]
)
def test_disk_becomes_full(files, path, written):
  add(files, b"1\n")
  write = os.write

  def fill(descriptor, data):
    if isinstance(written, OSError):
      raise written
    return write(descriptor, data[:written])

  files.prepare()
  with mock.patch.object(os, "write", fill):
    with pytest.raises(OSError, match="No space") as caught:
      files.add(b"123456\n")
  assert caught.value.filename == str(path)
  assert path.read_bytes() == b"1\n"
  add(files, b"2\n")
  assert path.read_bytes() == b"1\n2\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_somebody_moves_it_away(files, path, is_there):
  add(files, b"1\n")
  path.rename(path.with_name("moved"))
  if is_there:
    path.write_bytes(b"0\n")
  add(files, b"2\n")
  assert path.with_name("moved").read_bytes() == b"1\n"
  assert path.read_bytes() == (b"0\n" if is_there else b"") + b"2\n"


def test_somebody_moves_its_directory_away(files, path):
  add(files, b"1\n")
  path.parent.rename(path.parent.with_name("moved"))
  add(files, b"2\n")
  add(files, b"3\n")
  assert path.read_bytes() == b"2\n3\n"


def test_somebody_cuts_it(files, path):
  add(files, b"1\n", b"2\n")
  os.truncate(path, 3)
  add(files, b"3\n")
  assert path.read_bytes() == b"1\n3\n"


@pytest.mark.parametrize(
  "make",
  [
    lambda path: path.mkdir(),
    os.mkfifo,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: (path.touch(), path.chmod(0o622)),
    lambda path: (path.touch(), os.link(path, path.with_name("other"))),
  ],
  ids=["directory", "fifo", "link", "writable", "two names"],
)
def test_something_else_has_its_name(files, path, make):
  path.parent.mkdir()
  make(path)
  with pytest.raises(OSError, match=r".") as caught:
    files.prepare()
  assert caught.value.filename == str(path)
  assert caught.value.strerror


def test_its_directory_cannot_be_made(scratch):
  files = HistoryFiles(str(scratch / "far" / "away" / "history"))
  with pytest.raises(FileNotFoundError):
    files.prepare()


@pytest.mark.usefixtures("path")
def test_no_more_than_so_many(files, path, monkeypatch):
  monkeypatch.setattr(history_files, "MAX_SIZE", 6)
  lines = [b"%02d\n" % number for number in range(2 * (MAX_OLD + 4))]
  add(files, *lines)
  there = sorted(os.listdir(path.parent))
  assert there == ["history.jsonl"] + [
    f"history.jsonl.{number}" for number in range(1, MAX_OLD + 1)
  ]
  kept = [path.with_name(f"history.jsonl.{n}") for n in range(MAX_OLD, 0, -1)]
  content = b"".join(each.read_bytes() for each in [*kept, path])
  assert content == b"".join(lines[-2 * (MAX_OLD + 1) :])
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_line_that_is_longer_than_a_file(files, path, monkeypatch):
  monkeypatch.setattr(history_files, "MAX_SIZE", 6)
  add(files, b"0123456789\n", b"1\n")
  assert path.read_bytes() == b"1\n"


def test_another_cannot_be_begun(files, path, monkeypatch):
  monkeypatch.setattr(history_files, "MAX_SIZE", 6)
  add(files, b"1234\n")
  files.prepare()
  with mock.patch.object(os, "rename", side_effect=OSError(errno.EROFS, "ro")):
    with pytest.raises(OSError, match="ro") as caught:
      files.add(b"5678\n")
  assert caught.value.filename == str(path)
  add(files, b"5678\n")
  assert path.read_bytes() == b"5678\n"
  assert path.with_name("history.jsonl.1").read_bytes() == b"1234\n"


def test_which_lives_are_recorded(files, path):
  add(files, line("7-1"), line("7-2"), b"garbage\n", line("8-1"))
  path.rename(path.with_name("history.jsonl.1"))
  add(files, line("9-1"))
  wanted = {"7-2", "8-1", "9-1", "9-2", "7-"}
  assert files.recorded(wanted, 0.0) == {"7-2", "8-1", "9-1"}


def test_files_from_before_the_lives_are_not_read(files, path):
  add(files, line("7-1"))
  path.rename(path.with_name("history.jsonl.1"))
  os.utime(path.with_name("history.jsonl.1"), (1000.0, 1000.0))
  add(files, line("7-2"))
  assert files.recorded({"7-1", "7-2"}, 1001.0) == {"7-2"}
  assert files.recorded({"7-1", "7-2"}, 1000.0) == {"7-1", "7-2"}


def test_what_somebody_else_has_put_there_is_not_believed(files, path):
  add(files, line("7-1"))
  other = path.with_name("history.jsonl.1")
  other.write_bytes(line("7-2"))
  other.chmod(0o666)
  path.with_name("history.jsonl.2").mkdir()
  assert files.recorded({"7-1", "7-2"}, 0.0) == {"7-1"}

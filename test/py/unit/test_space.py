# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what a file takes from its file system."""

from __future__ import annotations

import errno
import os
from unittest import mock

import forked
import pytest
from ganeti.kvmd.node import space
from ganeti.kvmd.node.space import PAGE


@pytest.fixture
def file():
  """Where the control directory is: in memory."""
  descriptor = os.memfd_create("file")
  yield descriptor
  os.close(descriptor)


@pytest.fixture
def calls(monkeypatch):
  """What the kernel is asked for: mode, position, length."""
  found = []
  monkeypatch.setattr(
    space, "_fallocate", lambda _, *asked: found.append(asked) or 0
  )
  return found


def allocated(descriptor):
  return os.fstat(descriptor).st_blocks * 512


def fill(descriptor, pages):
  os.pwrite(descriptor, b"x" * pages * PAGE, 0)


def test_room_is_reserved_behind_the_end(file):
  os.write(file, b"text")
  before = allocated(file)
  space.reserve(file, 4, 10 * PAGE)
  assert os.fstat(file).st_size == 4
  assert allocated(file) - before == 9 * PAGE
  assert os.pread(file, 10, 0) == b"text"
  space.reserve(file, 4, 10 * PAGE)
  assert allocated(file) - before == 9 * PAGE


@pytest.mark.parametrize(
  ("position", "begin"),
  [(0, 0), (1, 0), (PAGE - 1, 0), (PAGE, PAGE), (2 * PAGE + 5, 2 * PAGE)],
)
def test_as_many_pages_are_reserved_at_any_position(calls, position, begin):
  space.reserve(9, position, 3 * PAGE)
  # FALLOC_FL_KEEP_SIZE
  assert calls == [(1, begin, 3 * PAGE)]


def test_no_room_to_be_reserved(scratch):
  def check():
    forked.mount_short(str(scratch), pages=4)
    file = os.open(scratch / "file", os.O_RDWR | os.O_CREAT, 0o600)
    space.reserve(file, 0, 4 * PAGE)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
      space.reserve(file, PAGE, 4 * PAGE)

  forked.run(check, forked.Place.OWN_MOUNTS)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EIO])
def test_file_system_that_knows_no_such_thing(file, monkeypatch, number):
  fault = OSError(number, os.strerror(number))
  monkeypatch.setattr(space, "_allocate", mock.Mock(side_effect=fault))
  if number == errno.EOPNOTSUPP:
    space.reserve(file, 0, PAGE)
  else:
    with pytest.raises(OSError, match="Input/output error"):
      space.reserve(file, 0, PAGE)
  # A hole that was not made is missed.
  with pytest.raises(OSError, match=os.strerror(number)):
    space.punch_hole(file, 0, PAGE)


@pytest.mark.parametrize(
  ("position", "length", "hole"),
  [
    (0, PAGE, (0, PAGE)),
    (0, PAGE - 1, None),
    (1, PAGE, None),
    (1, 2 * PAGE - 2, None),
    (1, 2 * PAGE - 1, (PAGE, PAGE)),
    (PAGE, 3 * PAGE + 5, (PAGE, 3 * PAGE)),
    (PAGE + 1, 3 * PAGE, (2 * PAGE, 2 * PAGE)),
    (0, 0, None),
  ],
)
def test_only_whole_pages_are_given_back(calls, position, length, hole):
  space.punch_hole(9, position, length)
  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
  assert calls == ([] if hole is None else [(3, *hole)])


def test_hole_reads_as_zeros(file):
  fill(file, 4)
  before = allocated(file)
  space.punch_hole(file, 1, 3 * PAGE - 1)
  assert before - allocated(file) == 2 * PAGE
  assert os.fstat(file).st_size == 4 * PAGE
  parts = [os.pread(file, PAGE, number * PAGE) for number in range(4)]
  assert parts == [b"x" * PAGE, bytes(PAGE), bytes(PAGE), b"x" * PAGE]


def test_error_of_the_kernel_is_raised():
  with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
    space.punch_hole(-1, 0, PAGE)
  assert caught.value.errno == errno.EBADF


def test_it_is_cut_a_part_at_a_time(file, monkeypatch):
  monkeypatch.setattr(space, "_MAX_CUT", 3 * PAGE)
  fill(file, 8)
  space.reserve(file, 9 * PAGE, 10 * PAGE)
  before = allocated(file)
  for left in (5, 2, 0):
    space.cut(file)
    assert before - allocated(file) == (8 - left) * PAGE
    assert os.pread(file, 8 * PAGE, 0).count(b"x") == left * PAGE
  space.cut(file)
  assert allocated(file) == 0
  space.cut(file)
  assert os.fstat(file).st_size == 8 * PAGE


def test_cut_begins_where_there_is_something(file):
  """Its page is given back as a whole."""
  os.pwrite(file, b"x", 5 * PAGE + 100)
  assert allocated(file) == PAGE
  space.cut(file)
  assert allocated(file) == 0


def test_one_byte_is_cut(file):
  os.write(file, b"x")
  space.cut(file)
  assert allocated(file) == 0
  assert os.pread(file, 2, 0) == b"\0"


def test_cut_takes_a_millisecond_or_two(file, calls):
  fill(file, 1)
  space.cut(file)
  assert calls == [(3, 0, 16 * 1024 * 1024)]


def test_cut_fails(file, monkeypatch):
  fault = OSError(errno.EIO, os.strerror(errno.EIO))
  monkeypatch.setattr(os, "lseek", mock.Mock(side_effect=fault))
  with pytest.raises(OSError, match=os.strerror(errno.EIO)):
    space.cut(file)


def test_far_into_a_file(file):
  """Farther than a C int goes."""
  position = 5 * 1024**3
  os.pwrite(file, b"x", position)
  space.reserve(file, position, 2 * PAGE)
  assert allocated(file) == 2 * PAGE
  space.punch_hole(file, position, PAGE)
  assert allocated(file) == PAGE

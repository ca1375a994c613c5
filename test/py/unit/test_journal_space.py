# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what a journal needs of the file system."""

from __future__ import annotations

import pytest
from ganeti.kvmd.node.journal_files import RESERVED, Extent
from ganeti.kvmd.node.journal_space import LONG, is_outpaced, need

MEGABYTE = 1024 * 1024
NOTHING = Extent(0, 0)


def test_long_is_what_takes_more_than_is_reserved_twice():
  assert LONG == 128 * 1024


@pytest.mark.parametrize(
  ("covered", "now", "is_long"),
  [
    (0, Extent(0, LONG), False),
    (0, Extent(0, LONG + 1), True),
    # A file system that knows no reserve, or compresses.
    (0, Extent(LONG, 0), False),
    (0, Extent(LONG + 1, 0), True),
    (1, Extent(LONG + 1, 0), False),
    (7 * LONG, Extent(8 * LONG + 1, RESERVED), True),
    (7 * LONG, Extent(7 * LONG + 9, RESERVED), False),
  ],
)
def test_long_one_is_to_be_condensed(covered, now, is_long):
  assert need(covered, NOTHING, now, 1.0).is_long is is_long


@pytest.mark.parametrize(
  ("covered", "size", "ahead", "is_short"),
  [
    (0, 0, RESERVED, False),
    (0, 100, RESERVED * 3 // 4, False),
    (0, 100, RESERVED * 3 // 4 - 1, True),
    (50, 150, RESERVED * 3 // 4, False),
    (50, 150, RESERVED * 3 // 4 - 1, True),
    (0, 100, 0, True),
  ],
)
def test_room_for_last_words(covered, size, ahead, is_short):
  now = Extent(size, size - covered + ahead)
  assert need(covered, NOTHING, now, 1.0).is_short_of_room is is_short


@pytest.mark.parametrize(
  ("covered", "size", "is_behind"),
  [
    (0, 9, False),
    (0, MEGABYTE, False),
    (0, MEGABYTE + 1, True),
    (1, MEGABYTE + 1, False),
    (5 * MEGABYTE, 6 * MEGABYTE + 1, True),
  ],
)
def test_what_a_nearly_full_file_system_can_bear(covered, size, is_behind):
  assert need(covered, NOTHING, Extent(size, 0), 1.0).is_behind is is_behind


@pytest.mark.parametrize(
  ("before", "size", "is_fast"),
  [
    (0, MEGABYTE, False),
    (0, MEGABYTE + 1, True),
    (9, MEGABYTE + 9, False),
    (9, MEGABYTE + 10, True),
    (MEGABYTE * 2, 0, False),
  ],
)
def test_one_that_may_fill_the_file_system(before, size, is_fast):
  now = Extent(size, 0)
  assert need(0, Extent(before, 0), now, 1.0).is_fast is is_fast


@pytest.mark.parametrize(
  ("before", "size", "seconds", "lasts"),
  [
    (0, 0, 1.0, float("inf")),
    (7, 7, 1.0, float("inf")),
    # It was cut off.
    (8, 7, 1.0, float("inf")),
    (0, 1, 1.0, 32 * 1024.0),
    (0, 32 * 1024, 1.0, 1.0),
    (0, 32 * 1024, 60.0, 60.0),
    (1024, 17 * 1024, 10.0, 20.0),
    (0, 100, 0.0, 0.0),
    (0, 64 * 1024, 1.0, 0.5),
  ],
)
def test_how_long_half_of_the_room_lasts(before, size, seconds, lasts):
  now = Extent(size, 0)
  assert need(0, Extent(before, 0), now, seconds).lasts == lasts


@pytest.mark.parametrize(
  ("covered", "position", "size", "expected"),
  [
    (0, 0, 9, False),
    (0, 0, MEGABYTE, False),
    (0, 0, MEGABYTE + 1, True),
    # As much came as was read: that ends some time.
    (0, 2 * MEGABYTE, 4 * MEGABYTE, False),
    (0, 2 * MEGABYTE, 4 * MEGABYTE + 1, True),
    (MEGABYTE, 3 * MEGABYTE, 5 * MEGABYTE, False),
    (MEGABYTE, 3 * MEGABYTE, 5 * MEGABYTE + 1, True),
    (7 * MEGABYTE, 7 * MEGABYTE + 9, 8 * MEGABYTE + 9, False),
    (7 * MEGABYTE, 7 * MEGABYTE + 9, 8 * MEGABYTE + 10, True),
  ],
)
def test_written_faster_than_it_is_read(covered, position, size, expected):
  assert is_outpaced(covered, position, size) is expected

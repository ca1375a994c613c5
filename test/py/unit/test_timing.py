# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of times that belong together."""

from __future__ import annotations

import pytest
from ganeti.kvmd.core.timing import Timing

USUAL = Timing()


@pytest.mark.parametrize("name", Timing._fields)
def test_time_passes(name):
  assert getattr(USUAL, name) > 0


@pytest.mark.parametrize(
  ("name", "usual"),
  [
    # "trying again every second"
    ("delivery", 1.0),
    # "a directory that cannot be used, every second"
    ("trouble", 1.0),
    # "every second, a tenth of the time"
    ("looking", 0.1),
    # "everything is looked at again every 60 s"
    ("rescan", 60.0),
    # "thoroughly every ten times that"
    ("thorough", 10),
    # "all is looked at once a second; one line an hour"
    ("repeat", 3600.0),
    # "logs it after a minute"
    ("lock", 60.0),
  ],
)
def test_what_is_said_of_it(name, usual):
  """The log and doc/design.md say it in words, which should stay true."""
  assert getattr(USUAL, name) == usual


#: Pairs of which the first is to be the shorter one, by far.
SHORTER = [
  # One turn keeps nobody waiting.
  ("journals", "reading"),
  ("reading", "delivery"),
  ("looking", "trouble"),
  # There are several attempts before anybody hears of it.
  ("retry", "greeting"),
  ("retry", "good"),
  ("retry", "opening"),
  ("cut", "space"),
  # A rescan finds an end to it.
  ("opening", "rescan"),
  ("lingering", "rescan"),
  ("space", "hurry"),
  ("rescan", "repeat"),
]


@pytest.mark.parametrize(("shorter", "longer"), SHORTER)
def test_shorter_by_far(shorter, longer):
  assert getattr(USUAL, shorter) * 10 <= getattr(USUAL, longer)


def test_room_lasts_until_it_is_looked_at():
  """What half of it lasts for is what is compared; see journal_space.need."""
  assert 2 * USUAL.hurry >= USUAL.rescan

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when to look after whom, on no clock at all."""

from __future__ import annotations

import math

from ganeti.kvmd.core.timers import Timers
from hypothesis import given
from hypothesis import strategies as st


def started(**deadlines):
  timers = Timers()
  for name, deadline in deadlines.items():
    timers.set(name, deadline)
  return timers


def test_nobody_is_due():
  timers = Timers()
  assert timers.due == math.inf
  assert list(timers.take(math.inf)) == []
  assert "web1" not in timers


def test_the_earliest_comes_first():
  timers = started(web1=3.0, db1=1.0, mail1=2.0, www1=2.0)
  assert timers.due == 1.0
  assert list(timers.take(2.0)) == ["db1", "mail1", "www1"]
  assert timers.due == 3.0
  assert list(timers.take(2.999)) == []
  assert list(timers.take(3.0)) == ["web1"]
  assert timers.due == math.inf


def test_each_time_it_is_set_anew():
  timers = started(web1=1.0)
  assert "web1" in timers
  assert list(timers.take(1.0)) == ["web1"]
  assert "web1" not in timers
  assert list(timers.take(9.0)) == []
  timers.set("web1", 9.0)
  assert list(timers.take(9.0)) == ["web1"]


def test_earlier_than_it_was_set_before():
  timers = started(web1=5.0)
  timers.set("web1", 1.0)
  assert timers.due == 1.0
  assert list(timers.take(1.0)) == ["web1"]
  assert list(timers.take(5.0)) == []


def test_later_than_it_was_set_before():
  timers = started(web1=1.0)
  timers.set("web1", 5.0)
  assert list(timers.take(4.0)) == []
  assert "web1" in timers
  assert list(timers.take(5.0)) == ["web1"]


def test_set_twice_to_the_same():
  timers = started(web1=1.0)
  timers.set("web1", 1.0)
  assert list(timers.take(1.0)) == ["web1"]


def test_set_back_and_forth():
  timers = started(web1=1.0)
  timers.set("web1", 5.0)
  timers.set("web1", 1.0)
  assert list(timers.take(9.0)) == ["web1"]


def test_cancelled():
  timers = started(web1=1.0, db1=1.0)
  timers.cancel("web1")
  timers.cancel("mail1")
  assert "web1" not in timers
  assert list(timers.take(1.0)) == ["db1"]


def test_set_while_they_are_taken():
  """What is done about one may move it, or another, or cancel that."""
  timers = started(web1=1.0, db1=2.0, mail1=3.0, www1=4.0)
  taken = []
  for name in timers.take(4.0):
    taken.append(name)
    assert name not in timers
    if name == "web1":
      timers.set("web1", 5.0)
      timers.set("db1", 6.0)
      timers.cancel("mail1")
  assert taken == ["web1", "www1"]
  assert timers.due == 5.0
  assert list(timers.take(6.0)) == ["web1", "db1"]


def test_who_stops_in_between_loses_nobody():
  timers = started(web1=1.0, db1=2.0)
  assert next(timers.take(2.0)) == "web1"
  assert timers.due == 2.0
  assert list(timers.take(2.0)) == ["db1"]


_TIMES = st.integers(0, 9)
_STEPS = st.one_of(
  st.tuples(st.just("set"), st.sampled_from("abc"), _TIMES),
  st.tuples(st.just("cancel"), st.sampled_from("abc"), _TIMES),
  st.tuples(st.just("take"), st.just(""), _TIMES),
)


@given(st.lists(_STEPS, max_size=30))
def test_as_a_plain_table_would(steps):
  timers, table = Timers(), {}
  for what, name, at in steps:
    if what == "set":
      timers.set(name, at)
      table[name] = at
    elif what == "cancel":
      timers.cancel(name)
      table.pop(name, None)
    else:
      due = sorted((each, name) for name, each in table.items() if each <= at)
      assert list(timers.take(at)) == [name for _, name in due]
      for _, each in due:
        del table[each]
    # It may be called for too early, and never too late.
    assert timers.due <= min(table.values(), default=math.inf)
    assert [name in timers for name in "abc"] == [
      name in table for name in "abc"
    ]

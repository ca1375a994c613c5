# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How much one instance may have in the log."""

from __future__ import annotations

import collections
import math
import tracemalloc

import pytest
from ganeti.kvmd.core.quota import (
  HOUR,
  MAX_INSTANCES,
  MAX_LINES,
  MAX_VERDICTS,
  OTHERS,
  Quota,
  Summary,
)
from hypothesis import given
from hypothesis import strategies as st

START = 1000.0


def spend(quota, name="web1", lines=0, verdicts=0, now=START):
  """Wants to log so much; returns how much was admitted."""
  said = sum(quota.admit_line(name, now) for _ in range(lines))
  judged = sum(quota.admit_verdict(name, "user", now) for _ in range(verdicts))
  return said, judged


def test_what_is_beyond_is_counted_and_told_after_the_hour():
  quota = Quota()
  assert spend(quota, lines=MAX_LINES, verdicts=MAX_VERDICTS) == (60, 20)
  assert quota.due == math.inf
  for number in range(57):
    kind = "killed or crashed" if number < 3 else "user"
    assert not quota.admit_verdict("web1", kind, START + number)
  assert spend(quota, lines=123) == (0, 0)
  # That something is left out is told at once, and once.
  assert quota.due < START
  assert quota.summaries(START + 60) == [
    Summary(
      "web1",
      "more than 20 ends in an hour: further ones are counted, and the log"
      " says how many",
    ),
    Summary(
      "web1",
      "more than 60 lines about it in an hour: further ones are counted, and"
      " the log says how many",
    ),
  ]
  assert quota.due == START + HOUR
  assert quota.summaries(START + HOUR - 1) == []
  assert quota.summaries(START + HOUR) == [
    Summary(
      "web1",
      "57 more ends in the last hour are not listed: user 54, killed or"
      " crashed 3",
      {"user": 54, "killed or crashed": 3},
    ),
    Summary("web1", "123 more lines about it were left out in the last hour"),
  ]
  assert quota.due == math.inf
  assert quota.summaries(START + 2 * HOUR) == []


def test_one_more():
  quota = Quota()
  spend(quota, lines=MAX_LINES + 1, verdicts=MAX_VERDICTS + 1)
  quota.summaries(START)
  assert [each.text for each in quota.summaries(START + HOUR)] == [
    "1 more end in the last hour is not listed: user 1",
    "1 more line about it was left out in the last hour",
  ]


@pytest.mark.parametrize("kind", ["lines", "verdicts"])
def test_one_kind_is_told_after_the_hour_as_well(kind):
  quota = Quota()
  spend(quota, **{kind: 100})
  quota.summaries(START)
  assert quota.due == START + HOUR
  assert len(quota.summaries(START + HOUR)) == 1
  assert quota.due == math.inf


def test_end_of_the_daemon_ends_the_hour():
  quota = Quota()
  spend(quota, lines=MAX_LINES + 5)
  told = quota.summaries(math.inf)
  assert [each.text.split()[0] for each in told] == ["more", "5"]


def test_lines_take_nothing_from_verdicts_nor_one_instance_from_another():
  quota = Quota()
  spend(quota, lines=1000)
  assert spend(quota, verdicts=MAX_VERDICTS) == (0, MAX_VERDICTS)
  assert spend(quota, name="web2", lines=MAX_LINES) == (MAX_LINES, 0)


def test_next_hour_begins_with_the_next_line():
  quota = Quota()
  spend(quota, lines=MAX_LINES + 7)
  quota.summaries(START)
  # Nobody asked in between: what was left out is told all the same.
  later = START + 5.5 * HOUR
  assert spend(quota, lines=MAX_LINES, now=later) == (MAX_LINES, 0)
  ((name, text, _),) = quota.summaries(later)
  assert (name, text.split()[0]) == ("web1", "7")
  assert not quota.admit_line("web1", later + HOUR - 1)
  assert quota.admit_line("web1", later + HOUR)


def test_names_without_end_share_one_quota():
  quota = Quota()
  names = [f"guest{number}" for number in range(MAX_INSTANCES)]
  assert all(quota.admit_line(name, START) for name in names)
  strangers = [f"stranger{number}" for number in range(2 * MAX_INSTANCES)]
  assert sum(quota.admit_line(name, START) for name in strangers) == MAX_LINES
  # That takes nothing from those who were there before.
  assert spend(quota, name=names[-1], lines=5, verdicts=5) == (5, 5)
  quota.summaries(START)
  assert quota.summaries(START + HOUR) == [
    Summary(
      OTHERS,
      f"{len(strangers) - MAX_LINES} more lines about it were left out in the"
      " last hour",
    )
  ]


def test_memory_is_given_back():
  names = [f"guest{number}" for number in range(10_000)]
  quota = Quota()
  tracemalloc.start()
  try:
    before, _ = tracemalloc.get_traced_memory()
    for name in names:
      spend(quota, name, lines=2, verdicts=1)
    during, _ = tracemalloc.get_traced_memory()
    quota.summaries(START + HOUR)
    after, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # Two entries of a dictionary for each.
  assert during - before < 200 * len(names)
  assert after - before < 10_000


@given(
  st.lists(
    st.tuples(
      st.sampled_from(["web1", "web2"]),
      st.sampled_from(["user", "other", None]),
      st.integers(1, 100),
      st.floats(0, 2000),
    ),
    max_size=40,
  )
)
def test_what_is_logged_and_what_is_counted_is_all(actions):
  quota = Quota()
  now = START
  wanted = collections.Counter()
  logged = collections.Counter()
  told = []
  for name, verdict, number, seconds in actions:
    now += seconds
    for _ in range(number):
      if verdict is None:
        admitted = quota.admit_line(name, now)
      else:
        admitted = quota.admit_verdict(name, verdict, now)
      wanted[name, verdict] += 1
      logged[name, verdict] += admitted
    if quota.due <= now:
      told += quota.summaries(now)
  told += quota.summaries(math.inf)
  for name, text, verdicts in told:
    if " not listed: " in text:
      counts = [each.rsplit(" ", 1) for each in text.split(": ")[1].split(", ")]
      for verdict, count in counts:
        logged[name, verdict] += int(count)
      assert int(text.split()[0]) == sum(int(count) for _, count in counts)
      assert verdicts == {verdict: int(count) for verdict, count in counts}
    elif " left out " in text:
      logged[name, None] += int(text.split()[0])
  assert logged == wanted
  assert quota.due == math.inf

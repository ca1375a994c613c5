# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of who follows an instance: of the table, as a table."""

from __future__ import annotations

import itertools
import typing

import pytest
from ganeti.kvmd.core.following import (
  JOURNALED,
  TRANSITIONS,
  Fact,
  Monitor,
  Move,
  State,
)
from hypothesis import given
from hypothesis import strategies as st

#: Each state, each fact that changes something there, and what that leads to.
ROWS = [
  (State.MONITOR, Fact.OPEN, State.WRITTEN, Monitor.LEAVE),
  (State.MONITOR, Fact.CLOSED, State.READ, Monitor.AS_IT_IS),
  (State.MONITOR, Fact.EMPTY, State.AWAITED, Monitor.AS_IT_IS),
  (State.MONITOR, Fact.UNKNOWN, State.AWAITED, Monitor.AS_IT_IS),
  (State.MONITOR, Fact.USELESS, State.USELESS, Monitor.LISTEN),
  (State.AWAITED, Fact.OPEN, State.WRITTEN, Monitor.LEAVE),
  (State.AWAITED, Fact.CLOSED, State.READ, Monitor.AS_IT_IS),
  (State.AWAITED, Fact.EMPTY, State.AWAITED, Monitor.AS_IT_IS),
  (State.AWAITED, Fact.OVERDUE, State.MONITOR, Monitor.LISTEN),
  (State.AWAITED, Fact.USELESS, State.USELESS, Monitor.LISTEN),
  (State.AWAITED, Fact.GONE, State.MONITOR, Monitor.LISTEN),
  (State.WRITTEN, Fact.OPEN, State.WRITTEN, Monitor.AS_IT_IS),
  (State.WRITTEN, Fact.CLOSED, State.READ, Monitor.AS_IT_IS),
  (State.WRITTEN, Fact.EMPTY, State.AWAITED, Monitor.AS_IT_IS),
  (State.WRITTEN, Fact.USELESS, State.USELESS, Monitor.LISTEN),
  (State.WRITTEN, Fact.GONE, State.MONITOR, Monitor.AS_IT_IS),
  (State.READ, Fact.OPEN, State.WRITTEN, Monitor.LEAVE),
  (State.READ, Fact.CLOSED, State.READ, Monitor.AS_IT_IS),
  (State.READ, Fact.EMPTY, State.AWAITED, Monitor.AS_IT_IS),
  (State.READ, Fact.USELESS, State.USELESS, Monitor.LISTEN),
  (State.READ, Fact.COMPLETE, State.JUDGED, Monitor.LEAVE_DEAD),
  (State.READ, Fact.OUTDATED, State.MONITOR, Monitor.LISTEN),
  (State.READ, Fact.GONE, State.MONITOR, Monitor.AS_IT_IS),
  (State.JUDGED, Fact.DELIVERED, State.MONITOR, Monitor.AS_IT_IS),
  (State.USELESS, Fact.GONE, State.MONITOR, Monitor.AS_IT_IS),
]
EXPECTED = {
  (before, fact): Move(after, monitor) for before, fact, after, monitor in ROWS
}

MOVES = [
  (before, move) for before, row in TRANSITIONS.items() for move in row.values()
]


@pytest.mark.parametrize(("state", "fact"), itertools.product(State, Fact))
def test_row(state, fact):
  assert TRANSITIONS[state].get(fact) == EXPECTED.get((state, fact))


def test_journal_is_relied_on():
  assert {State.AWAITED, State.WRITTEN, State.READ} == JOURNALED


def reachable(start):
  """All states to which facts lead from one, with that."""
  found = {start}
  while True:
    more = {move.state for before, move in MOVES if before in found} - found
    if not more:
      return found
    found |= more


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_and_left(state):
  assert state in reachable(State.MONITOR)
  assert State.MONITOR in reachable(state)


def test_all_that_there_is_occurs():
  """What no row speaks of nobody needs to find out, or to do."""
  assert set(TRANSITIONS) == set(State)
  assert {fact for row in TRANSITIONS.values() for fact in row} == set(Fact)
  assert {move.monitor for _, move in MOVES} == set(Monitor)


@pytest.mark.parametrize(("before", "move"), MOVES)
def test_what_becomes_of_the_monitor(before, move):
  if move.monitor is Monitor.LISTEN:
    assert move.state not in JOURNALED
    # Where it was listened to already there is nothing new.
    assert before is not State.USELESS
  if move.state is State.USELESS:
    assert move.monitor is Monitor.LISTEN
  if move.state is State.WRITTEN and before is not State.WRITTEN:
    assert move.monitor is Monitor.LEAVE


class Walk:
  """An instance with a monitor, to which whatever happens can happen.

  @ivar is_listened_to: whether somebody listens to the monitor

  """

  def __init__(self) -> None:
    self.state = State.MONITOR
    self.is_listened_to = False

  def learn(self, fact: Fact) -> None:
    """Does what the table says."""
    move = TRANSITIONS[self.state].get(fact)
    if move is not None:
      self.state = move.state
      if move.monitor is not Monitor.AS_IT_IS:
        self.is_listened_to = move.monitor is Monitor.LISTEN

  def look(self) -> None:
    """Takes up the monitor as every look at all instances does."""
    if self.state not in JOURNALED:
      self.is_listened_to = True


@given(st.lists(st.none() | st.sampled_from(Fact), max_size=30))
def test_nobody_listens_while_the_journal_is_followed(
  steps: list[typing.Optional[Fact]],
) -> None:
  walk = Walk()
  for fact in steps:
    was_listened_to = walk.is_listened_to
    if fact is None:
      walk.look()
    else:
      walk.learn(fact)
    if walk.state is State.WRITTEN:
      assert not walk.is_listened_to
    if walk.state in JOURNALED:
      # The life before goes on to be listened to; nobody begins to.
      assert was_listened_to or not walk.is_listened_to
    if walk.state is State.USELESS:
      assert walk.is_listened_to
  # Whatever happened, it does not stay alone.
  if walk.state not in JOURNALED:
    walk.look()
    assert walk.is_listened_to


@given(st.lists(st.sampled_from(Fact), max_size=30))
def test_between_two_verdicts_it_begins_anew(facts: list[Fact]) -> None:
  """A journal is judged once, however it is looked at after that."""
  walk = Walk()
  has_begun = True
  for fact in facts:
    before = walk.state
    walk.learn(fact)
    if walk.state is State.JUDGED and before is not State.JUDGED:
      assert has_begun
      has_begun = False
    has_begun = has_begun or walk.state is State.MONITOR

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how long the daemon is waited for, on a clock of their own."""

from __future__ import annotations

import typing

import pytest
from ganeti.hypervisor.hv_kvm import patience


class World:
  """A daemon that works, and a clock that passes where somebody sleeps.

  @ivar works: whether the daemon has something to do
  @ivar rate: how much of the time it works
  @ivar asked: what was asked, in that order

  """

  def __init__(self) -> None:
    self.works = True
    self.rate = 0.0
    self.asked: list[str] = []
    self.naps: list[float] = []
    self.done_after = 10**9

  def monotonic(self) -> float:
    return sum(self.naps)

  def sleep(self, seconds: float) -> None:
    self.naps.append(seconds)

  def at_work(self) -> typing.Optional[float]:
    self.asked.append("daemon")
    return 50.0 + self.rate * sum(self.naps) if self.works else None

  def is_done(self) -> bool:
    self.asked.append("mark")
    return len(self.naps) >= self.done_after


@pytest.fixture
def world(monkeypatch) -> World:
  found = World()
  monkeypatch.setattr(patience, "time", found)
  return found


@pytest.fixture
def mine(world: World) -> patience.Patience:
  """The patience of one request."""
  return patience.Patience(world.at_work)


def _wait(mine: patience.Patience, world: World, possible: int = 10**9) -> bool:
  """Waits, as long as it is possible: so many times."""
  left = iter(range(possible))
  return mine.wait(lambda: next(left, None) is not None, world.is_done)


def test_nothing_is_asked_where_it_is_not_possible(mine, world: World) -> None:
  assert _wait(mine, world, 0) is False
  assert (world.asked, world.naps) == ([], [])


def test_it_is_done_already(mine, world: World) -> None:
  world.done_after = 0
  assert _wait(mine, world) is True
  assert (world.asked, world.naps) == (["daemon", "mark"], [])


def test_the_daemon_rests(mine, world: World) -> None:
  """It is asked first: what it did last before it rested may be just that."""
  world.works = False
  assert _wait(mine, world) is False
  assert (world.asked, world.naps) == (["daemon", "mark"], [])
  world.done_after = 0
  assert _wait(mine, world) is True


def test_it_is_done_meanwhile(mine, world: World) -> None:
  world.done_after = 3
  assert _wait(mine, world) is True
  assert world.naps == [0.01] * 3


def test_it_is_not_possible_any_more(mine, world: World) -> None:
  assert _wait(mine, world, 3) is False
  assert len(world.naps) == 3


@pytest.mark.parametrize(
  ("rate", "most"),
  [
    # It works now and then: as long as there is patience.
    (0.0, 1.0),
    (0.05, 1.0),
    # All the time: until it has done enough.
    (1.0, 0.1),
    (0.5, 0.2),
  ],
)
def test_how_long(mine, world: World, rate: float, most: float) -> None:
  world.rate = rate
  assert _wait(mine, world) is False
  assert sum(world.naps) == pytest.approx(most, abs=0.011)


def test_all_instances_share_it(mine, world: World) -> None:
  waited = [_wait(mine, world, 30) for _ in range(50)]
  assert waited == [False] * 50
  assert sum(world.naps) == pytest.approx(patience.LONGEST, abs=0.011)
  # The next one is asked about, and not waited for.
  world.asked.clear()
  world.done_after = len(world.naps)
  assert _wait(mine, world) is True
  assert world.asked == ["daemon", "mark"]


def test_all_instances_share_its_work(mine, world: World) -> None:
  world.rate = 1.0
  for _ in range(50):
    assert _wait(mine, world, 3) is False
  assert sum(world.naps) == pytest.approx(0.1, abs=0.011)


def test_each_request_has_its_own(mine, world: World) -> None:
  for each in (mine, patience.Patience(world.at_work)):
    before = sum(world.naps)
    assert _wait(each, world) is False
    assert sum(world.naps) - before > 0.99


def test_what_goes_wrong_is_for_who_asked(mine, world: World) -> None:
  def fail() -> bool:
    raise PermissionError

  with pytest.raises(PermissionError):
    mine.wait(fail, world.is_done)
  with pytest.raises(PermissionError):
    mine.wait(lambda: True, fail)

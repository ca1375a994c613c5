# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Shows that nothing grows without bound while hostile QEMUs do their worst.

devel/bench --hostile --minutes=10 calls it. All attacks take their turns,
several at once, and honest instances come and go meanwhile. The daemon is
started as Ganeti starts it, and looks at everything once a minute.

"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import beside
import fleet
import limits
import measure
import peers

if TYPE_CHECKING:
  from collections.abc import Iterator

# The size of the run directory's file system, in MB, and what may be used.
_ROOM = 1024
_MOST_USED = 900
_ATTACKS_AT_ONCE = 3
# Seconds for which each attack goes on.
_TURN = 15.0
_SAMPLE_SECONDS = 5.0
_PROGRESS_SECONDS = 60.0
# From one honest instance's end to the next one's, and to its next start.
_PAUSE_SECONDS = 0.2
_DOWN_SECONDS = 1.0
_FILE_TIMEOUT = 3
# A daemon that is held up for good is not waited for again and again.
_MOST_LOST_IN_A_ROW = 5
# So that the daemon has done what there is to do after the last attack.
_REST_SECONDS = 5.0

# How much may be added.
_MOST_MEMORY_MB = 8
_MOST_DESCRIPTORS = 64
_MOST_LINES_OF_AN_ATTACK = 100
_MOST_LEFT_MB = 8


class Sample(NamedTuple):
  """What the daemon has at one moment."""

  memory_mb: float
  descriptors: int
  log_kb: float
  log_lines: int
  used_mb: float


# Of a sample's fields, for a table.
_TITLES = (
  "resident memory, MB",
  "open descriptors",
  "log, KB",
  "log lines about nobody honest",
  "used in the run directory, MB",
)


class _Honest:
  """Instances that come and go.

  @ivar delays: from ends to shutdown files, in ms
  @ivar lost: how many files did not come
  @ivar lost_in_a_row: how many of them just now
  @ivar refused: how often one could not start, or not say its last words

  """

  def __init__(
    self, owners: dict[str, fleet.Fleet], files: measure.ShutdownFiles
  ) -> None:
    self._owners = owners
    self._files = files
    self._running = collections.deque(owners)
    self._down: collections.deque[tuple[float, str]] = collections.deque()
    self.delays: list[float] = []
    self.lost = 0
    self.lost_in_a_row = 0
    self.refused = 0

  def end_one(self) -> None:
    """Lets the one that has run for the longest be turned off by its user."""
    name = self._running.popleft()
    self._down.append((time.monotonic() + _DOWN_SECONDS, name))
    try:
      ended = self._owners[name].end(name)
    except fleet.FleetError:
      self.refused += 1
      return
    seen = self._files.wait([name], _FILE_TIMEOUT, _FILE_TIMEOUT)
    if name in seen:
      self.delays.append((seen[name] - ended.gone) / 1e6)
      self.lost_in_a_row = 0
    else:
      self.lost += 1
      self.lost_in_a_row += 1
    # As Ganeti does before the next start.
    self._files.remove_all()

  def start_some(self) -> None:
    """Starts those again that have been down for a while."""
    while self._down and self._down[0][0] <= time.monotonic():
      _, name = self._down.popleft()
      try:
        self._owners[name].create([name])
      except fleet.FleetError:
        self.refused += 1
        self._down.append((time.monotonic() + _DOWN_SECONDS, name))
        return
      self._running.append(name)


class _Hostile:
  """Attackers that take turns."""

  def __init__(self, directory: str, keys: list[str]) -> None:
    self._directory = directory
    self._keys = itertools.cycle(keys)
    self._size = min(_ATTACKS_AT_ONCE, len(keys))
    self._attackers: collections.deque[beside.Attacker] = collections.deque()
    self._next_turn = 0.0

  def take_turns(self) -> None:
    """Replaces the oldest attacker when its time is over."""
    now = time.monotonic()
    if now < self._next_turn:
      return
    if len(self._attackers) == self._size:
      self._attackers.popleft().close()
    key = next(self._keys)
    name = f"hostile-{key}.example.com"
    self._attackers.append(
      beside.Attacker(self._directory, name, key, 2 * _TURN)
    )
    self._next_turn = now + _TURN / self._size

  def close(self) -> None:
    """Ends all of them."""
    while self._attackers:
      self._attackers.popleft().close()


def _sample(
  running: peers.Running, node: peers.Node, log: beside.Log
) -> Sample:
  if not running.alive():
    raise measure.MeasureError(f"the daemon {running.cause_of_death()}")
  log.read()
  return Sample(
    measure.memory_of(running.pid).resident / 1024,
    len(os.listdir(f"/proc/{running.pid}/fd")),
    log.size / 1024,
    log.lines,
    beside.used_mb(node.directory),
  )


def _progress(seconds: float, sample: Sample, honest: _Honest) -> None:
  print(
    f"[{seconds:4.0f} s] {sample.memory_mb:.1f} MB, {sample.descriptors}"
    f" descriptors, log {sample.log_kb:.0f} KB with {sample.log_lines} lines"
    f" about nobody honest, {sample.used_mb:.0f} MB in the run directory;"
    f" {len(honest.delays)} ends, {honest.lost} without a file",
    flush=True,
  )


def _attack(
  running: peers.Running,
  node: peers.Node,
  honest: _Honest,
  keys: list[str],
  seconds: float,
) -> Iterator[Sample]:
  """Lets everything happen, and gives samples; the last is after all of it."""
  log = beside.Log(running.log)
  begun = time.monotonic()
  next_sample = begun
  next_progress = begun + _PROGRESS_SECONDS
  with contextlib.closing(_Hostile(node.directory, keys)) as hostile:
    while time.monotonic() - begun < seconds:
      if time.monotonic() >= next_sample:
        sample = _sample(running, node, log)
        yield sample
        next_sample += _SAMPLE_SECONDS
        if time.monotonic() >= next_progress:
          _progress(time.monotonic() - begun, sample, honest)
          next_progress += _PROGRESS_SECONDS
      hostile.take_turns()
      honest.end_one()
      if honest.lost_in_a_row == _MOST_LOST_IN_A_ROW:
        print("The daemon is held up: giving up", flush=True)
        break
      time.sleep(_PAUSE_SECONDS)
      honest.start_some()
  time.sleep(_REST_SECONDS)
  yield _sample(running, node, log)


def _limits_of(
  samples: list[Sample], honest: _Honest, attacks: int
) -> list[limits.Limit]:
  first, last = samples[0], samples[-1]
  most = Sample(*map(max, zip(*samples)))
  at_most = limits.Bound.MOST
  delay = statistics.median(honest.delays or [_FILE_TIMEOUT * 1e3])
  return [
    limits.Limit("an end to its file, median", delay, "ms", at_most, 10),
    limits.Limit("missing files", honest.lost, "files", at_most, 0),
    limits.Limit(
      "starts and last words without room",
      honest.refused,
      "times",
      at_most,
      0,
    ),
    limits.Limit(
      "memory, more than at first",
      most.memory_mb - first.memory_mb,
      "MB",
      at_most,
      _MOST_MEMORY_MB,
    ),
    limits.Limit(
      "descriptors, more than at first",
      most.descriptors - first.descriptors,
      "",
      at_most,
      _MOST_DESCRIPTORS,
    ),
    limits.Limit(
      "log lines about nobody honest",
      most.log_lines,
      "lines",
      at_most,
      _MOST_LINES_OF_AN_ATTACK * attacks,
    ),
    limits.Limit(
      "used in the run directory", most.used_mb, "MB", at_most, _MOST_USED
    ),
    limits.Limit(
      "used, after the attacks", last.used_mb, "MB", at_most, _MOST_LEFT_MB
    ),
  ]


def _print_samples(samples: list[Sample]) -> None:
  *attacked, rest = samples
  print(f"{'':32}{'first':>10}{'last':>10}{'most':>10}{'after':>10}")
  for title, after, values in zip(_TITLES, rest, zip(*attacked)):
    cells = (values[0], values[-1], max(values), after)
    print(f"{title:<32}" + "".join(f"{x:>10.1f}" for x in cells))


def run(keys: list[str], minutes: float) -> bool:
  """Attacks, and prints what has grown.

  @param keys: of the attacks
  @return: whether all limits hold

  """
  node = peers.Node("endurance", _ROOM)
  with contextlib.ExitStack() as stack:
    owners = stack.enter_context(
      beside.honest_instances(node, fleet.names_of(beside.HONEST))
    )
    running = stack.enter_context(peers.Running(peers.ours(), node))
    beside.attach(running, owners)
    files = stack.enter_context(measure.ShutdownFiles(node.directory))
    honest = _Honest(owners, files)
    samples = list(_attack(running, node, honest, keys, 60 * minutes))
  _print_samples(samples)
  if honest.delays:
    median, worst = statistics.median(honest.delays), max(honest.delays)
    print(
      f"{len(honest.delays)} honest ends: {median:.1f} ms to the file in the"
      f" median, {worst:.1f} ms at the worst; {honest.lost} without a file"
    )
  print("Limits:")
  found = _limits_of(samples, honest, len(keys))
  for limit in found:
    print(limit.as_line())
  return all(x.holds for x in found)

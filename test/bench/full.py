# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Measures all peers side by side, at all sizes; devel/bench calls it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import attacker
import beside
import fleet
import long_journals
import measure
import peers
import report
import sandbox
from errors import BenchError

if TYPE_CHECKING:
  from collections.abc import Iterator

_SIZES = (1, 100, 1000, 10000)
# One instance gives one sample a start, so there are more starts.
_STARTS_OF_ONE = 5
_SAMPLES = 50
# With fewer, attaching costs less than one start differs from another.
_LEAST_FOR_CPU = 100
_EVENTS = 20
# Enough events for a clock that knows the CPU time, but not all of its causes.
_LEAST_EVENTS = 2000
_IDLE_SECONDS = 60
# The recheck_command of every peer has this interval, in seconds.
_RECHECK_INTERVAL = 1
_RECHECKS = 5
_ATTACH_TIMEOUT = 120
_FILE_TIMEOUT = 10
_ALL_FILES_TIMEOUT = 120
# So that the peer is asleep when the next instance ends.
_PAUSE_SECONDS = 0.01


class Start(NamedTuple):
  """What starting a peer with no monitors costs."""

  ready_ms: list[float]
  cpu_ms: list[float]
  resident_mb: list[float]


class Died(Exception):
  """A peer did not get through; the message says how it ended."""


class Cell:
  """All that was measured of one peer at one size."""

  def __init__(self) -> None:
    self.samples: dict[str, list[float]] = {}
    self.failure = ""

  def add(self, row: str, *values: float) -> None:
    """Takes measurements of one row."""
    self.samples.setdefault(row, []).extend(values)

  def as_json(self) -> dict[str, Any]:
    """Gives the summaries of all rows."""
    rows = {}
    for row, values in self.samples.items():
      summary = measure.summary_of(values)
      if summary is not None:
        rows[row] = summary._asdict()
    return {"failure": self.failure, "rows": rows}


class Bench:
  """One run over all peers and sizes."""

  def __init__(
    self, contestants: list[peers.Peer], sizes: list[int], repeat: int
  ) -> None:
    self._peers = contestants
    self._sizes = sizes
    self._repeat = repeat
    self._starts = {x.key: Start([], [], []) for x in contestants}
    self._cells = {x.key: {y: Cell() for y in sizes} for x in contestants}
    # Why some do not even start.
    self._unable: dict[str, str] = {}
    self._begun = time.monotonic()

  def run(self) -> dict[str, Any]:
    """Measures everything.

    @return: the results, as JSON has them

    """
    self._say("starting with no monitors")
    node = peers.Node("empty")
    for _ in range(2 * self._repeat):
      for peer in self._peers:
        if peer.key not in self._unable:
          self._measure_start(peer, node)
    self._peers = [x for x in self._peers if x.key not in self._unable]
    for size in self._sizes:
      self._measure_size(size)
    self._measure_idle()
    return {
      "sizes": self._sizes,
      "repeat": self._repeat,
      "peers": {x.key: x.title for x in self._peers},
      "not_measured": list(self._unable.values()),
      "start": {
        key: {
          row: measure.median_of(values) if values else None
          for row, values in start._asdict().items()
        }
        for key, start in self._starts.items()
        if key not in self._unable
      },
      "cells": {
        key: {str(size): cell.as_json() for size, cell in cells.items()}
        for key, cells in self._cells.items()
        if key not in self._unable
      },
    }

  def _say(self, what: str) -> None:
    seconds = round(time.monotonic() - self._begun)
    print(f"[{seconds:4d} s] {what}", file=sys.stderr, flush=True)

  def _measure_start(self, peer: peers.Peer, node: peers.Node) -> None:
    start = self._starts[peer.key]
    try:
      with peers.Running(peer, node) as running:
        measure.settle(running.pid)
        if running.ready:
          start.ready_ms.append((running.ready - running.started) / 1e6)
        start.cpu_ms.append(measure.cpu_of(running.pid) / 1e6)
        memory = measure.memory_of(running.pid)
        start.resident_mb.append(memory.resident / 1024)
    except (measure.MeasureError, peers.NotMeasured) as err:
      self._unable[peer.key] = f"{peer.title}: {err}"

  def _measure_size(self, size: int) -> None:
    # Each sees only what is there for it.
    nodes = {x: peers.Node(f"of-{size}-{x.value}") for x in fleet.Source}
    for number in range(self._repeat):
      # One peer after the other, so that a slow minute hits all of them.
      for peer in self._peers:
        cell = self._cells[peer.key][size]
        if cell.failure:
          continue
        self._say(f"{size} x {peer.title}, {number + 1} of {self._repeat}")
        node = nodes[peer.source]
        with fleet.Fleet(node.directory, peer.source) as monitors:
          monitors.create(fleet.names_of(size))
          with _failing_into(cell):
            self._run_once(peer, node, monitors, cell)
            if number == 0 and peer.recheck_command is not None:
              monitors.create(fleet.names_of(size))
              self._measure_recheck(peer, node, monitors, cell)

  def _run_once(
    self,
    peer: peers.Peer,
    node: peers.Node,
    monitors: fleet.Fleet,
    cell: Cell,
  ) -> None:
    names = fleet.names_of(len(monitors))
    samples = max(1, min(_SAMPLES, len(names) // 2))
    with measure.ShutdownFiles(node.directory) as files:
      for _ in range(_STARTS_OF_ONE if len(names) == 1 else 1):
        with self._attached(peer, node, monitors, cell) as running:
          self._end_one_by_one(running, monitors, files, names[:samples], cell)
        files.remove_all()
        monitors.wait_disconnected(_FILE_TIMEOUT)
        monitors.create(names[:samples])
      with self._attached(peer, node, monitors, cell) as running:
        self._measure_events(running, monitors, cell)
        self._end_all(running, monitors, files, cell)
      files.remove_all()

  @contextlib.contextmanager
  def _attached(
    self,
    peer: peers.Peer,
    node: peers.Node,
    monitors: fleet.Fleet,
    cell: Cell,
  ) -> Iterator[peers.Running]:
    """Starts a peer beside its monitors and measures how it attaches."""
    monitors.arm()
    with peers.Running(peer, node) as running:
      try:
        attached = _await_attachment(running, monitors)
        measure.settle(running.pid)
        cell.add(
          "attach_ms",
          (attached.last_negotiation - attached.first_accept) / 1e6,
        )
        if len(monitors) >= _LEAST_FOR_CPU:
          started = measure.median_of(self._starts[peer.key].cpu_ms)
          used = measure.cpu_of(running.pid) / 1e6
          cell.add("attach_cpu_ms", used - started)
        yield running
      except measure.MeasureError as err:
        raise Died(f"{err}; it {running.cause_of_death()}") from err

  def _measure_events(
    self, running: peers.Running, monitors: fleet.Fleet, cell: Cell
  ) -> None:
    cell.add("memory_mb", measure.memory_of(running.pid).resident / 1024)
    rounds = max(_EVENTS, _LEAST_EVENTS // len(monitors))
    before = measure.cpu_of(running.pid)
    sent = monitors.send_events(rounds)
    _check_alive(running, "while it took in events")
    measure.settle(running.pid)
    cell.add(
      "event_cpu_us", (measure.cpu_of(running.pid) - before) / 1e3 / sent
    )
    cell.add("memory_after_mb", measure.memory_of(running.pid).resident / 1024)

  def _end_one_by_one(
    self,
    running: peers.Running,
    monitors: fleet.Fleet,
    files: measure.ShutdownFiles,
    names: list[str],
    cell: Cell,
  ) -> None:
    for name in names:
      ended = monitors.end(name)
      seen = files.wait([name], _FILE_TIMEOUT, _FILE_TIMEOUT)
      if name not in seen:
        raise Died(
          f"no file {_FILE_TIMEOUT} s after an instance's end, and it"
          f" {running.cause_of_death()}"
        )
      cell.add("one_ms", (seen[name] - ended.gone) / 1e6)
      time.sleep(_PAUSE_SECONDS)

  def _end_all(
    self,
    running: peers.Running,
    monitors: fleet.Fleet,
    files: measure.ShutdownFiles,
    cell: Cell,
  ) -> None:
    before = measure.cpu_of(running.pid)
    ended = monitors.end_all()
    seen = files.wait(ended, _ALL_FILES_TIMEOUT, _FILE_TIMEOUT)
    if len(seen) != len(ended):
      raise Died(
        f"{len(seen)} of {len(ended)} files after all ended at once, and it"
        f" {running.cause_of_death()}"
      )
    first = min(x.announced for x in ended.values())
    cell.add("all_ms", (max(seen.values()) - first) / 1e6)
    cell.add("all_one_ms", *((seen[x] - ended[x].gone) / 1e6 for x in seen))
    measure.settle(running.pid)
    _check_alive(running, "after all ended at once")
    cell.add("all_cpu_ms", (measure.cpu_of(running.pid) - before) / 1e6)

  def _measure_recheck(
    self,
    peer: peers.Peer,
    node: peers.Node,
    monitors: fleet.Fleet,
    cell: Cell,
  ) -> None:
    with peers.Running(peer, node, peer.recheck_command) as running:
      _await_attachment(running, monitors)
      # What follows an attachment is not part of a re-check.
      time.sleep(2 * _RECHECK_INTERVAL)
      before = measure.cpu_of(running.pid)
      time.sleep(_RECHECKS * _RECHECK_INTERVAL)
      used = measure.cpu_of(running.pid) - before
      cell.add("recheck_cpu_ms", used / 1e6 / _RECHECKS)

  def _measure_idle(self) -> None:
    """Lets all peers of all sizes be idle at the same time."""
    self._say(f"all idle for {_IDLE_SECONDS} s")
    with contextlib.ExitStack() as stack:
      idlers = []
      for peer in self._peers:
        for size in self._sizes:
          cell = self._cells[peer.key][size]
          if cell.failure:
            continue
          node = peers.Node(f"idle-{peer.key}-{size}".replace(" ", "-"))
          monitors = stack.enter_context(
            fleet.Fleet(node.directory, peer.source)
          )
          monitors.create(fleet.names_of(size))
          with _failing_into(cell):
            running = stack.enter_context(peers.Running(peer, node))
            _await_attachment(running, monitors)
            idlers.append((running, cell))
      for running, _ in idlers:
        measure.settle(running.pid)
      before = [measure.cpu_of(running.pid) for running, _ in idlers]
      begun = time.monotonic_ns()
      time.sleep(_IDLE_SECONDS)
      for (running, cell), used_before in zip(idlers, before):
        with _failing_into(cell):
          _check_alive(running, "while idle")
          used = measure.cpu_of(running.pid) - used_before
          elapsed = time.monotonic_ns() - begun
          cell.add("idle_percent", 100 * used / elapsed)


def _await_attachment(
  running: peers.Running, monitors: fleet.Fleet
) -> fleet.Attached:
  attached = monitors.wait_negotiated(_ATTACH_TIMEOUT, running.alive)
  # It may also die of its last connection.
  if attached.negotiated != len(monitors) or not running.alive():
    raise Died(
      f"{attached.negotiated} of {len(monitors)} monitors attached, then it"
      f" {running.cause_of_death()}"
    )
  return attached


def _check_alive(running: peers.Running, when: str) -> None:
  if not running.alive():
    raise Died(f"{running.cause_of_death()} ({when})")


@contextlib.contextmanager
def _failing_into(cell: Cell) -> Iterator[None]:
  """Takes down in the cell how a peer fails, and goes on."""
  try:
    yield
  except (Died, measure.MeasureError, peers.NotMeasured) as err:
    cell.failure = str(err)
    print(f"         {cell.failure}", file=sys.stderr, flush=True)


def _describe_machine() -> dict[str, str]:
  """Says on what kind of machine this runs."""
  with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
    models = [x.split(":")[1].strip() for x in info if "model name" in x]
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return {
    "processor": f"{os.cpu_count()} x {models[0] if models else 'unknown'}",
    "memory": f"{pages / 2**30:.0f} GiB",
    "kernel": platform.release(),
    "system": platform.freedesktop_os_release()["PRETTY_NAME"]
    if hasattr(platform, "freedesktop_os_release")
    else platform.system(),
    "python": platform.python_version(),
  }


def _sizes(text: str) -> list[int]:
  try:
    sizes = sorted({int(x) for x in text.split(",")})
  except ValueError:
    raise argparse.ArgumentTypeError(f"not a list of numbers: {text}") from None
  if sizes[0] < 1:
    raise argparse.ArgumentTypeError("a size must be at least 1")
  return sizes


def _positive(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"must be a number above 0: {text}")
  return int(text)


def main() -> int:
  """Reads the command line, measures, and writes what came out."""
  makers: dict[str, Callable[[], peers.Peer]] = {
    "ours": peers.ours,
    "journal": peers.ours_by_journal,
    "stock": peers.stock,
    "stock-foreground": peers.stock_foreground,
    "qemu.qmp": lambda: peers.qmp_listener(arguments.qmp_python),
    "bare-python": peers.bare_python,
    "bare-c": peers.bare_c,
  }

  def chosen(text: str) -> list[str]:
    keys = text.split(",")
    for key in keys:
      if key not in makers:
        raise argparse.ArgumentTypeError(
          f"{key} is none of {', '.join(makers)}"
        )
    return [x for x in makers if x in keys]

  parser = argparse.ArgumentParser(
    prog="devel/bench",
    description="Measures ganeti-kvmd and its peers side by side.",
  )
  parser.add_argument(
    "--sizes",
    type=_sizes,
    default=list(_SIZES),
    metavar="N,...",
    help="numbers of instances (%s)" % ",".join(map(str, _SIZES)),
  )
  parser.add_argument(
    "--repeat",
    type=_positive,
    default=3,
    metavar="N",
    help="how often (3)",
  )
  parser.add_argument(
    "--peers",
    type=chosen,
    default=list(makers),
    metavar="PEER,...",
    help=f"some of {','.join(makers)} (all but the last)",
  )
  parser.add_argument(
    "--output",
    default=os.path.join(peers.TOP, "build", "bench"),
    metavar="DIR",
    help="where performance.md, .svg and .json go (build/bench)",
  )
  parser.add_argument(
    "--no-hostile",
    action="store_true",
    help="do not measure beside hostile instances, which takes minutes",
  )
  parser.add_argument(
    "--note",
    default="",
    metavar="TEXT",
    help="what else is to be known of the machine, for the document",
  )
  parser.add_argument(
    "--qmp-python", default=sys.executable, help=argparse.SUPPRESS
  )
  parser.add_argument(
    "--parse-only", action="store_true", help=argparse.SUPPRESS
  )
  arguments = parser.parse_args()
  if arguments.parse_only:
    return 0
  try:
    os.makedirs(arguments.output, exist_ok=True)
    # The sandbox covers some directories; an open one stays what it is.
    output = os.open(arguments.output, os.O_RDONLY | os.O_DIRECTORY)
    sandbox.enter()
    peers.prepare()
    results = _measure([makers[x] for x in arguments.peers], arguments)
    report.write(results, output)
  except (OSError, BenchError) as err:
    print(f"devel/bench: {err}", file=sys.stderr)
    return 1
  print(report.as_text(results))
  print(f"Written: performance.md, .svg and .json in {arguments.output}")
  return 0


def _have(
  make: Callable[[], peers.Peer], missing: list[str]
) -> Optional[peers.Peer]:
  """Makes a peer; if it cannot be had, the list gets to know why."""
  try:
    return make()
  except peers.NotMeasured as err:
    missing.append(str(err))
    return None


def _measure_hostile() -> dict[str, Any]:
  """Measures beside hostile instances, and long journals."""
  rows = []
  for row in beside.measure_all(list(attacker.ATTACKS)):
    print(f"beside a hostile one: {row.title}", file=sys.stderr, flush=True)
    rows.append(row._asdict())
  results = {"hostile": rows}
  if peers.ours().pid_file is not None:
    results["long_journals"] = [
      x._asdict() for x in long_journals.measure_all()
    ]
  return results


def _measure(
  makers: list[Callable[[], peers.Peer]], arguments: argparse.Namespace
) -> dict[str, Any]:
  begun = time.monotonic()
  missing: list[str] = []
  contestants = [x for make in makers if (x := _have(make, missing))]
  results = Bench(contestants, arguments.sizes, arguments.repeat).run()
  if not arguments.no_hostile and any(x.key == "ours" for x in contestants):
    results.update(_measure_hostile())
  now = datetime.datetime.now(datetime.timezone.utc)
  return {
    "date": now.strftime("%Y-%m-%d %H:%M UTC"),
    "machine": _describe_machine(),
    "note": arguments.note,
    **results,
    "seconds": round(time.monotonic() - begun),
    "not_measured": missing + results["not_measured"],
  }


if __name__ == "__main__":
  sys.exit(main())

#!/usr/bin/python3
# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Measures in half a minute whether the daemon is as light as it must be.

Usage, as root: test/bench/quick.py [--repeat=N]. It prints what it measured,
and for each limit whether it holds.

"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import NamedTuple

import fleet
import limits
import measure
import peers
import sandbox
from errors import BenchError

_INSTANCES = 1000
_SAMPLES = 50
_ATTACH_TIMEOUT = 60
_FILE_TIMEOUT = 10
# So that the daemon is asleep when the next instance ends.
_PAUSE_SECONDS = 0.01


class Attachment(NamedTuple):
  """One start beside a thousand monitors, in milliseconds and KiB."""

  wall: float
  cpu: float
  resident: int


def attach(running: peers.Running, monitors: fleet.Fleet) -> fleet.Attached:
  """Waits until a peer has attached to all monitors."""
  attached = monitors.wait_negotiated(_ATTACH_TIMEOUT, running.alive)
  if attached.negotiated != len(monitors):
    raise measure.MeasureError(
      f"{running.peer.title}: {attached.negotiated} of {len(monitors)}"
      f" monitors attached; it {running.cause_of_death()}"
    )
  return attached


def measure_attachment(
  peer: peers.Peer, node: peers.Node, monitors: fleet.Fleet, cpu_alone: float
) -> Attachment:
  """Starts a peer beside the monitors, and ends it.

  @param cpu_alone: what it needs where there are no monitors, in ms

  """
  monitors.arm()
  with peers.Running(peer, node) as running:
    attached = attach(running, monitors)
    measure.settle(running.pid)
    result = Attachment(
      (attached.last_negotiation - attached.first_accept) / 1e6,
      measure.cpu_of(running.pid) / 1e6 - cpu_alone,
      measure.memory_of(running.pid).resident,
    )
  monitors.wait_disconnected(_FILE_TIMEOUT)
  return result


class Alone(NamedTuple):
  """One start with nothing to watch, in milliseconds and KiB."""

  ready: float
  cpu: float
  resident: int


def measure_alone(peer: peers.Peer, node: peers.Node) -> Alone:
  """Starts a peer where there are no monitors, and ends it."""
  with peers.Running(peer, node) as running:
    measure.settle(running.pid)
    return Alone(
      (running.ready - running.started) / 1e6,
      measure.cpu_of(running.pid) / 1e6,
      measure.memory_of(running.pid).resident,
    )


class Latency(NamedTuple):
  """From one instance's end to its shutdown file, in milliseconds."""

  from_announcement: float
  from_end: float


def measure_latency(
  peer: peers.Peer, node: peers.Node, monitors: fleet.Fleet
) -> list[Latency]:
  """Turns instances off one after the other."""
  latencies = []
  monitors.arm()
  with peers.Running(peer, node) as running:
    attach(running, monitors)
    measure.settle(running.pid)
    with measure.ShutdownFiles(node.directory) as files:
      for name in fleet.names_of(_SAMPLES):
        ended = monitors.end(name)
        seen = files.wait([name], _FILE_TIMEOUT, _FILE_TIMEOUT)
        if name not in seen:
          raise measure.MeasureError(
            f"{peer.title}: no shutdown file for {name}; the daemon"
            f" {running.cause_of_death()}"
          )
        latencies.append(
          Latency(
            (seen[name] - ended.announced) / 1e6,
            (seen[name] - ended.gone) / 1e6,
          )
        )
        time.sleep(_PAUSE_SECONDS)
      files.remove_all()
  return latencies


def run(repeat: int) -> None:
  """Measures everything, and prints it."""
  peers.prepare()
  node = peers.Node("node")
  ours = peers.ours()
  measured = [ours, peers.bare_python()]
  try:
    measured.append(peers.bare_c())
  except peers.NotMeasured as err:
    print(f"without the loop in C: {err}")
  alone: dict[str, list[Alone]] = {}
  for peer in measured:
    alone[peer.key] = [measure_alone(peer, node) for _ in range(repeat)]
  attachments: dict[str, list[Attachment]] = {x.key: [] for x in measured}
  latencies: list[Latency] = []
  for _ in range(repeat):
    with fleet.Fleet(node.directory) as monitors:
      monitors.create(fleet.names_of(_INSTANCES))
      # One after the other, so that a slow minute of the machine hits all.
      for peer in measured:
        cpu = statistics.median(x.cpu for x in alone[peer.key])
        attachments[peer.key].append(
          measure_attachment(peer, node, monitors, cpu)
        )
      latencies += measure_latency(ours, node, monitors)
  report(measured, alone, attachments, latencies)


def report(
  measured: list[peers.Peer],
  alone: dict[str, list[Alone]],
  attachments: dict[str, list[Attachment]],
  latencies: list[Latency],
) -> None:
  """Prints what was measured, and which limits hold."""
  median = statistics.median
  wall = {
    key: median(x.wall for x in values) for key, values in attachments.items()
  }
  repeat = len(attachments["ours"])
  print(
    f"Attaching {_INSTANCES} monitors, medians of {repeat} runs"
    " (time from the first connection to the last\nnegotiation; start-up not"
    " counted):"
  )
  for peer in measured:
    values = attachments[peer.key]
    print(
      f"  {peer.title:<24}{wall[peer.key]:>8.1f} ms"
      f"{median(x.cpu for x in values):>8.1f} ms CPU"
      f"{median(x.resident for x in values) / 1024:>7.1f} MB"
      f"{wall['ours'] / wall[peer.key]:>8.2f} (ours / this)"
    )
  ready = median(x.ready for x in alone["ours"])
  print(
    f"Starting with none: ready after {ready:.0f} ms,"
    f" {median(x.cpu for x in alone['ours']):.0f} ms CPU"
  )
  print(f"Shutdown file of one instance, {len(latencies)} ends:")
  for title, times in (
    ("from the announcement", [x.from_announcement for x in latencies]),
    ("from the monitor's end", [x.from_end for x in latencies]),
  ):
    summary = measure.summary_of(times)
    assert summary is not None
    print(
      f"  {title:<24}{summary.median:>8.2f} ms median"
      f"{summary.p99:>8.2f} ms 99th percentile"
    )
  alone_mb = median(x.resident for x in alone["ours"]) / 1024
  attached_mb = median(x.resident for x in attachments["ours"]) / 1024
  end_ms = median(x.from_end for x in latencies)
  print("Limits:")
  most = limits.Bound.MOST
  for what, measured_value, unit, bound in (
    (
      f"attach {_INSTANCES}: a bare loop in Python",
      wall["ours"] / wall["bare-python"],
      "times",
      3,
    ),
    ("start to ready, none attached", ready, "ms", 150),
    ("memory, none attached", alone_mb, "MB", 18),
    (f"memory, {_INSTANCES} attached", attached_mb, "MB", 20),
    ("a monitor's end to its file, median", end_ms, "ms", 1),
  ):
    limit = limits.Limit(what, measured_value, unit, most, bound)
    print(limit.as_line())


def main() -> int:
  """Reads the command line, and measures."""
  parser = argparse.ArgumentParser(
    description="Measures whether the daemon is as light as it must be."
  )
  parser.add_argument(
    "--repeat", type=int, default=5, metavar="N", help="how often (5)"
  )
  repeat = parser.parse_args().repeat
  if repeat < 1:
    parser.error("--repeat must be at least 1")
  try:
    sandbox.enter()
    run(repeat)
  except BenchError as err:
    print(f"{os.path.basename(__file__)}: {err}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())

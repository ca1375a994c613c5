# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the others notice of one QEMU that does its worst.

Beside each attack (see attacker.py) instances end one by one, half of them
followed by their monitors and half by their journals; then the node daemon
asks, and the daemon is told to end, all while the attack goes on. The daemon
looks at everything once a second instead of once a minute, so that this, too,
falls into a short attack.

Whoever waits here waits for a bounded time: a daemon that does not answer any
more is what some attacks are after.

"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Optional

import attacker
import fleet
import measure
import node_side
import peers

if TYPE_CHECKING:
  from collections.abc import Iterator

#: How many honest instances there are.
HONEST = 100
_HOSTILE = "hostile.example.com"
_PROGRAM = os.path.join(peers.BENCH, "attacker.py")

# The size of the run directory's file system, in MB.
_ROOM = 1024
_ATTACH_TIMEOUT = 30
_BEGIN_TIMEOUT = 5
# Longest that an attacker lives, whatever happens to this program.
_LIFETIME = 60
# So that it has got somewhere, and everything was looked at again once.
_HEAD_START = 1.2
_FILE_TIMEOUT = 3
# After so many lost files the others are not waited for.
_MOST_LOST = 2
_PAUSE_SECONDS = 0.02
# What has not ended by then stays: a daemon may be slow with each.
_ENDS_SECONDS = 20
_ANSWER_TIMEOUT = 5
_END_TIMEOUT = 3
_PROBE_SECONDS = 0.001

_OF_HONEST = re.compile(rb"instance instance\d{5}\.")


class Row(NamedTuple):
  """What was measured beside one attack; what could not be is None.

  @ivar median_ms: from an instance's end to its shutdown file; one that is
    missing counts as long as was waited for it
  @ivar lost: how many such files were missing
  @ivar sigterm_s: from SIGTERM to the daemon's end, at most L{_END_TIMEOUT}
  @ivar users_s: to find out which instances their users turned off, at most
    L{_ANSWER_TIMEOUT}; None without Ganeti
  @ivar overview_s: C{GetAllInstancesInfo}, at most L{_ANSWER_TIMEOUT}
  @ivar stock_s: the same by stock
  @ivar cpu_percent: of one core, by the daemon
  @ivar grown_mb: how much more resident memory the daemon had at its peak
  @ivar log_lines: lines of the log that are about no honest instance
  @ivar log_kb: the size of all lines
  @ivar used_mb: how full the file system was in the end
  @ivar failure: why nothing was measured, empty if it was

  """

  key: str
  title: str
  median_ms: Optional[float] = None
  worst_ms: Optional[float] = None
  lost: Optional[int] = None
  sigterm_s: Optional[float] = None
  users_s: Optional[float] = None
  overview_s: Optional[float] = None
  stock_s: Optional[float] = None
  cpu_percent: Optional[float] = None
  grown_mb: Optional[float] = None
  log_lines: Optional[int] = None
  log_kb: Optional[float] = None
  used_mb: Optional[float] = None
  failure: str = ""


class Attacker:
  """A process that attacks as long as this object is in use."""

  def __init__(
    self, directory: str, name: str, key: str, seconds: float = _LIFETIME
  ) -> None:
    """Starts it.

    @param key: of one of L{attacker.ATTACKS}
    @param seconds: after which it ends by itself

    """
    self._path = os.path.join(directory, name)
    self._process = subprocess.Popen(
      [sys.executable, _PROGRAM, directory, name, key, str(seconds)],
      stdout=subprocess.PIPE,
    )

  def __enter__(self) -> Attacker:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def wait_begun(self) -> bool:
    """Waits until the attack has begun, or for L{_BEGIN_TIMEOUT}."""
    assert self._process.stdout is not None
    ready, _, _ = select.select([self._process.stdout], [], [], _BEGIN_TIMEOUT)
    return bool(ready) and bool(self._process.stdout.readline())

  def alive(self) -> bool:
    """Says whether it still attacks."""
    return self._process.poll() is None

  def close(self) -> None:
    """Ends it, and removes its files."""
    self._process.kill()
    self._process.communicate()
    directory, name = os.path.split(self._path)
    for entry in os.scandir(directory):
      if entry.name.startswith(name + "."):
        with contextlib.suppress(FileNotFoundError):
          os.unlink(entry.path)


class Log:
  """What the daemon writes into its log from now on."""

  def __init__(self, path: str) -> None:
    self._path = path
    self._position = os.path.getsize(path)
    self.size = 0
    self.lines = 0

  def read(self) -> None:
    """Counts what has been added; L{lines} are those about nobody honest."""
    with open(self._path, "rb") as file:
      file.seek(self._position)
      added = file.read()
    self._position += len(added)
    self.size += len(added)
    self.lines += sum(1 for x in added.splitlines() if not _OF_HONEST.search(x))


class Ends(NamedTuple):
  """How late the shutdown files were, in ms, and how many were missing."""

  delays: list[float]
  lost: int


@contextlib.contextmanager
def honest_instances(
  node: peers.Node, names: list[str]
) -> Iterator[dict[str, fleet.Fleet]]:
  """Makes instances, half of them with a journal.

  @return: the fleet that each belongs to

  """
  with fleet.Fleet(node.directory, fleet.Source.MONITOR) as monitors:
    with fleet.Fleet(node.directory, fleet.Source.JOURNAL) as journals:
      owners = {}
      for owner, part in ((monitors, names[::2]), (journals, names[1::2])):
        owner.create(part)
        owners.update(dict.fromkeys(part, owner))
      # In the order in which they are going to end.
      yield {name: owners[name] for name in names}


def attach(running: peers.Running, owners: dict[str, fleet.Fleet]) -> None:
  """Waits until the daemon follows all instances, and is at rest."""
  for owner in set(owners.values()):
    attached = owner.wait_negotiated(_ATTACH_TIMEOUT, running.alive)
    if attached.negotiated != len(owner):
      raise measure.MeasureError(
        f"{attached.negotiated} of {len(owner)} instances followed; the daemon"
        f" {running.cause_of_death()}"
      )
  measure.settle(running.pid)


def end_one_by_one(
  owners: dict[str, fleet.Fleet], files: measure.ShutdownFiles
) -> Ends:
  """Lets each instance be turned off by its user, for L{_ENDS_SECONDS}."""
  delays: list[float] = []
  lost = 0
  deadline = time.monotonic() + _ENDS_SECONDS
  for name, owner in owners.items():
    if lost == _MOST_LOST or time.monotonic() > deadline:
      break
    ended = owner.end(name)
    seen = files.wait([name], _FILE_TIMEOUT, _FILE_TIMEOUT)
    if name in seen:
      delays.append((seen[name] - ended.gone) / 1e6)
    else:
      delays.append(_FILE_TIMEOUT * 1e3)
      lost += 1
    time.sleep(_PAUSE_SECONDS)
  return Ends(delays, lost)


def used_mb(directory: str) -> float:
  """Says how much of a file system is in use, in MB."""
  found = os.statvfs(directory)
  return (found.f_blocks - found.f_bfree) * found.f_frsize / 2**20


def _seconds_to_end(running: peers.Running) -> float:
  """Tells the daemon to end, and makes it if it does not."""
  begun = time.monotonic()
  os.kill(running.pid, signal.SIGTERM)
  while running.alive():
    if time.monotonic() - begun > _END_TIMEOUT:
      os.kill(running.pid, signal.SIGKILL)
      break
    time.sleep(_PROBE_SECONDS)
  return time.monotonic() - begun


def _ask(request: node_side.Request, question: node_side.Question) -> float:
  answer = request.ask(question, _ANSWER_TIMEOUT)
  return _ANSWER_TIMEOUT if answer is None else answer.seconds


def _measure_beside(
  node: peers.Node, key: Optional[str], names: list[str]
) -> Row:
  """Measures one row.

  @param key: of the attack; None for none, to know the machine's own noise

  """
  peer = peers.ours()
  with contextlib.ExitStack() as stack:
    owners = stack.enter_context(honest_instances(node, names))
    running = stack.enter_context(
      peers.Running(peer, node, peer.recheck_command)
    )
    attach(running, owners)
    requests = []
    if peer.pid_file is not None:
      requests = [
        stack.enter_context(node_side.Request(node, [*names, _HOSTILE]))
        for _ in range(2)
      ]
    files = stack.enter_context(measure.ShutdownFiles(node.directory))
    before = measure.restart_peak(running.pid)
    log = Log(running.log)
    attack = None
    if key is not None:
      attack = stack.enter_context(Attacker(node.directory, _HOSTILE, key))
      attack.wait_begun()
    time.sleep(_HEAD_START)
    cpu, begun = measure.cpu_of(running.pid), time.monotonic_ns()
    ends = end_one_by_one(owners, files)
    elapsed = time.monotonic_ns() - begun
    cpu = measure.cpu_of(running.pid) - cpu
    users = overview = stock = None
    if requests:
      users = _ask(requests[0], node_side.Question.USERS)
      overview = _ask(requests[1], node_side.Question.OVERVIEW)
      if overview < _ANSWER_TIMEOUT:
        stock = _ask(requests[1], node_side.Question.STOCK_OVERVIEW)
    log.read()
    used = used_mb(node.directory)
    if not running.alive():
      raise measure.MeasureError(f"the daemon {running.cause_of_death()}")
    grown = (measure.peak_of(running.pid) - before) / 1024
    if attack is not None and not attack.alive():
      raise measure.MeasureError(f"the attacker {key} has ended by itself")
    summary = measure.summary_of(ends.delays)
    assert summary is not None
    return Row(
      key or "none",
      _title_of(key),
      summary.median,
      summary.maximum,
      ends.lost,
      _seconds_to_end(running),
      users,
      overview,
      stock,
      100 * cpu / elapsed,
      grown,
      log.lines,
      log.size / 1024,
      used,
    )


def measure_all(keys: list[str], ends: int = HONEST) -> Iterator[Row]:
  """Measures beside each attack, and first beside none.

  @param keys: of the attacks
  @param ends: how many instances there are, and end

  """
  for key in (None, *keys):
    node = peers.Node(f"beside-{key or 'none'}", _ROOM)
    try:
      yield _measure_beside(node, key, fleet.names_of(ends))
    except (measure.MeasureError, node_side.RequestError) as err:
      yield Row(key or "none", _title_of(key), failure=str(err))
    finally:
      node.remove()


def _title_of(key: Optional[str]) -> str:
  return attacker.ATTACKS[key].title if key else "(no attack)"

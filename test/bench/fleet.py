# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A fleet of pretended QEMUs' monitors, in processes of its own.

L{Fleet} is the side of whoever measures: it starts the workers and tells
them, over one socket each, what their monitors should do. What the monitors
cost is therefore never part of what the daemon costs, and ten thousand of
them (a listening socket, a connection and a journal each) fit under any limit
of open files.

All times are C{CLOCK_MONOTONIC} in nanoseconds, the same in every process.

"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from typing import Any, Callable, NamedTuple

from errors import BenchError
from fleet_worker import Source

_WORKER = os.path.join(
  os.path.dirname(os.path.abspath(__file__)), "fleet_worker.py"
)
# Neither sockets nor connections, and a reserve.
_OTHER_DESCRIPTORS = 64
_DESCRIPTORS_OF_A_MONITOR = 3
_POLL_SECONDS = 0.002
_PROBE_SECONDS = 0.1


class FleetError(BenchError):
  """The fleet cannot do what it was told."""


class Attached(NamedTuple):
  """How far the monitors' client came.

  @ivar negotiated: with how many monitors at the same time; it may be gone
  @ivar first_accept: when the first connection was taken, 0 if none was
  @ivar last_negotiation: when the last answer to C{qmp_capabilities} was
    sent, or when the last connection was taken where there are journals; 0 if
    none was

  """

  negotiated: int
  first_accept: int
  last_negotiation: int


class Ended(NamedTuple):
  """When an instance said SHUTDOWN, and when its monitor, or journal, ended."""

  announced: int
  gone: int


class _Link:
  """The measuring side's end of the socket to one worker."""

  def __init__(self) -> None:
    ours, theirs = socket.socketpair()
    self.socket = ours
    self._lines = b""
    try:
      self.process = subprocess.Popen(
        [sys.executable, _WORKER],
        stdin=theirs.fileno(),
        start_new_session=True,
      )
    finally:
      theirs.close()

  def send(self, order: str, **arguments: Any) -> None:
    text = json.dumps({"order": order, **arguments}) + "\n"
    self.socket.sendall(text.encode())

  def receive(self) -> dict[str, Any]:
    while b"\n" not in self._lines:
      data = self.socket.recv(1 << 20)
      if not data:
        raise FleetError("a worker of the fleet has ended unexpectedly")
      self._lines += data
    line, self._lines = self._lines.split(b"\n", 1)
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
      raise FleetError(answer["error"])
    return answer

  def close(self) -> None:
    self.socket.close()
    self.process.wait()


class Fleet:
  """Pretended monitors in one directory, in as many workers as they need."""

  def __init__(
    self,
    directory: str,
    source: Source = Source.MONITOR,
    suffix: str = ".kvmd",
  ) -> None:
    self._directory = directory
    self._source = source
    self._suffix = suffix
    self._links: list[_Link] = []
    self._owners: dict[str, _Link] = {}
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    self._capacity = (limit - _OTHER_DESCRIPTORS) // _DESCRIPTORS_OF_A_MONITOR

  def __enter__(self) -> Fleet:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def __len__(self) -> int:
    return len(self._owners)

  def close(self) -> None:
    """Ends the workers; their monitors' and journals' files are removed."""
    try:
      self.end_all()
      for entry in os.scandir(self._directory):
        if ".journal." in entry.name:
          # The daemon removes some of them itself.
          with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)
    finally:
      for link in self._links:
        link.close()
      self._links = []
      self._owners = {}

  def create(self, names: list[str]) -> None:
    """Makes monitors, and starts the workers that these need."""
    load = dict.fromkeys(self._links, 0)
    for owner in self._owners.values():
      load[owner] += 1
    rest = list(names)
    while rest:
      link = next((x for x in load if load[x] < self._capacity), None)
      if link is None:
        link = _Link()
        self._links.append(link)
        load[link] = 0
      room = self._capacity - load[link]
      part, rest = rest[:room], rest[room:]
      link.send(
        "create",
        directory=self._directory,
        names=part,
        suffix=self._suffix,
        source=self._source.value,
      )
      link.receive()
      load[link] += len(part)
      self._owners.update(dict.fromkeys(part, link))

  def arm(self) -> None:
    """Makes ready for a new client, whose times count from now on."""
    self._order_all("arm")

  def wait_negotiated(
    self, timeout: float, alive: Callable[[], bool]
  ) -> Attached:
    """Waits until every monitor has a client that negotiated.

    @param timeout: in seconds
    @param alive: whether it is worth while to go on waiting
    @return: how far the client came, which may be not to the end

    """
    counts = dict.fromkeys(self._links, 0)
    for owner in self._owners.values():
      counts[owner] += 1
    waiting = {link.socket: link for link in self._links}
    for link, count in counts.items():
      link.send("await", count=count)
    deadline = time.monotonic() + timeout
    while waiting:
      ready, _, _ = select.select(list(waiting), [], [], _PROBE_SECONDS)
      for sock in ready:
        waiting.pop(sock).receive()
      if not ready and (not alive() or time.monotonic() > deadline):
        break
    for link in waiting.values():
      link.send("status")
      # What was awaited may be reached in this very moment.
      while "negotiated" not in link.receive():
        pass
    return self.status()

  def status(self) -> Attached:
    """Says how far the client has come since L{arm}."""
    answers = self._order_all("status")
    accepts = [x["first_accept"] for x in answers if x["first_accept"]]
    return Attached(
      sum(x["negotiated"] for x in answers),
      min(accepts, default=0),
      max((x["last_negotiation"] for x in answers), default=0),
    )

  def wait_disconnected(self, timeout: float) -> None:
    """Waits until no monitor has a client.

    @param timeout: in seconds
    @raise FleetError: when a client stays longer

    """
    deadline = time.monotonic() + timeout
    while any(x["connected"] for x in self._order_all("status")):
      if time.monotonic() > deadline:
        raise FleetError(f"a client stayed connected for {timeout} seconds")
      time.sleep(_POLL_SECONDS)

  def send_events(self, rounds: int) -> int:
    """Sends uninteresting events, and waits until they are read.

    @param rounds: how many events for each monitor
    @return: how many were sent altogether

    """
    answers = self._order_all("events", rounds=rounds)
    return sum(x["sent"] for x in answers)

  def end(self, name: str) -> Ended:
    """Ends one instance, as its user's poweroff does."""
    link = self._owners.pop(name)
    link.send("end", names=[name])
    ((_, announced, gone),) = link.receive()["ended"]
    return Ended(announced, gone)

  def end_all(self) -> dict[str, Ended]:
    """Ends all instances at once, as their users' poweroffs do."""
    self._owners = {}
    answers = self._order_all("end", names=None)
    return {
      name: Ended(announced, gone)
      for answer in answers
      for name, announced, gone in answer["ended"]
    }

  def cpu(self) -> int:
    """Gives the CPU time of all workers, in nanoseconds."""
    return sum(x["cpu"] for x in self._order_all("cpu"))

  def _order_all(self, order: str, **arguments: Any) -> list[dict[str, Any]]:
    # All at once, so that they work at the same time.
    for link in self._links:
      link.send(order, **arguments)
    return [link.receive() for link in self._links]


def names_of(count: int) -> list[str]:
  """Makes names for instances."""
  return [f"instance{number:05d}.example.com" for number in range(count)]

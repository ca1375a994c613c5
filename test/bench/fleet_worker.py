# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A worker of the fleet: pretended QEMU monitors in a process of their own.

On the wire a monitor is what QEMU 7.2 is: one client at a time, a greeting,
commands that may arrive in any pieces (Ganeti's own daemon writes them one
byte at a time), events with a time of their own; at its end the connection is
closed first, then the socket's file is removed, then the listener closed.

An instance that keeps a journal has a monitor as well, and writes its events
to a file. The file is closed at its end, whatever becomes of the monitor.

Standard input is the socket on which orders arrive, each a line of JSON, and
answers go; L{fleet} is at its other end. It ends with that socket.

"""

from __future__ import annotations

import array
import contextlib
import enum
import fcntl
import functools
import gc
import json
import os
import resource
import select
import socket
import termios
import time
from typing import Any, NamedTuple, Optional

from pretended import (
  GREETING,
  UNINTERESTING,
  USER,
  begin_journal,
  end_with_parent,
  event,
)

STATUS = {"status": "running", "singlestep": False, "running": True}

_SHORTEST_PAUSE = 0.0001
_LONGEST_PAUSE = 0.002
_READ_TIMEOUT = 60


class Source(enum.Enum):
  """Where a daemon learns what becomes of an instance."""

  MONITOR = "monitor"
  JOURNAL = "journal"


class _Reply(NamedTuple):
  """What a monitor does about the first command in what it received."""

  execute: str
  line: bytes
  rest: bytes


@functools.lru_cache(maxsize=256)
def _reply_to(received: bytes) -> Optional[_Reply]:
  """Answers the first command, kindly; None if there is no whole one yet.

  Clients all say the same, and remembering that makes the fleet's share of
  an attachment small.

  """
  text = received.decode().lstrip()
  if not text.endswith("}") and "\n" not in text:
    return None
  try:
    command, end = json.JSONDecoder().raw_decode(text)
  except ValueError:
    return None
  execute = command["execute"]
  answer = {"return": STATUS if execute == "query-status" else {}}
  if "id" in command:
    answer["id"] = command["id"]
  line = json.dumps(answer).encode() + b"\r\n"
  return _Reply(execute, line, text[end:].lstrip().encode())


class _Monitor:
  """One pretended monitor: a listener, and at most one client.

  @ivar journal: where its instance's journal is written; None without one
  @ivar negotiated: whether the client negotiated; with a journal, whether
    there was a client, which comes to see whose the monitor is

  """

  __slots__ = (
    "name",
    "path",
    "listener",
    "client",
    "received",
    "negotiated",
    "journal",
  )

  def __init__(
    self, directory: str, name: str, suffix: str, source: Source
  ) -> None:
    self.name = name
    self.path = os.path.join(directory, name + suffix)
    self.journal: Optional[int] = None
    if source is Source.JOURNAL:
      self.journal = begin_journal(os.path.join(directory, name))
    self.client: Optional[socket.socket] = None
    self.received = b""
    self.negotiated = False
    self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    self.listener.bind(self.path)
    self.listener.listen(1)
    self.listener.setblocking(False)

  def say(self, line: bytes) -> bool:
    """Writes a line to whoever listens.

    @return: whether anybody does

    """
    if self.journal is not None:
      os.write(self.journal, line)
      return True
    if self.client is None:
      return False
    with contextlib.suppress(ConnectionError, BlockingIOError):
      self.client.send(line)
      return True
    return False


class _Worker:
  """Some monitors of the fleet, and the socket on which orders arrive."""

  def __init__(self, orders: socket.socket) -> None:
    self._orders = orders
    self._lines = b""
    self._epoll = select.epoll()
    self._epoll.register(orders.fileno(), select.EPOLLIN)
    self._monitors: dict[str, _Monitor] = {}
    self._listening: dict[int, _Monitor] = {}
    self._connected: dict[int, _Monitor] = {}
    self._awaited: Optional[int] = None
    self._negotiated = 0
    self._most_negotiated = 0
    self._first_accept = 0
    self._last_negotiation = 0
    self._running = True

  def run(self) -> None:
    """Serves monitors and orders until told to quit."""
    while self._running:
      for fd, _ in self._epoll.poll():
        # Connections first: there are the most of them.
        monitor = self._connected.get(fd)
        if monitor is not None:
          self._read(monitor)
          continue
        monitor = self._listening.get(fd)
        if monitor is not None:
          self._accept(monitor)
        elif fd == self._orders.fileno():
          self._read_orders()

  def _accept(self, monitor: _Monitor) -> None:
    try:
      client, _ = monitor.listener.accept()
    except BlockingIOError:
      self._listen_again(monitor)
      return
    if not self._first_accept:
      self._first_accept = time.monotonic_ns()
    client.setblocking(False)
    monitor.client = client
    self._connected[client.fileno()] = monitor
    with contextlib.suppress(ConnectionError):
      client.send(GREETING)
    self._epoll.register(client.fileno(), select.EPOLLIN)
    if monitor.journal is not None:
      self._count(monitor)

  def _listen_again(self, monitor: _Monitor) -> None:
    # One-shot, as QEMU looks for the next client only when this one has left.
    self._epoll.modify(
      monitor.listener.fileno(), select.EPOLLIN | select.EPOLLONESHOT
    )

  def _read(self, monitor: _Monitor) -> None:
    assert monitor.client is not None
    try:
      data = monitor.client.recv(4096)
    except BlockingIOError:
      return
    except ConnectionError:
      data = b""
    if not data:
      self._disconnect(monitor)
      self._listen_again(monitor)
      return
    monitor.received += data
    while monitor.received:
      reply = _reply_to(monitor.received)
      if reply is None:
        return
      monitor.received = reply.rest
      with contextlib.suppress(ConnectionError):
        monitor.client.send(reply.line)
      if reply.execute == "qmp_capabilities":
        self._count(monitor)

  def _count(self, monitor: _Monitor) -> None:
    if not monitor.negotiated:
      monitor.negotiated = True
      self._negotiated += 1
      self._most_negotiated = max(self._most_negotiated, self._negotiated)
      self._last_negotiation = time.monotonic_ns()
      self._tell_awaited()

  def _uncount(self, monitor: _Monitor) -> None:
    if monitor.negotiated:
      monitor.negotiated = False
      self._negotiated -= 1

  def _disconnect(self, monitor: _Monitor) -> None:
    assert monitor.client is not None
    del self._connected[monitor.client.fileno()]
    monitor.client.close()
    monitor.client = None
    monitor.received = b""
    if monitor.journal is None:
      self._uncount(monitor)

  def _read_orders(self) -> None:
    data = self._orders.recv(65536)
    if not data:
      self._running = False
      return
    *lines, self._lines = (self._lines + data).split(b"\n")
    for line in lines:
      order = json.loads(line)
      try:
        answer = getattr(self, "order_" + order.pop("order"))(**order)
      except OSError as err:
        answer = {"error": str(err)}
      if answer is not None:
        self._reply(answer)

  def _reply(self, answer: dict[str, Any]) -> None:
    self._orders.sendall(json.dumps(answer).encode() + b"\n")

  def _tell_awaited(self) -> None:
    if self._awaited is not None and self._negotiated >= self._awaited:
      self._awaited = None
      self._reply({"reached": True})

  def order_create(
    self, directory: str, names: list[str], suffix: str, source: str
  ) -> dict[str, Any]:
    """Makes monitors that listen from now on.

    @param source: the value of a L{Source}

    """
    for name in names:
      monitor = _Monitor(directory, name, suffix, Source(source))
      self._monitors[name] = monitor
      self._listening[monitor.listener.fileno()] = monitor
      self._epoll.register(
        monitor.listener.fileno(), select.EPOLLIN | select.EPOLLONESHOT
      )
    # So that no collection falls into a measurement.
    gc.collect()
    gc.freeze()
    return {}

  def order_arm(self) -> dict[str, Any]:
    """Forgets an earlier client."""
    for monitor in self._monitors.values():
      self._uncount(monitor)
    self._most_negotiated = 0
    self._first_accept = 0
    self._last_negotiation = 0
    return {}

  def order_await(self, count: int) -> None:
    """Replies as soon as that many monitors have negotiated."""
    self._awaited = count
    self._tell_awaited()

  def order_status(self) -> dict[str, Any]:
    """Replies with what is there, and stops awaiting."""
    self._awaited = None
    return {
      "connected": len(self._connected),
      "negotiated": self._most_negotiated,
      "first_accept": self._first_accept,
      "last_negotiation": self._last_negotiation,
    }

  def order_events(self, rounds: int) -> dict[str, Any]:
    """Sends each client one event in each round, and waits for the reading.

    @param rounds: how many events for each monitor

    """
    sent = 0
    for number in range(rounds):
      line = event(*UNINTERESTING[number % len(UNINTERESTING)])
      sent += sum(monitor.say(line) for monitor in self._monitors.values())
      self._await_reading()
    return {"sent": sent}

  def _await_reading(self) -> None:
    """Waits until the clients have taken everything in, or are gone."""
    unread = array.array("i", [0])
    pending = list(self._connected.values())
    deadline = time.monotonic() + _READ_TIMEOUT
    pause = _SHORTEST_PAUSE
    while pending and time.monotonic() < deadline:
      still = []
      for monitor in pending:
        assert monitor.client is not None
        fcntl.ioctl(monitor.client.fileno(), termios.TIOCOUTQ, unread)
        if unread[0]:
          still.append(monitor)
      pending = still
      if pending:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)

  def order_end(self, names: Optional[list[str]]) -> dict[str, Any]:
    """Ends instances whose users turned them off; None is all of them."""
    if names is None:
      names = list(self._monitors)
    line = event("SHUTDOWN", USER)
    times = []
    for name in names:
      monitor = self._monitors.pop(name)
      announced = time.monotonic_ns()
      monitor.say(line)
      if monitor.client is not None:
        self._disconnect(monitor)
      self._uncount(monitor)
      if monitor.journal is not None:
        os.close(monitor.journal)
      gone = time.monotonic_ns()
      os.unlink(monitor.path)
      del self._listening[monitor.listener.fileno()]
      monitor.listener.close()
      times.append((name, announced, gone))
    return {"ended": times}

  def order_cpu(self) -> dict[str, Any]:
    """Replies with the CPU time of this worker."""
    return {"cpu": time.process_time_ns()}


def main() -> None:
  """Serves the socket that is standard input."""
  end_with_parent()
  _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
  gc.disable()
  _Worker(socket.socket(fileno=0)).run()


if __name__ == "__main__":
  main()

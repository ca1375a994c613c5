# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A monitor that does what it is told, when it is told, and nothing else.

It takes no thread: a test does a step here and lets the daemon do its own.
Who pretends to be a QEMU in another way takes its words from here as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import socket
import time
from typing import Any, Optional, Union

VERSION = "9.8.7"
GREETING = {
  "QMP": {
    "version": {
      "qemu": {"micro": 7, "minor": 8, "major": 9},
      "package": "Debian 1:9.8.7+dfsg-7+deb99u8",
    },
    "capabilities": ["oob"],
  }
}
USER = {"guest": True, "reason": "guest-shutdown"}
SIGNAL = {"guest": False, "reason": "host-signal"}
RESET = {"guest": True, "reason": "guest-reset"}

#: What a healthy guest says now and then, and nobody needs to hear
UNINTERESTING: tuple[tuple[str, dict[str, Any]], ...] = (
  (
    "RTC_CHANGE",
    {"offset": 78, "qom-path": "/machine/unattached/device[7]"},
  ),
  ("BALLOON_CHANGE", {"actual": 944766976}),
  (
    "NIC_RX_FILTER_CHANGED",
    {"name": "net0", "path": "/machine/peripheral/net0/virtio-backend"},
  ),
  (
    "VNC_CONNECTED",
    {
      "server": {
        "auth": "none",
        "family": "ipv4",
        "service": "5901",
        "host": "127.0.0.1",
        "websocket": False,
      },
      "client": {
        "family": "ipv4",
        "service": "43120",
        "host": "127.0.0.1",
        "websocket": False,
      },
    },
  ),
  (
    "DEVICE_TRAY_MOVED",
    {
      "device": "ide1-cd0",
      "tray-open": True,
      "id": "/machine/unattached/device[24]",
    },
  ),
)


def encode(message: dict[str, Any]) -> bytes:
  """Writes a message as QEMU does."""
  return json.dumps(message).encode() + b"\r\n"


def event(name: str, data: Optional[dict[str, Any]] = None) -> bytes:
  """Writes an event as QEMU does, with the time of day."""
  seconds, rest = divmod(time.time_ns(), 10**9)
  message: dict[str, Any] = {
    "timestamp": {"seconds": seconds, "microseconds": rest // 1000},
    "event": name,
  }
  if data is not None:
    message["data"] = data
  return encode(message)


#: The answer to C{qmp_capabilities}
NEGOTIATED = encode({"return": {}})

#: What a journal begins with
BEGINNING = encode(GREETING) + NEGOTIATED


def open_journal(path: Union[str, pathlib.Path]) -> int:
  """Opens a journal's file of events, and begins it, as QEMU does.

  @return: the descriptor to write it to

  """
  journal = os.open(path, os.O_RDWR)
  os.write(journal, BEGINNING)
  return journal


# All that live, as one that nobody refers to would be closed.
_alive: set[FakeMonitor] = set()


def end_all() -> None:
  """Ends all monitors like processes that are killed."""
  for each in list(_alive):
    each.die()


class Connection:
  """A client's connection to the monitor."""

  def __init__(self, connection: socket.socket) -> None:
    self._socket = connection
    self._socket.setblocking(False)
    self._received = b""
    self.commands: list[dict[str, Any]] = []

  def send(self, data: bytes) -> None:
    """Sends bytes, all of which fit into the kernel's buffer."""
    assert self._socket.send(data) == len(data)

  def try_send(self, data: bytes) -> int:
    """Sends as many bytes as there is room for now."""
    try:
      return self._socket.send(data)
    except BlockingIOError:
      return 0

  def greet(self) -> None:
    self.send(encode(GREETING))

  def answer(self, value: Any = None, ident: Any = None) -> None:
    message = {"return": {} if value is None else value}
    if ident is not None:
      message["id"] = ident
    self.send(encode(message))

  def event(self, name: str, data: Optional[dict[str, Any]] = None) -> None:
    self.send(event(name, data))

  def receive(self) -> int:
    """Takes the commands that have come so far.

    @return: how many there were, with those that came before

    """
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
      self._received += self._socket.recv(65536)
    *lines, self._received = self._received.split(b"\n")
    self.commands += [json.loads(line) for line in lines]
    return len(self.commands)

  @property
  def is_open(self) -> bool:
    """Whether the client has not hung up."""
    poller = select.poll()
    poller.register(self._socket, select.POLLRDHUP)
    return not poller.poll(0)

  def close(self) -> None:
    self._socket.close()


class FakeMonitor:
  """A monitor socket in a control directory.

  @ivar path: of the socket

  """

  def __init__(
    self,
    directory: pathlib.Path,
    instance: str,
    *,
    suffix: str = ".kvmd",
    listens: bool = True,
    backlog: int = 16,
  ) -> None:
    """Makes the socket.

    If there is one of that name it is replaced, as QEMU does. The new one can
    be told from it: its QEMU took more than no time to start.

    """
    _alive.add(self)
    self.instance = instance
    self.path = directory / (instance + suffix)
    self._backlog = backlog
    self._connections: list[Connection] = []
    self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = _identity(self.path)
    self._bind(directory)
    while _identity(self.path) == before:
      self._listener.close()
      self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
      self._bind(directory)
    if listens:
      self.listen()

  def _bind(self, directory: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
      self.path.unlink()
    # A socket's address is short, a path may be long.
    opened = os.open(directory, os.O_PATH)
    try:
      self._listener.bind(f"/proc/self/fd/{opened}/{self.path.name}")
    finally:
      os.close(opened)

  def listen(self) -> None:
    self._listener.setblocking(False)
    self._listener.listen(self._backlog)

  def accept(self) -> Optional[Connection]:
    """Takes a client that waits, if one does."""
    try:
      connection, _ = self._listener.accept()
    except BlockingIOError:
      return None
    self._connections.append(Connection(connection))
    return self._connections[-1]

  def die(self) -> None:
    """Ends like a process that is killed: the file stays."""
    _alive.discard(self)
    for connection in self._connections:
      connection.close()
    self._listener.close()

  def quit(self) -> None:
    """Ends like a QEMU that exits: the file goes."""
    with contextlib.suppress(FileNotFoundError):
      self.path.unlink()
    self.die()


def _identity(path: pathlib.Path) -> Optional[tuple[int, int]]:
  try:
    found = os.lstat(path)
  except FileNotFoundError:
    return None
  return found.st_ino, found.st_mtime_ns

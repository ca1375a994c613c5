# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Stands in for a QEMU process, as far as the daemon can see one.

It makes a socket and opens its journal, answers its clients and says what it
is told to, to both. It takes no thread: whoever plays it lets it L{serve}.

"""

from __future__ import annotations

import collections
import collections.abc
import os
import pathlib
import time
import typing

import fake_monitor
from fake_monitor import FakeMonitor
from ganeti.kvmd.node import ctrldir

from faults.flood import GARBAGE, Flood
from faults.steps import Deed, Start

_POWERDOWN = ("POWERDOWN", None)
_RESET = ("RESET", fake_monitor.RESET)
_SHUTDOWN: dict[Deed, typing.Any] = {
  Deed.USER_POWERS_OFF: fake_monitor.USER,
  Deed.LIE_DOWN: fake_monitor.USER,
  Deed.ADMINISTRATOR_POWERS_OFF: fake_monitor.USER,
  Deed.GANETI_STOPS: fake_monitor.USER,
  Deed.GOES_FIRST: fake_monitor.USER,
  Deed.TERMINATE: fake_monitor.SIGNAL,
  Deed.QUIT: {"guest": False, "reason": "host-qmp-quit"},
  Deed.PANIC: {"guest": True, "reason": "guest-panic"},
}

#: What is said at each deed
_EVENTS: dict[Deed, list[tuple[str, typing.Any]]] = {
  Deed.POWERDOWN_IGNORED: [_POWERDOWN],
  Deed.RESET: [_RESET],
  Deed.PAUSE: [("STOP", None), ("RESUME", None)],
  Deed.RISE: [_RESET, ("RESUME", None)],
  Deed.CHATTER: [],
  Deed.KILL: [],
  Deed.FLOOD: [],
  Deed.GARBAGE: [],
  Deed.GANETI_KILLS: [],
  **{deed: [("SHUTDOWN", data)] for deed, data in _SHUTDOWN.items()},
}
for _deed in (Deed.ADMINISTRATOR_POWERS_OFF, Deed.GANETI_STOPS):
  _EVENTS[_deed].insert(0, _POWERDOWN)
_EVENTS[Deed.LIE_DOWN].append(("STOP", None))

_PAGE = os.sysconf("SC_PAGESIZE")

#: What is said where a lot is said
_CHATTER = fake_monitor.event("RTC_CHANGE", {"offset": 1})

_GREETING = fake_monitor.encode(fake_monitor.GREETING)
_NEGOTIATED = fake_monitor.NEGOTIATED
_HANDSHAKE = len(fake_monitor.BEGINNING)


class _Client:
  """A connection to the socket."""

  def __init__(
    self, connection: fake_monitor.Connection, piece: int, cut: int
  ) -> None:
    self._connection = connection
    self._piece = piece
    # Later it would cost what is being said, which is nobody's fault.
    self._cut = min(cut, _HANDSHAKE - 1)
    self._out = bytearray(_GREETING)
    self._sent = 0
    self._commands = 0
    self.negotiated = False
    self.is_open = True

  @property
  def is_attached(self) -> bool:
    """Whether the handshake is over."""
    return self.is_open and self.negotiated and self._sent >= _HANDSHAKE

  @property
  def is_talking(self) -> bool:
    return self.is_open and bool(self._out)

  def say(self, data: bytes) -> None:
    self._out += data
    if not self._piece:
      self._flush()

  def serve(self, status: str) -> None:
    """Answer what was asked, and say more of what there is to say."""
    if not self.is_open:
      return
    self._connection.receive()
    for command in self._connection.commands[self._commands :]:
      self._commands += 1
      if command["execute"] == "qmp_capabilities":
        self._out += _NEGOTIATED
        self.negotiated = True
      else:
        value = {"status": status, "running": status == "running"}
        reply = {"return": value, "id": command.get("id")}
        self._out += fake_monitor.encode(reply)
    self._flush()
    if self.is_open and not self._connection.is_open:
      self.close()

  def _flush(self) -> None:
    if not self._out or not self.is_open:
      return
    size = self._piece or len(self._out)
    if self._cut:
      size = min(size, self._cut - self._sent)
    try:
      sent = self._connection.try_send(bytes(self._out[:size]))
    except (BrokenPipeError, ConnectionResetError):
      self.close()
      return
    self._sent += sent
    del self._out[:sent]
    if self._cut and self._sent >= self._cut:
      self.close()

  def close(self) -> None:
    self.is_open = False
    self._connection.close()


class FakeQemu:
  """A process that is none.

  @ivar process: the number of the one that plays it
  @ivar is_over: whether it has ended
  @ivar has_begun: whether all was made that QEMU makes at its start
  @ivar is_mute: whether there was no room for all of its journal
  @ivar written: how much it wrote there, in bytes

  """

  def __init__(
    self, ctrl_dir: pathlib.Path, name: str, plan: Start, *, journal: bool
  ) -> None:
    """Start it.

    @param journal: whether it is to keep the journal that was prepared

    """
    self._plan = plan
    self._ctrl_dir = ctrl_dir
    self._name = name
    self.process = os.getpid()
    self.is_over = False
    self.has_begun = False
    self.is_mute = False
    self.written = 0
    self._monitor: typing.Optional[FakeMonitor] = None
    self._is_listening = False
    self._clients: list[_Client] = []
    self._cuts = collections.deque(plan.cuts)
    self._status = "running"
    self._journal: typing.Optional[int] = None
    self._flood: typing.Optional[Flood] = None
    self._greets_at = 0.0
    # What is still to be done, in order, and when
    self._agenda: collections.deque[
      tuple[float, collections.abc.Callable[[], None]]
    ] = collections.deque()
    at = time.monotonic()
    steps = [self._make_socket, self._listen, self._begun]
    if journal:
      steps.insert(2, self._open_journal)
    for delay, step in zip((*plan.delays, 0), steps):
      at += delay / 1000
      self._agenda.append((at, step))

  @property
  def has_client(self) -> bool:
    """Whether somebody listens on the socket."""
    return any(each.is_attached for each in self._clients)

  @property
  def is_met(self) -> bool:
    """Whether somebody is connected to the socket, listening or not."""
    return any(each.is_open for each in self._clients)

  @property
  def is_talking(self) -> bool:
    """Whether it has not yet said all that it was told to."""
    return any(each.is_talking for each in self._clients)

  def begin(self) -> None:
    """Get done with all that is made at the start."""
    while self._agenda and not self.has_begun:
      self._next()

  def do(self, deed: Deed, kilobytes: int = 80) -> None:
    """Let something happen to it that it survives.

    @param kilobytes: how much it says, if that is what happens

    """
    if deed is Deed.CHATTER:
      # To the end of a page, where there is no more room by chance.
      end = (self.written + kilobytes * 1024) // _PAGE * _PAGE
      self._write(_CHATTER * ((end - self.written) // len(_CHATTER)))
    if deed is Deed.FLOOD and self._journal is not None and not self._flood:
      self._flood = Flood(self._journal)
    self._say(deed)
    if deed is Deed.LIE_DOWN:
      self._status = "shutdown"
    elif deed is Deed.RISE:
      self._status = "running"

  def end(self, deed: Deed, delay: int) -> None:
    """Let it end.

    Who was killed may have a child that goes on writing.

    @param delay: in milliseconds

    """
    if deed is not Deed.KILL:
      self.end_flood()
    if deed is Deed.GARBAGE:
      self._write(GARBAGE)
    if deed in (Deed.KILL, Deed.GANETI_KILLS):
      self._die()
      return
    self._say(deed)
    self._agenda.append((time.monotonic() + delay / 1000, self._quit))

  def serve(self) -> None:
    """Do what there is to do."""
    now = time.monotonic()
    while self._agenda and self._agenda[0][0] <= now:
      if self.has_begun and self.is_talking:
        break
      self._next()
    for client in self._clients:
      client.serve(self._status)
    self._clients = [each for each in self._clients if each.is_open]
    if not self._is_listening or self._clients or now < self._greets_at:
      return
    assert self._monitor is not None
    # Like QEMU, it takes one client at a time.
    connection = self._monitor.accept()
    if connection is not None and connection.is_open:
      cut = self._cuts.popleft() if self._cuts else 0
      self._clients.append(_Client(connection, self._plan.piece, cut))

  def end_flood(self) -> None:
    """End what may still write into its journal."""
    if self._flood is not None:
      self._flood.close()
      self._flood = None

  def close(self) -> None:
    """End it if it has not ended yet."""
    if not self.is_over:
      self._die()

  def _next(self) -> None:
    _, step = self._agenda.popleft()
    try:
      step()
    except OSError:
      # Its directory vanished, or there is no room: QEMU does not start.
      self._quit()

  def _make_socket(self) -> None:
    self._monitor = FakeMonitor(self._ctrl_dir, self._name, listens=False)
    if self._plan.shift:
      date = time.time_ns() + self._plan.shift * 10**9
      os.utime(self._monitor.path, ns=(date, date), follow_symlinks=False)

  def _listen(self) -> None:
    assert self._monitor is not None
    self._monitor.listen()
    self._is_listening = True
    self._greets_at = time.monotonic() + self._plan.silence / 1000

  def _open_journal(self) -> None:
    path = self._ctrl_dir / (self._name + ctrldir.JOURNAL_EVENTS)
    # Like QEMU, it reads what it is told when it has made its sockets.
    commands = self._ctrl_dir / (self._name + ctrldir.JOURNAL_COMMANDS)
    read = time.time_ns() + self._plan.shift * 10**9
    os.utime(commands, ns=(read, commands.stat().st_mtime_ns))
    self._journal = os.open(path, os.O_RDWR)
    self._write(fake_monitor.BEGINNING)

  def _begun(self) -> None:
    self.has_begun = True

  def _say(self, deed: Deed) -> None:
    for name, data in _EVENTS[deed]:
      words = fake_monitor.event(name, data)
      self._write(words)
      for client in self._clients:
        if client.negotiated:
          client.say(words)

  def _write(self, data: bytes) -> None:
    """Append to the journal; like QEMU, do without what finds no room."""
    if self._journal is None:
      return
    try:
      while data:
        size = os.write(self._journal, data)
        self.written += size
        data = data[size:]
    except OSError:
      self.is_mute = True

  def _quit(self) -> None:
    if self._monitor is not None:
      self._monitor.quit()
    self._gone()

  def _die(self) -> None:
    if self._monitor is not None:
      self._monitor.die()
    self._gone()

  def _gone(self) -> None:
    self.is_over = True
    self._is_listening = False
    self._agenda.clear()
    for client in self._clients:
      client.close()
    self._clients.clear()
    if self._journal is not None:
      os.close(self._journal)
      self._journal = None

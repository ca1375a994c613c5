# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The connection to one instance's monitor.

A monitor is connected to and asked for its events, greets, answers, and is
attached from then on. Each of these steps may fail, and QEMU may be restarted
under the same name at any of them.

A connection that ends says little: QEMU may listen on. Only when nobody
listens any more, or somebody else, is the life of the instance over.
"""

from __future__ import annotations

import enum
import errno
import math
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from ganeti.kvmd import lifecycle, qmp

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.ctrldir import ControlDirectory
  from ganeti.kvmd.instance import Instance

#: Bytes taken from a monitor at a time, so that a talkative one does not keep
#: the others waiting.
_READ_SIZE = 16 * 1024

#: A connection that lasted as many seconds was a good one: when it ends, the
#: next attempt is the first again.
_GOOD_CONNECTION = 1.0

#: Longest part of QEMU's own words that is logged, in characters.
_MAX_QUOTE = 80

#: struct ucred, as SO_PEERCRED gives it: process, user, group.
_CREDENTIALS = struct.Struct("iII")


class State(enum.Enum):
  """How far the connection to a monitor has come."""

  APART = enum.auto()
  CONNECTED = enum.auto()
  GREETED = enum.auto()
  ATTACHED = enum.auto()


class Attempt(enum.Enum):
  """What came of an attempt to connect."""

  CONNECTED = enum.auto()
  FAILED = enum.auto()
  NO_SOCKET = enum.auto()


class Reading(enum.Enum):
  """What came of reading from a connection."""

  DATA = enum.auto()
  NOTHING = enum.auto()
  END = enum.auto()


class Monitor:
  """The monitor of one instance.

  @ivar instance: the instance
  @ivar state: how far the connection has come
  @ivar attempts: how often connecting was tried since it last went well
  @ivar deadline: when the daemon will look after it next, in seconds of the
    monotonic clock; it is the daemon's

  """

  __slots__ = (
    "_connected",
    "_decoder",
    "_socket",
    "_version",
    "attempts",
    "deadline",
    "instance",
    "state",
  )

  def __init__(self, instance: Instance) -> None:
    self.instance = instance
    self.state = State.APART
    self.attempts = 0
    self.deadline = 0.0
    self._socket: Optional[socket.socket] = None
    self._decoder = qmp.Decoder(lifecycle.EVENTS)
    self._version = ""
    # When the present connection was made, by the monotonic clock.
    self._connected = 0.0

  def fileno(self) -> int:
    """Returns the descriptor of the connection.

    It must not be called when there is none.

    """
    assert self._socket is not None
    return self._socket.fileno()

  def is_meant(self, directory: ControlDirectory) -> bool:
    """Tells whether the connection is to the socket of that name of today."""
    try:
      opened = directory.open_monitor(self.instance.name)
    except OSError:
      return True
    os.close(opened.descriptor)
    life = self.instance.life
    if (
      life is not None
      and opened.life.inode == life.inode
      and not self.has_hung_up()
    ):
      # As long as QEMU holds its end, the inode's number is not given out
      # again: it is the same socket, though somebody may have touched it.
      self.instance.life = opened.life
    return opened.life == self.instance.life

  def has_hung_up(self) -> bool:
    """Tells whether the other end of the connection is closed."""
    poller = select.poll()
    poller.register(self.fileno(), 0)
    return bool(poller.poll(0))

  def connect(self, directory: Optional[ControlDirectory]) -> Attempt:
    """Tries to connect to the monitor.

    If that shows that the life followed so far is over, its verdict is given.

    @param directory: the control directory; None while it is missing

    """
    self.attempts += 1
    instance = self.instance
    if directory is None:
      # Nobody can tell whether one that never spoke has ended.
      if not instance.is_attached:
        return Attempt.FAILED
      instance.end(directory)
      return Attempt.NO_SOCKET
    try:
      opened = directory.open_monitor(instance.name)
    except FileNotFoundError:
      instance.end(directory)
      return Attempt.NO_SOCKET
    except OSError as err:
      if err.errno == errno.ENOTSOCK:
        instance.end(directory)
      instance.complain(
        "cannot reach its monitor %s: %s", err.filename, err.strerror
      )
      return Attempt.FAILED
    try:
      if opened.life != instance.life:
        instance.end(directory)
        instance.begin(opened.life)
      self._socket = _connect(opened.descriptor)
    except ConnectionRefusedError:
      # QEMU has ended, or has made its socket and not begun to listen.
      instance.end(directory)
      return Attempt.FAILED
    except BlockingIOError:
      instance.meet()
      instance.complain("more clients wait for its monitor than it takes")
      return Attempt.FAILED
    except OSError as err:
      instance.complain("cannot connect to its monitor: %s", err.strerror)
      return Attempt.FAILED
    finally:
      os.close(opened.descriptor)
    instance.meet()
    self.state = State.CONNECTED
    self._connected = time.monotonic()
    # QEMU reads it when it has greeted (as it does where it keeps a journal):
    # to wait for that would take another round.
    self._send(qmp.CAPABILITIES)
    return Attempt.CONNECTED

  def disconnect(self) -> None:
    """Closes the connection. What was learnt of the instance is kept."""
    assert self._socket is not None
    self._socket.close()
    self._socket = None
    self._decoder = qmp.Decoder(lifecycle.EVENTS)
    lasted = time.monotonic() - self._connected
    if self.state is State.ATTACHED and lasted >= _GOOD_CONNECTION:
      self.attempts = 0
    self.state = State.APART

  def read(self, directory: Optional[ControlDirectory]) -> Reading:
    """Reads once and does what the messages ask for.

    @param directory: the control directory; None while it is missing

    """
    assert self._socket is not None
    try:
      data = self._socket.recv(_READ_SIZE)
    except BlockingIOError:
      return Reading.NOTHING
    except OSError:
      data = b""
    if not data:
      return Reading.END
    has_news = False
    try:
      for message in self._decoder.feed(data):
        if isinstance(message, qmp.Event):
          has_news = self.instance.receive(message, directory) or has_news
        elif isinstance(message, qmp.Greeting):
          self._greeted(message)
        elif isinstance(message, qmp.Reply):
          self._answered(message, directory)
    except qmp.ProtocolError as err:
      self.instance.complain("its monitor sent %s; hung up on it", err)
      self._connected = math.inf
      return Reading.END
    finally:
      # What was said and taken back within one piece touches no file.
      if has_news:
        self.instance.settle(directory)
    return Reading.DATA

  def complain_of_waiting(self) -> None:
    """Logs, once, that the monitor lets us wait."""
    if self.state is State.CONNECTED:
      self.instance.complain(
        "waiting for its monitor: another client holds it, or QEMU hangs;"
        " its end cannot be judged before that client has gone"
      )
    elif self.state is State.GREETED:
      self.instance.complain("waiting for QEMU: it has greeted, and hangs")

  def _greeted(self, greeting: qmp.Greeting) -> None:
    if self.state is State.ATTACHED:
      raise qmp.ProtocolError("a second greeting")
    self._version = greeting.version or "of unknown version"
    self.state = State.GREETED

  def _answered(
    self, reply: qmp.Reply, directory: Optional[ControlDirectory]
  ) -> None:
    assert self._socket is not None
    if self.state is State.GREETED:
      if reply.error is not None:
        self.instance.complain(
          "QEMU may send no events: %s", reply.error[:_MAX_QUOTE]
        )
      self.state = State.ATTACHED
      self.instance.attach(self._version, _process(self._socket), directory)
      if self.instance.is_remembered:
        # The guest may have been reset or resumed since then: QEMU knows.
        self._send(qmp.QUERY_STATUS)
    elif (
      self.instance.is_remembered
      and reply.ident == qmp.STATUS_ID
      and isinstance(reply.value, dict)
      and reply.value.get("status", qmp.STATUS_SHUTDOWN) != qmp.STATUS_SHUTDOWN
    ):
      self.instance.forget(directory)

  def _send(self, command: bytes) -> None:
    assert self._socket is not None
    try:
      self._socket.send(command)
    except OSError:
      # The end of the connection; it shows when what came before it is read.
      pass


def find_process(directory: ControlDirectory, name: str) -> int:
  """Returns the process that listens on an instance's monitor; 0 if none."""
  try:
    opened = directory.open_monitor(name)
  except OSError:
    return 0
  try:
    with _connect(opened.descriptor) as connection:
      return _process(connection)
  except OSError:
    return 0
  finally:
    os.close(opened.descriptor)


def _process(connection: socket.socket) -> int:
  """Returns the process at the other end."""
  packed = connection.getsockopt(
    socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
  )
  process, _, _ = _CREDENTIALS.unpack(packed)
  return int(process)


def _connect(descriptor: int) -> socket.socket:
  """Connects to an open socket file.

  The path through C{/proc} fixes which socket is meant, and is short: a
  socket's address has room for 107 bytes, an instance's name may have 253.

  @raise OSError: if it does not listen, or there is no descriptor left

  """
  connection = socket.socket(
    socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
  )
  try:
    connection.connect(f"/proc/self/fd/{descriptor}")
  except OSError:
    connection.close()
    raise
  return connection

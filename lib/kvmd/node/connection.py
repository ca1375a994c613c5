# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The connection to one instance's monitor: the socket, and what came of it.

What an attempt to connect means for the instance is decided elsewhere.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core.session import Session
from ganeti.kvmd.node.ctrldir import MissingDirectoryError

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.node.ctrldir import ControlDirectory, Life

#: Bytes taken from a monitor at a time, so that a talkative one does not keep
#: the others waiting.
_READ_SIZE = 16 * 1024

_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

#: struct ucred, as SO_PEERCRED gives it: process, user, group.
_CREDENTIALS = struct.Struct("iII")


class Result(enum.Enum):
  """What came of an attempt to connect.

  @cvar CONNECTED: there is a connection
  @cvar REFUSED: nobody listens: QEMU has ended, or has yet to begin to listen
  @cvar BUSY: more clients wait than the monitor takes
  @cvar FAILED: connecting failed otherwise, for want of a descriptor, say
  @cvar NO_SOCKET: there is no file
  @cvar NOT_A_SOCKET: there is a file of another kind
  @cvar UNREACHABLE: the file cannot be opened
  @cvar NO_DIRECTORY: there is no control directory

  """

  CONNECTED = enum.auto()
  REFUSED = enum.auto()
  BUSY = enum.auto()
  FAILED = enum.auto()
  NO_SOCKET = enum.auto()
  NOT_A_SOCKET = enum.auto()
  UNREACHABLE = enum.auto()
  NO_DIRECTORY = enum.auto()

  # Each is itself only; Python's own takes ten times as long.
  __hash__ = object.__hash__


class Attempt(NamedTuple):
  """An attempt to connect.

  @ivar result: what came of it
  @ivar life: the life that the socket belongs to; None if there was none
  @ivar connection: the connection; None if there is none
  @ivar trouble: which file, and the error's words; empty if there was none

  """

  result: Result
  life: Optional[Life] = None
  connection: Optional[Connection] = None
  trouble: str = ""


class Connection:
  """A connection to a monitor.

  @ivar session: what is spoken over it
  @ivar made: when it was made, by the monotonic clock

  """

  __slots__ = ("_socket", "made", "session")

  def __init__(self, descriptor: int) -> None:
    """Connects to an open socket file.

    The path through C{/proc} fixes which socket is meant, and is short: a
    socket's address has room for 107 bytes, an instance's name may have 253.

    @raise OSError: if it does not listen, or there is no descriptor left

    """
    self._socket = socket.socket(socket.AF_UNIX, _KIND)
    try:
      self._socket.connect(f"/proc/self/fd/{descriptor}")
    except OSError:
      self._socket.close()
      raise
    self.session = Session()
    self.made = time.monotonic()

  def fileno(self) -> int:
    """Returns the descriptor."""
    return self._socket.fileno()

  @property
  def process(self) -> int:
    """The number of the process at the other end."""
    packed = self._socket.getsockopt(
      socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    process, _, _ = _CREDENTIALS.unpack(packed)
    return int(process)

  @property
  def has_hung_up(self) -> bool:
    """Whether the other end is closed."""
    poller = select.poll()
    poller.register(self._socket, 0)
    return bool(poller.poll(0))

  def read(self) -> Optional[bytes]:
    """Reads once.

    @return: None if there is nothing to be read now; empty at the end

    """
    try:
      return self._socket.recv(_READ_SIZE)
    except BlockingIOError:
      return None
    except OSError:
      return b""

  def send(self) -> None:
    """Sends what the session has to say, which is short.

    That nobody is there any more shows when what came before is read.

    """
    outgoing, self.session.outgoing = self.session.outgoing, b""
    try:
      self._socket.send(outgoing)
    except OSError:
      pass

  def close(self) -> None:
    """Hangs up."""
    self._socket.close()


def connect(directory: ControlDirectory, name: str) -> Attempt:
  """Tries to connect to an instance's monitor.

  @param name: the instance's

  """
  try:
    opened = directory.open_monitor(name)
  except MissingDirectoryError:
    return Attempt(Result.NO_DIRECTORY)
  except FileNotFoundError:
    return Attempt(Result.NO_SOCKET)
  except OSError as err:
    is_other = err.errno == errno.ENOTSOCK
    return Attempt(
      Result.NOT_A_SOCKET if is_other else Result.UNREACHABLE,
      trouble=f"{err.filename}: {err.strerror}",
    )
  try:
    return Attempt(Result.CONNECTED, opened.life, Connection(opened.descriptor))
  except ConnectionRefusedError:
    return Attempt(Result.REFUSED, opened.life)
  except BlockingIOError:
    return Attempt(Result.BUSY, opened.life)
  except OSError as err:
    return Attempt(Result.FAILED, opened.life, trouble=str(err.strerror))
  finally:
    os.close(opened.descriptor)


def find_process(directory: ControlDirectory, name: str) -> int:
  """Returns the process that listens on an instance's monitor; 0 if none."""
  connection = connect(directory, name).connection
  if connection is None:
    return 0
  try:
    return connection.process
  finally:
    connection.close()

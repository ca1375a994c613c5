# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How processes ended: what the kernel says of those that did not say it.

The kernel's process connector (C{drivers/connector/cn_proc.c}) tells root of
the end of every process. A filter in the kernel lets only those through that
ended badly, by a signal or with a status: the daemon sleeps through the others.
Whether the kernel itself killed one for want of memory stands in its log.

Without the privilege, or on a kernel without the connector, none is known.

As long as one listens, the kernel makes a message of whatever a process does.
It stops when all who came have said that they leave, and takes no notice of a
listener that is killed: then it makes messages for nobody till the next boot.
No listener can know how many did not leave, and make up for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Container
  from typing import Optional

# linux/connector.h, linux/cn_proc.h
_NETLINK_CONNECTOR = 11
_GROUP = 1
_ADDRESS = (1, 1)
_LISTEN = 1
_IGNORE = 2
_EXIT = 0x80000000

#: The connector serves only those who see the processes of the whole machine
#: (linux/proc_ns.h).
_FIRST_PROCESS_NAMESPACE = 0xEFFFFFFC

#: struct nlmsghdr and struct cn_msg; what follows is struct proc_event.
_HEADERS = struct.Struct("=IHHIIIIIIHH")
_NLMSG_DONE = 3
_COMMAND = struct.Struct("=I")
#: Its kind, processor and time, then of an exit: thread, process, status.
_EVENT = struct.Struct("=IIQIII")

_READ_SIZE = 4096

#: Room for the messages that were not read yet, in bytes as the kernel counts
#: (it doubles that): of each of 10,000 processes that end at once there is one,
#: of 832. By default there is room for 256 of them.
_QUEUE_SIZE = 8 * 1024 * 1024

#: So many messages are read at a time: others have a turn in between.
_MAX_MESSAGES = 512

#: The kernel makes no longer records (CONSOLE_EXT_LOG_MAX).
_RECORD_SIZE = 8 * 1024

#: So many records of the kernel's log are read at a time, in some 3 ms. It has
#: some thousand.
_MAX_RECORDS = 2048

#: So many processes are remembered that were killed for want of memory.
_MAX_VICTIMS = 1024

#: Seconds between the kernel's words that it kills a process and the end of
#: that: the number of one that was killed longer ago is another's by now. The
#: clock of the kernel's log goes slightly wrong.
_DYING = 3600.0

#: Seconds that an end waits for the kernel's log to be read to its end.
_PATIENCE = 1.0

# Of sys/socket.h, which Python does not name
_ATTACH_FILTER = 26
_RECEIVE_BUFFER_FORCE = 33

# linux/bpf_common.h: load a word, compare, return
_LOAD = 0x20
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_EQUAL_TO_X = 0x1D
_A_TO_X = 0x07
_RETURN = 0x06
_ALL = 0xFFFFFFFF

#: What the kernel logs when it kills a process for memory, and when, in
#: microseconds.
_OUT_OF_MEMORY = re.compile(
  rb"\d+,\d+,(\d+),[^;]*;.*[Oo]ut of memory.*Killed process (\d+) "
)

_CORE_DUMPED = 0x80


class Exit(NamedTuple):
  """A bad end.

  @ivar process: whose
  @ivar ended: when, in seconds of the monotonic clock
  @ivar how: as C{was killed by SIGKILL}

  """

  process: int
  ended: float
  how: str


class Told(NamedTuple):
  """What was told.

  @ivar exits: the bad ends that matter
  @ivar lost: whether the kernel had no room to tell of others

  """

  exits: list[Exit]
  lost: bool


class _End(NamedTuple):
  """What a message says of an end.

  @ivar process: whose
  @ivar ended: when, in seconds of the monotonic clock
  @ivar status: as of wait(2)

  """

  process: int
  ended: float
  status: int

  @property
  def is_killed(self) -> bool:
    return self.status & 0x7F == signal.SIGKILL


class Exits:
  """The bad ends of all processes of the node."""

  def __init__(self) -> None:
    """Begins to listen.

    @raise OSError: if that is not to be had here

    """
    self._socket = _open_connector()
    try:
      self._command(_LISTEN)
    except OSError:
      self._socket.close()
      raise
    self._kernel_log = _KernelLog()
    # The kernel's log is listened to only while an end waits for its word.
    self._poller = select.epoll()
    self._poller.register(self._socket, select.EPOLLIN)
    self._waiting: list[_End] = []
    self._deadline = 0.0

  def close(self) -> None:
    """Stops listening."""
    with contextlib.suppress(OSError):
      self._command(_IGNORE)
    self._socket.close()
    self._poller.close()
    self._kernel_log.close()

  def fileno(self) -> int:
    """Returns the descriptor that becomes readable when a process ended."""
    return self._poller.fileno()

  def read(self, known: Container[int]) -> Told:
    """Returns what was told since the last call, or a part of it.

    The descriptor stays readable when there is more.

    @param known: the processes of which the ends matter

    """
    ends, lost = self._receive()
    ends = [end for end in ends if end.process in known]
    told = [end for end in ends if not end.is_killed]
    now = time.monotonic()
    has_waited = bool(self._waiting)
    if not has_waited:
      self._deadline = now + _PATIENCE
    self._waiting += [end for end in ends if end.is_killed]
    if self._waiting and (self._kernel_log.read() or now >= self._deadline):
      told += self._waiting
      self._waiting = []
    if bool(self._waiting) is not has_waited:
      self._kernel_log.register(self._poller, wanted=not has_waited)
    return Told([self._describe(end) for end in told], lost)

  def _command(self, operation: int) -> None:
    self._socket.send(
      _HEADERS.pack(
        _HEADERS.size + _COMMAND.size,
        _NLMSG_DONE,
        0,
        0,
        os.getpid(),
        *_ADDRESS,
        0,
        0,
        _COMMAND.size,
        0,
      )
      + _COMMAND.pack(operation)
    )

  def _receive(self) -> tuple[list[_End], bool]:
    """Reads messages, and whether some were lost."""
    found = []
    lost = False
    for _ in range(_MAX_MESSAGES):
      try:
        message = self._socket.recv(_READ_SIZE)
      except OSError as err:
        if err.errno != errno.ENOBUFS:
          break
        # What came before is there; nothing is added until all of it was read.
        lost = True
        continue
      if len(message) < _HEADERS.size + _EVENT.size:
        continue
      kind, _, nanoseconds, _, process, status = _EVENT.unpack_from(
        message, _HEADERS.size
      )
      if kind == _EXIT:
        found.append(_End(process, nanoseconds / 1e9, status))
    return found, lost

  def _describe(self, end: _End) -> Exit:
    for_memory = self._kernel_log.has_killed(end.process, end.ended)
    how = _describe(end.status, for_memory=for_memory)
    return Exit(end.process, end.ended, how)


class _KernelLog:
  """Of the kernel's log: whom the kernel has killed for want of memory."""

  def __init__(self) -> None:
    """Opens it at its end; without the right to, it says nothing."""
    self._descriptor: Optional[int] = None
    # When, in seconds since the start of the machine, by the process.
    self._victims: dict[int, float] = {}
    with contextlib.suppress(OSError):
      self._descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
      os.lseek(self._descriptor, 0, os.SEEK_END)

  def close(self) -> None:
    """Closes it."""
    if self._descriptor is not None:
      os.close(self._descriptor)

  def register(self, poller: select.epoll, *, wanted: bool) -> None:
    """Lets a poller wait for more of it, or not any more."""
    if self._descriptor is None:
      return
    if wanted:
      poller.register(self._descriptor, select.EPOLLIN)
    else:
      poller.unregister(self._descriptor)

  def read(self) -> bool:
    """Reads what is new, or a part of it.

    @return: whether that was all

    """
    if self._descriptor is None:
      return True
    for _ in range(_MAX_RECORDS):
      try:
        record = os.read(self._descriptor, _RECORD_SIZE)
      except BrokenPipeError:
        # The kernel has overwritten what was not read yet: go on behind it.
        continue
      except OSError:
        return True
      if not record:
        return True
      if b"Killed process" in record:
        self._note(record)
    return False

  def has_killed(self, process: int, ended: float) -> bool:
    """Tells whether the kernel killed a process that has ended.

    @param ended: when, in seconds of the monotonic clock

    """
    killed = self._victims.pop(process, None)
    return killed is not None and abs(ended - killed) < _DYING

  def _note(self, record: bytes) -> None:
    found = _OUT_OF_MEMORY.match(record)
    if found is None:
      return
    killed, process = map(int, found.groups())
    self._victims.pop(process, None)
    self._victims[process] = killed / 1e6
    if len(self._victims) > _MAX_VICTIMS:
      del self._victims[next(iter(self._victims))]


def _describe(status: int, *, for_memory: bool) -> str:
  number = status & 0x7F
  if not number:
    return f"ended with status {status >> 8 & 0xFF}"
  if number == signal.SIGKILL and for_memory:
    return "was killed by the kernel for want of memory"
  core = ", and dumped core" if status & _CORE_DUMPED else ""
  return f"was killed by {_name(number)}{core}"


def _name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"


def _open_connector() -> socket.socket:
  """Makes a socket that will hear of bad ends.

  @raise OSError: if that is not to be had here

  """
  if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PROCESS_NAMESPACE:
    # The kernel would let us wait in silence.
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
  connector = socket.socket(
    socket.AF_NETLINK,
    socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
    _NETLINK_CONNECTOR,
  )
  try:
    _attach_filter(connector)
    connector.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _QUEUE_SIZE)
    connector.bind((0, _GROUP))
  except OSError:
    connector.close()
    raise
  return connector


def _attach_filter(connector: socket.socket) -> None:
  """Lets only ends of whole processes through that were bad ones."""
  kind = _HEADERS.size
  thread = kind + 16
  process = kind + 20
  status = kind + 24
  instructions = [
    (_LOAD, 0, 0, kind),
    (_JUMP_IF_EQUAL, 0, 6, socket.htonl(_EXIT)),
    (_LOAD, 0, 0, thread),
    (_A_TO_X, 0, 0, 0),
    (_LOAD, 0, 0, process),
    (_JUMP_IF_EQUAL_TO_X, 0, 2, 0),
    (_LOAD, 0, 0, status),
    (_JUMP_IF_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _ALL),
  ]
  program = ctypes.create_string_buffer(
    b"".join(struct.pack("=HBBI", *each) for each in instructions)
  )
  connector.setsockopt(
    socket.SOL_SOCKET,
    _ATTACH_FILTER,
    struct.pack("HP", len(instructions), ctypes.addressof(program)),
  )

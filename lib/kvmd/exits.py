# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How processes ended: what the kernel says of those that did not say it.

The kernel's process connector (C{drivers/connector/cn_proc.c}) tells root of
the end of every process. A filter in the kernel lets only those through that
ended badly, by a signal or with a status: the daemon sleeps through the others.
Whether the kernel itself killed one for want of memory stands in its log.

Without the privilege, or on a kernel without the connector, none is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from typing import Optional

# linux/connector.h, linux/cn_proc.h
_NETLINK_CONNECTOR = 11
_GROUP = 1
_ADDRESS = (1, 1)
_LISTEN = 1
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

#: The longest record of the kernel's log has 8 KiB, before it is escaped.
_RECORD_SIZE = 64 * 1024

#: SO_ATTACH_FILTER, which Python does not name.
_ATTACH_FILTER = 26

# linux/bpf_common.h: load a word, compare, return
_LOAD = 0x20
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_EQUAL_TO_X = 0x1D
_A_TO_X = 0x07
_RETURN = 0x06
_ALL = 0xFFFFFFFF

#: What the kernel logs when it kills a process for memory.
_OUT_OF_MEMORY = re.compile(rb"[Oo]ut of memory.*Killed process (\d+) ")

_CORE_DUMPED = 0x80


class Exit(NamedTuple):
  """A bad end.

  @ivar process: whose
  @ivar how: as C{was killed by SIGKILL}

  """

  process: int
  how: str


class Exits:
  """The bad ends of all processes of the node."""

  def __init__(self) -> None:
    """Begins to listen.

    @raise OSError: if that is not to be had here

    """
    if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PROCESS_NAMESPACE:
      # The kernel would let us wait in silence.
      raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    self._socket = socket.socket(
      socket.AF_NETLINK,
      socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
      _NETLINK_CONNECTOR,
    )
    try:
      _attach_filter(self._socket)
      self._socket.bind((0, _GROUP))
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
        + _COMMAND.pack(_LISTEN)
      )
    except OSError:
      self._socket.close()
      raise
    self._kernel_log = _open_kernel_log()

  def close(self) -> None:
    """Stops listening."""
    self._socket.close()
    if self._kernel_log is not None:
      os.close(self._kernel_log)

  def fileno(self) -> int:
    """Returns the descriptor that becomes readable when a process ended."""
    return self._socket.fileno()

  def read(self) -> list[Exit]:
    """Returns the ends since the last call."""
    found = []
    # Ends of which the kernel had no room to tell are just not known.
    with contextlib.suppress(OSError):
      while True:
        message = self._socket.recv(_READ_SIZE)
        if len(message) < _HEADERS.size + _EVENT.size:
          continue
        kind, _, _, _, process, status = _EVENT.unpack_from(
          message, _HEADERS.size
        )
        if kind == _EXIT:
          found.append((process, status))
    for_memory = self._killed_for_memory() if found else set()
    return [
      Exit(process, _describe(status, for_memory=process in for_memory))
      for process, status in found
    ]

  def _killed_for_memory(self) -> set[int]:
    """Returns the processes that the kernel killed since the last call."""
    killed: set[int] = set()
    if self._kernel_log is None:
      return killed
    with contextlib.suppress(OSError):
      while True:
        # The kernel may have overwritten what was not read yet: go on then.
        with contextlib.suppress(BrokenPipeError):
          record = os.read(self._kernel_log, _RECORD_SIZE)
          killed.update(map(int, _OUT_OF_MEMORY.findall(record)))
    return killed


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


def _open_kernel_log() -> Optional[int]:
  """Opens the kernel's log at its end."""
  try:
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
  except OSError:
    return None
  os.lseek(descriptor, 0, os.SEEK_END)
  return descriptor


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

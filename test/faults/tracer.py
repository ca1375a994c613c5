# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A process that is halted after each of its system calls.

So whatever can happen between two of them can be made to happen there: to
others it makes no difference where between the two it is.

"""

from __future__ import annotations

import ctypes
import os
import signal
import time

from guests import lifetime

# linux/ptrace.h
_GO_ON_TO_SYSTEM_CALL = 24
_DETACH = 17
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_SAY_WHERE = 0x420E
_MARK_SYSTEM_CALLS = 1

#: So often it is asked for a halt before it is asked for what else it does.
_BRIEFLY = 20

#: struct ptrace_syscall_info, and what it begins with where a call begins
_PLACE_SIZE = 88
_BEGINS = b"\1"

#: What a halt at a system call looks like, with that option
_AT_SYSTEM_CALL = signal.SIGTRAP | 0x80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4
_libc.ptrace.restype = ctypes.c_long


class Tracer:
  """Halts a child of this process, which has one thread."""

  def __init__(self, process: int) -> None:
    """Halt it.

    @param process: its number

    """
    self._process = process
    self._stat = f"/proc/{process}/stat"
    self._is_halted = False
    self._request(_SEIZE, _MARK_SYSTEM_CALLS)
    self.halt()

  def halt(self) -> None:
    """Halt it wherever it is."""
    if not self._is_halted:
      self._request(_INTERRUPT, 0)
      os.waitpid(self._process, 0)
      self._is_halted = True

  def step(self) -> bool:
    """Let it go on to where the next system call ends.

    @return: False if it waits for something instead

    """
    number = 0
    while True:
      if self._is_halted:
        self._request(_GO_ON_TO_SYSTEM_CALL, number)
        self._is_halted = False
      status = self._await_halt()
      if status is None:
        return False
      self._is_halted = True
      number = os.WSTOPSIG(status)
      if number == _AT_SYSTEM_CALL and not self._is_at_beginning():
        return True
      if number in (_AT_SYSTEM_CALL, signal.SIGTRAP):
        # The kernel's own doing, not a signal to be passed on
        number = 0

  def _await_halt(self) -> int | None:
    """Waits until it is halted.

    @return: the status; None if it waits for something itself

    """
    for _ in range(_BRIEFLY):
      process, status = os.waitpid(self._process, os.WNOHANG)
      if process:
        assert os.WIFSTOPPED(status), status
        return status
      os.sched_yield()
    deadline = time.monotonic() + lifetime.PATIENCE
    while time.monotonic() < deadline:
      # In this order: it may be halted in between.
      waits = self._waits()
      process, status = os.waitpid(self._process, os.WNOHANG)
      if process:
        assert os.WIFSTOPPED(status), status
        return status
      if waits:
        return None
    raise TimeoutError(f"process {self._process} neither halts nor waits")

  def _is_at_beginning(self) -> bool:
    """Tells whether a system call begins where it is halted."""
    place = ctypes.create_string_buffer(_PLACE_SIZE)
    self._request(_SAY_WHERE, ctypes.addressof(place), _PLACE_SIZE)
    return place.raw.startswith(_BEGINS)

  def _waits(self) -> bool:
    with open(self._stat, "rb", buffering=0) as stream:
      return stream.read(4096).rpartition(b")")[2].startswith(b" S")

  def detach(self) -> None:
    """Let it go."""
    self.halt()
    self._request(_DETACH, 0)

  def _request(self, request: int, data: int, address: int = 0) -> None:
    if _libc.ptrace(request, self._process, address, data) < 0:
      number = ctypes.get_errno()
      raise OSError(number, os.strerror(number), f"ptrace {self._process}")

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What all pretended QEMUs have in common: their words, and their files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

# One place has the words of all pretended QEMUs.
sys.path.append(
  os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "py")
)

import fake_monitor
from fake_monitor import NEGOTIATED, RESET, UNINTERESTING, USER, event

__all__ = ["NEGOTIATED", "RESET", "UNINTERESTING", "USER", "event"]

GREETING = fake_monitor.encode(fake_monitor.GREETING)
COMMANDS = fake_monitor.encode({"execute": "qmp_capabilities"})

MONITOR = ".kvmd"
JOURNAL_COMMANDS = ".journal.in"
JOURNAL_EVENTS = ".journal.out"
_JOURNAL_DIGEST = ".journal.digest"
_NEW_DIGEST = _JOURNAL_DIGEST + ".new"
_JOURNAL_MODE = 0o600
# What the hypervisor reserves for QEMU's last words.
_RESERVED = 64 * 1024

# linux/falloc.h, linux/prctl.h
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [
  ctypes.c_int,
  ctypes.c_int,
  ctypes.c_int64,
  ctypes.c_int64,
]


def begin_journal(path: str) -> int:
  """Makes the files of a journal, as for QEMU, and begins it, as QEMU does.

  @param path: what the names of the files begin with
  @return: the descriptor to write it to

  """
  contents = {
    _JOURNAL_DIGEST: b"",
    JOURNAL_COMMANDS: COMMANDS,
    JOURNAL_EVENTS: b"",
  }
  for ending in (_NEW_DIGEST, *reversed(contents)):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path + ending)
  for ending, content in contents.items():
    fd = os.open(
      path + ending, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _JOURNAL_MODE
    )
    try:
      os.write(fd, content)
      if ending == JOURNAL_EVENTS:
        _fallocate(fd, _KEEP_SIZE, 0, _RESERVED)
    finally:
      os.close(fd)
  return fake_monitor.open_journal(path + JOURNAL_EVENTS)


def punch_hole(descriptor: int, position: int, length: int) -> None:
  """Gives a part of a file back to the file system."""
  _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, position, length)


def _fallocate(descriptor: int, mode: int, position: int, length: int) -> None:
  if _libc.fallocate(descriptor, mode, position, length):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def end_with_parent() -> None:
  """Makes the kernel kill this process when the one that started it ends."""
  parent = os.getppid()
  _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(1)

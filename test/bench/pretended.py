# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What all pretended QEMUs have in common: their words, and their files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

GREETING = (
  b'{"QMP": {"version": {"qemu": {"micro": 19, "minor": 2, "major": 7}, '
  b'"package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}}\r\n'
)
COMMANDS = b'{"execute": "qmp_capabilities"}\r\n'
NEGOTIATED = b'{"return": {}}\r\n'
GUEST_SHUTDOWN = '{"guest": true, "reason": "guest-shutdown"}'

# What a healthy guest says now and then, and nobody needs to hear.
UNINTERESTING = (
  (
    "RTC_CHANGE",
    '{"offset": 78, "qom-path": "/machine/unattached/device[7]"}',
  ),
  ("BALLOON_CHANGE", '{"actual": 944766976}'),
  (
    "NIC_RX_FILTER_CHANGED",
    '{"name": "net0", "path": "/machine/peripheral/net0/virtio-backend"}',
  ),
  (
    "VNC_CONNECTED",
    (
      '{"server": {"auth": "none", "family": "ipv4", "service": "5901", '
      '"host": "127.0.0.1", "websocket": false}, "client": {"family": "ipv4", '
      '"service": "43120", "host": "127.0.0.1", "websocket": false}}'
    ),
  ),
  (
    "DEVICE_TRAY_MOVED",
    (
      '{"device": "ide1-cd0", "tray-open": true, '
      '"id": "/machine/unattached/device[24]"}'
    ),
  ),
)

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


def event_line(name: str, data: str = "") -> bytes:
  """Makes one event as QEMU writes it, with the time of day.

  @param data: as JSON; empty for an event that has none

  """
  microseconds = time.time_ns() // 1000
  fields = f', "data": {data}' if data else ""
  return (
    f'{{"timestamp": {{"seconds": {microseconds // 1000000}, '
    f'"microseconds": {microseconds % 1000000}}}, '
    f'"event": "{name}"{fields}}}\r\n'
  ).encode()


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
  journal = os.open(path + JOURNAL_EVENTS, os.O_RDWR)
  os.write(journal, GREETING)
  os.write(journal, NEGOTIATED)
  return journal


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

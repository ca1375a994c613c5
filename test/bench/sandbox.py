# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Namespaces for a benchmark, which end with it and leave nothing behind.

Whatever a benchmark starts, makes or mounts exists only in its own PID and
mount namespaces, and so vanishes with it, also when it is killed.

"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import NoReturn, Optional

from errors import BenchError

# Always there on Linux; the benchmark sees a file system of its own in it.
WORKSPACE = "/dev/shm"

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWPID = 0x20000000
_MNT_DETACH = 2
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_PR_SET_PDEATHSIG = 1
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(BenchError):
  """The namespaces cannot be made; the message says what is missing."""


def _check(result: int, what: str) -> None:
  if result != 0:
    reason = os.strerror(ctypes.get_errno())
    raise SandboxError(f"cannot {what}: {reason} (this needs root)")


def _mount(
  source: str,
  target: str,
  kind: Optional[str],
  flags: int,
  what: str,
  options: str = "",
) -> None:
  _check(
    _libc.mount(
      source.encode(),
      target.encode(),
      kind.encode() if kind else None,
      ctypes.c_ulong(flags),
      options.encode(),
    ),
    what,
  )


def mount_tmpfs(target: str, megabytes: Optional[int] = None) -> None:
  """Covers a directory with an empty file system.

  @param megabytes: its size; None for half of the machine's memory

  """
  options = "" if megabytes is None else f"mode=755,size={megabytes}m"
  _mount("none", target, "tmpfs", 0, f"mount a tmpfs on {target}", options)


def unmount(target: str) -> None:
  """Takes a file system away, with all that is in it."""
  _check(_libc.umount2(target.encode(), _MNT_DETACH), f"unmount {target}")


def mount_bind(source: str, target: str) -> None:
  """Makes a file or directory appear in the place of another."""
  _mount(source, target, None, _MS_BIND, f"mount {source} on {target}")


def new_mounts() -> None:
  """Makes the mounts that follow this process's own affair."""
  _check(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")


def enter() -> None:
  """Goes on as the first process of new namespaces, with L{WORKSPACE} empty.

  The process that called this only waits for the one that goes on, passes
  its end on, and takes it along when it is told to end, or is killed.

  @raise SandboxError: when this process may not make namespaces

  """
  _check(
    _libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWPID),
    "make namespaces",
  )
  outside, inside = socket.socketpair()
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if child:
    inside.close()
    _wait_for(child, outside)
  outside.close()
  _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  inside.send(b"tied")
  if not inside.recv(8):
    # Nobody is left who would take us along.
    os._exit(1)
  inside.close()
  _mount("none", "/", None, _MS_REC | _MS_PRIVATE, "make mounts private")
  _mount("proc", "/proc", "proc", 0, "mount /proc")
  mount_tmpfs(WORKSPACE)


def _wait_for(child: int, outside: socket.socket) -> NoReturn:
  """Waits for the process inside, and ends as it does."""

  def end(number: int, _: object) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os._exit(128 + number)

  for number in _ENDING_SIGNALS:
    signal.signal(number, end)
  if outside.recv(8):
    outside.send(b"go")
  _, status = os.waitpid(child, 0)
  os._exit(
    os.WEXITSTATUS(status)
    if os.WIFEXITED(status)
    else 128 + os.WTERMSIG(status)
  )

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the kernel tells of processes that ended badly."""

from __future__ import annotations

import collections.abc
import errno
import os
import select
import signal

import pytest
from ganeti.kvmd import exits

_PATIENCE_MS = 10_000


def _hang_up() -> None:
  # Under nohup it would be ignored.
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGHUP)


def _kill() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
  os._exit(3)


def _run(end: collections.abc.Callable[[], None]) -> int:
  child = os.fork()
  if not child:
    end()
    os._exit(0)
  os.waitpid(child, 0)
  return child


def _listen() -> exits.Exits | None:
  """Listens; None where that is denied, with the errors that say so."""
  try:
    return exits.Exits()
  except OSError as err:
    # Not root, in a container, or a kernel that does not have it
    if err.errno in {errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT}:
      return None
    raise


@pytest.mark.parametrize(
  ("end", "how"),
  [
    (_hang_up, "was killed by SIGHUP"),
    (_kill, "was killed by SIGKILL"),
    (_fail, "ended with status 3"),
  ],
)
def test_bad_end(end: collections.abc.Callable[[], None], how: str) -> None:
  listener = _listen()
  if listener is None:
    return
  poller = select.poll()
  poller.register(listener.fileno(), select.POLLIN)
  quiet = _run(lambda: None)
  child = _run(end)
  found: list[exits.Exit] = []
  while child not in [each.process for each in found]:
    assert poller.poll(_PATIENCE_MS)
    found += listener.read()
  listener.close()
  ends = {each.process: each.how.split(",")[0] for each in found}
  assert ends[child] == how
  assert quiet not in ends


@pytest.mark.parametrize(
  ("status", "for_memory", "how"),
  [
    (signal.SIGKILL, True, "was killed by the kernel for want of memory"),
    (signal.SIGTERM, True, "was killed by SIGTERM"),
    (signal.SIGSEGV | 0x80, False, "was killed by SIGSEGV, and dumped core"),
    (64, False, "was killed by SIGRTMAX"),
    (33, False, "was killed by signal 33"),
    (255 << 8, False, "ended with status 255"),
  ],
)
def test_description(status: int, for_memory: bool, how: str) -> None:
  assert exits._describe(status, for_memory=for_memory) == how


def test_kernel_log_lines() -> None:
  record = (
    b"3,1234,5678,-;Memory cgroup out of memory: Killed process 4711"
    b" (qemu-system-x86) total-vm:1kB\n"
  )
  assert exits._OUT_OF_MEMORY.findall(record) == [b"4711"]

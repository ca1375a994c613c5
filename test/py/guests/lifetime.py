# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Processes and directories that go when their owner goes, however it goes.

No C{finally} runs in a process that is killed with SIGKILL, so the kernel has
to do that part: it kills the children, and it closes the pipe on whose end a
shell waits to remove the directory.

"""

from __future__ import annotations

import collections.abc
import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import typing

_PR_SET_PDEATHSIG = 1

#: How long anything here may take, in seconds: far more than it needs, for
#: the sake of busy machines
PATIENCE = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


def start(args: list[str], **options: typing.Any) -> subprocess.Popen[bytes]:
  """Start a process that the kernel kills when the calling thread ends.

  @param options: as for subprocess.Popen

  """
  parent = os.getpid()

  def die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
      # It went before the kernel knew
      os._exit(1)

  return subprocess.Popen(
    args, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, **options
  )


@contextlib.contextmanager
def scratch_directory(
  parent: pathlib.Path | None = None,
) -> collections.abc.Iterator[pathlib.Path]:
  """A directory that is there for as long as this process uses it.

  @param parent: where to make it, by default where temporary files go

  """
  path = tempfile.mkdtemp(prefix="kvmd-", dir=parent)
  # In a session of its own, so that what kills a whole process group or comes
  # from a terminal passes it by
  remover = subprocess.Popen(
    ["/bin/sh", "-c", 'read -r _; exec rm -rf -- "$1"', "rm", path],
    stdin=subprocess.PIPE,
    start_new_session=True,
  )
  try:
    yield pathlib.Path(path)
  finally:
    remover.communicate()


def wait_until(
  condition: collections.abc.Callable[[], bool],
  what: str,
  timeout: float = PATIENCE,
) -> None:
  """Wait until a condition holds.

  @param what: the condition in words, for the error
  @param timeout: in seconds
  @raise TimeoutError: if it does not come to hold

  """
  deadline = time.monotonic() + timeout
  while not condition():
    if time.monotonic() > deadline:
      raise TimeoutError(f"Not within {timeout:g} s: {what}")
    time.sleep(0.005)

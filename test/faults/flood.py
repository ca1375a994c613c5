# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What a hostile QEMU writes into its journal: more than anybody can read.

It is JSON, and takes the longest to parse.

"""

from __future__ import annotations

import sys

from guests import lifetime

#: Some MB of it take longer than anybody may be kept waiting.
GARBAGE = b"{}" * 3 * 1024 * 1024

#: It writes twice as fast as that can be parsed. Behind itself it gives back to
#: the disk what it wrote, which never fills up; but not so soon that who reads
#: it from the beginning would come upon the hole.
_PROGRAM = """
import contextlib, ctypes, os, sys, time
descriptor = int(sys.argv[1])
fallocate = ctypes.CDLL(None).fallocate
fallocate.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2
KEEP_SIZE_PUNCH_HOLE = 3
CHUNK = b"{}" * 4096
LEFT = 6 * 1024 * 1024
while True:
  with contextlib.suppress(OSError):
    os.write(descriptor, CHUNK)
  end = os.lseek(descriptor, 0, os.SEEK_CUR) - LEFT
  if end > 0 and fallocate(
    descriptor, KEEP_SIZE_PUNCH_HOLE, 0, end // 4096 * 4096
  ):
    break
  time.sleep(0.005)
"""


class Flood:
  """A process that goes on and on writing."""

  def __init__(self, journal: int) -> None:
    """Begin.

    @param journal: a descriptor of the journal, which the process shares

    """
    self._process = lifetime.start(
      [sys.executable, "-I", "-c", _PROGRAM, str(journal)], pass_fds=[journal]
    )

  def close(self) -> None:
    """End it."""
    self._process.kill()
    self._process.wait()

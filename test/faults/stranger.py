# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A local user who locks all that he can open, and does not let go.

He has no privilege: what he can do, anybody on the node can.

"""

from __future__ import annotations

import pathlib
import select
import subprocess
import sys

from guests import lifetime

_NOBODY = 65534

#: He looks for more to lock every few milliseconds. To have a file open twice
#: would lose its lock when one of the two is closed.
_PROGRAM = """
import contextlib, fcntl, os, sys, time
opened = {}
def find(directory):
  yield directory
  with contextlib.suppress(OSError):
    for entry in os.scandir(directory):
      yield entry.path
while True:
  for directory in sys.argv[1:]:
    for path in find(directory):
      with contextlib.suppress(OSError):
        found = os.lstat(path)
        key = found.st_dev, found.st_ino
        if key not in opened:
          flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
          opened[key] = os.open(path, flags)
  for descriptor in opened.values():
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(OSError):
      fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  print(flush=True)
  time.sleep(0.005)
"""


class Stranger:
  """The user, as a process."""

  def __init__(self, *directories: pathlib.Path) -> None:
    """Let him lock what is there.

    @param directories: where he looks

    """
    self._process = lifetime.start(
      [sys.executable, "-I", "-c", _PROGRAM, *map(str, directories)],
      stdout=subprocess.PIPE,
      bufsize=0,
      user=_NOBODY,
      group=_NOBODY,
      extra_groups=[],
    )
    self.wait()

  def wait(self) -> None:
    """Wait until he has locked what there is now."""
    pipe = self._process.stdout
    assert pipe is not None
    # What was said so far is about what was there before.
    while select.select([pipe], [], [], 0)[0]:
      pipe.read(65536)
    # He may be in the middle of a look.
    for _ in range(2):
      pipe.read(1)

  def close(self) -> None:
    """Let him go."""
    self._process.kill()
    self._process.communicate()

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Commands, trouble and files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

from ganeti.kvmd.node import lockfile

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Optional

#: A root shell that was opened with a plain su lacks some of these.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Removed after each run, and gone after a reboot.
_LOCK = "/run/ganeti-kvmd-setup.lock"

_DPKG_LOCK = "/var/lib/dpkg/lock"


class TroubleError(Exception):
  """What was found does not allow what was asked for.

  The text says what was found and what to do.

  """


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
  """Runs a command.

  @raise TroubleError: if there is no such command

  """
  path = os.pathsep.join(filter(None, [os.environ.get("PATH"), _PATH]))
  try:
    return subprocess.run(
      command,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors="replace",
      env={**os.environ, "PATH": path, "LC_ALL": "C"},
      check=False,
    )
  except OSError as err:
    raise TroubleError(f"cannot run {command[0]}: {err.strerror}") from err


def run(*command: str) -> str:
  """Runs a command that has to succeed.

  @return: what it printed
  @raise TroubleError: if it fails

  """
  result = attempt(*command)
  if result.returncode:
    # Of a traceback, too, the last line tells most.
    lines = (result.stdout + result.stderr).split("\n")
    words = [line.strip() for line in lines if line.strip()]
    raise TroubleError(
      f"'{command[0]} {' '.join(command[1:3])}' failed with status"
      f" {result.returncode}: {words[-1] if words else 'without a word'}"
    )
  return result.stdout


def link_target(path: str) -> Optional[str]:
  """Returns what a symbolic link says; None if it is none."""
  try:
    return os.readlink(path)
  except OSError:
    return None


def remove(path: str) -> None:
  """Removes a file, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path)


def put_link(path: str, target: str) -> None:
  """Puts a symbolic link in the place of whatever there is, in one moment."""
  temporary = temporary_name(path)
  remove(temporary)
  os.symlink(target, temporary)
  os.rename(temporary, path)


def temporary_name(path: str) -> str:
  """Returns what a file is called until it is moved into its place."""
  return path + ".ganeti-kvmd-new"


@contextlib.contextmanager
def exclusively() -> Iterator[None]:
  """Keeps other runs of this program, and dpkg, away.

  @raise TroubleError: if there is another run, or dpkg is at work

  """
  with contextlib.ExitStack() as stack:
    try:
      lock = lockfile.LockFile(_LOCK)
    except lockfile.LockedError as err:
      raise TroubleError(
        f"another ganeti-kvmd-setup is at work: {err}"
      ) from err
    stack.callback(lock.remove)
    with contextlib.suppress(FileNotFoundError):
      # It reads the diversions only when it starts.
      dpkg = stack.enter_context(open(_DPKG_LOCK, "r+b"))
      try:
        fcntl.lockf(dpkg, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as err:
        raise TroubleError(
          "dpkg is at work; try again when it is done"
        ) from err
    yield

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Runs the tests of one module again and again, for L{mutate}.

What takes long to import is imported once, and a process is forked for each
run. Nothing of a run outlives it.

Each line of the input is a run: the time limit in seconds, and pytest's
arguments. Each line of the output says how it went: the status (None at the
time limit), the seconds, and what pytest said.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import resource
import select
import signal
import sys
import time
import traceback

import hypothesis
import pytest

#: prctl(2): orphans among all descendants become children of this process
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1

#: What a run may take, in bytes: a mutant may want all there is.
_MAX_MEMORY = 4 << 30
_MAX_FILE = 1 << 33


def _run(arguments: list[str], output: pathlib.Path) -> None:
  """Runs the tests and ends the process."""
  status = 3
  try:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE, _MAX_FILE))
    for number, (path, flags) in enumerate(
      [
        (os.devnull, os.O_RDONLY),
        (str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
      ]
    ):
      os.dup2(os.open(path, flags, 0o600), number)
    os.dup2(1, 2)
    status = int(pytest.main(arguments))
  except BaseException:  # noqa: BLE001
    traceback.print_exc()
  finally:
    os._exit(status)


def _end_all() -> None:
  """Ends whatever the last run has left."""
  mine = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
  while children := mine.read_text().split():
    for child in map(int, children):
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)


def _serve(output: pathlib.Path) -> None:
  for line in sys.stdin:
    limit, arguments = json.loads(line)
    began = time.monotonic()
    child = os.fork()
    if not child:
      _run(arguments, output)
    descriptor = os.pidfd_open(child)
    status = None
    if select.select([descriptor], [], [], limit)[0]:
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - began
    os.close(descriptor)
    _end_all()
    said = output.read_text(errors="replace") if output.exists() else ""
    print(json.dumps([status, seconds, said[-8192:]]), flush=True)


if __name__ == "__main__":
  del sys.path[0]
  ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
  # One example that fails is enough; which is the simplest does not matter.
  hypothesis.settings.register_profile(
    "mutants",
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    report_multiple_bugs=False,
  )
  hypothesis.settings.load_profile("mutants")
  _serve(pathlib.Path(sys.argv[1]))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What Ganeti's node daemon does when it is asked about the instances.

L{Request} is the side of whoever measures. Each is a process of its own, as a
request is in the node daemon, that has loaded all it needs and waits for the
word. As a program it is that process.

"""

from __future__ import annotations

import enum
import json
import logging
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Optional

from errors import BenchError
from pretended import end_with_parent

if TYPE_CHECKING:
  import peers

_LOAD_TIMEOUT = 20
_PROGRAM = os.path.abspath(__file__)
_BUILD = os.path.join(
  os.path.dirname(os.path.dirname(os.path.dirname(_PROGRAM))), "build"
)


class Question(enum.Enum):
  """What the node daemon wants to know.

  @cvar OVERVIEW: C{GetAllInstancesInfo}, by our hypervisor code
  @cvar STOCK_OVERVIEW: the same by Ganeti's
  @cvar USERS: whether each instance was turned off by its user

  """

  OVERVIEW = "overview"
  STOCK_OVERVIEW = "stock"
  USERS = "users"


class Answer(NamedTuple):
  """An answer.

  @ivar seconds: how long it took
  @ivar shut_down: how many instances were turned off by their users

  """

  seconds: float
  shut_down: int


class RequestError(BenchError):
  """The node daemon's code cannot be used; the message says why."""


class Request:
  """A process that will answer one question."""

  def __init__(self, node: peers.Node, names: list[str]) -> None:
    """Loads all it needs.

    @param names: the instances that it is to be asked about
    @raise RequestError: if it cannot

    """
    # Ganeti takes an instance for one of the node's if it has that file.
    configuration = os.path.join(os.path.dirname(node.directory), "conf")
    os.makedirs(configuration, exist_ok=True)
    for name in names:
      path = os.path.join(configuration, name + ".runtime")
      open(path, "wb").close()
      # It was there first: a younger one is of a later life than the journal.
      os.utime(path, (0, 0))
    self._errors = os.path.join(node.log, "node-daemon")
    with open(self._errors, "wb") as errors:
      self._process = subprocess.Popen(
        [sys.executable, _PROGRAM, *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        preexec_fn=node.move_in,
      )
    if not self._receive(_LOAD_TIMEOUT):
      self.close()
      raise RequestError(f"Ganeti's hypervisor code: {self._last_words()}")

  def __enter__(self) -> Request:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def ask(self, question: Question, timeout: float) -> Optional[Answer]:
    """Asks.

    @param timeout: in seconds
    @return: None if it took longer
    @raise RequestError: if there was an error instead of an answer

    """
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(question.value.encode() + b"\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass
    line = self._receive(timeout)
    if line is None:
      return None
    if not line:
      raise RequestError(f"{question.value}: {self._last_words()}")
    return Answer(*json.loads(line))

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()

  def _receive(self, timeout: float) -> Optional[bytes]:
    assert self._process.stdout is not None
    ready, _, _ = select.select([self._process.stdout], [], [], timeout)
    return self._process.stdout.readline() if ready else None

  def _last_words(self) -> str:
    with open(self._errors, encoding="utf-8", errors="replace") as file:
      lines = file.read().splitlines()
    return lines[-1] if lines else "(it wrote nothing)"


def main() -> int:
  """Answers one question about the instances on the command line."""
  end_with_parent()
  # It says a lot about journals, which goes to the node daemon's log.
  logging.disable()
  sys.path.insert(0, _BUILD)
  from ganeti.hypervisor import hv_kvm

  names = sys.argv[1:]
  ours = hv_kvm.KVMHypervisor()
  stock = hv_kvm.stock.KVMHypervisor()
  questions = {
    Question.OVERVIEW: lambda: len(ours.GetAllInstancesInfo()),
    Question.STOCK_OVERVIEW: lambda: len(stock.GetAllInstancesInfo()),
    Question.USERS: lambda: sum(ours._IsUserShutdown(x) for x in names),
  }
  print("ready", flush=True)
  for line in sys.stdin:
    begun = time.monotonic()
    found = questions[Question(line.strip())]()
    print(json.dumps((time.monotonic() - begun, found)), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())

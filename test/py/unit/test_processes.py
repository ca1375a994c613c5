# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Which instance a process belongs to, and for how long."""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
import sys
from unittest import mock

import forked
import pytest
from ganeti.kvmd.node import processes
from ganeti.kvmd.node.processes import Processes, is_alive
from guests import lifetime
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

NOW = 1000.0


def gone() -> int:
  """Returns the number of a process that has ended."""
  child = os.fork()
  if not child:
    os._exit(0)
  os.waitpid(child, 0)
  return child


@pytest.mark.parametrize("ended", [NOW - 50.0, NOW, NOW + 0.9])
def test_end_that_is_told_after_the_life_is_over(ended):
  known = Processes()
  known.begin(11, "web1")
  known.end(11, "web1", NOW)
  assert 11 in known
  assert known.take(11, ended) == "web1"
  assert 11 not in known
  assert known.take(11, ended) is None


def test_end_that_is_told_before_the_life_is_over():
  known = Processes()
  known.begin(11, "web1")
  assert known.take(11, NOW) == "web1"
  known.end(11, "web1", NOW)
  assert len(known) == 0


def test_number_is_that_of_another_process():
  """One ends well, which nobody tells; one that gets its number does not."""
  known = Processes()
  known.begin(11, "web1")
  known.end(11, "web1", NOW)
  assert known.take(11, NOW + 1.1) is None


def test_number_is_that_of_another_instance():
  known = Processes()
  known.begin(11, "web1")
  known.end(11, "web1", NOW)
  known.begin(11, "web2")
  # Whoever has it no longer cannot take it from who has.
  known.end(11, "web1", NOW)
  assert known.take(11, NOW + 100.0) == "web2"


def test_process_that_is_not_known():
  known = Processes()
  known.begin(0, "web1")
  known.end(0, "web1", NOW)
  known.end(11, "web1", NOW)
  assert 0 not in known
  assert len(known) == 0


def test_processes_that_end_without_a_word_are_forgotten():
  known = Processes()
  child = gone()
  known.begin(child, "web1")
  known.begin(os.getpid(), "web2")
  known.sweep(NOW)
  # The kernel may tell of it any moment.
  assert child in known
  known.sweep(NOW + 2.0)
  assert child not in known
  assert os.getpid() in known


def test_lives_without_end_are_not_remembered(monkeypatch):
  monkeypatch.setattr(processes, "_MAX_OVER", 100)
  known = Processes()
  for number in range(1, 1000):
    known.begin(number, "web1")
    known.end(number, "web1", NOW)
  assert len(known) == 100
  assert known.take(999, NOW) == "web1"


def test_is_alive():
  assert is_alive(os.getpid())
  assert is_alive(1)
  assert not is_alive(gone())
  assert not is_alive(0)


class AnyHistory(RuleBasedStateMachine):
  """Numbers that come and go, against a list of all that happened."""

  def __init__(self):
    super().__init__()
    self.known = Processes()
    self.now = NOW
    self.lives = {}

  numbers = st.integers(2**30, 2**30 + 2)
  names = st.sampled_from(["web1", "web2"])

  @rule(seconds=st.floats(0.0, 2.0))
  def wait(self, seconds):
    self.now += seconds

  @rule(number=numbers, name=names)
  def begin(self, number, name):
    self.known.begin(number, name)
    self.lives[number] = (name, float("inf"))

  @rule(number=numbers, name=names)
  def end(self, number, name):
    self.known.end(number, name, self.now)
    if self.lives.get(number) == (name, float("inf")):
      self.lives[number] = (name, self.now)

  @rule(number=numbers)
  def take(self, number):
    name, over = self.lives.pop(number, (None, 0.0))
    is_counted = name is not None and self.now <= over + 1.0
    expected = name if is_counted else None
    assert self.known.take(number, self.now) == expected

  @rule()
  def sweep(self):
    # There are no processes of such numbers.
    self.known.sweep(self.now)
    for number, (name, over) in list(self.lives.items()):
      self.lives[number] = (name, min(over, self.now))

  @invariant()
  def is_bounded(self):
    assert len(self.known) <= len(self.lives)


TestAnyHistory = AnyHistory.TestCase


#: A name that looks like the rest of the line, at which it has to be found.
_NAME = ") S 1 (R"

_RENAME = f"open('/proc/self/comm', 'w').write({_NAME!r}); print(flush=True);"


def _started(script: str) -> subprocess.Popen[bytes]:
  process = lifetime.start(
    [sys.executable, "-c", _RENAME + script], stdout=subprocess.PIPE
  )
  assert process.stdout.readline()
  assert pathlib.Path(f"/proc/{process.pid}/comm").read_text() == _NAME + "\n"
  return process


def _end(process: subprocess.Popen[bytes]) -> None:
  process.kill()
  process.communicate()
  assert processes.at_work(process.pid) is None
  assert not processes.is_alive(process.pid)


def test_at_work() -> None:
  process = _started("\nwhile True: pass")
  lifetime.wait_until(
    lambda: (processes.at_work(process.pid) or 0.0) >= 0.2, "0.2 s of work"
  )
  with open(f"/proc/{process.pid}/schedstat") as file:
    nanoseconds = int(file.read().split()[0])
  assert processes.at_work(process.pid) >= nanoseconds / 1e9 - 0.05
  _end(process)


@pytest.mark.parametrize(
  "script",
  [
    "import signal; signal.pause()",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
  ],
)
def test_at_rest(script: str) -> None:
  process = _started(script)
  lifetime.wait_until(
    lambda: processes.at_work(process.pid) is None, "it rests"
  )
  assert processes.is_alive(process.pid)
  _end(process)


def test_zombie_is_at_rest() -> None:
  process = _started("")
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  assert processes.at_work(process.pid) is None
  process.communicate()


def test_nobody() -> None:
  assert not processes.is_alive(0)
  assert processes.at_work(0) is None


def test_process_of_somebody_else_is_alive() -> None:
  process = os.getpid()

  def check() -> None:
    assert is_alive(process)

  forked.run(check, forked.Place.UNPRIVILEGED)


@pytest.mark.parametrize(("state", "seconds"), [("R", 5.0), ("D", 5.0)])
def test_work_is_that_of_user_and_system(state: str, seconds: float) -> None:
  ticks = os.sysconf("SC_CLK_TCK")
  # proc(5): its parent, group, session, terminal, the terminal's group, flags,
  # four numbers of faults; the times; those of its children
  fields = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2 * ticks, 3 * ticks, 11, 12, 13]
  text = f"7 (a b) {state} {' '.join(map(str, fields))}\n"
  with mock.patch("builtins.open", return_value=io.BytesIO(text.encode())):
    assert processes.at_work(7) == seconds


@pytest.mark.parametrize("text", [b"", b"7", b"7 (a)", b"7 (a) ", b"7 (a) S 1"])
def test_process_that_is_just_going(text: bytes) -> None:
  with mock.patch("builtins.open", return_value=io.BytesIO(text)):
    assert processes.at_work(7) is None


def test_last_moment_counts():
  known = Processes()
  for number in 11, 12:
    known.begin(number, "web1")
    known.end(number, "web1", NOW)
  known.sweep(NOW + 1.0)
  assert known.take(11, NOW + 1.0) == "web1"
  known.sweep(NOW + 1.01)
  assert 12 not in known


def test_those_who_are_over_are_forgotten_in_their_order():
  known = Processes()
  known.begin(11, "web1")
  known.begin(12, "web2")
  known.end(11, "web1", NOW)
  known.end(12, "web2", NOW + 1.0)
  known.sweep(NOW + 1.5)
  assert 11 not in known
  assert known.take(12, NOW + 1.5) == "web2"


def test_many_that_end_at_once_are_remembered_and_no_number_of_them():
  known = Processes()
  for number in range(1, 10_001):
    known.begin(number, f"web{number}")
  for number in range(1, 10_000):
    # Not the same object each time
    known.end(number, f"web{number}", NOW)
  assert len(known) == 10_000
  assert 1 in known
  for number in range(10_001, 60_000):
    known.begin(number, "web")
    known.end(number, "web", NOW)
  assert len(known) < 20_000

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon's verdicts on real QEMU processes."""

from __future__ import annotations

import collections.abc
import dataclasses
import signal
import socket

import pytest
from guests import endings, lifetime, linux, qemu
from guests.boot_sector import Command
from guests.endings import Ending
from guests.qemu import Machine, Qemu
from guests.stage import Stage
from kvmd_log import Outcome
from kvmd_process import Daemon


@dataclasses.dataclass(frozen=True)
class Judge:
  """A daemon that goes by one rule."""

  rule: str
  stage: Stage
  daemon: Daemon


@pytest.fixture(scope="module", params=["cause", "sequence"])
def judge(request: pytest.FixtureRequest) -> collections.abc.Iterator[Judge]:
  """One and the same daemon for many tests."""
  with Stage() as stage:
    daemon = stage.daemon(f"--rule={request.param}")
    yield Judge(request.param, stage, daemon)


def _wait_up(machine: Qemu, daemon: Daemon) -> None:
  """Wait until a guest is up and the daemon listens."""
  machine.wait_ready()
  daemon.wait_attached(machine.name)


def _check(daemon: Daemon, instance: str, right: Outcome) -> None:
  """Check the only verdict on an instance, and the file that says so."""
  assert daemon.wait_outcome(instance) == right
  assert daemon.outcomes(instance) == [right]
  _check_file(daemon, instance, right)


def _check_file(daemon: Daemon, instance: str, right: Outcome) -> None:
  path = daemon.shutdown_file(instance)
  files = {*daemon.ctrl_dir.glob(f"{instance}.*")}
  # A QEMU that was killed leaves its monitor behind
  files.discard(daemon.ctrl_dir / f"{instance}.kvmd")
  if right.verdict == endings.USER.verdict:
    assert files == {path}
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == b""
  else:
    assert not files


@pytest.mark.parametrize("ending", endings.ALL, ids=lambda ending: ending.what)
def test_ending(judge: Judge, ending: Ending) -> None:
  with judge.stage.qemu(ending.machine) as machine:
    _wait_up(machine, judge.daemon)
    ending.play(machine)
    machine.wait()
    if judge.rule == "cause":
      _check(judge.daemon, machine.name, ending.right)
      assert judge.daemon.remark(machine.name) == ending.remark
    else:
      verdict = judge.daemon.wait_outcome(machine.name)
      assert verdict.verdict == ending.by_sequence
      _check_file(judge.daemon, machine.name, verdict)


def test_endings_at_once(stage: Stage) -> None:
  daemon = stage.daemon()
  machines = [stage.qemu(ending.machine) for ending in endings.SHOWN]
  for machine in machines:
    _wait_up(machine, daemon)
  for machine, ending in zip(machines, endings.SHOWN):
    ending.play(machine)
  for machine, ending in zip(machines, endings.SHOWN):
    _check(daemon, machine.name, ending.right)


@pytest.mark.parametrize(
  ("play", "right"),
  [
    (lambda machine: machine.tell(linux.POWER_OFF), endings.USER),
    (lambda machine: machine.powerdown(), endings.POWERDOWN),
  ],
  ids=["poweroff", "powerdown"],
)
def test_linux(
  stage: Stage, linux_guest: qemu.Guest, play: endings.Play, right: Outcome
) -> None:
  daemon = stage.daemon()
  machine = stage.qemu(Machine(linux_guest))
  _wait_up(machine, daemon)
  play(machine)
  _check(daemon, machine.name, right)


def test_monitors_that_were_there_first(stage: Stage) -> None:
  machines = [stage.qemu(ending.machine) for ending in endings.SHOWN]
  for machine in machines:
    machine.wait_ready()
  daemon = stage.daemon()
  for machine, ending in zip(machines, endings.SHOWN):
    daemon.wait_attached(machine.name)
    ending.play(machine)
    _check(daemon, machine.name, ending.right)


def test_other_suffix(stage: Stage) -> None:
  daemon = stage.daemon("--monitor-suffix=.qmp")
  machine = stage.qemu(Machine(suffix=".qmp"))
  _wait_up(machine, daemon)
  machine.user(Command.POWER_OFF)
  _check(daemon, machine.name, endings.USER)


def test_guest_that_starts_paused(stage: Stage) -> None:
  daemon = stage.daemon()
  machine = stage.qemu(Machine(paused=True))
  daemon.wait_attached(machine.name)
  machine.admin("cont")
  machine.wait_ready()
  machine.user(Command.POWER_OFF)
  _check(daemon, machine.name, endings.USER)


def test_guest_that_never_ran(stage: Stage) -> None:
  daemon = stage.daemon()
  machine = stage.qemu(Machine(paused=True))
  daemon.wait_attached(machine.name)
  machine.signal(signal.SIGTERM)
  _check(daemon, machine.name, endings.SIGNAL)


def test_stale_file_is_removed_when_attached(stage: Stage) -> None:
  daemon = stage.daemon()
  daemon.shutdown_file("phoenix").touch()
  machine = stage.qemu(name="phoenix")
  _wait_up(machine, daemon)
  lifetime.wait_until(
    lambda: not daemon.shutdown_file("phoenix").exists(), "file removed"
  )
  machine.signal(signal.SIGKILL)
  _check(daemon, "phoenix", endings.KILLED)


def test_file_is_there_while_qemu_still_lives(stage: Stage) -> None:
  daemon = stage.daemon()
  machine = stage.qemu(Machine(no_shutdown=True))
  _wait_up(machine, daemon)
  path = daemon.shutdown_file(machine.name)
  machine.user(Command.POWER_OFF)
  lifetime.wait_until(path.exists, "file written")
  assert machine.admin("query-status")["status"] == "shutdown"
  assert daemon.outcomes(machine.name) == []

  machine.admin("system_reset")
  lifetime.wait_until(lambda: not path.exists(), "file removed")
  machine.admin("cont")
  machine.wait_ready()
  machine.user(Command.POWER_OFF)
  lifetime.wait_until(path.exists, "file written again")
  machine.admin("quit")
  _check(daemon, machine.name, endings.USER)


def test_file_outlives_a_daemon_that_is_replaced(stage: Stage) -> None:
  daemon = stage.daemon()
  machine = stage.qemu(Machine(no_shutdown=True))
  _wait_up(machine, daemon)
  machine.user(Command.POWER_OFF)
  path = daemon.shutdown_file(machine.name)
  lifetime.wait_until(path.exists, "file written")
  assert daemon.end() == 0

  successor = stage.daemon()
  successor.wait_attached(machine.name)
  assert path.exists()
  machine.admin("quit")
  assert successor.wait_outcome(machine.name).verdict == "user"
  assert path.exists()


def test_powerdown_outlives_a_daemon_that_is_replaced(stage: Stage) -> None:
  daemon = stage.daemon()
  machine = stage.qemu()
  _wait_up(machine, daemon)
  endings.ignored_powerdown(machine)
  assert daemon.end() == 0

  successor = stage.daemon()
  successor.wait_attached(machine.name)
  machine.user(Command.POWER_OFF)
  _check(successor, machine.name, endings.POWERDOWN)


def test_monitor_that_another_client_holds(stage: Stage) -> None:
  machine = stage.qemu()
  machine.wait_ready()
  with socket.socket(socket.AF_UNIX) as other:
    other.connect(str(machine.monitor))
    assert b"QMP" in other.recv(1000)
    daemon = stage.daemon()
    # Until it gets its turn, the daemon can know nothing of the guest
    neighbour = stage.qemu()
    daemon.wait_attached(neighbour.name)
    assert not any(f"{machine.name}: attached" in line for line in daemon.lines)
  daemon.wait_attached(machine.name)
  machine.user(Command.POWER_OFF)
  _check(daemon, machine.name, endings.USER)


@pytest.mark.parametrize(
  ("first", "second"),
  [
    (endings.USER_POWEROFF, endings.KILLED_BY_HOST),
    (endings.KILLED_BY_HOST, endings.USER_POWEROFF),
    (endings.USER_POWEROFF, endings.USER_POWEROFF),
    (endings.KILLED_BY_HOST, endings.KILLED_BY_HOST),
  ],
  ids=lambda ending: ending.what,
)
def test_restart_at_once(stage: Stage, first: Ending, second: Ending) -> None:
  daemon = stage.daemon()
  old = stage.qemu(name="phoenix")
  _wait_up(old, daemon)
  first.play(old)
  old.wait()
  new = stage.qemu(name="phoenix")
  assert daemon.wait_outcome("phoenix") == first.right
  new.wait_ready()
  daemon.wait_line(rf"phoenix: attached to .* process {new.pid}\b")
  second.play(new)
  assert daemon.wait_outcome("phoenix", lives=2) == second.right
  _check_file(daemon, "phoenix", second.right)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon's verdicts on real QEMU processes that keep a journal."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import os
import signal

import ctrl_files
import pytest
from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.node import ctrldir, journal, journal_files, journal_space
from guests import endings, lifetime
from guests.boot_sector import Command
from guests.endings import Ending
from guests.qemu import Machine, Qemu
from guests.stage import Stage
from kvmd_log import Outcome
from kvmd_process import Daemon

_JOURNAL = Machine(journal=True)


@pytest.fixture(scope="module")
def shared() -> collections.abc.Iterator[tuple[Stage, Daemon]]:
  """One and the same daemon for many tests."""
  with Stage() as stage:
    yield stage, stage.daemon()


def _wait_up(machine: Qemu, daemon: Daemon) -> None:
  machine.wait_ready()
  daemon.wait_line(rf"instance {machine.name}: its QEMU keeps a journal")


def _files(stage: Stage, name: str) -> set[str]:
  """Returns the endings of an instance's files, but for QEMU's sockets."""
  return {
    path.name[len(name) :]
    for path in stage.ctrl_dir.glob(f"{name}.*")
    if not path.is_socket()
  }


def _check(stage: Stage, daemon: Daemon, name: str, right: Outcome) -> None:
  """Checks the only verdict, and that just the right file is left."""
  assert daemon.wait_outcome(name) == right
  is_user = right.verdict == endings.USER.verdict
  left = {".shutdown"} if is_user else set()
  lifetime.wait_until(
    lambda: _files(stage, name) == left, f"files of {name} to be {left}"
  )
  assert daemon.outcomes(name) == [right]


def _verdict_without_daemon(stage: Stage, name: str) -> lifecycle.Verdict:
  """Does what the hypervisor does."""
  with ctrl_files.opened(stage.ctrl_dir) as directory:
    with journal_files.opened(directory, name) as found:
      assert not found.is_being_written
      reading = journal.Reading(found, lifecycle.Rule.CAUSE)
      reading.advance(found, None, math.inf)
      return reading.record(found).lifecycle.outcome.verdict


@pytest.mark.parametrize("ending", endings.ALL, ids=lambda ending: ending.what)
def test_ending(shared: tuple[Stage, Daemon], ending: Ending) -> None:
  stage, daemon = shared
  machine = dataclasses.replace(ending.machine, journal=True)
  with stage.qemu(machine) as started:
    _wait_up(started, daemon)
    ending.play(started)
    started.wait()
    _check(stage, daemon, started.name, ending.right)
    assert daemon.remark(started.name) == ending.remark


def test_daemon_that_was_away_the_whole_time(stage: Stage) -> None:
  machines = []
  for ending in endings.SHOWN:
    machine = stage.qemu(dataclasses.replace(ending.machine, journal=True))
    machine.wait_ready()
    ending.play(machine)
    machine.wait()
    machines.append((machine.name, ending.right))
  for name, right in machines:
    verdict = _verdict_without_daemon(stage, name)
    assert verdict.value == right.verdict
  daemon = stage.daemon()
  for name, right in machines:
    _check(stage, daemon, name, right)


def test_daemon_that_is_killed_between_powerdown_and_end(stage: Stage) -> None:
  first = stage.daemon()
  machine = stage.qemu(_JOURNAL)
  _wait_up(machine, first)
  endings.ignored_powerdown(machine)
  os.kill(first.pid, signal.SIGKILL)
  machine.user(Command.POWER_OFF)
  machine.wait()
  _check(stage, stage.daemon(), machine.name, endings.POWERDOWN)


def test_started_again_at_once_under_the_same_name(stage: Stage) -> None:
  daemon = stage.daemon()
  for _ in range(5):
    machine = stage.qemu(_JOURNAL, "again")
    machine.wait_ready()
    machine.user(Command.POWER_OFF)
    machine.wait()
  machine = stage.qemu(_JOURNAL, "again")
  machine.wait_ready()
  machine.signal(signal.SIGKILL)
  machine.wait()
  lifetime.wait_until(lambda: not _files(stage, "again"), "no file to be left")
  assert daemon.outcomes("again")[-1] == endings.KILLED


def test_socket_and_journal_side_by_side(stage: Stage) -> None:
  daemon = stage.daemon()
  by_socket, by_journal = stage.qemu(), stage.qemu(_JOURNAL)
  by_socket.wait_ready()
  daemon.wait_attached(by_socket.name)
  _wait_up(by_journal, daemon)
  for machine in (by_socket, by_journal):
    machine.user(Command.POWER_OFF)
    machine.wait()
    _check(stage, daemon, machine.name, endings.USER)
  assert not any(
    f"{by_journal.name}: attached" in line for line in daemon.lines
  )


def test_many_events_are_given_back(stage: Stage) -> None:
  daemon = stage.daemon("--rescan-interval=0.2")
  machine = stage.qemu(_JOURNAL)
  _wait_up(machine, daemon)
  endings.ignored_powerdown(machine)
  events = stage.ctrl_dir / f"{machine.name}{ctrldir.JOURNAL_EVENTS}"
  while events.stat().st_size < 400_000:
    for _ in range(100):
      machine.admin("stop")
      machine.admin("cont")
  lifetime.wait_until(
    lambda: events.stat().st_blocks * 512 <= journal_space.LONG,
    "a short journal",
  )
  machine.user(Command.POWER_OFF)
  machine.wait()
  _check(stage, daemon, machine.name, endings.POWERDOWN)


def _garbage(path: str) -> None:
  with open(path, "r+b") as file:
    file.write(b"\xff\x00 not JSON {{{")


def _truncated_in_a_word(path: str) -> None:
  os.truncate(path, 20)


def _a_fifo(path: str) -> None:
  os.unlink(path)
  os.mkfifo(path)


def _a_directory(path: str) -> None:
  os.unlink(path)
  os.mkdir(path)


def _a_link(path: str) -> None:
  os.rename(path, path + ".elsewhere")
  os.symlink(path + ".elsewhere", path)


def _of_somebody_else(path: str) -> None:
  os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
  "spoil",
  [
    _garbage,
    _truncated_in_a_word,
    _a_fifo,
    _a_directory,
    _a_link,
    _of_somebody_else,
  ],
)
@pytest.mark.parametrize("away", [True, False], ids=["away", "running"])
def test_spoilt_journal_is_never_the_users_and_harms_nobody(
  stage: Stage, spoil: collections.abc.Callable[[str], None], away: bool
) -> None:
  other = stage.qemu(_JOURNAL)
  spoilt = stage.qemu(_JOURNAL)
  daemon = None if away else stage.daemon("--rescan-interval=0.2")
  for machine in (spoilt, other):
    if daemon is None:
      machine.wait_ready()
    else:
      _wait_up(machine, daemon)
  spoil(str(stage.ctrl_dir / f"{spoilt.name}{ctrldir.JOURNAL_EVENTS}"))
  for machine in (spoilt, other):
    machine.signal(signal.SIGKILL)
    machine.wait()
  daemon = daemon or stage.daemon("--rescan-interval=0.2")
  _check(stage, daemon, other.name, endings.KILLED)
  if spoil is not _truncated_in_a_word:
    daemon.wait_line(rf"instance {spoilt.name}: .*journal is of no use")
  assert ".shutdown" not in _files(stage, spoilt.name)
  for verdict in daemon.outcomes(spoilt.name):
    assert verdict.verdict in {"unknown", "killed or crashed"}


def test_what_qemu_makes_is_older_than_its_reading(
  shared: tuple[Stage, Daemon],
) -> None:
  """That tells its own sockets from those of a later life."""
  stage, daemon = shared
  ending = endings.KILLED_BY_HOST
  machine = dataclasses.replace(ending.machine, journal=True)
  with stage.qemu(machine) as started:
    _wait_up(started, daemon)
    read = (stage.ctrl_dir / (started.name + ctrldir.JOURNAL_COMMANDS)).stat()
    made = (stage.ctrl_dir / (started.name + ctrldir.MONITOR_SUFFIX)).lstat()
    assert read.st_mtime_ns <= made.st_mtime_ns <= read.st_atime_ns
    ending.play(started)
    started.wait()
    assert daemon.wait_outcome(started.name) == endings.KILLED

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how the hypervisor side makes sure that a daemon runs.

In the place of Ganeti's daemon-util there is a script; what it starts claims a
real control directory, as ours does, or holds a real pidfile, as stock does.
"""

from __future__ import annotations

import collections.abc
import fcntl
import logging
import os
import pathlib
import sys
import threading
import time
import typing
from unittest import mock

import forked
import pytest
from ganeti import constants, pathutils, utils
from ganeti.hypervisor.hv_kvm import launch
from ganeti.kvmd.node import ctrldir, processes, ssconf
from guests import lifetime

#: Says that it was called, and starts a daemon that ends when it is told to
_TOOL = """#!/bin/bash
echo "$*" >>{directory}/calls
exec setsid -f {python} -c '
import os, sys, time
sys.path.insert(0, "{build}")
from ganeti.kvmd.node import ctrldir
from ganeti.kvmd.process import pidfile
{begin}
os.close(1)
os.close(2)
while not os.path.exists("{directory}/end"):
  time.sleep(0.01)
'
"""

_OURS = """
opened = os.open("{ctrl}", os.O_RDONLY)
ctrldir.ControlDirectory("{ctrl}", opened, ".kvmd").locks.claim()
"""

_PID_FILE = launch.pid_file

_REASON_NOT_TO_RUN = ssconf.reason_not_to_run

_STOCK = """
lock = pidfile.PidFile("{pid_file}")
"""


class Place:
  """A control directory, a pidfile, and a script as daemon-util."""

  def __init__(self, directory: pathlib.Path) -> None:
    self._directory = directory
    self._calls = directory / "calls"
    self.ctrl = directory / "ctrl"
    self.ctrl.mkdir()
    self.pid_file = directory / "kvmd.pid"
    self.tool = directory / "daemon-util"
    self.install(_OURS)

  def install(self, daemon: str) -> None:
    """Makes the tool start a daemon."""
    self.do(
      _TOOL.format(
        begin=daemon.format(ctrl=self.ctrl, pid_file=self.pid_file),
        build=os.environ["GANETI_KVMD_BUILD"],
        directory=self._directory,
        python=sys.executable,
      )
    )

  def do(self, script: str) -> None:
    """Makes the tool do something."""
    self.tool.write_text(script)
    self.tool.chmod(0o755)

  def end(self) -> None:
    """Ends the daemon."""
    (self._directory / "end").touch()
    lifetime.wait_until(lambda: launch.running() is None, "its end")
    (self._directory / "end").unlink()

  @property
  def calls(self) -> list[str]:
    """How the tool was called."""
    return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture(params=[_OURS, _STOCK], ids=["ours", "stock"])
def daemon(request) -> str:
  """What the daemon does at its start."""
  return str(request.param)


@pytest.fixture
def place(monkeypatch, scratch) -> collections.abc.Iterator[Place]:
  """The hypervisor side of a node."""
  found = Place(scratch)
  launch._log_reason.cache_clear()
  monkeypatch.setattr(launch, "pid_file", lambda: str(found.pid_file))
  monkeypatch.setattr(ctrldir, "ganeti_path", lambda: str(found.ctrl))
  monkeypatch.setattr(pathutils, "DAEMON_UTIL", str(found.tool))
  monkeypatch.setattr(ssconf, "reason_not_to_run", lambda: None)
  yield found
  found.end()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
  """How long was slept each time, in seconds."""
  found: list[float] = []
  sleep = time.sleep

  def note(seconds: float) -> None:
    found.append(seconds)
    sleep(seconds)

  monkeypatch.setattr(launch.time, "sleep", note)
  return found


def _warnings(caplog) -> list[str]:
  return [
    record.getMessage()
    for record in caplog.records
    if record.levelno >= logging.WARNING
    and record.getMessage().startswith("The KVM daemon does not run")
  ]


def test_starts_a_daemon_once(place: Place, daemon: str, caplog) -> None:
  place.install(daemon)
  assert launch.running() is None
  launch.ensure()
  process = launch.running()
  assert process is not None
  launch.ensure()
  assert launch.running() == process
  assert place.calls == ["start ganeti-kvmd"]
  assert not _warnings(caplog)


@pytest.mark.parametrize("number", [os.getpid(), 999999999])
def test_a_stale_pidfile_is_in_nobodys_way(place: Place, number: int) -> None:
  place.pid_file.write_text(f"{number}\n")
  launch.ensure()
  assert launch.running() not in {None, number}


def test_several_at_once(place: Place, caplog) -> None:
  threads = [threading.Thread(target=launch.ensure) for _ in range(5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert launch.running() is not None
  assert not _warnings(caplog)


def test_one_that_does_not_start(place: Place, caplog) -> None:
  place.do("#!/bin/sh\necho no such daemon >&2\nexit 1\n")
  launch.ensure()
  (warning,) = _warnings(caplog)
  assert "no such daemon" in warning
  assert f"start it with '{place.tool} start ganeti-kvmd'" in warning
  assert "kvm-daemon.log" in warning


def test_one_that_does_not_start_is_not_waited_for(
  place: Place, naps: list[float]
) -> None:
  place.do("#!/bin/sh\nexit 1\n")
  launch.ensure()
  assert naps == []


def test_one_that_is_not_wanted(
  place: Place, naps: list[float], monkeypatch, caplog
) -> None:
  """Nothing is started, nothing is waited for, and it is said once."""
  reason = "user shutdown is off"
  monkeypatch.setattr(ssconf, "reason_not_to_run", lambda: reason)
  caplog.set_level(logging.INFO)
  for _ in range(3):
    launch.ensure()
  assert place.calls == []
  assert naps == []
  assert not _warnings(caplog)
  assert caplog.text.count(f"is not started: {reason}") == 1


def test_why_it_is_not_wanted(
  place: Place, scratch: pathlib.Path, monkeypatch, caplog
) -> None:
  """By what the daemon itself goes by."""
  data = scratch / "data"
  data.mkdir()
  monkeypatch.setattr(ssconf, "reason_not_to_run", _REASON_NOT_TO_RUN)
  monkeypatch.setattr(pathutils, "DATA_DIR", str(data))
  for key, value in {
    constants.SS_HYPERVISOR_LIST: "kvm",
    constants.SS_ENABLED_USER_SHUTDOWN: "False",
    constants.SS_NODE_VM_CAPABLE: "",
  }.items():
    (data / (constants.SSCONF_FILEPREFIX + key)).write_text(value)
  caplog.set_level(logging.INFO)
  launch.ensure()
  assert place.calls == []
  assert "gnt-cluster modify --user-shutdown=yes" in caplog.text
  # Where nobody knows it is for the daemon to say so.
  for path in data.iterdir():
    path.unlink()
  launch.ensure()
  assert place.calls == ["start ganeti-kvmd"]


def test_one_that_ends_by_itself(place: Place, monkeypatch, caplog) -> None:
  monkeypatch.setattr(launch, "_GRACE", 0.05)
  place.do("#!/bin/sh\necho not started: user shutdown is off\n")
  caplog.set_level(logging.INFO)
  launch.ensure()
  assert not _warnings(caplog)
  assert "user shutdown is off" in caplog.text


class Clock:
  """A clock that passes where somebody sleeps, and a daemon that comes late.

  @ivar naps: how long was slept each time, in seconds

  """

  def __init__(self, comes_after: float) -> None:
    self._comes_after = comes_after
    self.naps: list[float] = []

  def monotonic(self) -> float:
    return 1000.0 + sum(self.naps)

  def sleep(self, seconds: float) -> None:
    self.naps.append(seconds)

  def running(self) -> typing.Optional[int]:
    return 77 if sum(self.naps) > self._comes_after else None


@pytest.mark.parametrize(
  ("comes_after", "waited", "has_come"),
  [(0.0, 0.02, True), (0.5, 0.52, True), (0.9, 0.92, True), (9.9, 1.0, False)],
)
def test_one_that_comes_late(
  place: Place, monkeypatch, caplog, comes_after, waited, has_come
) -> None:
  clock = Clock(comes_after)
  run = mock.Mock(return_value=mock.Mock(failed=False, output="it will\n"))
  monkeypatch.setattr(utils, "RunCmd", run)
  monkeypatch.setattr(launch, "time", clock)
  with monkeypatch.context() as while_it_starts:
    while_it_starts.setattr(launch, "running", clock.running)
    caplog.set_level(logging.INFO)
    launch.ensure()
  assert sum(clock.naps) == pytest.approx(waited, abs=0.021)
  said = "The KVM daemon does not run: it will" in caplog.text
  assert said is not has_come
  run.assert_called_once_with(
    [str(place.tool), "start", "ganeti-kvmd"], timeout=launch._TIMEOUT
  )


@pytest.mark.parametrize(
  ("process", "worked", "expected"),
  [(None, 2.5, None), (77, 2.5, 2.5), (77, None, None)],
)
def test_whether_it_is_at_work(monkeypatch, process, worked, expected) -> None:
  at_work = mock.Mock(return_value=worked)
  monkeypatch.setattr(launch, "running", lambda: process)
  monkeypatch.setattr(processes, "at_work", at_work)
  assert launch.at_work() == expected
  assert at_work.mock_calls == ([] if process is None else [mock.call(process)])


def test_where_its_pidfile_is() -> None:
  assert _PID_FILE() == f"{pathutils.RUN_DIR}/ganeti-kvmd.pid"


def test_no_daemon_util(place: Place, caplog) -> None:
  place.tool.unlink()
  launch.ensure()
  (warning,) = _warnings(caplog)
  assert str(place.tool) in warning


def test_a_pidfile_that_cannot_be_used(place: Place, caplog) -> None:
  place.pid_file.mkdir()
  launch.ensure()
  (warning,) = _warnings(caplog)
  assert f"cannot use {place.pid_file}: Is a directory" in warning
  assert place.calls == []


def test_a_daemon_ends_and_the_next_call_starts_one(
  place: Place, daemon: str
) -> None:
  place.install(daemon)
  launch.ensure()
  process = launch.running()
  place.end()
  launch.ensure()
  assert launch.running() not in {None, process}


def test_a_pidfile_that_was_deleted(place: Place) -> None:
  """Ours is known by its control directory."""
  place.install(_STOCK + _OURS)
  launch.ensure()
  process = launch.running()
  place.pid_file.unlink()
  assert launch.running() == process
  launch.ensure()
  assert place.calls == ["start ganeti-kvmd"]


def test_no_control_directory_yet(place: Place) -> None:
  """The daemon waits for it, and has its pidfile meanwhile."""
  place.ctrl.rmdir()
  place.install(_STOCK)
  launch.ensure()
  launch.ensure()
  assert place.calls == ["start ganeti-kvmd"]


@pytest.mark.parametrize("kind", forked.READER_LOCKS)
@pytest.mark.parametrize("has_daemon", [True, False])
def test_what_a_stranger_has_locked(
  place: Place, caplog, kind: str, has_daemon: bool
) -> None:
  """He neither passes for a daemon nor keeps one from starting."""
  pids = place.pid_file, place.ctrl / ctrldir.LOCK_FILE
  for path in pids:
    path.write_text("1\n")
    path.chmod(0o644)
  place.ctrl.chmod(0o775)
  process = None
  if has_daemon:
    launch.ensure()
    process = launch.running()
    assert process is not None

  def attack() -> None:
    for path in (place.ctrl, *pids):
      is_open = path.exists() and path.stat().st_mode & 0o004
      if is_open and not (path.is_dir() and "read" in kind):
        forked.lock_as_stranger(path, kind)

  with forked.living_on(attack, forked.Place.UNPRIVILEGED):
    assert launch.running() == process
    launch.ensure()
    assert launch.running() not in {None, os.getpid()}
  assert place.calls == ["start ganeti-kvmd"]
  assert not _warnings(caplog)


def test_what_an_earlier_version_of_ours_holds(place: Place) -> None:
  def hold() -> None:
    place.pid_file.touch()
    place.pid_file.chmod(0o644)
    descriptor = os.open(place.pid_file, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)

  with forked.living_on(hold) as process:
    assert launch.running() == process
    launch.ensure()
    assert place.calls == []

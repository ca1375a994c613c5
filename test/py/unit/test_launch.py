# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how the hypervisor side makes sure that a daemon runs.

In the place of Ganeti's daemon-util there is a script; what it starts holds a
real pidfile.
"""

from __future__ import annotations

import collections.abc
import logging
import os
import pathlib
import sys
import threading

import pytest
from ganeti import pathutils
from ganeti.kvmd import launch, pidfile

#: Says that it was called, and starts a daemon that ends with its pidfile
_TOOL = """#!/bin/bash
echo "$*" >>{directory}/calls
exec setsid -f {python} -c '
import os, sys, time
sys.path.insert(0, "{build}")
from ganeti.kvmd import pidfile
lock = pidfile.PidFile(sys.argv[1])
os.close(1)
os.close(2)
while os.path.exists(sys.argv[1]):
  time.sleep(0.01)
' {pid_file}
"""


class Place:
  """A pidfile, and a script in the place of daemon-util."""

  def __init__(self, directory: pathlib.Path) -> None:
    self._calls = directory / "calls"
    self.pid_file = directory / "kvmd.pid"
    self.tool = directory / "daemon-util"
    self.do(
      _TOOL.format(
        build=os.environ["GANETI_KVMD_BUILD"],
        directory=directory,
        pid_file=self.pid_file,
        python=sys.executable,
      )
    )

  def do(self, script: str) -> None:
    """Makes the tool do something."""
    self.tool.write_text(script)
    self.tool.chmod(0o755)

  @property
  def calls(self) -> list[str]:
    """How the tool was called."""
    return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def place(monkeypatch, scratch) -> collections.abc.Iterator[Place]:
  """The hypervisor side of a node."""
  found = Place(scratch)
  monkeypatch.setattr(launch, "pid_file", lambda: str(found.pid_file))
  monkeypatch.setattr(pathutils, "DAEMON_UTIL", str(found.tool))
  yield found
  if launch.running() is not None:
    found.pid_file.unlink()


def _warnings(caplog) -> list[str]:
  return [
    record.getMessage()
    for record in caplog.records
    if record.levelno >= logging.WARNING
    and record.getMessage().startswith("The KVM daemon does not run")
  ]


def test_starts_a_daemon_once(place: Place, caplog) -> None:
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


def test_one_that_is_not_wanted(place: Place, caplog) -> None:
  place.do("#!/bin/sh\necho not started: user shutdown is off\n")
  caplog.set_level(logging.INFO)
  launch.ensure()
  assert not _warnings(caplog)
  assert "user shutdown is off" in caplog.text


def test_no_daemon_util(place: Place, caplog) -> None:
  place.tool.unlink()
  launch.ensure()
  (warning,) = _warnings(caplog)
  assert str(place.tool) in warning


def test_a_pidfile_that_cannot_be_used(place: Place, caplog) -> None:
  place.pid_file.symlink_to("elsewhere")
  launch.ensure()
  (warning,) = _warnings(caplog)
  assert f"cannot use {place.pid_file}" in warning
  assert place.calls == []
  place.pid_file.unlink()


def test_a_daemon_ends_and_the_next_call_starts_one(place: Place) -> None:
  launch.ensure()
  process = launch.running()
  place.pid_file.unlink()
  while launch.running() is not None:
    pass
  launch.ensure()
  assert launch.running() not in {None, process}
  assert pidfile.holder(str(place.pid_file)) == launch.running()

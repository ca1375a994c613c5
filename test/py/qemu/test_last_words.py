# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What real QEMU processes write last to their log files."""

from __future__ import annotations

import collections.abc
import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time

import pytest
from ganeti.kvmd.node import last_words
from ganeti.kvmd.node.last_words import Fate, LastWords
from guests import lifetime, qemu

_NAME = "instance"
_PREFIX = "qemu-system-x86_64: "

_Play = collections.abc.Callable[["_Detached"], None]


class _Detached:
  """A QEMU as Ganeti starts it: it detaches, and logs to a file."""

  def __init__(self, directory: pathlib.Path, *options: str) -> None:
    """Start it.

    @raise subprocess.CalledProcessError: if it does not start

    """
    self._directory = directory
    self._began = time.time()
    self._ended = 0.0
    self._monitor = directory / "monitor"
    self.qtest = directory / "qtest"
    pid_file = directory / "pid"
    subprocess.run(
      [
        *(qemu.BINARY, "-name", _NAME, *qemu.PLAIN.options(), "-S"),
        *("-daemonize", "-pidfile", str(pid_file)),
        *("-D", str(directory / f"{_NAME}.log")),
        *("-qmp", f"unix:{self._monitor},server=on,wait=off", *options),
      ],
      pass_fds=qemu.BOOT_SECTOR.descriptors,
      check=True,
      timeout=lifetime.PATIENCE,
    )
    self.pid = int(pid_file.read_text())
    self._process = os.pidfd_open(self.pid)

  def wait(self) -> None:
    """Wait until it is gone."""
    assert select.select([self._process], [], [], lifetime.PATIENCE)[0]
    self._ended = time.time()

  def tell(self, command: str, **arguments: str) -> None:
    """Execute a QMP command, as far as it gets."""
    with socket.socket(socket.AF_UNIX) as monitor:
      monitor.connect(str(self._monitor))
      for request in (
        {"execute": "qmp_capabilities"},
        {"execute": command, "arguments": arguments},
      ):
        monitor.sendall(json.dumps(request).encode())
      with contextlib.suppress(ConnectionResetError):
        while monitor.recv(4096):
          pass

  def close(self) -> None:
    with contextlib.suppress(ProcessLookupError):
      signal.pidfd_send_signal(self._process, signal.SIGKILL)
    os.close(self._process)

  def last_words(self) -> LastWords:
    return last_words.read(
      str(self._directory),
      _NAME,
      began=self._began,
      ended=self._ended,
      is_reborn=False,
    )


@contextlib.contextmanager
def _detached(
  directory: pathlib.Path, *options: str
) -> collections.abc.Iterator[_Detached]:
  with contextlib.closing(_Detached(directory, *options)) as machine:
    yield machine


def _send(number: signal.Signals) -> _Play:
  return lambda machine: os.kill(machine.pid, number)


def _assert(machine: _Detached) -> None:
  """QEMU's own tests may tell it nonsense, which it does not forgive."""
  with socket.socket(socket.AF_UNIX) as qtest:
    qtest.connect(str(machine.qtest))
    qtest.sendall(b"readb\n")
    machine.wait()


def _come_broken(machine: _Detached) -> None:
  machine.tell("migrate-incoming", uri="exec:echo no machine at all")


@pytest.mark.parametrize(
  ("options", "play", "short"),
  [
    (
      [],
      _send(signal.SIGTERM),
      rf"terminating on signal 15 from pid {os.getpid()} \(.*\)",
    ),
    (
      [],
      _send(signal.SIGINT),
      rf"terminating on signal 2 from pid {os.getpid()} \(.*\)",
    ),
    (
      ["-qtest", "unix:{},server=on,wait=off"],
      _assert,
      r"ERROR:.*qtest.c:\d+:\w+: assertion failed: \(words\[1\]\)",
    ),
    (
      ["-incoming", "defer"],
      _come_broken,
      "load of migration failed: Invalid argument",
    ),
  ],
  ids=["kill -TERM", "kill -INT", "assertion", "broken migration"],
)
def test_last_words(
  scratch: pathlib.Path, options: list[str], play: _Play, short: str
) -> None:
  told = [option.format(scratch / "qtest") for option in options]
  with _detached(scratch, *told) as machine:
    play(machine)
    machine.wait()
    found = machine.last_words()
  assert found.fate is Fate.THERE
  assert re.fullmatch(short, found.short), found
  assert found.short in found.text


@pytest.mark.parametrize(
  "play",
  [
    _send(signal.SIGKILL),
    _send(signal.SIGABRT),
    lambda machine: machine.tell("quit"),
  ],
  ids=["kill -KILL", "kill -ABRT", "quit"],
)
def test_nothing_to_say(scratch: pathlib.Path, play: _Play) -> None:
  with _detached(scratch) as machine:
    play(machine)
    machine.wait()
    assert machine.last_words().fate is Fate.NONE


def test_next_start(scratch: pathlib.Path) -> None:
  with _detached(scratch) as machine:
    _send(signal.SIGTERM)(machine)
    machine.wait()
    before = machine.last_words()
    with _detached(scratch):
      after = machine.last_words()
  assert before.fate is Fate.THERE
  assert after.fate is Fate.OVERWRITTEN


def test_next_start_fails(scratch: pathlib.Path) -> None:
  """What is there then is why, and was not said by the one before."""
  with _detached(scratch) as machine:
    _send(signal.SIGTERM)(machine)
    machine.wait()
    time.sleep(0.1)  # no start of Ganeti's is as early
    with pytest.raises(subprocess.CalledProcessError):
      _Detached(scratch, "-device", "toaster")
    assert machine.last_words().fate is Fate.OVERWRITTEN
  words = (scratch / f"{_NAME}.log").read_text()
  assert last_words.short(words) == (
    "-device toaster: 'toaster' is not a valid device model name"
  )

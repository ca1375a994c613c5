# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon as a program: started by its script, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from guests import lifetime
from guests.daemon import executable

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Optional

  from fake_monitor import Connection, FakeMonitor

#: A line of a log, as Ganeti writes them.
LOG_LINE = re.compile(
  r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: ganeti-kvmd pid=(\d+)"
  r"(?: \w+:\d+)? (DEBUG|INFO|WARNING|ERROR) (.*)"
)

_TIMEOUT = 30


class Result(NamedTuple):
  """What came of a command."""

  status: int
  output: str
  errors: str


def run(
  *arguments: object,
  environment: Optional[dict[str, str]] = None,
  **options: object,
) -> Result:
  """Runs the daemon until its starter returns."""
  done = subprocess.run(
    [executable(), *map(str, arguments)],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
    timeout=_TIMEOUT,
    env={**os.environ, **(environment or {})},
    **options,  # type: ignore[call-overload]
  )
  return Result(done.returncode, done.stdout, done.stderr)


class Foreground:
  """A daemon that runs in the foreground.

  It is killed when this process ends, however it ends.

  """

  def __init__(
    self,
    log: pathlib.Path,
    *arguments: object,
    environment: Optional[dict[str, str]] = None,
  ) -> None:
    """Starts it.

    @param log: where what it says on the terminal goes

    """
    self._log = log
    with open(log, "wb") as stream:
      self.process = lifetime.start(
        [str(executable()), "-f", *map(str, arguments)],
        stdout=stream,
        stderr=stream,
        env={**os.environ, **(environment or {})},
      )

  @property
  def pid(self) -> int:
    return self.process.pid

  @property
  def text(self) -> str:
    return self._log.read_text()

  @property
  def messages(self) -> list[str]:
    """What it logged, without what each line begins with."""
    lines = self.text.split("\n")[:-1]
    matches = [LOG_LINE.fullmatch(line) for line in lines]
    return [match.group(3) for match in matches if match]

  def says(self, words: str) -> None:
    """Waits until it has logged something."""

    def has_said() -> bool:
      assert self.process.poll() is None or words in self.text, self.text
      return any(words in message for message in self.messages)

    lifetime.wait_until(has_said, words, _TIMEOUT)

  def end(self, number: int = signal.SIGTERM) -> int:
    """Ends it with a signal.

    @return: its status

    """
    if self.process.poll() is None:
      self.process.send_signal(number)
    return self.process.wait(_TIMEOUT)

  def kill(self) -> None:
    self.process.kill()
    self.process.wait()


def attach(monitor: FakeMonitor) -> Connection:
  """Lets a daemon in another process attach to a monitor."""
  found: list[Connection] = []

  def has_come() -> bool:
    connection = monitor.accept()
    if connection is not None:
      found.append(connection)
    return bool(found)

  lifetime.wait_until(has_come, "a connection", _TIMEOUT)
  (connection,) = found
  connection.greet()
  lifetime.wait_until(lambda: connection.receive() > 0, "a command", _TIMEOUT)
  connection.answer()
  return connection


class Detached:
  """A place for a daemon that detaches itself.

  @ivar directory: for its files; removed after its end
  @ivar pid_file: where its pidfile is to be

  """

  def __init__(self, directory: pathlib.Path, pid_file: pathlib.Path) -> None:
    self.directory = directory
    self.pid_file = pid_file

  @property
  def pid(self) -> int:
    return int(self.pid_file.read_text())

  @property
  def is_alive(self) -> bool:
    return _is_alive(self.pid)

  def end(self, number: int = signal.SIGTERM) -> None:
    """Ends it with a signal, and waits for that."""
    process = self.pid
    os.kill(process, number)
    lifetime.wait_until(lambda: not _is_alive(process), "its end", _TIMEOUT)


def _is_alive(process: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{process}/stat").read_text()
  except FileNotFoundError:
    return False
  # Whoever has to bury it may take its time.
  return ") Z " not in state


@contextlib.contextmanager
def detached(pid_file: str = "pid") -> Iterator[Detached]:
  """Makes a place for a daemon that will be detached, and ends it at last.

  It would outlive whoever started it. A shell ends it, which notices the end
  of this process however that comes, and removes its directory after that.

  @param pid_file: where its pidfile is in its directory

  """
  directory = pathlib.Path(tempfile.mkdtemp(prefix="kvmd-"))
  script = 'read -r _; test ! -s "$1/$2" || kill "$(cat "$1/$2")"; rm -rf "$1"'
  watcher = subprocess.Popen(
    ["/bin/sh", "-c", script, "sh", str(directory), pid_file],
    stdin=subprocess.PIPE,
    start_new_session=True,
  )
  try:
    yield Detached(directory, directory / pid_file)
  finally:
    watcher.communicate()

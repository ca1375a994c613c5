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

import kvmd_log
from guests import lifetime

if TYPE_CHECKING:
  from collections.abc import Callable, Iterator, Sequence
  from typing import Optional

  from fake_monitor import Connection, FakeMonitor
  from kvmd_log import Outcome

_SOURCE_DIR = pathlib.Path(__file__).resolve().parents[2]


def executable() -> pathlib.Path:
  """The daemon in the build tree."""
  build = os.environ.get("GANETI_KVMD_BUILD", _SOURCE_DIR / "build")
  return pathlib.Path(build) / "daemons" / "ganeti-kvmd"


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
    timeout=lifetime.PATIENCE,
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
    prefix: Sequence[str] = (),
  ) -> None:
    """Starts it.

    @param log: what it says on the terminal is added there
    @param prefix: a program that becomes the daemon, which is its arguments

    """
    with open(log, "ab") as stream:
      # Nobody else's words are taken for its own.
      self._log = kvmd_log.Log(log, stream.tell())
      self._process = lifetime.start(
        [*prefix, str(executable()), "-f", *map(str, arguments)],
        stdout=stream,
        stderr=stream,
        env={**os.environ, **(environment or {})},
      )

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def status(self) -> Optional[int]:
    """With which it ended; None as long as it runs."""
    return self._process.poll()

  @property
  def lines(self) -> list[str]:
    """What it said so far."""
    return self._read().lines

  def _read(self) -> kvmd_log.Log:
    self._log.read()
    return self._log

  @property
  def text(self) -> str:
    return "".join(f"{line}\n" for line in self.lines)

  @property
  def messages(self) -> list[str]:
    """What it logged, without what each line begins with."""
    return self._read().messages

  def says(self, words: str) -> None:
    """Waits until it has logged something."""
    self.wait_line(re.escape(words))

  def wait_line(self, pattern: str) -> None:
    """Waits until it has logged a message that a pattern is found in."""
    found = re.compile(pattern)
    fresh = self.messages

    def is_said() -> bool:
      nonlocal fresh
      if any(map(found.search, fresh)):
        return True
      # In this order: it may say something and end.
      has_ended = self.status is not None
      fresh = [line.message for line in self._log.read()]
      if has_ended and not fresh:
        raise ChildProcessError(f"ganeti-kvmd ended, it said:\n{self.text}")
      return False

    self._wait_until(is_said, f"a line with {pattern!r}")

  def wait_attached(self, instance: str) -> None:
    """Waits until it listens to an instance's monitor."""
    self.wait_line(rf"instance {re.escape(instance)}: attached to ")

  def outcomes(self, instance: str) -> list[Outcome]:
    """The verdicts on an instance, oldest first."""
    return [
      each.outcome
      for each in self._read().verdicts
      if each.instance == instance
    ]

  def remark(self, instance: str) -> str:
    """What else is said of an instance in the line of its last verdict."""
    said = f"instance {instance}: verdict "
    last = [line for line in self.lines if said in line][-1]
    return last.rstrip("\n").partition("; ")[2]

  def wait_outcome(
    self,
    instance: str,
    lives: int = 1,
    timeout: float = lifetime.PATIENCE,
  ) -> Outcome:
    """Waits for the verdict on an instance.

    @param lives: on which of its lives, counted from 1
    @param timeout: in seconds
    @raise TimeoutError: if there is none in time

    """
    self._wait_until(
      lambda: len(self.outcomes(instance)) >= lives,
      f"verdict {lives} on {instance}",
      timeout,
    )
    return self.outcomes(instance)[lives - 1]

  def _wait_until(
    self,
    condition: Callable[[], bool],
    what: str,
    timeout: float = lifetime.PATIENCE,
  ) -> None:
    try:
      lifetime.wait_until(condition, what, timeout)
    except TimeoutError as err:
      raise TimeoutError(f"{err}; it said:\n{self.text}") from None

  def send_signal(self, number: int) -> None:
    self._process.send_signal(number)

  def end(self, number: int = signal.SIGTERM) -> int:
    """Ends it with a signal if it has not ended, and waits for that.

    @return: its status

    """
    self.send_signal(number)
    try:
      return self._process.wait(lifetime.PATIENCE)
    finally:
      self.kill()

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()


class Daemon(Foreground):
  """One that watches a control directory once this is made."""

  def __init__(
    self, ctrl_dir: pathlib.Path, log: pathlib.Path, *options: str
  ) -> None:
    """Starts it.

    @param log: where its log lines go
    @param options: further options for it

    """
    super().__init__(log, f"--ctrl-dir={ctrl_dir}", *options)
    self.ctrl_dir = ctrl_dir
    try:
      self.wait_line(f"^watching {re.escape(str(ctrl_dir))}$")
    except BaseException:
      self.kill()
      raise

  def shutdown_file(self, instance: str) -> pathlib.Path:
    """The file that says that an instance's user turned it off."""
    return self.ctrl_dir / f"{instance}.shutdown"


def accept(monitor: FakeMonitor) -> Connection:
  """Waits for a daemon to connect to a monitor."""
  found: list[Connection] = []

  def has_come() -> bool:
    connection = monitor.accept()
    if connection is not None:
      found.append(connection)
    return bool(found)

  lifetime.wait_until(has_come, f"a connection to {monitor.instance}")
  return found[0]


def negotiate(connection: Connection) -> None:
  """Lets a daemon attach that has connected."""
  connection.greet()
  lifetime.wait_until(lambda: connection.receive() > 0, "a command")
  connection.answer()


def attach(monitor: FakeMonitor) -> Connection:
  """Lets a daemon attach to a monitor."""
  connection = accept(monitor)
  negotiate(connection)
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
    lifetime.wait_until(lambda: not _is_alive(process), "its end")


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

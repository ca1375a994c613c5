# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A ganeti-kvmd process, and what it says."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import re
import signal
import typing

from guests import lifetime

_SOURCE_DIR = pathlib.Path(__file__).parents[3]

#: How long the daemon may take to end once it is told to, in seconds
_END_PATIENCE = 10.0

_VERDICT = re.compile(
  r"instance (\S+): verdict ([a-z ]+) \((.*)\) after ([0-9.]+) s(?:;.*)?$"
)


class Verdict(typing.NamedTuple):
  """What the daemon decided, in its own words."""

  verdict: str
  cause: str


def executable() -> pathlib.Path:
  """The daemon in the build tree."""
  build = os.environ.get("GANETI_KVMD_BUILD", _SOURCE_DIR / "build")
  return pathlib.Path(build) / "daemons" / "ganeti-kvmd"


class Daemon:
  """A daemon in the foreground, for a control directory of its own.

  It is watching once this is made, and killed with this process at latest.

  """

  def __init__(
    self, ctrl_dir: pathlib.Path, log: pathlib.Path, *options: str
  ) -> None:
    """Start it.

    @param log: where its log lines go; made anew
    @param options: further options for it

    """
    self._log = log
    with open(log, "wb") as stream:
      self._process = lifetime.start(
        [str(executable()), "-f", f"--ctrl-dir={ctrl_dir}", *options],
        stdout=stream,
        stderr=stream,
      )
    self.ctrl_dir = ctrl_dir
    try:
      self.wait_line(f"watching {re.escape(str(ctrl_dir))}$")
    except BaseException:
      self.close()
      raise

  @property
  def pid(self) -> int:
    return self._process.pid

  def lines(self) -> list[str]:
    """What it logged so far."""
    # It may be in the middle of a line
    return self._log.read_text(errors="replace").split("\n")[:-1]

  def wait_line(self, pattern: str) -> None:
    """Wait until it has logged a line that a pattern is found in."""
    found = re.compile(pattern)

    def logged() -> bool:
      lines = self.lines()
      if any(found.search(line) for line in lines):
        return True
      if self._process.poll() is not None:
        words = "\n".join(lines)
        raise ChildProcessError(f"ganeti-kvmd ended, it said:\n{words}")
      return False

    self._wait_until(logged, f"a line with {pattern!r}")

  def wait_attached(self, instance: str) -> None:
    """Wait until it listens to an instance's monitor."""
    self.wait_line(rf"instance {re.escape(instance)}: attached to ")

  def verdicts(self, instance: str) -> list[Verdict]:
    """The verdicts on an instance, oldest first."""
    matches = [_VERDICT.search(line) for line in self.lines()]
    return [
      Verdict(match.group(2), match.group(3))
      for match in matches
      if match and match.group(1) == instance
    ]

  def wait_verdict(
    self,
    instance: str,
    lives: int = 1,
    timeout: float = lifetime.PATIENCE,
  ) -> Verdict:
    """Wait for the verdict on an instance.

    @param lives: on which of its lives, counted from 1
    @param timeout: in seconds
    @raise TimeoutError: if there is none in time

    """
    self._wait_until(
      lambda: len(self.verdicts(instance)) >= lives,
      f"verdict {lives} on {instance}",
      timeout,
    )
    return self.verdicts(instance)[lives - 1]

  def _wait_until(
    self,
    condition: collections.abc.Callable[[], bool],
    what: str,
    timeout: float = lifetime.PATIENCE,
  ) -> None:
    try:
      lifetime.wait_until(condition, what, timeout)
    except TimeoutError as err:
      words = "\n".join(self.lines())
      raise TimeoutError(f"{err}; ganeti-kvmd logged:\n{words}") from None

  def shutdown_file(self, instance: str) -> pathlib.Path:
    """The file that says that an instance's user turned it off."""
    return self.ctrl_dir / f"{instance}.shutdown"

  def close(self) -> int:
    """Tell it to end.

    @return: its exit status

    """
    if self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
    try:
      return self._process.wait(_END_PATIENCE)
    finally:
      self._process.kill()
      self._process.wait()

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Lets real guests go down in many ways, and shows the daemon's verdicts.

To be started by devel/demo, which builds the daemon before.

"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
import shutil
import sys
import textwrap
import time

TOP = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(TOP / "test" / "py"))

from guests import endings, linux, qemu  # noqa: E402
from guests.endings import Ending  # noqa: E402
from guests.stage import Stage  # noqa: E402
from kvmd_log import Outcome  # noqa: E402
from kvmd_process import Daemon  # noqa: E402

#: How wide the columns may be on a terminal that is too narrow for the table
NARROW = (25, 13, 15, 13, 6)

#: How long a verdict may take, in seconds
PATIENCE = 20.0

GAP = "  "

NO_VERDICT = Outcome("none", "")

HEADINGS = ("what happened", "verdict", "cause", "expected", "time")


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of an ending."""

  ending: Ending
  outcome: Outcome
  #: Whether there is a shutdown file
  has_file: bool
  #: From the first step to the verdict, in seconds
  duration: float

  @property
  def file_is_right(self) -> bool:
    """Whether there is a shutdown file just if the user did it."""
    return self.has_file == (self.ending.right.verdict == endings.USER.verdict)

  @property
  def is_right(self) -> bool:
    """Whether everything is as it has to be."""
    return self.outcome == self.ending.right and self.file_is_right

  def cells(self) -> tuple[str, ...]:
    """Its row in the table."""
    verdict, expected = self.outcome.verdict, self.ending.right.verdict
    if not self.file_is_right:
      verdict += " (with file)" if self.has_file else " (without file)"
    if not self.is_right:
      expected += " (WRONG)"
    duration = f"{self.duration:.2f} s"
    return self.ending.what, verdict, self.outcome.cause, expected, duration


class Demo:
  """Plays endings, and tells about it line by line."""

  def __init__(self, shown: list[Ending]) -> None:
    self._endings = shown
    self._width = max(len(ending.what) for ending in shown)
    self._began = time.monotonic()

  def run(self) -> list[Result]:
    """Play all endings side by side."""
    with Stage() as stage:
      daemon = stage.daemon()
      self._tell("ganeti-kvmd", f"watching {stage.ctrl_dir}")
      machines = [
        stage.qemu(ending.machine, _instance(ending))
        for ending in self._endings
      ]
      self._tell("QEMU", f"started {len(machines)} times, side by side")
      for machine in machines:
        daemon.wait_attached(machine.name)
      self._tell("ganeti-kvmd", "attached to all of them")
      # Some are still booting while the first go down already
      return [
        self._play(ending, machine, daemon)
        for ending, machine in zip(self._endings, machines)
      ]

  def _play(self, ending: Ending, machine: qemu.Qemu, daemon: Daemon) -> Result:
    machine.wait_ready()
    self._tell(ending.what, "guest is up")
    began = time.monotonic()
    ending.play(machine)
    try:
      outcome = daemon.wait_outcome(machine.name, timeout=PATIENCE)
    except TimeoutError:
      outcome = NO_VERDICT
    duration = time.monotonic() - began
    self._tell(ending.what, f"verdict {outcome.verdict}")
    has_file = daemon.shutdown_file(machine.name).exists()
    return Result(ending, outcome, has_file, duration)

  def _tell(self, who: str, what: str) -> None:
    seconds = time.monotonic() - self._began
    print(f"{seconds:5.1f} s  {who:{self._width}}  {what}", flush=True)


def _instance(ending: Ending) -> str:
  """A name for the instance that goes down so."""
  return re.sub("[^a-z]+", "-", ending.what.lower())


def _linux_endings() -> list[Ending]:
  """What is shown with a Linux guest; says so if there is none."""
  try:
    guest = linux.guest()
  except linux.UnavailableError as err:
    say(f"goes on without a Linux guest: {err}")
    return []
  return [
    Ending(
      "Linux user runs poweroff",
      endings.USER,
      lambda machine: machine.tell(linux.POWER_OFF),
      qemu.Machine(guest),
    )
  ]


def _print_table(results: list[Result]) -> None:
  rows = [HEADINGS, *(result.cells() for result in results)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  total = len(GAP.join(" " * width for width in widths))
  if sys.stdout.isatty() and shutil.get_terminal_size().columns < total:
    widths = [*map(min, widths, NARROW)]
  print()
  for row in rows:
    cells = map(textwrap.wrap, row, widths)
    for line in itertools.zip_longest(*cells, fillvalue=""):
      print(GAP.join(map(str.ljust, line, widths)).rstrip())
  print()


def say(words: str) -> None:
  """Tell something that is not about an instance."""
  print(f"demo: {words}", flush=True)


def main() -> int:
  """Show everything.

  @return: the exit status

  """
  if not linux.is_cached():
    say("fetching Debian's cloud kernel for the Linux guest")
  # They boot in a tenth of a second, Linux takes its time
  shown = [*endings.SHOWN, *_linux_endings()]
  results = Demo(shown).run()
  _print_table(results)
  wrong = sum(not result.is_right for result in results)
  if wrong:
    say(f"FAILED: {wrong} of {len(results)} verdicts wrong")
    return 1
  say(f"all {len(results)} verdicts right")
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    say("FAILED: interrupted")
    sys.exit(130)
  except BrokenPipeError:
    # Nobody reads on; nor would Python's own last words be read
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (OSError, RuntimeError) as err:
    say(str(err))
    say("FAILED: ended early, the reason is above")
    sys.exit(1)

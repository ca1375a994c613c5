# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The fault suite as a program, for as long as one likes."""

from __future__ import annotations

import argparse
import collections.abc
import itertools
import os
import pathlib
import secrets
import sys
import time

from guests import lifetime

from faults import chance, disk, steps, suite
from faults.tally import Tally

_MINIMISING = 300.0


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="devel/faults",
    description="Lets guests live and die while the daemon, its directory and"
    " its disk suffer random faults, and compares every verdict with what was"
    " done to the guest. The exit status is 0 if all were right.",
  )
  parser.add_argument(
    "--minutes", type=float, default=5.0, help="how long to go on [5]"
  )
  parser.add_argument(
    "--kills", type=int, help="go on until the daemon was killed that often"
  )
  parser.add_argument(
    "--seed", type=int, help="what the schedules are made of [random]"
  )
  parser.add_argument(
    "--profile",
    choices=[*chance.PROFILES, "both"],
    default="both",
    help="whatever there is, or nothing but kills of the daemon [both]",
  )
  parser.add_argument(
    "--number", type=int, help="play only the schedule of that number"
  )
  parser.add_argument(
    "--replay",
    type=_load,
    metavar="FILE",
    help="play a schedule that was saved when it failed",
  )
  parser.add_argument(
    "--minimise",
    action="store_true",
    help="leave out of a schedule that fails what it also fails without; takes"
    f" up to {_MINIMISING / 60:g} minutes",
  )
  return parser.parse_args()


def _load(path: str) -> steps.Schedule:
  try:
    return steps.load(pathlib.Path(path))
  except OSError as err:
    reason = err.strerror
  except ValueError as err:
    reason = str(err)
  raise argparse.ArgumentTypeError(f"cannot play {path}: {reason}")


def _schedules(
  options: argparse.Namespace,
) -> collections.abc.Iterator[steps.Schedule]:
  if options.replay is not None:
    yield options.replay
    return
  seed = options.seed
  if seed is None:
    seed = secrets.randbelow(10**6)
  print(f"seed {seed}", flush=True)
  numbers = itertools.count() if options.number is None else [options.number]
  for number in numbers:
    for profile in chance.PROFILES.values():
      if options.profile in (profile.name, "both"):
        yield chance.make(seed, number, profile)


def _save(schedule: steps.Schedule) -> pathlib.Path:
  directory = pathlib.Path(os.environ.get("GANETI_KVMD_BUILD", "."))
  name = schedule.title.replace(", ", "-").replace(" ", "")
  path = directory.resolve() / f"faults-{name}.json"
  schedule.save(path)
  return path


def _report(
  failed: suite.FailedError, scratch: pathlib.Path, *, minimise: bool
) -> None:
  schedule = failed.schedule
  print(failed, flush=True)
  path = _save(schedule)
  if minimise:
    print("making it shorter", flush=True)
    suite.minimise(failed, scratch, _MINIMISING, _save)
  print(f"play it again with devel/faults --replay {path}")
  print(path.read_text(), end="")
  print("FAILED")


def main() -> int:
  """Runs the program.

  @return: the exit status

  """
  options = _parse()
  total = Tally()
  deadline = time.monotonic() + options.minutes * 60
  with lifetime.scratch_directory() as scratch:
    # Some of it is played by another user.
    scratch.chmod(0o755)
    # After what removes the directory was started: it must not see the mounts.
    disk.take_own_mounts()
    for schedule in _schedules(options):
      began = time.monotonic()
      try:
        tally = suite.play(schedule, scratch)
      except suite.FailedError as failed:
        _report(failed, scratch, minimise=options.minimise)
        return 1
      total.add(tally)
      took = time.monotonic() - began
      print(f"{schedule.title}: ok, {took:.1f} s", flush=True)
      if options.kills is None:
        if time.monotonic() > deadline:
          break
      elif total.kills >= options.kills:
        break
  print(total)
  return 0


sys.exit(main())

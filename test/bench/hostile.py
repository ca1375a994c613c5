# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Measures what the others notice of one QEMU that does its worst.

devel/bench --hostile calls it.

"""

from __future__ import annotations

import argparse
import sys

import attacker
import beside
import endurance
import hostile_report
import limits
import long_journals
import peers
import sandbox
from errors import BenchError


def _run_short(arguments: argparse.Namespace) -> bool:
  """Measures and prints everything.

  @return: whether all limits hold

  """
  print(hostile_report.HEADING, flush=True)
  rows = []
  for row in beside.measure_all(arguments.attacks, arguments.ends):
    rows.append(row._asdict())
    print(hostile_report.as_line(rows[-1]), flush=True)
  found = limits.worst_beside(rows)
  if peers.ours().pid_file is not None:
    long = [x._asdict() for x in long_journals.measure_all()]
    found += limits.long_journals(long)
  print("Limits:")
  for limit in found:
    print(limit.as_line())
  return all(x.holds for x in found)


def _attacks(text: str) -> list[str]:
  keys = text.split(",")
  for key in keys:
    if key not in attacker.ATTACKS:
      known = ", ".join(attacker.ATTACKS)
      raise argparse.ArgumentTypeError(f"{key} is none of {known}")
  return keys


def main() -> int:
  """Reads the command line, and measures.

  @return: the exit status: 1 also where a limit does not hold

  """
  parser = argparse.ArgumentParser(
    prog="devel/bench --hostile",
    description="Measures what others notice of one QEMU that does its worst.",
  )
  parser.add_argument(
    "--attacks",
    type=_attacks,
    default=list(attacker.ATTACKS),
    metavar="ATTACK,...",
    help="some of %s (all)" % ", ".join(attacker.ATTACKS),
  )
  parser.add_argument(
    "--ends",
    type=int,
    choices=range(2, beside.HONEST + 1),
    default=beside.HONEST,
    metavar="N",
    help=f"how many instances end beside each ({beside.HONEST})",
  )
  parser.add_argument(
    "--minutes",
    type=float,
    metavar="N",
    help="attack for so long, several at once, and see what grows",
  )
  parser.add_argument(
    "--parse-only", action="store_true", help=argparse.SUPPRESS
  )
  arguments = parser.parse_args()
  if arguments.parse_only:
    return 0
  try:
    sandbox.enter()
    peers.prepare()
    if arguments.minutes is None:
      holds = _run_short(arguments)
    else:
      holds = endurance.run(arguments.attacks, arguments.minutes)
  except (OSError, BenchError) as err:
    print(f"devel/bench: {err}", file=sys.stderr)
    return 1
  return 0 if holds else 1


if __name__ == "__main__":
  sys.exit(main())

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What differs from stock Ganeti, as a document."""

from __future__ import annotations

import collections.abc
import pathlib
import subprocess

from cluster import scenarios, sides
from cluster.cluster import Cluster
from cluster.instance import USER_DOWN, Instance
from cluster.scenarios import Scenario, Sight, Stage

#: The document, in the source tree
PATH = "doc/stock-behaviour.md"

_STARTS = 20

_HEAD = """\
# What differs from stock Ganeti

Made by `sudo devel/cluster compare`, which plays the scenarios of
test/py/cluster/scenarios.py with stock {version} on a real cluster. With
ganeti-kvmd Ganeti says what it should, in each of them; the tests in
test/py/cluster see to that.

The stock daemon connects to an instance's monitor as soon as that is there, and
gives up when QEMU does not listen yet. Of {starts} starts it missed {missed}
here; such an instance is ERROR_down after its user's poweroff, and the watcher
starts it again. For the tables below it was therefore restarted after each
start, so that it does listen.

In brackets: admin state and who set it.
"""


def _row(*cells: str) -> str:
  return f"| {' | '.join(cells)} |\n"


def _table(*head: str) -> str:
  return _row(*head) + _row(*("---" for _ in head))


def _missed_starts(shown: collections.abc.Iterable[pathlib.Path]) -> int:
  """Count how many starts of an instance the stock daemon misses."""
  cluster = Cluster.start("missed", shown)
  try:
    vm = Instance(cluster, "missed")
    vm.add()
    missed = 0
    for _ in range(_STARTS):
      vm.start()
      vm.power_off()
      missed += vm.state() != USER_DOWN
    return missed
  finally:
    cluster.stop()


def document(stages: dict[Scenario, Stage], version: str, missed: int) -> str:
  """Write down what there was to see with the stock daemon."""
  text = _HEAD.format(version=version, starts=_STARTS, missed=missed)
  text += "\n## What differs\n\n" + _table(
    "scenario", "after", "right", "stock"
  )
  for scenario, stage in stages.items():
    for sight in stage.sights:
      if not sight.right:
        text += _row(scenario.title, *_cells(sight))
  for scenario, stage in stages.items():
    text += f"\n## Scenario: {scenario.title}\n\n"
    text += _table("after", "right", "stock")
    text += "".join(_row(*_cells(sight)) for sight in stage.sights)
  return text


def _cells(sight: Sight) -> tuple[str, str, str]:
  seen = "the same" if sight.right else f"**{sight.seen}**"
  return sight.after, sight.expected, seen


def cases(text: str, scenario: Scenario) -> list[tuple[str, str]]:
  """What the document says that there is to see in a scenario.

  @return: after what, and what it should be

  """
  section = text.partition(f"\n## Scenario: {scenario.title}\n")[2]
  lines = section.partition("\n## ")[0].strip().splitlines()
  cells = [line.strip("| ").split(" | ") for line in lines[2:]]
  return [(after, right) for after, right, _ in cells]


def write(source_dir: pathlib.Path) -> None:
  """Play everything with the stock daemon, and write it down."""
  shown = [source_dir]
  stages = scenarios.perform(scenarios.ALL, sides.Stock(), shown)
  failures = [stage.failure for stage in stages.values() if stage.failure]
  if failures:
    raise RuntimeError("\n".join(failures))
  text = document(stages, _ganeti(), _missed_starts(shown))
  (source_dir / PATH).write_text(text)


def _ganeti() -> str:
  """The version of the Ganeti that is installed."""
  command = ["gnt-cluster", "--version"]
  words = subprocess.run(command, capture_output=True, check=True, text=True)
  return f"Ganeti {words.stdout.split()[-1]}"

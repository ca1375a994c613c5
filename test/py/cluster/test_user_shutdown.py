# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What Ganeti says of instances that go down, on real clusters."""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import Future

import pytest

from cluster import comparison, scenarios
from cluster.scenarios import Scenario, Stage

_SOURCE_DIR = pathlib.Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
  os.geteuid() != 0, reason="only root can make a cluster in namespaces"
)


#: What our daemon does the same under Ganeti's hypervisor side
_DAEMON_ONLY = (
  scenarios.DAEMON,
  scenarios.USER_AND_ADMINISTRATOR,
  scenarios.ENDS_OF_QEMU,
)


@pytest.fixture(scope="session")
def stages(
  playing: dict[str, Future[dict[Scenario, Stage]]],
) -> dict[Scenario, Stage]:
  return playing["stages"].result()


@pytest.fixture(scope="session")
def daemon_only_stages(
  playing: dict[str, Future[dict[Scenario, Stage]]],
) -> dict[Scenario, Stage]:
  return playing["daemon_only_stages"].result()


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda it: it.title)
def test_ganeti_is_right(
  scenario: Scenario, stages: dict[Scenario, Stage]
) -> None:
  _check(stages[scenario])


@pytest.mark.parametrize("scenario", _DAEMON_ONLY, ids=lambda it: it.title)
def test_ganeti_is_right_with_our_daemon_only(
  scenario: Scenario, daemon_only_stages: dict[Scenario, Stage]
) -> None:
  _check(daemon_only_stages[scenario])


def _check(stage: Stage) -> None:
  wrong = [
    f"after {sight.after}: {sight.seen}, not {sight.expected}"
    for sight in stage.sights
    if not sight.right
  ]
  if stage.failure:
    wrong.append(stage.failure)
  assert not wrong, "\n".join([*wrong, stage.logs])


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda it: it.title)
def test_comparison_with_stock_is_current(
  scenario: Scenario, stages: dict[Scenario, Stage]
) -> None:
  """devel/cluster compare makes it anew."""
  document = (_SOURCE_DIR / comparison.PATH).read_text()
  played = [(sight.after, sight.expected) for sight in stages[scenario].sights]
  assert comparison.cases(document, scenario) == played

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Plays the scenarios while other tests have their clusters.

On a cluster most of the time goes by with waiting.

"""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import Future

import pytest

from cluster import scenarios, sides
from cluster.scenarios import Scenario, Stage

_SOURCE_DIR = pathlib.Path(__file__).resolve().parents[3]
_BUILD_DIR = pathlib.Path(
  os.environ.get("GANETI_KVMD_BUILD", _SOURCE_DIR / "build")
)

#: Who plays for those that want this fixture
_SIDES = {"stages": sides.Ours, "daemon_only_stages": sides.OurDaemon}


@pytest.fixture(scope="session", autouse=True)
def playing(
  request: pytest.FixtureRequest,
) -> dict[str, Future[dict[Scenario, Stage]]]:
  """What there will be to see of the scenarios that are to be tested."""
  begun = {}
  for fixture, side in _SIDES.items():
    tested = [
      item.callspec.params["scenario"]
      for item in request.session.items
      if fixture in getattr(item, "fixturenames", ())
    ]
    if tested and os.geteuid() == 0:
      begun[fixture] = scenarios.perform_in_background(
        tested, side(_BUILD_DIR), {_SOURCE_DIR, _BUILD_DIR}
      )
  return begun

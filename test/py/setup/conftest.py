# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A machine to install things on."""

from __future__ import annotations

import collections.abc
import os
import pathlib

import pytest
from cluster.node import Hub

_SOURCE = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def _machine() -> collections.abc.Iterator[object]:
  # It reads the configured Makefile, which may be missing elsewhere
  import machine

  build = pathlib.Path(os.environ["GANETI_KVMD_BUILD"])
  hub = Hub.start(f"setup-{os.getpid()}", outlive=False)
  try:
    yield machine.Machine(hub.add_node(1, {_SOURCE, build}))
  finally:
    hub.stop()


@pytest.fixture
def machine(_machine) -> collections.abc.Iterator[object]:
  """A machine on which all is as Ganeti installed it, before and after."""
  before = _machine.picture()
  yield _machine
  assert _machine.picture() == before

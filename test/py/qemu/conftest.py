# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the tests on real QEMU processes share."""

from __future__ import annotations

import collections.abc

import pytest
from guests import linux, qemu
from guests.stage import Stage


@pytest.fixture
def stage() -> collections.abc.Iterator[Stage]:
  """A control directory for one test."""
  with Stage() as new_stage:
    yield new_stage


@pytest.fixture(scope="session")
def linux_guest() -> qemu.Guest:
  """The Linux guest, for machines that can have it."""
  try:
    return linux.guest()
  except linux.UnavailableError as err:
    pytest.skip(f"no Linux guest: {err}")

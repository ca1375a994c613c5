# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Directories for tests."""

from __future__ import annotations

import collections.abc
import itertools
import pathlib

import fake_monitor
import pytest
from guests import lifetime


@pytest.fixture(scope="session")
def _scratch() -> collections.abc.Iterator[tuple[pathlib.Path, int]]:
  with lifetime.scratch_directory() as path:
    # Some tests are played by another user.
    path.chmod(0o755)
    yield path, itertools.count()


@pytest.fixture
def scratch(_scratch) -> collections.abc.Iterator[pathlib.Path]:
  """A directory for one test, with a short path that has no links in it."""
  path, numbers = _scratch
  mine = path / str(next(numbers))
  mine.mkdir()
  yield mine
  fake_monitor.end_all()


@pytest.fixture
def ctrl_dir(scratch: pathlib.Path) -> pathlib.Path:
  """A control directory for one test."""
  path = scratch / "ctrl"
  path.mkdir()
  return path

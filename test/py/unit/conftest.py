# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What unit tests share."""

from __future__ import annotations

import ctrl_files
import pytest
from ganeti.kvmd.core.marks import Mark
from journal_scene import node
from scene import scene

__all__ = ["node", "scene"]


@pytest.fixture
def control(ctrl_dir):
  """The control directory of one test, opened."""
  with ctrl_files.opened(ctrl_dir) as found:
    yield found


@pytest.fixture(params=Mark)
def mark(request):
  """Each mark that there is."""
  return request.param

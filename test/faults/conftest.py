# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the fault suite's tests need."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys

_TEST = pathlib.Path(__file__).resolve().parents[1]
_BUILD = os.environ.setdefault("GANETI_KVMD_BUILD", str(_TEST.parent / "build"))

# The package ganeti as the build puts it together, and what all tests share.
sys.path[:0] = [str(_TEST / "py"), _BUILD]

from fixtures import _scratch, ctrl_dir, scratch  # noqa: E402

__all__ = ["_scratch", "ctrl_dir", "scratch"]

# Ganeti's hypervisor has its part in all of it.
if importlib.util.find_spec("ganeti.constants") is None:
  collect_ignore_glob = ["test_*.py"]

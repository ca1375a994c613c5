# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What all tests share: where the modules are, and how hypothesis works."""

from __future__ import annotations

import ctypes.util
import functools
import importlib.util
import os
import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent
_BUILD = pathlib.Path(
  os.environ.setdefault("GANETI_KVMD_BUILD", str(_HERE.parents[1] / "build"))
)

# The package ganeti as the build puts it together, and the tests' own modules.
sys.path[:0] = [str(_HERE), str(_BUILD)]

# Before hypothesis is imported, which would choose the working directory.
os.environ.setdefault(
  "HYPOTHESIS_STORAGE_DIRECTORY", str(_BUILD / ".hypothesis")
)

import hypothesis  # noqa: E402
from fixtures import _scratch, ctrl_dir, scratch  # noqa: E402

__all__ = ["_scratch", "ctrl_dir", "scratch"]

# The same examples each time, whatever else the machine does; other ones, and
# more, with HYPOTHESIS_PROFILE=thorough.
for _name, _options in {
  "kvmd": {"derandomize": True, "max_examples": 100},
  "thorough": {"max_examples": 3000},
}.items():
  hypothesis.settings.register_profile(
    _name,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    **_options,
  )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "kvmd"))


# pyinotify has ldconfig look for the C library for each watch that is made.
ctypes.util.find_library = functools.lru_cache(ctypes.util.find_library)

# Without Ganeti there is neither a node's daemon nor a hypervisor.
if importlib.util.find_spec("ganeti.constants") is None:
  collect_ignore = [
    "setup",
    "unit/test_control.py",
    "unit/test_ganeti.py",
    "unit/test_hv_kvm.py",
    "unit/test_inquiry.py",
    "unit/test_launch.py",
    "unit/test_patience.py",
    "unit/test_ssconf.py",
    "unit/test_stock.py",
  ]

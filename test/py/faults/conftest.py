# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the fault suite needs."""

from __future__ import annotations

import importlib.util

# Ganeti's hypervisor has its part in all of it.
if importlib.util.find_spec("ganeti.constants") is None:
  collect_ignore_glob = ["test_*.py"]

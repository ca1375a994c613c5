# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What can go wrong with a benchmark."""

from __future__ import annotations


class BenchError(Exception):
  """The benchmark cannot go on; the message says why."""

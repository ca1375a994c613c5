# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of ganeti-kvmd-setup's modules; on a real machine: test/py/setup."""

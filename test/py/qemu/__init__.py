# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests on real QEMU; some have the names of tests in test/py/unit."""

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What unit tests share."""

from scene import scene

__all__ = ["scene"]

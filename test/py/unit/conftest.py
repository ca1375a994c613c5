# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What unit tests share."""

from journal_scene import node
from scene import scene

__all__ = ["node", "scene"]

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Puts our files in the place of Ganeti's own, and takes them out again.

  - L{system}: commands, trouble and files
  - L{records}: who knows which file of Ganeti's gave way, and how it looked
  - L{replacement}: one file of Ganeti's, and the link to ours in its place
  - L{node}: the Ganeti that is installed on this node, and its daemons
  - L{main}: the program ganeti-kvmd-setup

The daemon uses nothing of it. It imports nothing of Ganeti, which may be broken
or gone when it is needed.

"""

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What touches the node: its files, sockets and processes, and the kernel."""

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The KVM daemon: tells a user's shutdown of an instance from any other end."""

VERSION = "0.1.0"

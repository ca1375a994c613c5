#!/bin/bash
# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

# First process of a cluster, in its own mount, network, IPC and PID namespaces:
# what its nodes have in common. When it ends, so does everything in it.
#
# usage: hub.sh NAME

set -euo pipefail

readonly name=$1

mount -t proc proc /proc

# Whatever the nodes change is kept here, in memory. It must not hide anything
# that a node shows, and nothing of the machine is stored below /sys.
mount -t tmpfs -o mode=0755 ganeti-kvmd-cluster /sys
mkdir /sys/shared

ip link set lo up
ip link add wire type bridge
ip link set wire up

echo ready
exec 0</dev/null 1>/dev/null 2>/dev/null
exec -a "ganeti-kvmd-cluster:$name" tini -- sleep infinity

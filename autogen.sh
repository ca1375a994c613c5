#!/bin/bash
# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

# Makes configure and Makefile.in; only a fresh clone needs it.

set -euo pipefail

cd "$(dirname "$0")"
for tool in autoconf automake; do
  if ! command -v "$tool" >/dev/null; then
    echo "autogen.sh: missing: $tool (Debian package $tool)" >&2
    exit 1
  fi
done
exec autoreconf --install --force --warnings=all

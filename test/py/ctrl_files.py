# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What is in a control directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ganeti.kvmd import ctrldir

if TYPE_CHECKING:
  import pathlib


def names(directory: pathlib.Path) -> set[str]:
  """Lists what there is, but for the lock file, which stays."""
  return set(os.listdir(directory)) - {ctrldir.LOCK_FILE}

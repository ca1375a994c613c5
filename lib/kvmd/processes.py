# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Processes that are not our own."""

from __future__ import annotations

import os


def is_alive(process: int) -> bool:
  """Tells whether there is a process of that number.

  @param process: the number; 0 for one that is not known, which is not alive

  """
  if not process:
    return False
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A control directory from the outside, as the hypervisor has it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from ganeti.kvmd.node import ctrldir

if TYPE_CHECKING:
  import pathlib
  from collections.abc import Iterator

#: Of instances, as anybody may make files that are named so.
NAMES = [
  "web1.example.com",
  "a",
  ".",
  "..",
  "-rf",
  "with space",
  "new\nline",
  "\x1b[2J",
  "ü",
  os.fsdecode(b"\xff\xfe\x80"),
  "x" * 245,
]


def names(directory: pathlib.Path) -> set[str]:
  """Lists what there is, but for the lock file, which stays."""
  return set(os.listdir(directory)) - {ctrldir.LOCK_FILE}


def missing(path: str) -> ctrldir.ControlDirectory:
  """One that there is not."""
  return ctrldir.ControlDirectory(path, None, ctrldir.MONITOR_SUFFIX)


@contextlib.contextmanager
def opened(directory: pathlib.Path) -> Iterator[ctrldir.ControlDirectory]:
  """Opens it for a while, where nobody watches it or somebody else does."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    yield ctrldir.ControlDirectory(
      str(directory), descriptor, ctrldir.MONITOR_SUFFIX
    )
  finally:
    os.close(descriptor)

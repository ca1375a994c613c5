# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A control directory, and the processes that use it."""

from __future__ import annotations

import contextlib

from kvmd_process import Daemon

from guests import lifetime, qemu


class Stage:
  """A control directory, and the processes that are started for it.

  They end, and it is removed, when the C{with} block does.

  """

  def __init__(self) -> None:
    self._stack = contextlib.ExitStack()
    self._started = 0

  def __enter__(self) -> Stage:
    self._path = self._stack.enter_context(lifetime.scratch_directory())
    self.ctrl_dir = self._path / "ctrl"
    self.ctrl_dir.mkdir()
    return self

  def __exit__(self, *_: object) -> None:
    self._stack.close()

  def daemon(self, *options: str) -> Daemon:
    """Start a daemon for the control directory.

    @param options: further options for it

    """
    self._started += 1
    log = self._path / f"log{self._started}"
    process = Daemon(self.ctrl_dir, log, *options)
    self._stack.callback(process.end)
    return process

  def qemu(
    self, machine: qemu.Machine = qemu.PLAIN, name: str | None = None
  ) -> qemu.Qemu:
    """Start an instance in the control directory.

    @param name: its name, by default one of its own

    """
    self._started += 1
    name = name or f"instance{self._started}"
    return self._stack.enter_context(qemu.Qemu(self.ctrl_dir, name, machine))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The place of a schedule: the control directory, and the disk that it is on.

The directory may be renamed away, exchanged, or removed.

"""

from __future__ import annotations

import contextlib
import pathlib
import shutil

from ganeti.kvmd.node import ctrldir

from faults import disk

_MAX_QUEUED = pathlib.Path("/proc/sys/fs/inotify/max_queued_events")

#: So much of a file is shown when something is wrong, in bytes.
_SHOWN = 300


class Place:
  """A control directory and its disk.

  @ivar path: of the directory
  @ivar is_in_memory: whether the disk is a small one that can be filled up
  @ivar ballast: what it is filled up with

  """

  def __init__(self, scratch: pathlib.Path, *, in_memory: bool) -> None:
    """Make the directory.

    @param scratch: an empty directory; this process must have mounts of its
      own
    @param in_memory: on a small file system in memory

    """
    self.is_in_memory = in_memory
    self._disk = scratch / "disk"
    self._disk.mkdir()
    if in_memory:
      disk.mount_small(self._disk)
    self.ballast = disk.Ballast(self._disk)
    self.path = self._disk / "ctrl"
    self.path.mkdir()
    self._away = self._disk / "away"

  def close(self) -> None:
    if self.is_in_memory:
      disk.unmount(self._disk)

  @property
  def is_in_place(self) -> bool:
    """Whether the directory is where it belongs."""
    return not self._away.exists()

  def file(self, name: str, ending: str) -> pathlib.Path:
    """Returns the path of one of a guest's files."""
    return self.path / (name + ending)

  def is_marked(self, name: str) -> bool:
    """Tell whether a guest has its shutdown file."""
    return self.file(name, ctrldir.Mark.SHUTDOWN.value).exists()

  def has_journal(self, name: str) -> bool:
    return self.file(name, ctrldir.JOURNAL_EVENTS).exists()

  def journal_size(self, name: str) -> int:
    """Tell how many bytes a guest's journal occupies; 0 without one."""
    try:
      return self.file(name, ctrldir.JOURNAL_EVENTS).stat().st_blocks * 512
    except FileNotFoundError:
      return 0

  def show(self, name: str) -> str:
    """Show the files of a guest, and the ends of those that are short."""
    lines = []
    for path in sorted(self.path.glob(f"{name}.*")):
      line = f"  {path.name}"
      with contextlib.suppress(OSError):
        found = path.lstat()
        line += f" {found.st_ino} {found.st_mtime_ns} {found.st_size}"
        if path.is_file():
          line += f" {path.read_bytes()[-_SHOWN:]!r}"
      lines.append(line)
    return "\n".join(lines)

  # --- What becomes of the directory ---

  def clear(self) -> None:
    """Remove the directory and make it anew."""
    _remove(self.path)
    self.path.mkdir()

  def move_away(self) -> None:
    """Rename the directory."""
    self.path.rename(self._away)

  def move_back(self) -> None:
    """Rename it back, over another if that was made meanwhile."""
    _remove(self.path)
    self._away.rename(self.path)

  def churn(self) -> None:
    """Let more happen in it than the kernel's queue has room for."""
    ends = [self.path / ".one", self.path / ".other"]
    with contextlib.suppress(OSError):
      ends[0].touch()
      for _ in range(int(_MAX_QUEUED.read_text()) // 2 + 100):
        ends[0].rename(ends[1])
        ends[1].rename(ends[0])
      ends[0].unlink()


def _remove(path: pathlib.Path) -> None:
  while path.exists():
    # Something may be put there meanwhile.
    shutil.rmtree(path, ignore_errors=True)

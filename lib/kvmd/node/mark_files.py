# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The marks that the daemon and the hypervisor leave for each other.

They are empty files that say something of one life of an instance: of which one
is told by their date, which is just after its birth. When a mark was made is
told by when its file was changed last.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.node import own_files
from ganeti.kvmd.node.ctrldir import JOURNAL_COMMANDS

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.core.marks import Mark
  from ganeti.kvmd.node.ctrldir import ControlDirectory, Life

#: A regular file that nobody else can open, as mknod(2) makes it.
_KIND = stat.S_IFREG | 0o600

#: The clock by which the kernel dates files advances at least as often, in
#: nanoseconds.
_TICK = 10**8


class Found(NamedTuple):
  """A mark that is there.

  @ivar is_current: whether it speaks of the life in question, not of another
  @ivar at: when it was made, in seconds since the epoch

  """

  is_current: bool
  at: float


def find(
  directory: ControlDirectory, mark: Mark, instance: str, life: Life
) -> Optional[Found]:
  """Finds out whether an instance is marked, in which life, and since when.

  @return: None if there is no mark
  @raise OSError: if that cannot be found out

  """
  found = directory.find(instance + mark.value)
  if found is None:
    return None
  return Found(is_current=found.st_mtime_ns > life.born, at=_made(found))


def marked_at(
  directory: ControlDirectory, mark: Mark, instance: str, life: Life
) -> Optional[float]:
  """Tells when a life of an instance was marked.

  @return: in seconds since the epoch; None if it was not
  @raise OSError: if that cannot be found out

  """
  found = directory.find(instance + mark.value)
  if found is None or found.st_mtime_ns <= life.born:
    return None
  return _made(found)


def is_marked(directory: ControlDirectory, mark: Mark, instance: str) -> bool:
  """Tells whether an instance is marked, and nothing younger is known of it.

  @raise OSError: if that cannot be found out

  """
  found = directory.find(instance + mark.value)
  # It may be made in the moment in which its QEMU was started.
  return found is not None and not directory.is_outdated(
    instance, found.st_mtime_ns - 1, found.st_ctime_ns + 1
  )


def write(
  directory: ControlDirectory, mark: Mark, instance: str, life: Life
) -> bool:
  """Marks an instance.

  The file is dated just after the birth of the life that it speaks of, or just
  after all was made that belongs to its start. So it is never taken for one of
  another life, however late it is written and however the clock was set
  meanwhile. If the instance lives anew already, none is written; and if the
  hypervisor removes it at once, that counts.

  @return: whether it was written
  @raise OSError: if the file cannot be written

  """
  if directory.is_reborn(instance, life):
    return False
  name = instance + mark.value
  try:
    _create(directory, name)
    commands = directory.find(instance + JOURNAL_COMMANDS)
    started = 0 if commands is None else commands.st_atime_ns
    date = max(life.born, started) + 1
    return _date(directory, name, date)
  except OSError as err:
    # Python says it of neither call.
    err.filename = name
    raise


def remove(directory: ControlDirectory, mark: Mark, instance: str) -> bool:
  """Takes a mark away.

  @return: whether there was one
  @raise OSError: if it cannot be removed

  """
  return own_files.remove(directory.descriptor, instance + mark.value)


def _create(directory: ControlDirectory, name: str) -> None:
  """Sees to it that there is an empty file of our own."""
  # In one step, which also nobody hears of who waits for files to be closed.
  try:
    os.mknod(name, _KIND, dir_fd=directory.descriptor)
  except FileExistsError:
    found = directory.find(name)
    if found is not None and not _is_mark(found):
      os.unlink(name, dir_fd=directory.descriptor)
      os.mknod(name, _KIND, dir_fd=directory.descriptor)


def _date(directory: ControlDirectory, name: str, date: int) -> bool:
  """Dates a file, in nanoseconds since the epoch.

  @return: whether it is still there

  """
  try:
    os.utime(
      name,
      ns=(time.time_ns(), date),
      dir_fd=directory.descriptor,
      follow_symlinks=False,
    )
  except FileNotFoundError:
    return False
  return True


def _made(found: os.stat_result) -> float:
  """Returns when a mark was made, in seconds since the epoch.

  Who makes it says so, by the clock that QEMU goes by. The kernel's own date
  may be some milliseconds older, and before what QEMU had said by then; it is
  taken where an earlier version of this package made the mark.

  """
  made = found.st_atime_ns
  if abs(made - found.st_ctime_ns) > _TICK:
    made = found.st_ctime_ns
  return made / 1e9


def _is_mark(found: os.stat_result) -> bool:
  """Tells whether a file is what marks are: regular, empty, and only here."""
  return (
    stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and not found.st_size
  )

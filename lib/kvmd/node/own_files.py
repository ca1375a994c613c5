# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Small files of our own, in a directory that others may have files in, too.

All is done relative to the open directory and without following links: what a
name stands for may change at any time. What is opened is believed only if
nobody else can have written it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from typing import Optional

_FILE_MODE = 0o600

# A monitor's name may be so long that no other file of its instance can exist.
_NO_SUCH_FILE = (errno.ENOENT, errno.ENAMETOOLONG)

#: Errors that say nothing about a file, only about us or the machine; EAGAIN:
#: somebody asks just now who writes it.
_OUR_TROUBLE = (
  errno.EAGAIN,
  errno.EIO,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
)


class UnusableError(Exception):
  """What has a file's name is no file of our own, or cannot be opened."""


def find(directory: Optional[int], name: str) -> Optional[os.stat_result]:
  """Looks at a file, not at what it may link to.

  @return: None if there is none
  @raise OSError: if that cannot be found out

  """
  try:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)
  except OSError as err:
    if err.errno in _NO_SUCH_FILE:
      return None
    raise


def is_own(found: os.stat_result) -> bool:
  """Tells whether a file is regular, has one name, and is ours to write."""
  return (
    stat.S_ISREG(found.st_mode)
    and found.st_nlink == 1
    and found.st_uid == os.geteuid()
    and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  )


def open_own(directory: int, name: str, flags: int) -> int:
  """Opens a file of our own.

  @param flags: as those of open(2), O_RDONLY say
  @return: its descriptor
  @raise FileNotFoundError: if there is none
  @raise UnusableError: if it is not our own, or cannot be opened
  @raise OSError: if there is no descriptor left, or the like

  """
  try:
    descriptor = os.open(
      name,
      flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
      dir_fd=directory,
    )
  except OSError as err:
    if err.errno in _NO_SUCH_FILE:
      raise FileNotFoundError(err.errno, err.strerror, name) from err
    if err.errno in _OUR_TROUBLE:
      raise
    raise UnusableError(f"cannot open {name}: {err.strerror}") from err
  found = os.fstat(descriptor)
  if is_own(found):
    return descriptor
  os.close(descriptor)
  if not found.st_nlink:
    raise FileNotFoundError(errno.ENOENT, "removed just now", name)
  raise UnusableError(f"{name} is no regular file of our own")


def read(directory: int, name: str, size: int) -> bytes:
  """Reads the beginning of a file of our own.

  @param size: most that is read, in bytes
  @raise FileNotFoundError: if there is none
  @raise UnusableError: if it is not our own, or cannot be opened
  @raise OSError: if it cannot be read

  """
  descriptor = open_own(directory, name, os.O_RDONLY)
  try:
    return os.read(descriptor, size)
  finally:
    os.close(descriptor)


def create(directory: int, name: str) -> int:
  """Makes a new file in the place of whatever there is.

  @return: its descriptor, open for writing
  @raise OSError: if it cannot be made

  """
  remove(directory, name)
  return os.open(
    name,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
    _FILE_MODE,
    dir_fd=directory,
  )


def write(directory: int, name: str, content: bytes) -> None:
  """Makes a new file with that in it, in the place of whatever there is.

  @raise OSError: if it cannot be written

  """
  with open(create(directory, name), "wb") as file:
    file.write(content)


def replace(
  directory: int,
  name: str,
  beside: str,
  content: bytes,
  date: Optional[int] = None,
) -> None:
  """Puts a new file in the place of another in one step.

  @param beside: what it is called while it is written
  @param date: when it is to have been written, in nanoseconds since the epoch;
    now if None
  @raise OSError: if that fails; then there is still the one before

  """
  try:
    write(directory, beside, content)
    if date is not None:
      os.utime(beside, ns=(date, date), dir_fd=directory, follow_symlinks=False)
    os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
  except OSError as err:
    # Not every call says it, and the other name is of no interest.
    err.filename = name
    raise


def remove(directory: int, name: str) -> bool:
  """Removes a file.

  @return: whether there was one
  @raise OSError: if it cannot be removed

  """
  try:
    os.unlink(name, dir_fd=directory)
  except OSError as err:
    if err.errno in _NO_SUCH_FILE:
      return False
    raise
  return True

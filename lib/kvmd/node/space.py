# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What an open file takes from its file system: more, or less again.

None of it changes how long a file is. Python has no function for that; see
fallocate(2).
"""

from __future__ import annotations

import ctypes
import errno
import os

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2

# linux/falloc.h
_KEEP_SIZE = 1
_PUNCH_HOLE = 2

#: Space is reserved and given back by whole pages, in bytes.
PAGE = os.sysconf("SC_PAGESIZE")

#: Most that is cut at a time, in bytes: that takes a millisecond or two.
_MAX_CUT = 16 * 1024 * 1024


def reserve(descriptor: int, position: int, length: int) -> None:
  """Makes sure that there is room for a part of a file, its end or not.

  @param position: in bytes; the part begins with the page that it is in
  @param length: in bytes
  @raise OSError: if there is none

  """
  # So as many pages are reserved at any position.
  begin = position // PAGE * PAGE
  try:
    _allocate(descriptor, _KEEP_SIZE, begin, length)
  except OSError as err:
    # Some file systems know no such thing.
    if err.errno != errno.EOPNOTSUPP:
      raise


def punch_hole(descriptor: int, position: int, length: int) -> None:
  """Gives back the whole pages of a part of a file, which then reads as zeros.

  @param position: in bytes
  @param length: in bytes
  @raise OSError: if the file system cannot do that

  """
  begin = -(-position // PAGE) * PAGE
  end = (position + length) // PAGE * PAGE
  if begin < end:
    _allocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, begin, end - begin)


def cut(descriptor: int) -> None:
  """Gives back some of what a file takes, from its beginning.

  @raise OSError: if the file system does not take part

  """
  try:
    begin = os.lseek(descriptor, 0, os.SEEK_DATA)
  except OSError as err:
    if err.errno != errno.ENXIO:
      raise
    # As much as there is may be reserved behind its end: a file that is cut
    # there has no more of that.
    os.ftruncate(descriptor, os.fstat(descriptor).st_size)
  else:
    punch_hole(descriptor, begin // PAGE * PAGE, _MAX_CUT)


def _allocate(descriptor: int, mode: int, position: int, length: int) -> None:
  if _fallocate(descriptor, mode, position, length):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A place for the control directory, on a disk that can be filled up.

It is a small file system in memory, as C{/run} is, mounted for this process
and its children only; so this process needs mounts of its own.

"""

from __future__ import annotations

import collections.abc
import contextlib
import ctypes
import errno
import os
import pathlib

_OPTIONS = b"size=48m,nr_inodes=800,mode=755"
# linux/sched.h, linux/mount.h
_NEW_MOUNTS = 0x00020000
_RECURSIVELY_PRIVATE = 0x4000 | 0x40000
_LATER = 2

_CHUNK = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def take_own_mounts() -> None:
  """Let what is mounted from now on be there for this process only."""
  _check(_libc.unshare(_NEW_MOUNTS))
  _check(_libc.mount(b"none", b"/", None, _RECURSIVELY_PRIVATE, None))


def mount_small(path: pathlib.Path) -> None:
  """Mount a small file system in memory."""
  _check(_libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, _OPTIONS))


def unmount(path: pathlib.Path) -> None:
  """Unmount it, as soon as nothing on it is in use any more."""
  _check(_libc.umount2(os.fsencode(path), _LATER))


def _check(result: int) -> None:
  if result:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


class Ballast:
  """What fills a file system up.

  @ivar is_full: whether there is no room

  """

  def __init__(self, path: pathlib.Path) -> None:
    """Put nothing on it yet.

    @param path: a directory on it

    """
    self._bytes = path / "ballast"
    self._bytes.touch()
    self._files = path / "files"
    self._files.mkdir()
    self.is_full = False

  def fill(self) -> None:
    """Leave no room for a single byte."""
    self.is_full = True
    with open(self._bytes, "ab", buffering=0) as stream:
      for size in (_CHUNK, 4096):
        with _until_full():
          while True:
            stream.write(bytes(size))

  def fill_inodes(self) -> None:
    """Leave no room for another file."""
    self.is_full = True
    with _until_full():
      number = 0
      while True:
        (self._files / str(number)).touch()
        number += 1

  def free(self) -> None:
    """Make room."""
    self.is_full = False
    os.truncate(self._bytes, 0)
    for path in self._files.iterdir():
      path.unlink()


@contextlib.contextmanager
def _until_full() -> collections.abc.Iterator[None]:
  try:
    yield
  except OSError as err:
    if err.errno != errno.ENOSPC:
      raise

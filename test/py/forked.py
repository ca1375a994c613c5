# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests in a process of their own, for what cannot be undone in this one.

The process goes when this one goes, however that goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import fcntl
import os
import resource
import signal
import traceback
from typing import TYPE_CHECKING

from ganeti.kvmd.node import lockfile

if TYPE_CHECKING:
  import pathlib
  from collections.abc import Callable, Iterator

_NOBODY = 65534
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)


class Place(enum.Enum):
  """What is special about the process."""

  ORDINARY = enum.auto()
  #: It is not root's.
  UNPRIVILEGED = enum.auto()
  #: What it mounts is mounted for itself only.
  OWN_MOUNTS = enum.auto()
  #: Its user has limits of his own, of which nobody else has taken anything.
  OWN_LIMITS = enum.auto()


def run(function: Callable[[], None], place: Place = Place.ORDINARY) -> None:
  """Runs a function in a process of its own.

  @raise AssertionError: if it raised something; the text tells

  """
  parent = os.getpid()
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    text = "it ended early"
    try:
      os.close(reader)
      _enter(place, parent)
      function()
      text = ""
    except BaseException:  # noqa: BLE001
      text = traceback.format_exc()
    finally:
      os.write(writer, text.encode()[:65536])
      os._exit(0)
  os.close(writer)
  with open(reader, "rb") as pipe:
    said = pipe.read().decode()
  _, status = os.waitpid(child, 0)
  if status or said:
    raise AssertionError(f"in a process of its own, status {status}:\n{said}")


@contextlib.contextmanager
def living_on(
  function: Callable[[], None], place: Place = Place.ORDINARY
) -> Iterator[int]:
  """Runs a function in a process that lives on with what it has got then.

  @return: its number
  @raise AssertionError: if it raised something; the text tells

  """
  reader, writer = os.pipe()
  parent = os.getpid()
  child = os.fork()
  if not child:
    text = "ready"
    try:
      _enter(place, parent)
      function()
    except BaseException:  # noqa: BLE001
      text = traceback.format_exc()
    os.write(writer, text.encode()[:65536])
    os.close(writer)
    while True:
      signal.pause()
  os.close(writer)
  try:
    with open(reader, "rb") as pipe:
      said = pipe.read().decode()
    assert said == "ready", said
    yield child
  finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


#: How a file can be locked that can be read only.
READER_LOCKS = ("flock", "shared flock", "read lock", "read lock of the file")


def lock_as_stranger(path: pathlib.Path, kind: str) -> None:
  """Locks a file for as long as this process lives, as it can.

  @param kind: one of L{READER_LOCKS}
  @raise PermissionError: if it is closed to strangers

  """
  # Where the tests are not root's, nobody else can be had.
  if os.geteuid() == path.stat().st_uid and not path.stat().st_mode & 0o004:
    raise PermissionError(path)
  descriptor = os.open(path, os.O_RDONLY)
  if kind == "flock":
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  elif kind == "shared flock":
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  elif kind == "read lock":
    fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  else:
    whole = lockfile._flock(fcntl.F_RDLCK, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole)


def mount_small(path: str, files: int) -> None:
  """Mounts a file system that has room for a few files."""
  _mount(path, f"nr_inodes={files + 1}")


def mount_short(path: str, pages: int) -> None:
  """Mounts a file system that has room for a few pages of memory."""
  _mount(path, f"size={pages * resource.getpagesize()}")


def limit_inotify(*, instances: int = 1000, watches: int = 1000) -> None:
  """Sets the user's limits, in a process that has its own."""
  _write("/proc/sys/user/max_inotify_instances", str(instances))
  _write("/proc/sys/user/max_inotify_watches", str(watches))


def _mount(path: str, options: str) -> None:
  target = os.fsencode(path)
  _check(_libc.mount(b"none", target, b"tmpfs", 0, options.encode()))


def _enter(place: Place, parent: int) -> None:
  if place is Place.UNPRIVILEGED and os.geteuid() == 0:
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    # As if it had been started by that user; /proc/self is its own again.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
  elif place is Place.OWN_MOUNTS:
    if os.geteuid():
      _become_another_root()
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))
  elif place is Place.OWN_LIMITS:
    _become_another_root()
  _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
  if os.getppid() != parent:
    os._exit(1)


def _become_another_root() -> None:
  """Enters a user namespace, where the present user is root."""
  user, group = os.geteuid(), os.getegid()
  _check(_libc.unshare(_CLONE_NEWUSER))
  _write("/proc/self/setgroups", "deny")
  _write("/proc/self/uid_map", f"0 {user} 1")
  _write("/proc/self/gid_map", f"0 {group} 1")


def _write(path: str, text: str) -> None:
  with open(path, "w", encoding="ascii") as stream:
    stream.write(text)


def _check(result: int) -> None:
  if result:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))

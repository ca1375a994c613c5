# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What can be seen of a process and of a directory from the outside.

All times are C{CLOCK_MONOTONIC} in nanoseconds, as the fleet's.

"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import statistics
import struct
import time
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from errors import BenchError

if TYPE_CHECKING:
  from collections.abc import Iterable

_IN_MODIFY = 0x00000002
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_Q_OVERFLOW = 0x00004000
_EVENT = struct.Struct("iIII")

# CPUCLOCK_SCHED of the kernel: a process's clock is made from its number.
_CPUCLOCK_SCHED = 2

# Haskell's runtime collects garbage once it was idle for 0.3 seconds.
_SETTLED_SECONDS = 0.4
_SETTLED_NANOSECONDS = 1000000
_SETTLE_TIMEOUT = 20

# How exactly it is told when each of many files appeared.
_RESOLUTION_SECONDS = 0.001

_libc = ctypes.CDLL(None, use_errno=True)


class MeasureError(BenchError):
  """Something cannot be measured; the message says why."""


class Memory(NamedTuple):
  """Memory of a process, in KiB."""

  resident: int
  proportional: int


class Summary(NamedTuple):
  """What many measurements of one thing come to."""

  median: float
  p99: float
  minimum: float
  maximum: float
  samples: int


def summary_of(values: Iterable[float]) -> Optional[Summary]:
  """Sums up measurements; None if there are none."""
  ordered = sorted(values)
  if not ordered:
    return None
  return Summary(
    statistics.median(ordered),
    ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    ordered[0],
    ordered[-1],
    len(ordered),
  )


def median_of(values: list[float]) -> float:
  """Gives the median; 0 if there is nothing."""
  return statistics.median(values) if values else 0.0


def cpu_of(pid: int) -> int:
  """Gives the CPU time of all threads of a process, in nanoseconds.

  Unlike the ticks in /proc/PID/stat, this is exact.

  @raise MeasureError: when it is gone

  """
  try:
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
  except OSError:
    raise MeasureError("it ended in the middle of a measurement") from None


def memory_of(pid: int) -> Memory:
  """Reads how much memory a process has.

  @raise MeasureError: when it is gone

  """
  fields = {}
  try:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
      for line in rollup:
        name, *values = line.split()
        if values and values[-1] == "kB":
          fields[name] = int(values[0])
  except OSError:
    raise MeasureError("it ended in the middle of a measurement") from None
  return Memory(fields["Rss:"], fields["Pss:"])


def restart_peak(pid: int) -> int:
  """Lets the kernel measure anew how much memory a process had at most.

  @return: how much it has now, in KiB
  @raise MeasureError: when it is gone

  """
  try:
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
      file.write("5")
  except OSError:
    raise MeasureError("it ended in the middle of a measurement") from None
  return peak_of(pid)


def peak_of(pid: int) -> int:
  """Says how much resident memory a process had at most, in KiB.

  @raise MeasureError: when it is gone

  """
  try:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
      fields = dict(line.split(":", 1) for line in file)
  except OSError:
    fields = {}
  # A process that has ended has none.
  if "VmHWM" not in fields:
    raise MeasureError("it ended in the middle of a measurement")
  return int(fields["VmHWM"].split()[0])


def settle(pid: int) -> None:
  """Waits until a process has nothing more to do.

  @raise MeasureError: when it is busy all the time, or gone

  """
  deadline = time.monotonic() + _SETTLE_TIMEOUT
  used = None
  while time.monotonic() < deadline:
    before, used = used, cpu_of(pid)
    if before is not None and used - before < _SETTLED_NANOSECONDS:
      return
    time.sleep(_SETTLED_SECONDS)
  raise MeasureError(f"it does not rest for {_SETTLE_TIMEOUT} s")


class _Inotify:
  """An inotify queue on one directory or file."""

  def __init__(self, path: str, mask: int) -> None:
    self.overflowed = False
    self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if (
      self._fd < 0 or _libc.inotify_add_watch(self._fd, path.encode(), mask) < 0
    ):
      raise OSError(ctypes.get_errno(), "cannot watch", path)
    self._poll = select.poll()
    self._poll.register(self._fd, select.POLLIN)

  def close(self) -> None:
    os.close(self._fd)

  def read(self, timeout: float) -> list[str]:
    """Waits for events.

    @param timeout: in seconds
    @return: the names that the events are about

    """
    if not self._poll.poll(timeout * 1000):
      return []
    data = os.read(self._fd, 1 << 20)
    names = []
    offset = 0
    while offset < len(data):
      _, mask, _, length = _EVENT.unpack_from(data, offset)
      offset += _EVENT.size
      name = data[offset : offset + length].rstrip(b"\0")
      names.append(os.fsdecode(name))
      offset += length
      if mask & _IN_Q_OVERFLOW:
        self.overflowed = True
    return names


class ShutdownFiles:
  """Sees the shutdown files in a directory appear."""

  _SUFFIX = ".shutdown"

  def __init__(self, directory: str) -> None:
    self._inotify = _Inotify(directory, _IN_CREATE | _IN_MOVED_TO)
    self._directory = directory

  def __enter__(self) -> ShutdownFiles:
    return self

  def __exit__(self, *_: object) -> None:
    self._inotify.close()

  def wait(
    self, instances: Iterable[str], timeout: float, patience: float
  ) -> dict[str, int]:
    """Waits for the files of these instances.

    @param timeout: in seconds, for all of them
    @param patience: in seconds, for the next one of them
    @return: when each appeared; those that did not are missing

    """
    seen: dict[str, int] = {}
    missing = set(instances)
    is_one = len(missing) == 1
    deadline = time.monotonic() + timeout
    while missing and (left := deadline - time.monotonic()) > 0:
      names = self._inotify.read(min(left, patience))
      now = time.monotonic_ns()
      if not names:
        break
      for name in names:
        instance = name[: -len(self._SUFFIX)]
        if name.endswith(self._SUFFIX) and instance in missing:
          missing.remove(instance)
          seen[instance] = now
      if not is_one:
        # To wake up for each of many would slow down who makes them.
        time.sleep(_RESOLUTION_SECONDS)
    return seen

  def remove_all(self) -> None:
    """Removes the files, for the next measurement."""
    for entry in os.scandir(self._directory):
      if entry.name.endswith(self._SUFFIX):
        # Of a life that is over the daemon may do that just now.
        with contextlib.suppress(FileNotFoundError):
          os.unlink(entry.path)


def wait_for_line(
  path: str, text: str, timeout: float, alive: Callable[[], bool]
) -> Optional[int]:
  """Waits until a file contains a text.

  @param timeout: in seconds
  @param alive: whether it is worth while to go on waiting
  @return: when it did, None if it did not

  """
  inotify = _Inotify(path, _IN_MODIFY)
  deadline = time.monotonic() + timeout
  try:
    while True:
      with open(path, encoding="utf-8", errors="replace") as file:
        if text in file.read():
          return time.monotonic_ns()
      if time.monotonic() > deadline or not alive():
        return None
      inotify.read(0.1)
  finally:
    inotify.close()

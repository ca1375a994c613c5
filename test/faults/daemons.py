# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon, killed and started over and over, and what it says.

All daemons of a schedule write to one log, and go by one pidfile.

"""

from __future__ import annotations

import collections
import json
import pathlib
import resource
import signal
import sys
import time
import typing

import kvmd_log
from guests import lifetime
from kvmd_process import Foreground

_HEARS_NO_EXITS = "cannot learn how QEMUs end"

#: Enters a time namespace of its own and becomes another program.
_WITH_OTHER_CLOCK = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NEW_TIME = 0x80
if libc.unshare(NEW_TIME):
  raise OSError(ctypes.get_errno(), "unshare")
with open("/proc/self/timens_offsets", "w") as file:
  file.write(f"monotonic {sys.argv[1]} 0")
own = os.open("/proc/self/ns/time_for_children", os.O_RDONLY)
if libc.setns(own, NEW_TIME):
  raise OSError(ctypes.get_errno(), "setns")
os.close(own)
os.execv(sys.argv[2], sys.argv[2:])
"""

#: As many seconds later does the other clock say it is.
_OTHER_CLOCK = 3000 * 86400

#: As many descriptors are few: a handful is left for monitors.
_FEW = 28

#: The status of a daemon that found another one
_REFUSED = 1


class DaemonError(Exception):
  """The daemon did what it must never do."""


class Daemons:
  """The daemon of a node: at most one at a time, but for some moments."""

  def __init__(
    self, ctrl_dir: pathlib.Path, scratch: pathlib.Path, *options: str
  ) -> None:
    """Start none yet.

    @param scratch: where its log and its pidfile are to be
    @param options: further options for it

    """
    self._pidfile = scratch / "pid"
    self._arguments = [
      f"--ctrl-dir={ctrl_dir}",
      f"--pid-file={self._pidfile}",
      f"--history={scratch / 'history'}",
      *options,
    ]
    self._path = scratch / "log"
    self._history = scratch / "history"
    self._path.touch()
    self._log = kvmd_log.Log(self._path)
    self._process: typing.Optional[Foreground] = None
    self._watching: set[int] = set()
    #: The processes that have attached to each instance, in order
    self.attachments: dict[str, list[int]] = collections.defaultdict(list)
    #: The processes that have followed each instance by its journal
    self.followings: dict[str, list[int]] = collections.defaultdict(list)
    #: The numbers by which they knew the QEMUs of each instance
    self.qemus: dict[str, set[int]] = collections.defaultdict(set)
    #: The same, of those whose bad ends they noticed
    self.exits: dict[str, set[int]] = collections.defaultdict(set)
    self.hears_exits = True
    self.is_stopped = False
    self.has_few_descriptors = False
    # How many files it may open, while it may not
    self._usual_limit: typing.Optional[tuple[int, int]] = None
    # For how long daemons have run, without the time of being stopped
    self._ran = 0.0
    self._since = 0.0

  @property
  def runs(self) -> bool:
    return self._process is not None

  @property
  def verdicts(self) -> list[kvmd_log.Verdict]:
    """All that were logged so far."""
    return self._log.verdicts

  @property
  def lines(self) -> list[str]:
    """All that was logged so far."""
    return self._log.lines

  @property
  def history(self) -> list[dict[str, typing.Any]]:
    """All lines of the history, but for one that is being written."""
    try:
      content = self._history.read_bytes()
    except FileNotFoundError:
      return []
    lines = content.split(b"\n")[:-1]
    return [json.loads(line) for line in lines]

  @property
  def clock(self) -> float:
    """For how long, in seconds, daemons have been able to act so far."""
    if self._process is None or self.is_stopped:
      return self._ran
    return self._ran + time.monotonic() - self._since

  def start(
    self, *, few_descriptors: bool = False, clock: bool = False
  ) -> None:
    """Start a daemon, without waiting for it.

    @param clock: whether its monotonic clock is to be another one

    """
    assert self._process is None
    prefix: list[str] = []
    if few_descriptors:
      prefix = ["prlimit", f"--nofile={_FEW}:{_FEW}"]
    elif clock:
      prefix = [sys.executable, "-I", "-c", _WITH_OTHER_CLOCK]
      prefix.append(str(_OTHER_CLOCK))
    self.has_few_descriptors = few_descriptors
    self._process = self._launch(prefix)
    self._since = time.monotonic()

  def start_two(self) -> None:
    """Start two at once; one of them has to give way.

    @raise DaemonError: if none or both do

    """
    assert self._process is None
    both = [self._launch([]), self._launch([])]

    def is_decided() -> bool:
      return any(each.status is not None for each in both)

    try:
      lifetime.wait_until(is_decided, "one of two daemons to give way")
      ended = [each for each in both if each.status is not None]
      if len(ended) > 1 or ended[0].status != _REFUSED:
        raise DaemonError("two daemons at once, and none or both gave way")
      both.remove(ended[0])
      (self._process,) = both
    finally:
      if self._process is None:
        for each in both:
          each.kill()
    self.has_few_descriptors = False
    self._since = time.monotonic()
    self.await_watching()

  def start_another(self) -> None:
    """Start one beside the one that runs, which has to give way.

    @raise DaemonError: if it does not

    """
    if not self.is_watching:
      return
    other = self._launch([])

    def is_decided() -> bool:
      self.read_log()
      return other.status is not None or other.pid in self._watching

    try:
      lifetime.wait_until(is_decided, "another daemon to give way")
      if other.status != _REFUSED:
        raise DaemonError("a second daemon does not give way to the first")
    finally:
      other.kill()

  def delete_pidfile(self) -> None:
    self._pidfile.unlink(missing_ok=True)

  @property
  def has_pidfile(self) -> bool:
    return self._pidfile.exists()

  @property
  def is_watching(self) -> bool:
    """Whether a daemon runs that has come so far as to watch."""
    self.read_log()
    return self._process is not None and self._process.pid in self._watching

  def _launch(self, prefix: list[str]) -> Foreground:
    return Foreground(self._path, *self._arguments, prefix=prefix)

  def await_watching(self) -> None:
    """Wait until the daemon watches.

    @raise DaemonError: if it ends instead

    """
    if self._process is None or self.is_stopped:
      return
    process = self._process

    def is_watching() -> bool:
      self.check_alive()
      self.read_log()
      return process.pid in self._watching

    lifetime.wait_until(is_watching, "the daemon to watch")

  def check_alive(self) -> None:
    """Make sure that no daemon has ended by itself.

    @raise DaemonError: if one has

    """
    if self._process is not None and self._process.status is not None:
      self.read_log()
      words = "\n".join(self.lines[-20:])
      raise DaemonError(
        f"the daemon ended by itself with status {self._process.status};"
        f" its last words:\n{words}"
      )

  def kill(self) -> None:
    self._end(signal.SIGKILL)

  def end(self) -> None:
    """Tell the daemon to end.

    @raise DaemonError: if it does so badly

    """
    process = self._process
    if process is None:
      return
    # A daemon that is only about to take its signals ends by them.
    self.carry_on()
    self.await_watching()
    self._end(signal.SIGTERM)
    if process.status != 0:
      raise DaemonError(f"the daemon ended with status {process.status}")

  def _end(self, number: signal.Signals) -> None:
    if self._process is None:
      return
    self._ran = self.clock
    self._process.end(number)
    self._process = None
    self.is_stopped = False
    self._usual_limit = None

  def stop(self) -> None:
    """Suspend the daemon."""
    if self._process is not None and not self.is_stopped:
      self._ran = self.clock
      self.is_stopped = True
      self._process.send_signal(signal.SIGSTOP)

  def carry_on(self) -> None:
    """Let a suspended daemon go on."""
    if self._process is not None and self.is_stopped:
      self._process.send_signal(signal.SIGCONT)
      self.is_stopped = False
      self._since = time.monotonic()

  def take_descriptors(self, *, spare: int) -> None:
    """Let a daemon open hardly any more files.

    @param spare: as many are left

    """
    if self._process is None or not self.is_watching:
      return
    pid = self._process.pid
    if self._usual_limit is None:
      self._usual_limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = [
      int(each.name) for each in pathlib.Path(f"/proc/{pid}/fd").iterdir()
    ]
    # New ones get the lowest numbers.
    limit = max(used, default=2) + 1
    free = limit - len(used)
    limit += max(0, spare - free)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, self._usual_limit[1]))

  def give_descriptors(self) -> None:
    """Let the daemon open files again."""
    if self._process is not None and self._usual_limit is not None:
      resource.prlimit(
        self._process.pid, resource.RLIMIT_NOFILE, self._usual_limit
      )
    self._usual_limit = None

  def close(self) -> None:
    self.kill()

  def is_attached(self, name: str, since: int) -> bool:
    """Tell whether the present daemon has attached to an instance.

    @param since: how many attachments to that name do not count

    """
    self.read_log()
    return (
      self._process is not None
      and self._process.pid in self.attachments[name][since:]
    )

  def is_following(self, name: str, since: int) -> bool:
    """Tells whether the present daemon follows an instance by its journal.

    @param since: how many such lines about that name do not count

    """
    self.read_log()
    return (
      self._process is not None
      and self._process.pid in self.followings[name][since:]
    )

  def read_log(self) -> None:
    """Take in what was logged since the last call."""
    for line in self._log.read():
      self._note(line)

  def _note(self, line: kvmd_log.Line) -> None:
    message = line.message
    if attached := kvmd_log.attached(message):
      self.attachments[attached.instance].append(line.process)
      if attached.process is not None:
        self.qemus[attached.instance].add(attached.process)
    elif followed := kvmd_log.followed(message):
      self.followings[followed].append(line.process)
    elif ended := kvmd_log.exit_of(message):
      self.exits[ended.instance].add(ended.process)
    elif kvmd_log.watched(message):
      self._watching.add(line.process)
    elif _HEARS_NO_EXITS in message:
      self.hears_exits = False

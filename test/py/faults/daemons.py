# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The daemon, killed and started over and over, and what it says.

All daemons of a schedule write to one log, and go by one pidfile.

"""

from __future__ import annotations

import collections
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
import typing

from guests import lifetime
from guests.daemon import executable

_VERDICT = re.compile(
  r"instance (\S+): verdict ([a-z ]+) \((.*)\) after [0-9.]+ s(?:;.*)?$"
)
_WATCHING = re.compile(r" pid=(\d+) INFO watching ")
_ATTACHED = re.compile(r" pid=(\d+) INFO instance (\S+): attached to QEMU ")
_FOLLOWED = re.compile(r" pid=(\d+) INFO instance (\S+): its QEMU keeps ")
_PROCESS = re.compile(r" instance (\S+): (attached|its) .*process (\d+)")
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


class Verdict(typing.NamedTuple):
  """A verdict that was logged."""

  name: str
  verdict: str
  cause: str


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
      str(executable()),
      "-f",
      f"--ctrl-dir={ctrl_dir}",
      f"--pid-file={self._pidfile}",
      *options,
    ]
    self._log = scratch / "log"
    self._log.touch()
    self._read = 0
    self._process: typing.Optional[subprocess.Popen[bytes]] = None
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
    #: All verdicts so far
    self.verdicts: list[Verdict] = []
    #: All lines so far
    self.lines: list[str] = []
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
      return any(each.poll() is not None for each in both)

    try:
      lifetime.wait_until(is_decided, "one of two daemons to give way")
      ended = [each for each in both if each.poll() is not None]
      if len(ended) > 1 or ended[0].returncode != _REFUSED:
        raise DaemonError("two daemons at once, and none or both gave way")
      both.remove(ended[0])
      (self._process,) = both
    finally:
      if self._process is None:
        for each in both:
          each.kill()
          each.wait()
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
      return other.poll() is not None or other.pid in self._watching

    try:
      lifetime.wait_until(is_decided, "another daemon to give way")
      if other.returncode != _REFUSED:
        raise DaemonError("a second daemon does not give way to the first")
    finally:
      other.kill()
      other.wait()

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

  def _launch(self, prefix: list[str]) -> subprocess.Popen[bytes]:
    with open(self._log, "ab") as stream:
      return lifetime.start(
        [*prefix, *self._arguments], stdout=stream, stderr=stream
      )

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
    if self._process is not None and self._process.poll() is not None:
      self.read_log()
      words = "\n".join(self.lines[-20:])
      raise DaemonError(
        f"the daemon ended by itself with status {self._process.returncode};"
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
    if process.returncode != 0:
      raise DaemonError(f"the daemon ended with status {process.returncode}")

  def _end(self, number: signal.Signals) -> None:
    if self._process is None:
      return
    self._ran = self.clock
    self._process.send_signal(number)
    self._process.wait(lifetime.PATIENCE)
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
    with open(self._log, "rb") as stream:
      stream.seek(self._read)
      data = stream.read()
    # It may be in the middle of a line.
    data = data[: data.rfind(b"\n") + 1]
    self._read += len(data)
    for line in data.decode(errors="replace").splitlines():
      self.lines.append(line)
      self._note(line)

  def _note(self, line: str) -> None:
    verdict = _VERDICT.search(line)
    attached = _ATTACHED.search(line)
    followed = _FOLLOWED.search(line)
    watching = _WATCHING.search(line)
    if verdict is not None:
      self.verdicts.append(Verdict(*verdict.groups()))
    elif attached is not None:
      self.attachments[attached.group(2)].append(int(attached.group(1)))
    elif followed is not None:
      self.followings[followed.group(2)].append(int(followed.group(1)))
    elif watching is not None:
      self._watching.add(int(watching.group(1)))
    elif _HEARS_NO_EXITS in line:
      self.hears_exits = False
    process = _PROCESS.search(line)
    if process is not None:
      name, how, number = process.groups()
      known = self.qemus if how == "attached" else self.exits
      known[name].add(int(number))

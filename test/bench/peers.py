# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Who is measured: how each is started, and when it is ready.

A new peer, or another source of events for one that is here, is one more
function at the end of this file.

"""

from __future__ import annotations

import glob
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple, Optional

import fleet
import measure
import sandbox
from errors import BenchError

BENCH = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(BENCH))
OUR_DAEMON = os.path.join(TOP, "build", "daemons", "ganeti-kvmd")

# Stock has no option for any of these, so everybody sees the same.
CONTROL_DIRECTORY = "/run/ganeti/kvm-hypervisor/ctrl"
_RUN_DIRECTORY = "/run/ganeti"
_LOG_DIRECTORY = "/var/log/ganeti"
_DATA_DIRECTORY = "/var/lib/ganeti"
_LOG_FILE = "kvm-daemon.log"
_PID_FILE = "ganeti-kvmd.pid"

_READY_TIMEOUT = 20
_STOP_TIMEOUT = 10


class NotMeasured(BenchError):
  """A peer cannot be had here; the message says why."""


class Peer(NamedTuple):
  """Somebody who watches monitors.

  @ivar key: a word for the command line and the JSON
  @ivar command: watches L{CONTROL_DIRECTORY}
  @ivar ready_text: what it writes once it watches, None if it does not say
  @ivar log: the file in L{_LOG_DIRECTORY} in which it writes that, None for
    its standard error
  @ivar pid_file: the file in L{_RUN_DIRECTORY} of one that detaches, None for
    one that does not
  @ivar recheck_command: looks again at everything once a second, None for
    one that never does
  @ivar source: where it learns what becomes of the instances

  """

  key: str
  title: str
  command: list[str]
  ready_text: Optional[str] = None
  log: Optional[str] = None
  pid_file: Optional[str] = None
  recheck_command: Optional[list[str]] = None
  source: fleet.Source = fleet.Source.MONITOR


class Node:
  """The files of one pretended node, which one peer at a time watches.

  @ivar run: what it sees as Ganeti's run directory
  @ivar log: what it sees as Ganeti's log directory
  @ivar directory: its control directory, as it is called from the outside

  """

  def __init__(self, name: str, megabytes: Optional[int] = None) -> None:
    """Makes them.

    @param megabytes: the size of the run directory's own file system; None
      for none of its own

    """
    self._root = os.path.join(sandbox.WORKSPACE, name)
    self._has_room_of_its_own = megabytes is not None
    self.run = os.path.join(self._root, "run")
    self.log = os.path.join(self._root, "log")
    self.directory = self.run + CONTROL_DIRECTORY[len(_RUN_DIRECTORY) :]
    os.makedirs(self.run)
    if megabytes is not None:
      sandbox.mount_tmpfs(self.run, megabytes)
    os.makedirs(self.directory)
    os.mkdir(self.log)

  def remove(self) -> None:
    """Removes them, when nobody uses them any more."""
    if self._has_room_of_its_own:
      sandbox.unmount(self.run)
    shutil.rmtree(self._root)

  def move_in(self) -> None:
    """Makes this process see the files where Ganeti has them."""
    sandbox.new_mounts()
    sandbox.mount_bind(self.run, _RUN_DIRECTORY)
    if os.path.isdir(_LOG_DIRECTORY):
      sandbox.mount_bind(self.log, _LOG_DIRECTORY)
    # For all the same, though a daemon should see to it itself.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


class Running:
  """A peer that runs.

  @ivar started: just before it was started
  @ivar ready: when it said that it watches, 0 if it does not say
  @ivar log: the path of its log

  """

  def __init__(
    self, peer: Peer, node: Node, command: Optional[list[str]] = None
  ) -> None:
    self.peer = peer
    self.started = 0
    self.ready = 0
    self._status: Optional[int] = None
    self._output = os.path.join(node.log, "output")
    self.log = os.path.join(node.log, peer.log or "output")
    for path in (self._output, self.log):
      open(path, "wb").close()
    with open(self._output, "ab") as output:
      self.started = time.monotonic_ns()
      process = subprocess.Popen(
        command or peer.command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=node.move_in,
      )
    self.pid = process.pid
    if peer.pid_file is not None:
      if process.wait() != 0:
        raise NotMeasured(f"{peer.title} does not start: {self.last_words()}")
      path = os.path.join(node.run, peer.pid_file)
      with open(path, encoding="ascii") as pid_file:
        self.pid = int(pid_file.read())
    # From here on this class waits for it, not Popen.
    process.returncode = 0
    if peer.ready_text is not None:
      ready = measure.wait_for_line(
        self.log, peer.ready_text, _READY_TIMEOUT, self.alive
      )
      if ready is None:
        words = self.last_words()
        self.stop()
        raise NotMeasured(f"{peer.title} is never ready: {words}")
      self.ready = ready

  def __enter__(self) -> Running:
    return self

  def __exit__(self, *_: object) -> None:
    self.stop()

  def alive(self) -> bool:
    """Says whether it still runs."""
    if self._status is None:
      try:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
      except ChildProcessError:
        # One that has just detached may not be handed over to us yet.
        return os.path.exists(f"/proc/{self.pid}")
      if pid:
        self._status = status
    return self._status is None

  def cause_of_death(self) -> str:
    """Says how it died, in its last words."""
    status = self._status
    if self.alive() or status is None:
      return "is alive"
    how = (
      f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
      if os.WIFSIGNALED(status)
      else f"exit status {os.WEXITSTATUS(status)}"
    )
    return f"died, {how}: {self.last_words()}"

  def last_words(self) -> str:
    """Gives the last two lines that it wrote."""
    for path in (self._output, self.log):
      with open(path, encoding="utf-8", errors="replace") as file:
        lines = [x.strip() for x in file if x.strip()]
      if lines:
        return " ".join(lines[-2:])
    return "(it wrote nothing)"

  def stop(self) -> None:
    """Ends it, and waits until it is gone."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    if self.alive():
      os.kill(self.pid, signal.SIGTERM)
    while self.alive():
      if time.monotonic() > deadline:
        os.kill(self.pid, signal.SIGKILL)
      time.sleep(0.002)


def _stock_daemon() -> Optional[str]:
  """Finds Ganeti's own daemon: the program in machine code of that name."""
  for path in sorted(glob.glob("/usr/lib/ganeti/*/usr/sbin/ganeti-kvmd")):
    with open(path, "rb") as file:
      if file.read(4) == b"\x7fELF":
        return path
  return None


def prepare() -> None:
  """Makes the sandbox look like a Ganeti node."""
  sandbox.mount_tmpfs(os.path.dirname(_RUN_DIRECTORY))
  os.mkdir(_RUN_DIRECTORY)
  if _stock_daemon() is None:
    return
  sandbox.mount_tmpfs(_DATA_DIRECTORY)
  node = "bench.example.com"
  socket.sethostname(node)
  hosts = os.path.join(sandbox.WORKSPACE, "hosts")
  with open(hosts, "w", encoding="ascii") as file:
    file.write(f"127.0.0.1 {node} localhost\n")
  sandbox.mount_bind(hosts, "/etc/hosts")
  for key, value in (
    ("hypervisor_list", "kvm"),
    ("enabled_user_shutdown", "True"),
    ("node_vm_capable", f"{node}=True"),
  ):
    path = f"{_DATA_DIRECTORY}/ssconf_{key}"
    with open(path, "w", encoding="ascii") as file:
      file.write(value + "\n")


def ours() -> Peer:
  """Our daemon, on the instances' monitors.

  Where there is a Ganeti it is started as Ganeti does, like Ganeti's own.

  """
  if not os.path.exists(OUR_DAEMON):
    raise NotMeasured(f"{OUR_DAEMON} is missing: it is built by devel/build")
  if _stock_daemon() is None:
    peer = Peer(
      "ours",
      "ganeti-kvmd",
      [OUR_DAEMON, "-f", f"--ctrl-dir={CONTROL_DIRECTORY}"],
    )
  else:
    peer = Peer(
      "ours", "ganeti-kvmd", [OUR_DAEMON], log=_LOG_FILE, pid_file=_PID_FILE
    )
  return peer._replace(
    ready_text="watching ",
    recheck_command=[*peer.command, "--rescan-interval=1"],
  )


def ours_by_journal() -> Peer:
  """Our daemon, on what the instances write down themselves."""
  return ours()._replace(
    key="journal",
    title="ganeti-kvmd by journal",
    source=fleet.Source.JOURNAL,
  )


def stock() -> Peer:
  """Ganeti's own daemon, as Ganeti starts it: detached."""
  program = _stock_daemon()
  if program is None:
    raise NotMeasured("Ganeti is not installed; Debian's package is ganeti")
  return Peer(
    "stock",
    "stock ganeti-kvmd (Haskell)",
    [program, "--no-user-checks"],
    ready_text="Watch directory",
    log=_LOG_FILE,
    pid_file=_PID_FILE,
  )


def stock_foreground() -> Peer:
  """Ganeti's own daemon with its log on standard error.

  It writes each character of a line by itself there.

  """
  detached = stock()
  return detached._replace(
    key="stock-foreground",
    title="stock ganeti-kvmd -f",
    command=[*detached.command, "-f"],
    pid_file=None,
  )


def qmp_listener(python: str) -> Peer:
  """Thirty lines on the official library.

  @param python: an interpreter that has qemu.qmp

  """
  try:
    subprocess.run(
      [python, "-c", "import qemu.qmp"],
      stderr=subprocess.DEVNULL,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    raise NotMeasured(f"{python} has no qemu.qmp") from None
  command = [
    python,
    os.path.join(BENCH, "qmp_listener.py"),
    CONTROL_DIRECTORY,
  ]
  return Peer(
    "qemu.qmp",
    "listener on qemu.qmp",
    command,
    ready_text="watching ",
    recheck_command=command,
  )


def bare_python() -> Peer:
  """The least that can be done in Python."""
  script = os.path.join(BENCH, "bare_epoll.py")
  command = [sys.executable, script, CONTROL_DIRECTORY]
  return Peer("bare-python", "bare epoll loop, Python", command)


def bare_c() -> Peer:
  """The least that can be done at all."""
  compiler = shutil.which("cc") or shutil.which("gcc")
  if compiler is None:
    raise NotMeasured("there is no C compiler; Debian's package is gcc")
  program = os.path.join(sandbox.WORKSPACE, "bare_epoll")
  source = os.path.join(BENCH, "bare_epoll.c")
  compilation = subprocess.run(
    [compiler, "-O2", "-Wall", "-o", program, source], check=False
  )
  if compilation.returncode != 0:
    raise NotMeasured(f"{source} cannot be compiled")
  return Peer("bare-c", "bare epoll loop, C", [program, CONTROL_DIRECTORY])

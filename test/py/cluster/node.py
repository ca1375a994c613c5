# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Namespaces that look like machines.

A L{Hub} is what the nodes of a cluster have in common: an Ethernet and a
directory. A L{Node} is this machine once more, with processes, a network, a
name and changes to its files of its own. All of it hangs on the hub's first
process: when that ends, however it ends, the kernel ends everything inside and
takes back what it used. Nothing is written down on this machine, so nothing can
be left behind; a hub is found again by the title of its first process.

"""

from __future__ import annotations

import collections.abc
import os
import pathlib
import select
import signal
import subprocess

from guests import lifetime

_HERE = pathlib.Path(__file__).resolve().parent

DOMAIN = "example.test"
_NETWORK = "192.0.2"  # for documentation, so it is nobody's
_NETWORK_BITS = 24

#: What the titles of the first processes begin with, as hub.sh and node.sh say
_TITLE = "ganeti-kvmd-"

_ENVIRONMENT = {
  "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  "HOME": "/root",
  "LC_ALL": "C.UTF-8",
  "TERM": os.environ.get("TERM", "dumb"),
}

#: How long a command on a node may take by default, in seconds
_COMMAND_PATIENCE = 120.0


class CommandError(Exception):
  """A command on a node failed."""

  def __init__(
    self, node: str, result: subprocess.CompletedProcess[str]
  ) -> None:
    command = " ".join(result.args)
    super().__init__(
      f"{node}: {command}: status {result.returncode}\n"
      f"{result.stdout}{result.stderr}"
    )
    self.result = result


class BootError(Exception):
  """Namespaces could not be made."""


def address(number: int) -> str:
  """The address of a host on a hub's Ethernet.

  @param number: from 1 to 254

  """
  return f"{_NETWORK}.{number}"


def node_address(number: int) -> str:
  """The address of a node, by its number."""
  return address(10 + number)


def _first_processes() -> dict[str, int]:
  """The first processes of PID namespaces, by the titles that we gave them."""
  found = {}
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      title = (entry / "cmdline").read_bytes().split(b"\0", 1)[0].decode()
      # A process that it forks has the same title until it executes something
      if title.startswith(_TITLE) and _number_inside(entry) == 1:
        found[title] = int(entry.name)
    except (OSError, UnicodeDecodeError):
      continue  # it has just ended, or is none of ours
  return found


def _number_inside(entry: pathlib.Path) -> int:
  """The number of a process in its own PID namespace."""
  for line in (entry / "status").read_text().splitlines():
    if line.startswith("NSpid:"):
      return int(line.split()[-1])
  return 0


def _boot(command: list[str], title: str) -> subprocess.Popen[str]:
  """Start a first process and wait until it stands.

  @param command: starts a process that says C{ready}, or what went wrong, and
    then takes the title
  @return: the process that was started here

  """
  # In a session of its own: an interrupt from the terminal is not for it
  process = subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=_ENVIRONMENT,
    text=True,
    start_new_session=True,
  )
  assert process.stdout is not None
  said = []
  with process.stdout:
    for line in process.stdout:
      if line == "ready\n":
        break
      said.append(line)
    else:
      process.wait()
      words = "".join(said).strip() or "without a word"
      raise BootError(f"{title} did not come up: {words}")
  lifetime.wait_until(lambda: title in _first_processes(), f"{title} is up")
  return process


def _enter(process: int, *namespaces: str) -> list[str]:
  """What to put before a command so that it runs in a process's namespaces."""
  options = [f"--{namespace}" for namespace in namespaces]
  return ["nsenter", f"--target={process}", *options, "--"]


class Node:
  """One machine, as far as the programs in it can tell."""

  def __init__(self, number: int, process: int) -> None:
    """Take hold of a node that is there.

    @param number: from 1
    @param process: its first process

    """
    self.number = number
    self.process = process
    self.short_name = f"node{number}"
    self.name = f"{self.short_name}.{DOMAIN}"

  def command(self, *command: str) -> list[str]:
    """What to run here so that a command runs there."""
    return [*_enter(self.process, "all", "root", "wd"), *command]

  def execute(self, *command: str) -> None:
    """Become a command on this node; does not return."""
    words = self.command(*command)
    os.execvpe(words[0], words, _ENVIRONMENT)

  def run(
    self,
    *command: str,
    check: bool = True,
    timeout: float = _COMMAND_PATIENCE,
  ) -> subprocess.CompletedProcess[str]:
    """Run a command and wait until it ends.

    @param check: whether its failure is the caller's as well
    @param timeout: in seconds
    @raise CommandError: if it fails

    """
    result = subprocess.run(
      self.command(*command),
      stdin=subprocess.DEVNULL,
      capture_output=True,
      env=_ENVIRONMENT,
      text=True,
      check=False,
      timeout=timeout,
    )
    result.args = command
    if check and result.returncode != 0:
      raise CommandError(self.name, result)
    return result

  def gnt(self, tool: str, *arguments: str) -> str:
    """Run a gnt-* command, which only the master can.

    @param tool: what follows C{gnt-}
    @return: its standard output
    @raise CommandError: if it fails

    """
    return self.run(f"gnt-{tool}", *arguments).stdout

  def daemon_util(self, command: str, daemon: str = "ganeti-kvmd") -> bool:
    """Run Ganeti's own tool for its daemons.

    @return: whether it succeeded

    """
    tool = "/usr/lib/ganeti/daemon-util"
    return self.run(tool, command, daemon, check=False).returncode == 0

  def path(self, path: str) -> pathlib.Path:
    """Where a file of this node is seen from outside.

    No directory on the way may be an absolute symbolic link, which leads out
    of the node: C{/run}, not C{/var/run}.

    """
    return pathlib.Path(f"/proc/{self.process}/root", path.lstrip("/"))


class Hub:
  """What the nodes of a cluster have in common."""

  def __init__(
    self, name: str, process: int, child: subprocess.Popen[str] | None = None
  ) -> None:
    """Take hold of a hub that is there.

    @param process: its first process
    @param child: a process of ours that ends after that one

    """
    self.name = name
    self.process = process
    self._child = child

  @staticmethod
  def _title(name: str) -> str:
    return f"{_TITLE}cluster:{name}"

  def _node_title(self, number: int) -> str:
    return f"{_TITLE}node:{self.name}/node{number}"

  @classmethod
  def find(cls, name: str) -> Hub | None:
    """Look for a hub that someone else has started."""
    process = _first_processes().get(cls._title(name))
    return None if process is None else cls(name, process)

  @classmethod
  def start(cls, name: str, *, outlive: bool) -> Hub:
    """Make a hub without nodes.

    @param outlive: whether it is to stay when the calling thread ends

    """
    title = cls._title(name)
    unshare = [
      *("unshare", "--mount", "--net", "--ipc", "--pid", "--fork"),
      *("--kill-child", "--", str(_HERE / "hub.sh"), name),
    ]
    if outlive:
      _boot(["setsid", "--fork", *unshare], title).wait()
      child = None
    else:
      child = _boot(["setpriv", "--pdeathsig=KILL", "--", *unshare], title)
    return cls(name, _first_processes()[title], child)

  def nodes(self) -> list[Node]:
    """The nodes that are there."""
    titles = _first_processes()
    numbered = [
      (number, titles.get(self._node_title(number))) for number in range(1, 10)
    ]
    return [Node(number, process) for number, process in numbered if process]

  def add_node(
    self, number: int, shown: collections.abc.Iterable[pathlib.Path]
  ) -> Node:
    """Make a node and connect it to the others.

    @param number: from 1 to 9
    @param shown: directories of this machine that it sees as they are

    """
    title = self._node_title(number)
    short_name = f"node{number}"
    _boot(
      [
        *_enter(self.process, "mount", "net", "ipc", "pid"),
        *("setsid", "--fork"),
        *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"),
        *("--kill-child", "--", str(_HERE / "node.sh")),
        *(self.name, short_name, DOMAIN),
        f"{node_address(number)}/{_NETWORK_BITS}",
        *map(str, shown),
      ],
      title,
    ).wait()
    node = Node(number, _first_processes()[title])
    cable = ["ip", "link", "add", short_name, "type", "veth"]
    cable += ["peer", "name", "cable", "netns", str(node.process)]
    subprocess.run([*_enter(self.process, "net"), *cable], check=True)
    plug = ["ip", "link", "set", short_name, "master", "wire", "up"]
    subprocess.run([*_enter(self.process, "net"), *plug], check=True)
    node.run("ip", "link", "set", "cable", "master", "br0", "up")
    return node

  def stop(self) -> None:
    """End it and all that is in it, and wait until that is so."""
    if _first_processes().get(self._title(self.name)) == self.process:
      # It is a zombie only when everything inside has ended
      process = os.pidfd_open(self.process)
      try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
      finally:
        os.close(process)
    if self._child is not None:
      self._child.wait()

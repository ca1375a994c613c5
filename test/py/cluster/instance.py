# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""An instance, its administrator and its user."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket

from guests import lifetime
from guests.boot_sector import Command

from cluster.cluster import GUEST, OS_NAME, Cluster
from cluster.node import DOMAIN, Node

_RUN_DIR = "/run/ganeti/kvm-hypervisor"
_CTRL_DIR = f"{_RUN_DIR}/ctrl"
_PID_DIR = f"{_RUN_DIR}/pid"

#: How long to wait for an answer before the guest is asked again, in seconds;
#: it listens only from one tick of its timer (55 ms) to the next
_ECHO_PATIENCE = 0.2


@dataclasses.dataclass(frozen=True)
class State:
  """What gnt-instance list says of an instance."""

  status: str
  admin_state: str
  admin_state_source: str

  def __str__(self) -> str:
    return f"{self.status} ({self.admin_state}, {self.admin_state_source})"


RUNNING = State("running", "up", "admin")
#: The user turned it off, and Ganeti has not taken note of it yet
USER_DOWN = State("USER_down", "up", "admin")
#: The user turned it off, and the watcher has taken note of it
USER_DOWN_NOTED = State("USER_down", "down", "user")
ADMIN_DOWN = State("ADMIN_down", "down", "admin")
ERROR_DOWN = State("ERROR_down", "up", "admin")


def _escape(value: str) -> str:
  """Put a value into a list that is separated by commas."""
  return value.replace(",", r"\,")


def kvm_extra(*options: str) -> str:
  """The hypervisor parameter that makes an instance boot the guest.

  @param options: further options for QEMU

  """
  # Ganeti 3.0's own parameter for floppy disks is one that QEMU refuses
  drive = f"if=floppy,format=raw,readonly=on,file={GUEST}"
  words = ("-boot", "a", "-drive", drive, *options)
  return f"kvm_extra={_escape(' '.join(words))}"


class Instance:
  """An instance whose guest is L{guests.boot_sector}."""

  def __init__(self, cluster: Cluster, short_name: str) -> None:
    self._cluster = cluster
    self.name = f"{short_name}.{DOMAIN}"

  # The administrator

  def add(
    self,
    *parameters: str,
    template: str = "diskless",
    node: Node | None = None,
    options: tuple[str, ...] = (),
  ) -> None:
    """Define it; it is not started.

    @param parameters: hypervisor parameters that differ from the cluster's
    @param template: how its disks are stored
    @param node: its primary node, by default the master
    @param options: further options for QEMU

    """
    parameters = (kvm_extra(*options), *parameters)
    disks = [] if template == "diskless" else ["--disk=0:size=1"]
    self._gnt(
      "add",
      f"--disk-template={template}",
      *disks,
      f"--node={(node or self._cluster.master).name}",
      f"--os-type={OS_NAME}",
      f"--hypervisor-parameters=kvm:{','.join(parameters)}",
      "--no-nics",
      "--no-start",
      "--no-install",
      "--no-name-check",
      "--no-ip-check",
    )

  def modify(self, *parameters: str) -> None:
    """Change hypervisor parameters; they count from the next start on."""
    self._gnt("modify", f"--hypervisor-parameters={','.join(parameters)}")

  def start(self) -> None:
    """Start it."""
    self._gnt("start")

  def shutdown(self, *, timeout: int | None = None) -> None:
    """Shut it down.

    Ganeti looks only every 5 s whether the guest obeyed.

    @param timeout: what the guest has before it is forced, in seconds

    """
    self._gnt("shutdown", *self._option("timeout", timeout))

  def reboot(self, kind: str, *, timeout: int | None = None) -> None:
    """Reboot it.

    @param kind: soft, hard or full
    @param timeout: what the guest has before it is forced, in seconds

    """
    options = self._option("shutdown-timeout", timeout)
    self._gnt("reboot", f"--type={kind}", *options)

  def migrate(self, node: Node) -> None:
    """Move it, running, to another node."""
    self._gnt("migrate", "--force", f"--target-node={node.name}")

  def failover(self, node: Node) -> None:
    """Move it, by way of a shutdown, to another node."""
    target = f"--target-node={node.name}"
    self._gnt("failover", "--force", "--shutdown-timeout=0", target)

  def remove(self) -> None:
    """Remove it."""
    self._gnt("remove", "--force", "--shutdown-timeout=0")

  def state(self) -> State:
    """What gnt-instance list says of it."""
    fields = "--output=status,admin_state,admin_state_source"
    words = self._cluster.gnt(
      "instance", "list", fields, "--no-headers", "--separator=:", self.name
    )
    return State(*words.strip().split(":"))

  def _gnt(self, command: str, *options: str) -> None:
    self._cluster.gnt("instance", command, *options, self.name)

  @staticmethod
  def _option(name: str, value: int | None) -> list[str]:
    return [] if value is None else [f"--{name}={value}"]

  # The nodes

  def node(self) -> Node | None:
    """The node on which it is running."""
    for node in self._cluster.nodes:
      if self.process(node) is not None:
        return node
    return None

  def shutdown_files(self) -> list[str]:
    """The nodes that have a file which says that its user turned it off."""
    return [
      node.name
      for node in self._cluster.nodes
      if node.path(f"{_CTRL_DIR}/{self.name}.shutdown").exists()
    ]

  def journal_commands(self, node: Node) -> pathlib.Path:
    """Where its journal begins on a node."""
    return node.path(f"{_CTRL_DIR}/{self.name}.journal.in")

  def leftovers(self) -> list[str]:
    """What the nodes have in their control directories of it."""
    return [
      f"{node.name}: {path.name}"
      for node in self._cluster.nodes
      for path in sorted(node.path(_CTRL_DIR).glob(f"{self.name}.*"))
    ]

  def kill(self, signal: str) -> None:
    """Send a signal to QEMU and wait until it is gone."""
    node = self._running_node()
    node.run("kill", f"-{signal}", str(self.process(node)))
    self.wait_gone()

  def monitor(self, command: str) -> None:
    """Give QEMU a command on the monitor that is made for people."""
    node = self._running_node()
    socket_name = f"{_CTRL_DIR}/{self.name}.monitor"
    script = f"echo {command} | socat -t 0.2 - UNIX-CONNECT:{socket_name}"
    node.run("bash", "-c", script)

  def wait_gone(self) -> None:
    """Wait until QEMU has ended."""
    lifetime.wait_until(lambda: self.node() is None, f"{self.name} has ended")

  def process(self, node: Node) -> int | None:
    """QEMU's process on a node, as the node sees it."""
    try:
      process = int(node.path(f"{_PID_DIR}/{self.name}").read_text())
      words = node.path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
      return None
    # Another process may have the number by now, and a zombie has no words
    return process if self.name.encode() in words.split(b"\0") else None

  def _running_node(self) -> Node:
    node = self.node()
    if node is None:
      raise RuntimeError(f"{self.name} is not running")
    return node

  # The user

  def user(self, command: Command) -> None:
    """Let the user in the guest do something, as soon as the guest is up."""
    serial = self._running_node().path(f"{_CTRL_DIR}/{self.name}.serial")
    with contextlib.closing(_Line(serial)) as line:
      line.wait_up()
      line.tell(command)

  def power_off(self) -> None:
    """Let the user turn it off, and wait until QEMU has ended."""
    self.user(Command.POWER_OFF)
    self.wait_gone()


class _Line:
  """A guest's serial line."""

  def __init__(self, path: pathlib.Path) -> None:
    self._socket = socket.socket(socket.AF_UNIX)
    self._socket.connect(str(path))

  def wait_up(self) -> None:
    """Wait until the guest answers.

    What it said when it came up is lost, as nobody was listening. It is asked
    to obey the power button, which it does anyhow.

    """
    self._socket.settimeout(_ECHO_PATIENCE)
    lifetime.wait_until(self._answers, "an answer on the serial line")

  def _answers(self) -> bool:
    asked = Command.OBEY_BUTTON.value
    try:
      self._socket.sendall(asked)
      return asked in self._socket.recv(4096)
    except (TimeoutError, socket.timeout):
      return False

  def tell(self, command: Command) -> None:
    """Give the guest a command and wait for its echo."""
    self._socket.settimeout(lifetime.PATIENCE)
    self._socket.sendall(command.value)
    said = b""
    while command.value not in said:
      data = self._socket.recv(4096)
      if not data:
        raise ConnectionError(f"the guest ended before {command.name}")
      said += data

  def close(self) -> None:
    self._socket.close()

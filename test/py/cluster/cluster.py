# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Ganeti on the nodes of a hub."""

from __future__ import annotations

import collections.abc
import pathlib

from guests import boot_sector

from cluster.node import DOMAIN, Hub, Node, address, node_address

NAME = f"cluster.{DOMAIN}"

#: A directory that all nodes have in common
SHARED_DIR = "/srv/ganeti"

#: A guest that instances boot from a floppy disk
GUEST = f"{SHARED_DIR}/guest"

#: An operating system, as Ganeti sees it, that installs nothing
OS_NAME = "nothing"

#: Where QEMU listens for an instance that is coming
MIGRATION_PORT = 8102

#: Present once all of the cluster is there
_COMPLETE = f"{SHARED_DIR}/complete"

_STORAGE_DIRS = ("file-storage", "shared-file-storage")

_MEMORY = 32  # MB

#: What any instance of the tests fits into
_IPOLICY = {
  "std-specs": (
    "memory-size=32,cpu-count=1,disk-count=1,disk-size=1,nic-count=1,"
    "spindle-use=1"
  ),
  "bounds-specs": (
    "min:memory-size=1,cpu-count=1,disk-count=0,disk-size=1,nic-count=0,"
    "spindle-use=1/max:memory-size=1024,cpu-count=4,disk-count=4,"
    "disk-size=1024,nic-count=4,spindle-use=4"
  ),
  "vcpu-ratio": "100",
}

#: Debian's /usr/bin/kvm insists on KVM; without a screen there is no VNC
_HYPERVISOR = (
  "kvm:kvm_path=/usr/bin/qemu-system-x86_64,kvm_flag=disabled,"
  "kernel_path=,initrd_path=,vnc_bind_address=,user_shutdown=True,"
  f"migration_port={MIGRATION_PORT}"
)

#: What else is done to a node before it joins
Preparation = collections.abc.Callable[[Node], None]


def _nothing(_node: Node) -> None:
  pass


def _hosts() -> str:
  lines = ["127.0.0.1 localhost", f"{address(10)} {NAME}"]
  lines += [
    f"{node_address(number)} node{number}.{DOMAIN} node{number}"
    for number in range(1, 10)
  ]
  return "\n".join(lines) + "\n"


class Cluster:
  """A Ganeti cluster; its first node is the master."""

  def __init__(
    self,
    hub: Hub,
    shown: collections.abc.Iterable[pathlib.Path],
    prepare: Preparation = _nothing,
  ) -> None:
    """Take hold of a cluster that is there.

    @param shown: directories of this machine that new nodes see as they are
    @param prepare: is called for each new node before it joins

    """
    self.hub = hub
    self.nodes = hub.nodes()
    self._shown = list(shown)
    self._prepare = prepare

  @classmethod
  def find(
    cls, name: str, shown: collections.abc.Iterable[pathlib.Path]
  ) -> Cluster | None:
    """Look for a cluster that someone else has started."""
    hub = Hub.find(name)
    return None if hub is None else cls(hub, shown)

  @classmethod
  def start(
    cls,
    name: str,
    shown: collections.abc.Iterable[pathlib.Path],
    prepare: Preparation = _nothing,
    *,
    nodes: int = 1,
    outlive: bool = False,
  ) -> Cluster:
    """Make a cluster.

    @param name: tells it from others on this machine
    @param shown: directories of this machine that its nodes see as they are
    @param prepare: is called for each node before it joins
    @param outlive: whether it is to stay when the calling thread ends

    """
    hub = Hub.start(name, outlive=outlive)
    try:
      cluster = cls(hub, shown, prepare)
      cluster._initialise()
      while len(cluster.nodes) < nodes:
        cluster.add_node()
      cluster.master.path(_COMPLETE).touch()
    except BaseException:
      hub.stop()
      raise
    return cluster

  def stop(self) -> None:
    """End it, without a trace."""
    self.hub.stop()

  @property
  def master(self) -> Node:
    """The node on which gnt-* commands work."""
    return self.nodes[0]

  @property
  def complete(self) -> bool:
    """Whether all went well when it was made."""
    return bool(self.nodes) and self.master.path(_COMPLETE).exists()

  def gnt(self, tool: str, *arguments: str) -> str:
    """Run a gnt-* command on the master, as L{Node.gnt} does."""
    return self.master.gnt(tool, *arguments)

  def watch(self, node: Node | None = None, *, check: bool = True) -> None:
    """Let Ganeti's watcher make its round, as cron does every five minutes.

    @param node: where, by default on the master
    @param check: whether its failure is the caller's as well

    """
    command = ("ganeti-watcher", "--ignore-pause", "--wait-children")
    (node or self.master).run(*command, check=check)

  def add_node(self) -> Node:
    """Make a node and let it join."""
    node = self._new_node(len(self.nodes) + 1)
    key = self.master.path("/root/.ssh/id_rsa.pub").read_text()
    keys = node.path("/root/.ssh/authorized_keys")
    keys.write_text(key)
    keys.chmod(0o600)
    self.gnt("node", "add", "--no-ssh-key-check", node.name)
    self.nodes.append(node)
    return node

  def _initialise(self) -> None:
    node = self._new_node(1)
    self._share(node)
    # Ganeti makes sure that nobody has the address; nobody ever answers.
    vacant = ("unreachable", address(10))
    node.run("ip", "route", "add", *vacant)
    node.gnt(
      "cluster",
      "init",
      "--enabled-hypervisors=kvm",
      "--enabled-disk-templates=diskless,file,sharedfile",
      "--master-netdev=br0",
      "--nic-parameters=mode=bridged,link=br0",
      "--user-shutdown=yes",
      "--no-etc-hosts",
      "--ssh-key-type=rsa",
      "--ssh-key-bits=2048",
      *(f"--ipolicy-{name}={value}" for name, value in _IPOLICY.items()),
      f"--backend-parameters=maxmem={_MEMORY},minmem={_MEMORY}",
      f"--hypervisor-parameters={_HYPERVISOR}",
      NAME,
    )
    node.run("ip", "route", "del", *vacant)
    self.nodes.append(node)

  def _new_node(self, number: int) -> Node:
    node = self.hub.add_node(number, self._shown)
    node.path("/etc/hosts").write_text(_hosts())
    node.path("/etc/ganeti/file-storage-paths").write_text(
      "".join(f"{SHARED_DIR}/{kind}\n" for kind in _STORAGE_DIRS)
    )
    self._prepare(node)
    return node

  def _share(self, node: Node) -> None:
    """Fill the directory that all nodes have in common."""
    node.path(GUEST).write_bytes(boot_sector.image())
    home = node.path(f"{SHARED_DIR}/os/{OS_NAME}")
    home.mkdir(parents=True)
    (home / "ganeti_api_version").write_text("20\n")
    (home / "parameters.list").touch()
    for script in ("create", "import", "export", "rename", "verify"):
      (home / script).write_text("#!/bin/sh\nexit 0\n")
      (home / script).chmod(0o755)

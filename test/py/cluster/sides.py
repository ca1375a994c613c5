# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Whose daemon and whose hypervisor side the nodes have."""

from __future__ import annotations

import contextlib
import json
import pathlib
import typing

import kvmd_log
from guests import lifetime

from cluster.instance import Instance
from cluster.node import Node

_LOG = "/var/log/ganeti/kvm-daemon.log"
_HISTORY = "/var/log/ganeti/kvmd-history/history.jsonl"
_SETUP = "ganeti-kvmd-setup"
_PID_FILE = "/run/ganeti/ganeti-kvmd.pid"


def daemon_runs(node: Node) -> bool:
  """Whether a kvm daemon runs on a node, whosever it is."""
  return node.daemon_util("check")


def daemon_log(node: Node) -> str:
  """What the kvm daemon of a node has logged."""
  with contextlib.suppress(FileNotFoundError):
    return f"{node.name}:\n{node.path(_LOG).read_text()}"
  return f"{node.name}: no log of the daemon"


def kill_daemon(node: Node) -> None:
  """Kill the kvm daemon of a node, which has no time to clean up."""
  node.run("kill", "-KILL", node.path(_PID_FILE).read_text().strip())
  lifetime.wait_until(lambda: not daemon_runs(node), "the daemon is dead")


def ends(node: Node, instance: Instance) -> list[str]:
  """What the daemon of a node says of an instance's ends, oldest first."""
  said = kvmd_log.messages(daemon_log(node).splitlines())
  return [
    f"{each.verdict} ({each.cause})"
    for each in kvmd_log.verdicts(said, instance.name)
  ]


def remembered(node: Node, instance: Instance) -> list[str]:
  """What the history of a node has of an instance's ends, oldest first."""
  try:
    content = node.path(_HISTORY).read_text()
  except FileNotFoundError:
    return []
  lines = [json.loads(line) for line in content.split("\n")[:-1]]
  return [
    f"{line['verdict']} ({line['cause']})"
    for line in lines
    if line["instance"] == instance.name
  ]


class Side(typing.Protocol):
  """One of them."""

  #: Where it belongs in the table of what differs
  name: str

  #: How many scenarios may be played at the same time
  at_once: int

  #: Whether the daemon says what each instance died of, and Ganeti helps it
  tells_ends: bool

  def prepare(self, node: Node) -> None:
    """Install it on a node, before that joins a cluster."""

  def attend(self, instance: Instance) -> None:
    """Do what an instance needs that was just started."""

  def mend(self, node: Node) -> None:
    """Do what a node needs whose daemon was killed."""


class Stock:
  """What Ganeti has by itself."""

  name = "stock"
  at_once = 1
  tells_ends = False

  def prepare(self, node: Node) -> None:
    """Leave a node as it is."""

  def attend(self, instance: Instance) -> None:
    """Make sure that the daemon listens to an instance.

    It connects to a monitor as soon as it sees it, often before QEMU listens;
    then it gives up, and nobody watches the instance. But a daemon that is
    started later finds QEMU listening.

    """
    node = instance.node()
    assert node is not None
    node.daemon_util("stop")
    self.mend(node)
    words = f"/{instance.name}.kvmd"

    def attached() -> bool:
      log = daemon_log(node).rpartition("ganeti-kvmd daemon startup")[2]
      return words in log

    lifetime.wait_until(attached, f"the daemon listens to {instance.name}")

  def mend(self, node: Node) -> None:
    """Make the daemon run again.

    When it is killed it leaves its pidfile, and that belongs to a group which
    start-stop-daemon does not trust, so that it can never be started again.

    """
    node.path(_PID_FILE).unlink(missing_ok=True)
    node.daemon_util("start")
    lifetime.wait_until(lambda: daemon_runs(node), "the daemon runs")


class Ours:
  """Our daemon and our hypervisor side, as an administrator installs them."""

  name = "ours"
  at_once = 3
  tells_ends = True

  _options: tuple[str, ...] = ()

  def __init__(self, builddir: pathlib.Path) -> None:
    """Choose where it comes from.

    @param builddir: is built, and seen by the nodes

    """
    self._builddir = builddir

  def prepare(self, node: Node) -> None:
    """Install it on a node, before that joins a cluster."""
    node.run("make", f"--directory={self._builddir}", "install")
    node.run(_SETUP, "enable", *self._options)

  def attend(self, instance: Instance) -> None:
    """Leave an instance to the daemon."""

  def mend(self, node: Node) -> None:
    """Leave a node to Ganeti."""


class OurDaemon(Ours):
  """Our daemon in place of the stock one, under Ganeti's hypervisor side."""

  name = "daemon"
  tells_ends = False
  _options = ("--daemon-only",)

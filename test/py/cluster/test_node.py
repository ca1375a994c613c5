# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Nodes are machines of their own, and leave nothing behind."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from guests import lifetime

from cluster.node import BootError, CommandError, Hub, Node, node_address

_TEST_DIR = pathlib.Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
  os.geteuid() != 0, reason="only root can make namespaces"
)

_NAME = f"test-{os.getpid()}"


@pytest.fixture(scope="module")
def hub(
  tmp_path_factory: pytest.TempPathFactory,
) -> collections.abc.Iterator[Hub]:
  hub = Hub.start(_NAME, outlive=False)
  try:
    shown = tmp_path_factory.mktemp("shown")
    (shown / "file").write_text("before")
    for number in (1, 2):
      hub.add_node(number, [shown])
    (shown / "file").write_text("after")
    yield hub
  finally:
    hub.stop()


@pytest.fixture
def nodes(hub: Hub) -> list[Node]:
  return hub.nodes()


@pytest.fixture
def node(nodes: list[Node]) -> Node:
  return nodes[0]


def _machine() -> tuple[str, str]:
  """What there is of this machine that a node could leave behind."""
  mounts = pathlib.Path("/proc/self/mountinfo").read_text()
  return mounts, subprocess.check_output(["ip", "-brief", "link"], text=True)


def test_a_node_has_its_own_name(nodes: list[Node]) -> None:
  names = [node.run("hostname").stdout.strip() for node in nodes]
  assert names == ["node1.example.test", "node2.example.test"]
  assert os.uname().nodename not in names


def test_a_node_sees_only_its_own_processes(nodes: list[Node]) -> None:
  node, other = nodes
  nobody = subprocess.Popen(node.command("sleep", "1234"))
  try:
    lifetime.wait_until(
      lambda: "sleep 1234" in node.run("ps", "-e", "-o", "args").stdout,
      "a process on the node",
    )
    assert "sleep 1234" not in other.run("ps", "-e", "-o", "args").stdout
  finally:
    nobody.kill()
    nobody.wait()


def test_a_node_can_be_changed_and_the_machine_is_not(
  nodes: list[Node],
) -> None:
  node, other = nodes
  program = "/usr/bin/tini"
  node.run(
    *("dpkg-divert", "--local", "--rename", "--divert", f"{program}.old"),
    *("--add", program),
  )
  assert f"{program}.old" in node.run("dpkg-divert", "--list").stdout
  for place in (node.path, other.path, pathlib.Path):
    assert place(program).exists() == (place != node.path)
  listed = subprocess.check_output(["dpkg-divert", "--list"], text=True)
  assert f"{program}.old" not in listed


def test_nodes_share_a_directory(nodes: list[Node]) -> None:
  nodes[0].path("/srv/ganeti/file").write_text("text")
  assert nodes[1].run("cat", "/srv/ganeti/file").stdout == "text"
  assert not pathlib.Path("/srv/ganeti/file").exists()


def test_a_shown_directory_is_the_machines_to_be_read_only(
  node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
  file = str(tmp_path_factory.getbasetemp() / "shown0" / "file")
  assert node.run("cat", file).stdout == "after"
  with pytest.raises(CommandError, match="Read-only file system"):
    node.run("rm", file)


def test_nodes_reach_each_other_and_nobody_else(nodes: list[Node]) -> None:
  node, other = nodes
  connect = "exec 3<>/dev/tcp/{}/22"
  node.run("bash", "-c", connect.format(node_address(other.number)))
  assert not node.run("ip", "route", "show", "default").stdout


def test_a_failed_command_says_why(node: Node) -> None:
  with pytest.raises(CommandError) as caught:
    node.run("bash", "-c", "echo said; echo complained >&2; exit 3")
  words = str(caught.value)
  assert "status 3" in words
  assert "said\ncomplained\n" in words


def test_a_hub_is_found_by_its_name(hub: Hub) -> None:
  found = Hub.find(_NAME)
  assert found is not None
  assert found.process == hub.process
  assert [node.name for node in found.nodes()] == [
    "node1.example.test",
    "node2.example.test",
  ]
  assert Hub.find(f"{_NAME}-other") is None


def test_a_boot_that_fails_says_why(hub: Hub) -> None:
  with pytest.raises(BootError, match="/no/such/directory"):
    hub.add_node(3, [pathlib.Path("/no/such/directory")])
  assert len(hub.nodes()) == 2


def test_an_end_leaves_nothing(tmp_path: pathlib.Path) -> None:
  before = _machine()
  hub = Hub.start(f"{_NAME}-end", outlive=True)
  node = hub.add_node(1, [tmp_path])
  node.run("touch", "/run/file", "/usr/file")
  hub.stop()
  assert Hub.find(hub.name) is None
  assert not hub.nodes()
  assert _machine() == before


@pytest.mark.parametrize("victim", ["owner", "hub", "node"])
def test_nothing_outlives_a_kill(victim: str) -> None:
  name = f"{_NAME}-{victim}"
  script = (
    "from cluster.node import Hub\n"
    f"hub = Hub.start({name!r}, outlive=False)\n"
    "node = hub.add_node(1, [])\n"
    "print(hub.process, node.process, flush=True)\n"
    "input()\n"
  )
  before = _machine()
  owner = subprocess.Popen(
    [sys.executable, "-c", script],
    cwd=_TEST_DIR,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with owner:
    assert owner.stdout is not None
    hub, node = map(int, owner.stdout.readline().split())
    killed = {"owner": owner.pid, "hub": hub, "node": node}[victim]
    os.kill(killed, signal.SIGKILL)
    gone = [node] if victim == "node" else [node, hub]
    lifetime.wait_until(
      lambda: not any(_runs(process) for process in gone), "they are gone"
    )
    owner.kill()
  lifetime.wait_until(lambda: Hub.find(name) is None, "the hub is gone")
  assert _machine() == before


def _runs(process: int) -> bool:
  """Whether a process runs; a zombie does not."""
  try:
    words = pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
  except FileNotFoundError:
    return False
  return bool(words)

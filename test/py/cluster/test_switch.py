# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Switching between stock and ours while instances run; life without a daemon.

Each test goes on where the one before it has left the cluster.

"""

from __future__ import annotations

import collections.abc
import inspect
import os
import pathlib

import pytest
from ganeti import constants
from guests import lifetime

from cluster import sides
from cluster.cluster import Cluster
from cluster.instance import (
  ADMIN_DOWN,
  ERROR_DOWN,
  RUNNING,
  USER_DOWN,
  USER_DOWN_NOTED,
  Instance,
  State,
)

_SOURCE_DIR = pathlib.Path(__file__).resolve().parents[3]
_BUILD_DIR = pathlib.Path(
  os.environ.get("GANETI_KVMD_BUILD", _SOURCE_DIR / "build")
)

_OURS = ("ours1", "ours2", "ours3", "ours4")

#: What Ganeti's watcher does on a node that is offline, to some instances
_MAINTAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from ganeti.watcher import nodemaint
names = [(name, "kvm") for name in sys.argv[2:]]
nodemaint.NodeMaintenance.ShutdownInstances(names)
"""

#: Where Ganeti's daemons get their options from
_DEFAULTS = "/etc/default/ganeti"

pytestmark = pytest.mark.skipif(
  os.geteuid() != 0, reason="only root can make a cluster in namespaces"
)


@pytest.fixture(scope="module")
def cluster() -> collections.abc.Iterator[Cluster]:
  """A cluster that runs on stock, with ours installed beside it."""
  installed = Cluster.start(
    f"switch-{os.getpid()}",
    {_SOURCE_DIR, _BUILD_DIR},
    lambda node: node.run("make", f"--directory={_BUILD_DIR}", "install"),
  )
  try:
    yield installed
  finally:
    installed.stop()


def _setup(cluster: Cluster, *arguments: str) -> str:
  return cluster.master.run("ganeti-kvmd-setup", *arguments).stdout


def _start(cluster: Cluster, name: str) -> Instance:
  instance = Instance(cluster, name)
  instance.add()
  instance.start()
  return instance


@pytest.fixture(scope="module")
def started_by_stock(cluster: Cluster) -> list[Instance]:
  return [_start(cluster, name) for name in ("stock1", "stock2", "stock3")]


@pytest.fixture(scope="module")
def started_by_ours(cluster: Cluster) -> list[Instance]:
  return [_start(cluster, name) for name in _OURS]


def _processes(cluster: Cluster, instances: list[Instance]) -> list[int | None]:
  return [instance.process(cluster.master) for instance in instances]


def test_enable_touches_no_instance(
  cluster: Cluster, started_by_stock: list[Instance]
) -> None:
  before = _processes(cluster, started_by_stock)
  _setup(cluster, "enable", "--restart")
  assert _processes(cluster, started_by_stock) == before
  assert [each.state() for each in started_by_stock] == [RUNNING] * 3
  first, second, _ = started_by_stock
  first.power_off()
  assert first.state() == USER_DOWN
  second.kill("KILL")
  assert second.state() == ERROR_DOWN


def test_node_maintenance_stops_whosever_it_is(
  cluster: Cluster,
  started_by_stock: list[Instance],
  started_by_ours: list[Instance],
) -> None:
  stopped = [started_by_stock[2], started_by_ours[3]]
  assert None not in _processes(cluster, stopped)
  library = pathlib.Path(inspect.getsourcefile(constants)).parents[1]
  names = [each.name for each in stopped]
  command = ["python3", "-c", _MAINTAIN, str(library), *names]
  said = cluster.master.run(*command)
  assert (said.stdout, said.stderr) == ("", "")
  assert _processes(cluster, stopped) == [None, None]
  assert [each.state() for each in stopped] == [ERROR_DOWN] * 2


def test_verdict_without_a_daemon(
  cluster: Cluster, started_by_ours: list[Instance]
) -> None:
  """QEMU's journal is enough, the moment that the process is gone."""
  sides.kill_daemon(cluster.master)
  first, second = started_by_ours[:2]
  first.power_off()
  assert first.state() == USER_DOWN
  second.kill("KILL")
  assert second.state() == ERROR_DOWN
  assert not sides.daemon_runs(cluster.master)


def _end_by_signal(cluster: Cluster, instance: Instance) -> list[State]:
  """Ends an instance twice as Ganeti's QA does, with a daemon and without."""
  states = []
  for has_daemon in (True, False):
    instance.start()
    lifetime.wait_until(
      lambda: sides.daemon_runs(cluster.master), "a daemon runs"
    )
    if not has_daemon:
      sides.kill_daemon(cluster.master)
    instance.kill("TERM")
    states.append(instance.state())
  return states


def test_rule_of_the_daemon_is_the_hypervisors(
  cluster: Cluster, started_by_ours: list[Instance]
) -> None:
  """Ganeti's QA sends SIGTERM to a QEMU and calls that a user's shutdown."""
  node = cluster.master
  first = started_by_ours[0]
  assert _end_by_signal(cluster, first) == [ERROR_DOWN] * 2
  defaults = node.path(_DEFAULTS)
  before = defaults.read_text()
  defaults.write_text(f'{before}KVMD_ARGS="--rule=sequence"\n')
  assert _end_by_signal(cluster, first) == [USER_DOWN] * 2
  cluster.watch()
  assert first.state() == USER_DOWN_NOTED
  first.shutdown()
  assert first.state() == ADMIN_DOWN
  first.start()
  first.shutdown(timeout=0)
  assert first.state() == ADMIN_DOWN
  defaults.write_text(before)
  node.daemon_util("stop")
  assert _end_by_signal(cluster, first) == [ERROR_DOWN] * 2


def test_disable_touches_no_instance(
  cluster: Cluster, started_by_ours: list[Instance]
) -> None:
  third = started_by_ours[2]
  before = third.process(cluster.master)
  assert before is not None
  _setup(cluster, "disable", "--restart")
  side = sides.Stock()
  side.attend(third)
  assert third.process(cluster.master) == before
  third.power_off()
  assert third.state() == USER_DOWN
  verified = cluster.master.run(
    "dpkg", "--verify", "ganeti-3.0", "ganeti-haskell-3.0", "ganeti"
  )
  assert not verified.stdout
  assert "kvmd" not in cluster.master.run("dpkg-divert", "--list").stdout

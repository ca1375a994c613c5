# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the program as a daemon of a Ganeti node.

The node is one of Ganeti's virtual clusters: two environment variables put all
of its paths under one directory. What needs no paths needs no such node.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import fake_monitor
import forked
import kvmd_log
import kvmd_process
import pytest
from fake_monitor import USER, FakeMonitor
from ganeti import constants
from ganeti.kvmd import main
from guests import lifetime
from kvmd_process import Foreground, attach
from kvmd_process import run as run_program

NODE = "node1.example.com"
ALL_ON = {
  constants.SS_HYPERVISOR_LIST: "xen-pvm\nkvm\n",
  constants.SS_ENABLED_USER_SHUTDOWN: "True\n",
  constants.SS_NODE_VM_CAPABLE: f"node0.example.com=False\n{NODE}=True\n",
}
BUILD = os.environ["GANETI_KVMD_BUILD"]
FIND_PYTHON = (
  pathlib.Path(__file__).resolve().parents[3] / "autotools" / "find-python"
)
AS_ANYONE = ["--no-user-checks"] if os.geteuid() else []


class Node:
  """A node of a virtual cluster, with room for a detached daemon."""

  def __init__(self, place):
    self.place = place
    self.root = place.directory / NODE
    self.environment = {
      "GANETI_ROOTDIR": str(self.root),
      "GANETI_HOSTNAME": NODE,
    }
    self.data = self.root / "var" / "lib" / "ganeti"
    self.run_dir = self.root / "var" / "run" / "ganeti"
    self.ctrl_dir = self.run_dir / "kvm-hypervisor" / "ctrl"
    self.log = self.root / "var" / "log" / "ganeti" / "kvm-daemon.log"
    for path in self.data, self.ctrl_dir, self.log.parent:
      path.mkdir(parents=True)
    self.configure({})

  def configure(self, changes):
    """Says what is on in the cluster; None stands for a missing file."""
    for key, value in {**ALL_ON, **changes}.items():
      path = self.data / (constants.SSCONF_FILEPREFIX + key)
      if value is None:
        path.unlink()
      else:
        path.write_text(value)

  def run(self, *arguments):
    return run_program(*AS_ANYONE, *arguments, environment=self.environment)

  def messages(self):
    """What is in the log file."""
    lines = self.log.read_text().splitlines()
    messages = kvmd_log.messages(lines)
    assert len(messages) == len(lines), lines
    return messages


@pytest.fixture
def node():
  with kvmd_process.detached(f"{NODE}/var/run/ganeti/ganeti-kvmd.pid") as place:
    yield Node(place)
  fake_monitor.end_all()


@pytest.fixture
def foreground(node, scratch):
  process = Foreground(
    scratch / "terminal", *AS_ANYONE, environment=node.environment
  )
  yield process
  process.kill()


def test_it_starts_and_ends(node):
  assert node.run() == (0, "", "")
  assert node.place.is_alive
  assert node.messages()[-1] == f"watching {node.ctrl_dir}"
  monitor = FakeMonitor(node.ctrl_dir, "web1.example.com")
  attach(monitor).event("SHUTDOWN", USER)
  file = node.ctrl_dir / "web1.example.com.shutdown"
  lifetime.wait_until(file.exists, "the shutdown file")
  monitor.quit()
  lifetime.wait_until(
    lambda: any("verdict user" in line for line in node.messages()), "verdict"
  )
  node.place.end()
  assert not node.place.pid_file.exists()
  assert node.messages()[-1] == "ending, on SIGTERM"


def test_second_one_is_refused(node):
  node.run()
  first = node.place.pid
  for arguments in [], ["-f"]:
    result = node.run(*arguments)
    assert result.status == 1
    assert f"process {first} holds {node.place.pid_file}" in result.errors
  assert node.place.pid == first
  assert node.place.is_alive


def test_ganeti_knows_it(node):
  question = (
    "from ganeti import constants, utils\n"
    "print(bool(utils.IsDaemonAlive(constants.KVMD)))"
  )
  # Another interpreter has not all that Ganeti needs.
  python = subprocess.run(
    [FIND_PYTHON], capture_output=True, text=True, check=True
  ).stdout.strip()

  def ask():
    return subprocess.run(
      [python, "-c", question],
      env={**os.environ, **node.environment, "PYTHONPATH": BUILD},
      capture_output=True,
      text=True,
      check=True,
      timeout=30,
    ).stdout

  assert ask() == "False\n"
  node.run()
  assert ask() == "True\n"
  node.place.end()
  assert ask() == "False\n"


def test_log_is_opened_anew(node, foreground):
  """As logrotate asks for it."""
  foreground.says("watching")
  rotated = node.log.with_suffix(".1")
  node.log.rename(rotated)
  foreground.send_signal(1)
  lifetime.wait_until(node.log.exists, "the new log file")
  (node.ctrl_dir / "web1.kvmd").touch()
  lifetime.wait_until(lambda: "web1" in node.log.read_text(), "a line")
  assert rotated.read_text().count("web1") == 0
  assert foreground.end() == 0
  assert node.messages()[-1] == "ending, on SIGTERM"


def test_log_that_cannot_be_opened_anew(node, foreground):
  foreground.says("watching")
  rotated = node.log.with_suffix(".1")
  node.log.rename(rotated)
  node.log.mkdir()
  foreground.send_signal(1)
  foreground.says("cannot reopen")
  assert "cannot reopen" in rotated.read_text()
  assert foreground.end() == 0
  assert "ending" in rotated.read_text()


def test_foreground_logs_to_the_terminal_and_to_the_file(node, foreground):
  foreground.says("watching")
  assert node.messages() == foreground.messages


def test_syslog_only(node):
  assert node.run("--syslog=only") == (0, "", "")
  node.place.end()
  assert not node.log.exists()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (
      {constants.SS_HYPERVISOR_LIST: "xen-pvm\nxen-hvm\n"},
      "gnt-cluster modify --enabled-hypervisors",
    ),
    ({constants.SS_HYPERVISOR_LIST: "kvmx\nxkvm\n"}, "--enabled-hypervisors"),
    ({constants.SS_HYPERVISOR_LIST: ""}, "--enabled-hypervisors"),
    (
      {constants.SS_ENABLED_USER_SHUTDOWN: "False\n"},
      "gnt-cluster modify --user-shutdown=yes",
    ),
    ({constants.SS_ENABLED_USER_SHUTDOWN: ""}, "--user-shutdown=yes"),
    (
      {constants.SS_NODE_VM_CAPABLE: f"{NODE}=False\n"},
      f"gnt-node modify --vm-capable=yes {NODE}",
    ),
  ],
)
@pytest.mark.parametrize("arguments", [[], ["-f"]], ids=["detached", "-f"])
def test_cluster_does_not_want_it(node, changes, words, arguments):
  node.configure(changes)
  result = node.run(*arguments)
  assert result.status == 0
  assert result.errors == ""
  assert result.output.count("\n") == 1
  assert words in result.output
  assert not node.place.pid_file.exists()


def test_node_that_is_not_listed_may_run_it(node):
  node.configure({constants.SS_NODE_VM_CAPABLE: "other.example.com=False\n"})
  assert node.run() == (0, "", "")
  assert node.place.is_alive


@pytest.mark.parametrize("missing", list(ALL_ON))
def test_node_of_no_cluster(node, missing):
  node.configure({missing: None})
  result = node.run()
  assert result.status == 1
  assert "this node is in no Ganeti cluster" in result.errors
  assert f"ssconf_{missing}: No such file" in result.errors
  assert "Traceback" not in result.errors


def test_environment_that_ganeti_refuses(node):
  result = run_program(
    *AS_ANYONE, environment={**node.environment, "GANETI_HOSTNAME": "other"}
  )
  assert result.status == 1
  assert "Traceback" not in result.errors
  assert "GANETI" in result.errors or "ostname" in result.errors


def test_log_that_cannot_be_written(node):
  node.log.mkdir()
  result = node.run()
  assert result.status == 1
  assert f"cannot log to {node.log}: Is a directory" in result.errors
  assert not node.place.pid_file.exists()


def test_control_directory_that_comes_late(node):
  node.ctrl_dir.rmdir()
  node.ctrl_dir.parent.rmdir()
  assert node.run().status == 0
  assert node.messages()[-1].startswith(f"watching {node.ctrl_dir}")
  node.ctrl_dir.mkdir(parents=True)
  attach(FakeMonitor(node.ctrl_dir, "web1"))


@pytest.mark.parametrize("content", ["1\n", "garbage", "99999999\n", ""])
def test_stale_pidfile(node, content):
  node.place.pid_file.write_text(content)
  assert node.run() == (0, "", "")
  assert node.place.is_alive


def test_only_root_may_run_it(capfd):
  def check():
    assert main.main(["-f"]) == 1

  forked.run(check, forked.Place.UNPRIVILEGED)
  said = capfd.readouterr()
  assert "must run as root, not as user " in said.err
  assert "--no-user-checks" in said.err

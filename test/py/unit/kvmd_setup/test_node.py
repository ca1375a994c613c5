# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what the setup finds out of a Ganeti, and does to its daemons."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from ganeti import kvmd
from ganeti.kvmd.node import ctrldir, directory_locks, lockfile
from ganeti.tools.kvmd_setup import node, system
from guests import lifetime


class TestGaneti:
  """An installed Ganeti."""

  @pytest.fixture
  def found(self, ganeti) -> node.Ganeti:
    return node.Ganeti(ganeti.installation.ganeti)

  def test_where_its_things_are(self, ganeti, found) -> None:
    assert found.directory == ganeti.installation.ganeti
    assert found.version == "3.0.2"
    assert found.daemon_util == str(ganeti.tool)
    assert found.hypervisor == str(ganeti.hypervisor)
    assert found.daemon_path() == str(ganeti.daemon)

  @pytest.mark.parametrize(
    ("version", "expected"),
    [
      ("3.0.0~rc1", True),
      ("3.0.2", True),
      ("3.1.0", True),
      ("3.1", True),
      ("2.16.1", False),
      ("3.10.0", False),
      ("3.2.0", False),
      ("30.1", False),
      ("3", False),
      ("", False),
    ],
  )
  def test_version(self, ganeti, version: str, expected: bool) -> None:
    ganeti.say(version)
    found = node.Ganeti(ganeti.installation.ganeti)
    assert found.version == version
    assert found.is_supported is expected
    if expected:
      found.check()
    else:
      with pytest.raises(system.TroubleError, match="of a version that is not"):
        found.check()

  def test_none(self, scratch: pathlib.Path) -> None:
    found = node.Ganeti(str(scratch))
    assert (found.version, found.is_supported) == (None, False)
    assert found.default() is None
    with pytest.raises(system.TroubleError) as caught:
      found.check()
    assert f"there is no Ganeti in {scratch}" in str(caught.value)

  def test_default(self, ganeti, found) -> None:
    assert found.default() is None
    versions = ganeti.root / "versions"
    versions.mkdir()
    (versions / "default").symlink_to("3.1")
    assert found.default() is None
    (versions / "3.1").mkdir()
    assert found.default() == str(versions / "3.1")

  def test_whose_front_is_ours(self, ganeti, found) -> None:
    (ganeti.hypervisor / "__init__.py").rename(ganeti.hypervisor / "stock.py")
    found.check()

  @pytest.mark.parametrize(
    ("change", "words"),
    [
      (
        lambda ganeti: (ganeti.hypervisor / "__init__.py").unlink(),
        "no class KVMHypervisor in",
      ),
      (
        lambda ganeti: (ganeti.hypervisor / "__init__.py").write_text(
          "# class KVMHypervisor(object)\nclass KVMHypervisors:\n  pass\n"
        ),
        "no class KVMHypervisor in",
      ),
      (lambda ganeti: ganeti.tool.unlink(), "no program"),
      (lambda ganeti: ganeti.tool.chmod(0o644), "no program"),
    ],
  )
  def test_of_another_layout(self, ganeti, found, change, words: str) -> None:
    change(ganeti)
    with pytest.raises(system.TroubleError) as caught:
      found.check()
    assert "Ganeti 3.0.2 has another layout than is known here" in str(
      caught.value
    )
    assert words in str(caught.value)


class TestHypervisor:
  """What its node daemon would load."""

  @pytest.fixture
  def check(self, ganeti) -> collections.abc.Callable[[bool], None]:
    found = node.Ganeti(ganeti.installation.ganeti)
    return lambda is_ours: found.check_hypervisor(is_ours=is_ours)

  @pytest.fixture
  def front(self, ganeti) -> pathlib.Path:
    """Ours, in front."""
    path = ganeti.hypervisor / "__init__.py"
    path.rename(ganeti.hypervisor / "stock.py")
    shutil.copy(ganeti.ours / "hv_kvm" / "__init__.py", path)
    return path

  def test_stock(self, check) -> None:
    check(False)
    with pytest.raises(system.TroubleError, match="cannot import name 'stock'"):
      check(True)

  def test_ours(self, check, front) -> None:
    check(True)
    with pytest.raises(system.TroubleError, match="it is still ours"):
      check(False)

  @pytest.mark.parametrize(
    ("old", "new", "words"),
    [
      ("def __getattr__", "def other", "names are missing: NAME"),
      ("user_shutdown.UserShutdown, stock", "stock", "Ganeti's class is no"),
      (", stock.KVMHypervisor", "", "Ganeti's class is no"),
      ('"""KVM hypervisor: ', "raise OSError(7)\n'", "SyntaxError"),
      ("\nclass ", "\nraise OSError(7)\nclass ", "OSError: 7"),
    ],
  )
  def test_ours_is_not_as_it_should_be(
    self, check, front, old: str, new: str, words: str
  ) -> None:
    text = front.read_text()
    assert old in text
    front.write_text(text.replace(old, new))
    with pytest.raises(system.TroubleError, match=words):
      check(True)

  def test_ganeti_uses_another_class(self, ganeti, check) -> None:
    ganeti.write(
      "share/ganeti/hypervisor/__init__.py",
      "def GetHypervisorClass(kind):\n  return str\n",
    )
    with pytest.raises(system.TroubleError, match="Ganeti uses another class"):
      check(False)


class TestDaemon:
  """A daemon of its."""

  @pytest.fixture
  def kvmd(self, ganeti) -> node.Daemon:
    return node.Daemon(node.Ganeti(ganeti.installation.ganeti), node.KVMD)

  @pytest.fixture
  def noded(self, ganeti) -> node.Daemon:
    return node.Daemon(node.Ganeti(ganeti.installation.ganeti), node.NODED)

  def test_process(self, ganeti, kvmd, noded) -> None:
    assert (kvmd.process(), noded.process()) == (None, None)
    ganeti.util("start", node.KVMD)
    assert (kvmd.process(), noded.process()) == (ganeti.process(), None)
    ganeti.util("stop", node.KVMD)
    assert kvmd.process() is None

  def test_is_for_root_to_know(self, ganeti, kvmd) -> None:
    ganeti.user = 1000
    with pytest.raises(system.TroubleError, match="only root can tell"):
      kvmd.process()

  def test_odd_pidfile(self, ganeti, kvmd) -> None:
    ganeti.write(
      "lib/daemon-util", f"#!/bin/sh\necho {ganeti.root}/run/odd.pid\n"
    )
    assert kvmd.process() is None
    (ganeti.root / "run" / "odd.pid").write_text("odd\n")
    with pytest.raises(system.TroubleError) as caught:
      kvmd.process()
    assert str(caught.value).startswith(
      "cannot tell the process of ganeti-kvmd"
    )

  def test_restart(self, ganeti, noded) -> None:
    noded.restart()
    first = ganeti.process(node.NODED)
    assert noded.process() == first
    noded.restart()
    assert noded.process() == ganeti.process(node.NODED) != first

  def test_restart_removes_what_stock_has_left(self, ganeti, kvmd) -> None:
    """start-stop-daemon would trust nobody with it."""
    pid_file = ganeti.root / "run" / "ganeti-kvmd.pid"
    pid_file.write_text("999999999\n")
    text = ganeti.tool.read_text()
    ganeti.tool.write_text(
      text.replace("  start)", "  start)\n    ls run >>seen")
    )
    kvmd.restart()
    seen = (ganeti.root / "seen").read_text().split()
    assert "ganeti-kvmd.pid" not in seen

  @pytest.mark.parametrize(
    ("script", "words"),
    [
      ("echo there is a reason", "does not run: there is a reason"),
      ("true", "does not run: its log file may say why"),
    ],
  )
  def test_restart_of_one_that_does_not_start(
    self, ganeti, kvmd, monkeypatch, script: str, words: str
  ) -> None:
    monkeypatch.setattr(node, "_PATIENCE", 0.05)
    text = ganeti.tool.read_text()
    ganeti.tool.write_text(text.replace("  start)", f"  start) {script}; exit"))
    with pytest.raises(system.TroubleError, match=words):
      kvmd.restart()

  def test_restart_of_one_that_does_not_stop(self, ganeti, kvmd) -> None:
    path = str(ganeti.root / "run" / "ganeti-kvmd.pid")
    with pytest.raises(system.TroubleError, match="ganeti-kvmd does not stop"):
      lock = lockfile.LockFile(path)
      try:
        kvmd.restart()
      finally:
        lock.remove()

  def test_whose_pidfile_is_gone(self, ganeti, kvmd, noded) -> None:
    """Ours has claimed its control directory, and is stopped all the same."""
    control = ganeti.root / "ctrl"
    control.mkdir()
    program = ganeti.write(
      "ours/ganeti-kvmd",
      f"""#!{sys.executable}
import os, sys, time
sys.path.insert(0, {os.environ["GANETI_KVMD_BUILD"]!r})
from ganeti.kvmd.node import ctrldir
opened = os.open({str(control)!r}, os.O_RDONLY)
ctrldir.ControlDirectory({str(control)!r}, opened, ".kvmd").locks.claim()
with open("/proc/self/comm", "w") as comm:
  comm.write(sys.argv[1])
print("ready", flush=True)
time.sleep(1000)
""",
    )
    for name, is_known in (("another", False), (node.KVMD, True)):
      process = lifetime.start([str(program), name], stdout=subprocess.PIPE)
      try:
        assert process.stdout.readline()
        assert directory_locks.daemon_of(str(control)) == process.pid
        assert kvmd.process() == (process.pid if is_known else None)
        assert noded.process() is None
        if is_known:
          kvmd.restart()
          assert process.wait(lifetime.PATIENCE) == -15
      finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert kvmd.process() == ganeti.process()

  def test_without_ganetis_paths(self, kvmd, monkeypatch) -> None:
    def fail() -> str:
      raise ImportError

    monkeypatch.setattr(ctrldir, "ganeti_path", fail)
    assert kvmd.process() is None


class TestProcesses:
  """What is known of a process."""

  @pytest.fixture
  def run(
    self, scratch: pathlib.Path
  ) -> collections.abc.Iterator[collections.abc.Callable[[str], int]]:
    """Runs a program under a name."""
    started = []

    def run(name: str) -> int:
      shutil.copy("/bin/sleep", scratch / name)
      started.append(lifetime.start([str(scratch / name), "1000"]))
      return started[-1].pid

    yield run
    for each in started:
      each.kill()
      each.wait()

  @pytest.mark.parametrize(
    ("name", "expected"),
    [("ganeti-kvmd", True), ("python3.11", False), ("ganeti-kvmd2", False)],
  )
  def test_stock(self, scratch, run, name: str, expected: bool) -> None:
    process = run(name)
    assert node.is_stock_daemon(process) is expected
    # Which is so where another one has been installed since.
    (scratch / name).unlink()
    assert node.is_stock_daemon(process) is expected

  def test_that_has_ended(self) -> None:
    for question in (node.is_stock_daemon, node.started):
      with pytest.raises(FileNotFoundError):
        question(999999999)

  @pytest.mark.parametrize("name", ["plain", "a) S 1 (b"])
  def test_started(self, run, name: str) -> None:
    before = time.time()
    process = run(name)
    after = time.time()
    # The kernel counts in hundredths.
    assert before - 0.1 <= node.started(process) <= after + 0.1

  @pytest.mark.parametrize(
    ("script", "words"),
    [
      (f"echo ganeti-kvmd version {kvmd.VERSION}", None),
      ("echo ganeti-kvmd version 0.0", "says 'ganeti-kvmd version 0.0', not"),
      (f"echo {kvmd.VERSION}", "not"),
      ("exit 1", "failed with status 1"),
    ],
  )
  def test_check_daemon(self, scratch, script: str, words) -> None:
    program = scratch / "daemon"
    program.write_text(f'#!/bin/sh\ntest "$*" = --version && {script}\n')
    program.chmod(0o755)
    if words is None:
      node.check_daemon(str(program))
    else:
      with pytest.raises(system.TroubleError, match=words):
        node.check_daemon(str(program))

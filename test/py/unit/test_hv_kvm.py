# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the hypervisor side over Ganeti's own class.

The directories and the processes are real; only QEMU is not: a process with its
command line stands for it, and nothing is started or asked to shut down.
"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import errno
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import stock_calls
from ganeti import constants, errors, objects, utils
from ganeti.hypervisor import hv_base, hv_kvm
from ganeti.hypervisor.hv_kvm import launch, patience, stock
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import (
  ctrldir,
  journal_files,
  mark_files,
  processes,
  rule_file,
  ssconf,
)
from ganeti.watcher import nodemaint
from guests import lifetime

NAME = "web1.example.com"
OTHER = "web2.example.com"

_MARKS = list(Mark)

#: As the second line of a journal
_USER = (
  b'{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "SHUTDOWN",'
  b' "data": {"guest": true, "reason": "guest-shutdown"}}\r\n'
)
_SIGTERM = _USER.replace(b"true", b"false").replace(
  b"guest-shutdown", b"host-signal"
)
_GREETING = (
  b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}},'
  b' "capabilities": []}}\r\n'
)

_HOLD = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from ganeti.kvmd.process import pidfile
lock = pidfile.PidFile(sys.argv[2])
print("ready", flush=True)
"""


class Place:
  """The hypervisor's directories, and what is done there by others."""

  def __init__(self, root: pathlib.Path) -> None:
    self.root = root
    self.ctrl = root / "ctrl"
    self.pid_file = root / "kvmd.pid"
    self._processes: list[subprocess.Popen[bytes]] = []

  def mark(self, mark: Mark, name: str = NAME) -> None:
    """Leaves a mark."""
    (self.ctrl / f"{name}{mark.value}").touch()

  def marks(self, name: str = NAME) -> list[Mark]:
    """Says which marks an instance has."""
    return [
      mark for mark in _MARKS if (self.ctrl / f"{name}{mark.value}").exists()
    ]

  def journal(self, name: str = NAME) -> pathlib.Path:
    """Leaves the journal of an instance that its user turned off."""
    (self.ctrl / f"{name}{ctrldir.JOURNAL_DIGEST}").touch()
    events = self.ctrl / f"{name}{ctrldir.JOURNAL_EVENTS}"
    events.write_bytes(_GREETING + _USER)
    return events

  def monitor(self, name: str = NAME) -> None:
    """Leaves a monitor."""
    with socket.socket(socket.AF_UNIX) as monitor:
      monitor.bind(str(self.ctrl / f"{name}{ctrldir.MONITOR_SUFFIX}"))

  def files(self) -> set[str]:
    """Says which files there are, but for those that stock knows nothing of."""
    return {
      str(path.relative_to(self.root))
      for path in self.root.rglob("*")
      if not path.is_dir()
      and path.suffix not in (Mark.POWERDOWN.value, Mark.MIGRATED.value)
      and path.name != ctrldir.LOCK_FILE
    }

  def clear(self) -> None:
    """Ends all processes and removes all files."""
    self.stop_all()
    for path in self.root.rglob("*"):
      if not path.is_dir():
        path.unlink()

  def settle(self) -> None:
    """Makes it long ago that anything changed."""
    os.utime(self.ctrl, (1, 1))

  def start_qemu(self, name: str = NAME) -> subprocess.Popen[bytes]:
    """Starts what looks like an instance's QEMU."""
    waiting = "import signal; print(flush=True); signal.pause()"
    qemu = self._start("-c", waiting, "-name", name, "-m", "32", "-smp", "1")
    (self.root / "pid" / name).write_text(f"{qemu.pid}\n")
    return qemu

  def run(self, name: str = NAME) -> None:
    """Leaves what is left of an instance that ran and ended by itself."""
    (self.root / "conf" / f"{name}.runtime").touch()

  def start_daemon(self, *, busy: bool = False) -> int:
    """Starts what holds the daemon's pidfile.

    @param busy: whether it has something to do all the time
    @return: its process

    """
    build = os.environ["GANETI_KVMD_BUILD"]
    script = _HOLD + ("while True: pass\n" if busy else "signal.pause()\n")
    daemon = self._start("-c", script, build, str(self.pid_file))
    if not busy:
      lifetime.wait_until(
        lambda: processes.at_work(daemon.pid) is None, "the daemon rests"
      )
    return daemon.pid

  def stop_all(self) -> None:
    """Ends all processes."""
    for each in self._processes:
      each.kill()
      each.wait()
      each.stdout.close()
    self._processes.clear()

  def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
    process = lifetime.start(
      [sys.executable, *arguments], stdout=subprocess.PIPE
    )
    self._processes.append(process)
    assert process.stdout.readline()
    return process


@pytest.fixture
def place(monkeypatch, scratch) -> collections.abc.Iterator[Place]:
  """The hypervisor's directories."""
  ours = hv_kvm.KVMHypervisor
  root = stock.KVMHypervisor._ROOT_DIR
  for name in dir(ours):
    value = getattr(ours, name)
    if name.endswith("_DIR") and str(value).startswith(root):
      moved = str(scratch) + value[len(root) :]
      monkeypatch.setattr(stock.KVMHypervisor, name, moved)
      (scratch / moved).mkdir(exist_ok=True)
  monkeypatch.setattr(stock.KVMHypervisor, "_DIRS", [])
  found = Place(scratch)
  monkeypatch.setattr(launch, "pid_file", lambda: str(found.pid_file))
  monkeypatch.setattr(ctrldir, "ganeti_path", lambda: str(found.ctrl))
  yield found
  found.stop_all()


@pytest.fixture
def hypervisor(place: Place) -> hv_kvm.KVMHypervisor:
  """Ours, as Ganeti makes one for each call."""
  return hv_kvm.KVMHypervisor()


def _instance(*, user_shutdown: bool = True) -> objects.Instance:
  hvparams = {
    constants.HV_KVM_USER_SHUTDOWN: user_shutdown,
    constants.HV_ACPI: True,
  }
  return objects.Instance(name=NAME, hvparams=hvparams)


class TestStart:
  """QEMU is started: for a start, a reboot, or a migration to this node."""

  @pytest.fixture
  def runtime(self, monkeypatch, place: Place) -> list[list[Mark]]:
    """The marks that there are when Ganeti's own method begins."""
    seen = []
    monkeypatch.setattr(
      stock.KVMHypervisor,
      "_ExecuteKVMRuntime",
      lambda *_: seen.append(place.marks()),
    )
    return seen

  def test_nothing_of_an_earlier_life_is_left(
    self, hypervisor, place: Place, runtime
  ) -> None:
    for mark in _MARKS:
      place.mark(mark)
      place.mark(mark, OTHER)
    events = place.journal()
    hypervisor._ExecuteKVMRuntime(_instance(), "runtime", "help")
    assert runtime == [[]]
    assert not events.exists()
    assert place.marks(OTHER) == _MARKS

  def test_what_is_said_of_one_that_runs_is_left(
    self, hypervisor, place: Place, runtime
  ) -> None:
    """A migration to where it is already, say: Ganeti refuses that."""
    place.start_qemu()
    for mark in _MARKS:
      place.mark(mark)
    events = place.journal()
    with pytest.raises(errors.HypervisorError, match="already running"):
      hypervisor._ExecuteKVMRuntime(_instance(), "runtime", "help")
    assert place.marks() == _MARKS
    assert events.exists()
    assert runtime == []

  def test_without_its_parameters(self, hypervisor, runtime) -> None:
    for hvparams in ({}, None):
      instance = objects.Instance(name=NAME, hvparams=hvparams)
      hypervisor._ExecuteKVMRuntime(instance, "runtime", "help")
      hypervisor._StartKvmd(hvparams)
    assert runtime == [[], []]

  def test_without_a_control_directory(
    self, hypervisor, place: Place, runtime
  ) -> None:
    place.ctrl.rmdir()
    hypervisor._ExecuteKVMRuntime(_instance(), "runtime", "help")
    assert runtime == [[]]

  @pytest.mark.parametrize(
    "case",
    [
      (False, None, False),
      (True, None, True),
      # No daemon would keep it short.
      (True, "user shutdown is off in the cluster", False),
    ],
  )
  def test_a_journal_is_kept_for_whom_it_is_of_use(
    self, hypervisor, monkeypatch, place: Place, runtime, case
  ) -> None:
    user_shutdown, reason, wanted = case
    commands = []
    monkeypatch.setattr(ssconf, "reason_not_to_run", lambda: reason)
    monkeypatch.setattr(
      stock.KVMHypervisor,
      "_RunKVMCmd",
      lambda _self, name, command, tap_fds: commands.append(command),
    )
    hypervisor._ExecuteKVMRuntime(
      _instance(user_shutdown=user_shutdown), "runtime", "help"
    )
    given = ["qemu", "-m", "32"]
    hypervisor._RunKVMCmd(NAME, given, [])
    assert given == ["qemu", "-m", "32"]
    assert commands[0][:3] == given
    assert any("path=" in word for word in commands[0]) is wanted
    events = place.ctrl / f"{NAME}{ctrldir.JOURNAL_EVENTS}"
    assert events.exists() is wanted

  def test_without_a_journal_it_starts_as_well(
    self, hypervisor, monkeypatch, place: Place, runtime, caplog
  ) -> None:
    commands = []
    monkeypatch.setattr(
      stock.KVMHypervisor,
      "_RunKVMCmd",
      lambda _self, name, command, tap_fds: commands.append(command),
    )
    hypervisor._ExecuteKVMRuntime(_instance(), "runtime", "help")
    (place.ctrl / f"{NAME}{ctrldir.JOURNAL_EVENTS}").mkdir()
    hypervisor._RunKVMCmd(NAME, ["qemu"], [])
    assert commands == [["qemu"]]
    assert f"Instance {NAME}: cannot make its journal ({place.ctrl}/" in (
      caplog.text
    )
    assert "Is a directory): it is started without one" in caplog.text

  @pytest.mark.parametrize(
    ("hvparams", "wanted"),
    [
      (None, 0),
      ({constants.HV_KVM_USER_SHUTDOWN: False}, 0),
      ({constants.HV_KVM_USER_SHUTDOWN: True}, 1),
    ],
  )
  def test_the_daemon_is_started_for_whom_it_is_of_use(
    self, hypervisor, monkeypatch, hvparams, wanted: int
  ) -> None:
    calls = []
    monkeypatch.setattr(launch, "ensure", lambda: calls.append(()))
    hypervisor._StartKvmd(hvparams)
    assert len(calls) == wanted


class TestStop:
  """An administrator stops an instance."""

  @pytest.fixture
  def stopping(self, monkeypatch, place: Place) -> list[list[Mark]]:
    """The marks when Ganeti stops it; the daemon leaves its own meanwhile."""
    seen = []

    def stop(*_args, **_kwargs):
      seen.append(place.marks())
      place.mark(Mark.SHUTDOWN)

    monkeypatch.setattr(stock.KVMHypervisor, "_StopInstance", stop)
    return seen

  def test_is_marked_before_anything_is_done(
    self, hypervisor, place: Place, stopping
  ) -> None:
    place.start_qemu()
    hypervisor.StopInstance(_instance())
    assert stopping == [[Mark.POWERDOWN]]
    assert place.marks() == [Mark.POWERDOWN]

  def test_is_said_again_at_each_call(
    self, hypervisor, place: Place, stopping
  ) -> None:
    place.start_qemu()
    for force in (False, False, True):
      hypervisor.StopInstance(_instance(), force=force, retry=True)
      assert place.marks() == [Mark.POWERDOWN]

  @pytest.mark.parametrize("has_pidfile", [False, True])
  def test_is_not_said_of_one_that_is_down(
    self, hypervisor, place: Place, stopping, has_pidfile
  ) -> None:
    if has_pidfile:
      (place.root / "pid" / NAME).write_text("999999999\n")
    place.mark(Mark.SHUTDOWN)
    events = place.journal()
    hypervisor.StopInstance(_instance())
    assert place.marks() == []
    assert not events.exists()

  def test_that_fails(self, hypervisor, monkeypatch, place: Place) -> None:
    def fail(*_args, **_kwargs):
      place.mark(Mark.SHUTDOWN)
      raise errors.HypervisorError("no monitor")

    monkeypatch.setattr(stock.KVMHypervisor, "_StopInstance", fail)
    place.start_qemu()
    with pytest.raises(errors.HypervisorError, match="no monitor"):
      hypervisor.StopInstance(_instance())
    assert place.marks() == [Mark.POWERDOWN]

  def test_what_is_passed_on(self, hypervisor, monkeypatch, place) -> None:
    passed = []
    monkeypatch.setattr(
      stock.KVMHypervisor,
      "_StopInstance",
      lambda _self, instance, force, name, timeout: passed.append(
        (instance.name, force, name, timeout)
      ),
    )
    # The instance is what it was given as, whatever it is called besides.
    hypervisor.StopInstance(_instance(), True, False, OTHER, 7)
    hypervisor.StopInstance(_instance(), timeout=7)
    assert passed == [(NAME, True, OTHER, 7), (NAME, False, None, 7)]

  def test_by_force(self, hypervisor, place: Place) -> None:
    qemu = place.start_qemu()
    hypervisor.StopInstance(_instance(), force=True)
    qemu.wait(timeout=lifetime.PATIENCE)
    assert Mark.SHUTDOWN not in place.marks()

  def test_that_cannot_be_marked(
    self, hypervisor, place: Place, stopping, caplog
  ) -> None:
    place.start_qemu()
    (place.ctrl / f"{NAME}{Mark.POWERDOWN.value}").mkdir()
    hypervisor.StopInstance(_instance())
    assert len(stopping) == 1
    path = place.ctrl / f"{NAME}{Mark.POWERDOWN.value}"
    assert f"Instance {NAME}: cannot mark it" in caplog.text
    assert f"({path}: Is a directory)" in caplog.text


class TestCleanup:
  """What is left when an instance is down."""

  def test_nothing(self, hypervisor, place: Place) -> None:
    for mark in _MARKS:
      place.mark(mark)
      place.mark(mark, OTHER)
    events = place.journal()
    hypervisor.CleanupInstance(NAME)
    assert place.marks() == []
    assert not events.exists()
    assert place.marks(OTHER) == _MARKS

  def test_everything_if_it_is_not(self, hypervisor, place: Place) -> None:
    place.start_qemu()
    place.mark(Mark.POWERDOWN)
    with pytest.raises(errors.HypervisorError, match="live instance"):
      hypervisor.CleanupInstance(NAME)
    assert place.marks() == [Mark.POWERDOWN]


class TestMaintenance:
  """Ganeti's watcher stops what runs on a node that counts as offline."""

  _NAMES = ("web0", "web1", "web2")

  @pytest.fixture(autouse=True)
  def served(self, monkeypatch, hypervisor) -> None:
    """The hypervisor is found by the watcher."""
    monkeypatch.setattr(
      nodemaint.hypervisor, "GetHypervisor", {"kvm": hypervisor}.get
    )

  def _maintain(self, hypervisor) -> None:
    running = [(name, "kvm") for name in hypervisor.ListInstances()]
    assert sorted(running) == [(name, "kvm") for name in self._NAMES]
    nodemaint.NodeMaintenance.ShutdownInstances(running)

  def test_all_are_stopped(self, hypervisor, place: Place, caplog) -> None:
    qemus = [place.start_qemu(name) for name in self._NAMES]
    for name in self._NAMES:
      place.mark(Mark.SHUTDOWN, name)
    self._maintain(hypervisor)
    for qemu in qemus:
      qemu.wait(timeout=lifetime.PATIENCE)
    assert hypervisor.ListInstances() == []
    for name in self._NAMES:
      assert place.marks(name) == [Mark.POWERDOWN]
    assert not caplog.records

  def test_also_after_one_that_cannot_be(
    self, hypervisor, monkeypatch, place: Place, caplog
  ) -> None:
    qemus = {place.start_qemu(name).pid: name for name in self._NAMES}
    immortal = min(qemus)
    kill = utils.KillProcess

    def kill_all_but_one(process: int) -> None:
      if process == immortal:
        raise PermissionError(1, "Operation not permitted")
      kill(process)

    monkeypatch.setattr(utils, "KillProcess", kill_all_but_one)
    self._maintain(hypervisor)
    assert hypervisor.ListInstances() == [qemus[immortal]]
    words = f"Instance {qemus[immortal]} cannot be stopped"
    assert caplog.text.count("cannot be stopped") == 1
    assert caplog.text.count(words) == 1
    assert "Operation not permitted" in caplog.text

  def test_by_name_only_by_force(self, hypervisor, place: Place) -> None:
    """As it is with Ganeti's own; then nothing is said of it either."""
    place.start_qemu("web0")
    place.mark(Mark.SHUTDOWN, "web0")
    with pytest.raises(errors.HypervisorError, match="by name only"):
      hypervisor.StopInstance(None, name="web0")
    assert hypervisor.ListInstances() == ["web0"]
    assert place.marks("web0") == [Mark.SHUTDOWN]


@pytest.mark.parametrize("call", stock_calls.find(), ids=str)
@pytest.mark.parametrize("lives", [False, True])
@pytest.mark.parametrize("success", [False, True])
class TestEveryCall:
  """Each call that Ganeti makes of a method of ours, with what it passes."""

  @pytest.fixture(autouse=True)
  def started(self, monkeypatch) -> list[str]:
    """What is started; nobody is asked for anything."""
    found = []
    for method in (
      "_CallMonitorCommand",
      "_ClearInstanceMigrationCapabilities",
      "_ConfigureRoutedNICs",
    ):
      monkeypatch.setattr(stock.KVMHypervisor, method, lambda *_, **__: None)

    def execute(self, instance, *_, **__) -> None:
      self._CheckDown(instance.name)
      self._ClearUserShutdown(instance.name)
      found.append("a runtime")

    def run(*_, **__) -> argparse.Namespace:
      found.append("a command")
      return argparse.Namespace(failed=False)

    monkeypatch.setattr(stock.KVMHypervisor, "_ExecuteKVMRuntime", execute)
    monkeypatch.setattr(stock.KVMHypervisor, "_RunKVMCmd", run)
    monkeypatch.setattr(utils, "RunCmd", run)
    monkeypatch.setattr(launch, "ensure", run)
    return found

  def _make(
    self, hypervisor: stock.KVMHypervisor, call, *, success: bool
  ) -> object:
    """Makes a call; returns its result, or the kind of its exception."""
    hypervisor.qmp = type("Qmp", (), {"ContinueGuestEmulation": print})()
    instance = _instance()
    known = {
      "hvparams": instance.hvparams,
      "incoming_address": ("node2", 8102),
      "info": "runtime",
      "instance": NAME if call.method == "GetInstanceInfo" else instance,
      "instance_name": NAME,
      "kvm_cmd": ["qemu"],
      "kvm_runtime": (["qemu"], [], {}, []),
      "kvmhelp": "help",
      "live": True,
      "name": NAME,
      "self": argparse.Namespace(tried_once=True),
      "success": success,
      "tapfds": [],
      "timeout": 5,
    }
    positional = [eval(each, known) for each in call.positional]
    named = {key: eval(each, known) for key, each in call.named.items()}
    try:
      return getattr(hypervisor, call.method)(*positional, **named)
    except (errors.GenericError, AttributeError) as err:
      return type(err)

  def test_comes_to_the_same(
    self, place: Place, started, call, lives: bool, success: bool
  ) -> None:
    """As with Ganeti's own class, which leaves a shutdown file if it fails."""
    seen = []
    for kind in (stock.KVMHypervisor, hv_kvm.KVMHypervisor):
      qemu = place.start_qemu() if lives else None
      place.run()
      place.mark(Mark.SHUTDOWN)
      result = self._make(kind(), call, success=success)
      if isinstance(result, tuple):
        result = [each for each in result if not qemu or each != qemu.pid]
      seen.append((result, place.files(), kind().ListInstances(), *started))
      started.clear()
      place.clear()
    (by_stock, stock_files, *stock_rest), (by_ours, files, *rest) = seen
    if call.place.startswith("watcher/nodemaint"):
      assert (by_stock, by_ours) == (AttributeError, None)
    else:
      assert by_ours == by_stock
    has_failed = by_stock in (AttributeError, errors.ProgrammerError)
    left = {f"ctrl/{NAME}.shutdown"} if has_failed else set()
    assert files == stock_files - left
    assert rest == stock_rest


#: What ours uses, each of which may fail.
_PARTS = [
  (where, name)
  for where, names in {
    ctrldir.ControlDirectory: "__init__ has_journal has_monitor life",
    journal_files: "is_being_written opened prepare remove",
    mark_files: "is_marked remove write",
    rule_file: "read",
  }.items()
  for name in names.split()
]


@pytest.mark.parametrize(
  "fault",
  [
    PermissionError(errno.EACCES, os.strerror(errno.EACCES), "some-file"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "some-file"),
    OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)),
    RuntimeError("a fault of our own"),
  ],
  ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize(
  "part", _PARTS, ids=lambda part: f"{part[0].__name__}.{part[1]}"
)
class TestWhateverFails:
  """A failure of ours keeps Ganeti from nothing."""

  @pytest.fixture(autouse=True)
  def failing(self, monkeypatch, place: Place, part, fault) -> list[object]:
    """Breaks one part, and says how often it was used."""
    place.journal()
    place.mark(Mark.SHUTDOWN)
    place.run()
    used = []

    def fail(*arguments, **_) -> None:
      used.append(arguments)
      raise fault

    monkeypatch.setattr(*part, fail)
    return used

  @pytest.fixture(autouse=True)
  def is_told(
    self, caplog, part, fault, failing
  ) -> collections.abc.Iterator[None]:
    """The log names the instance, the file and the reason."""
    yield
    records = caplog.get_records("call")
    for record in records:
      words = record.getMessage()
      assert NAME in words
      if isinstance(fault, OSError):
        assert fault.strerror in words
        assert not fault.filename or fault.filename in words
      else:
        assert record.exc_info[1] is fault
    # A journal that is missing is no failure, nor is one that may be in use.
    is_odd = not isinstance(fault, FileNotFoundError) and part[1] != "opened"
    assert not failing or records or not is_odd

  def test_start(self, hypervisor, monkeypatch, failing) -> None:
    done = []

    def execute(self, instance, *_) -> None:
      self._CheckDown(instance.name)
      self._ClearUserShutdown(instance.name)
      self._RunKVMCmd(instance.name, ["qemu"], [])

    monkeypatch.setattr(stock.KVMHypervisor, "_ExecuteKVMRuntime", execute)
    monkeypatch.setattr(
      stock.KVMHypervisor,
      "_RunKVMCmd",
      lambda _self, _name, command, _fds: done.append(command[0]),
    )
    hypervisor._ExecuteKVMRuntime(_instance(), "runtime", "help")
    assert done == ["qemu"]

  def test_stop(self, hypervisor, place: Place, failing) -> None:
    for stop in (
      lambda: hypervisor.StopInstance(_instance(), force=True),
      lambda: hypervisor.StopInstance(None, force=True, name=NAME),
      lambda: hypervisor.FinalizeMigrationDst(_instance(), "info", False),
      lambda: hypervisor.FinalizeMigrationSource(_instance(), True, True),
    ):
      qemu = place.start_qemu()
      stop()
      qemu.wait(timeout=lifetime.PATIENCE)

  def test_cleanup(self, hypervisor, place: Place, failing) -> None:
    hypervisor.CleanupInstance(NAME)
    assert not (place.root / "conf" / f"{NAME}.runtime").exists()

  def test_info(self, hypervisor, place: Place, failing) -> None:
    assert hypervisor.GetInstanceInfo(NAME) in (None, TestInfo._SHUTDOWN)
    assert len(list(hypervisor.GetAllInstancesInfo())) <= 1


class TestMigration:
  """What is said of an instance stays on the node where it was said."""

  def test_away(self, hypervisor, place: Place) -> None:
    """The daemon is told what it was, and has its journal to read."""
    place.monitor()
    journal = place.journal()
    qemu = place.start_qemu()
    for mark in (Mark.SHUTDOWN, Mark.POWERDOWN):
      place.mark(mark)
    hypervisor.FinalizeMigrationSource(_instance(), True, True)
    qemu.wait(timeout=lifetime.PATIENCE)
    assert place.marks() == [Mark.MIGRATED]
    assert journal.exists()
    hypervisor.CleanupInstance(NAME)
    assert place.marks() == []
    assert not journal.exists()

  def test_away_is_marked_before_it_ends(
    self, hypervisor, monkeypatch, place: Place
  ) -> None:
    place.start_qemu()
    marks = []
    monkeypatch.setattr(
      "ganeti.utils.KillProcess", lambda _: marks.append(place.marks())
    )
    hypervisor.FinalizeMigrationSource(_instance(), True, True)
    assert marks == [[Mark.MIGRATED]]

  def test_away_and_nobody_wants_to_know(
    self, hypervisor, monkeypatch, place: Place
  ) -> None:
    """Where no daemon is to run, nothing is left for it."""
    monkeypatch.setattr(launch, "reason_not_to_run", lambda: "it is off")
    journal = place.journal()
    qemu = place.start_qemu()
    for mark in _MARKS:
      place.mark(mark)
    hypervisor.FinalizeMigrationSource(_instance(), True, True)
    qemu.wait(timeout=lifetime.PATIENCE)
    assert place.marks() == []
    assert not journal.exists()

  def test_away_and_it_is_down(
    self, hypervisor, monkeypatch, place: Place
  ) -> None:
    """Something else has ended it, of which nothing is known."""
    monkeypatch.setattr("ganeti.utils.KillProcess", print)
    hypervisor.FinalizeMigrationSource(_instance(), True, True)
    assert place.marks() == []

  def test_away_failed_and_it_is_down(self, hypervisor, place: Place) -> None:
    place.mark(Mark.SHUTDOWN)
    hypervisor.FinalizeMigrationSource(_instance(), False, True)
    assert place.marks() == []

  def test_away_failed_and_it_lives(
    self, hypervisor, monkeypatch, place: Place
  ) -> None:
    """What was said of an attempt before means nothing any more."""
    place.start_qemu()
    place.mark(Mark.POWERDOWN)
    place.mark(Mark.MIGRATED)
    monkeypatch.setattr(
      stock.KVMHypervisor, "_ClearInstanceMigrationCapabilities", print
    )
    hypervisor.qmp = type("Qmp", (), {"ContinueGuestEmulation": print})()
    hypervisor.FinalizeMigrationSource(_instance(), False, True)
    assert place.marks() == [Mark.POWERDOWN]

  def test_here_failed(self, hypervisor, place: Place) -> None:
    qemu = place.start_qemu()
    hypervisor.FinalizeMigrationDst(_instance(), "info", False)
    qemu.wait(timeout=lifetime.PATIENCE)
    assert place.marks() == []


class TestInfo:
  """What Ganeti is told of an instance."""

  _SHUTDOWN = (NAME, -1, 0, 0, hv_base.HvInstanceState.SHUTDOWN, 0)

  def test_that_its_user_shut_down(self, hypervisor, place: Place) -> None:
    place.mark(Mark.SHUTDOWN)
    assert hypervisor.GetInstanceInfo(NAME) == self._SHUTDOWN
    assert hypervisor.GetInstanceInfo(NAME, hvparams={}) == self._SHUTDOWN

  def test_that_its_journal_says_it_of(self, hypervisor, place: Place) -> None:
    place.journal()
    assert hypervisor.GetInstanceInfo(NAME) == self._SHUTDOWN

  def test_whose_journal_is_of_no_use(
    self, hypervisor, place: Place, caplog
  ) -> None:
    place.journal().write_bytes(b"no QMP")
    place.settle()
    assert hypervisor.GetInstanceInfo(NAME) is None
    assert f"Instance {NAME}: its journal is of no use" in caplog.text

  def test_that_runs(self, hypervisor, monkeypatch, place: Place) -> None:
    """A file beside a live process says nothing."""

    def refuse(_path):
      raise errors.HypervisorError("no monitor")

    monkeypatch.setattr(stock, "QmpConnection", refuse)
    qemu = place.start_qemu()
    place.mark(Mark.SHUTDOWN)
    info = hypervisor.GetInstanceInfo(NAME)
    assert info[:3] == (NAME, qemu.pid, 32)
    assert info[4] is hv_base.HvInstanceState.RUNNING

  def test_all_of_them(self, hypervisor, place: Place) -> None:
    for name in (NAME, OTHER):
      (place.root / "conf" / f"{name}.runtime").touch()
    place.mark(Mark.SHUTDOWN)
    assert list(hypervisor.GetAllInstancesInfo()) == [self._SHUTDOWN]


class TestInfoMeanwhile:
  """QEMU ends while it is asked."""

  @pytest.fixture
  def asked(self, place: Place) -> collections.abc.Iterator[list[Mark]]:
    """The marks that the daemon makes when QEMU ends, having been asked."""
    qemu = place.start_qemu()
    marks = []
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
      monitor.bind(str(place.ctrl / f"{NAME}.qmp"))
      monitor.listen()

      def end() -> None:
        connection, _ = monitor.accept()
        with connection:
          for mark in marks:
            place.mark(mark)
          qemu.kill()
          qemu.wait()

      ending = threading.Thread(target=end)
      ending.start()
      yield marks
      ending.join()

  @pytest.mark.parametrize("all_of_them", [False, True])
  @pytest.mark.parametrize("is_user", [False, True])
  def test_hang_up(
    self, hypervisor, place, asked, all_of_them: bool, is_user: bool
  ) -> None:
    if is_user:
      asked.append(Mark.SHUTDOWN)
    place.run()
    if all_of_them:
      found = list(hypervisor.GetAllInstancesInfo())
    else:
      found = [hypervisor.GetInstanceInfo(NAME)]
    expected = [TestInfo._SHUTDOWN] if is_user else [None]
    assert found == ([] if all_of_them and not is_user else expected)

  @pytest.mark.parametrize(
    "error", [FileNotFoundError, TypeError, errors.HypervisorError]
  )
  def test_what_ganeti_trips_over(
    self, hypervisor, monkeypatch, place, error
  ) -> None:
    calls = []

    def trip(*_arguments, **_named) -> None:
      calls.append(())
      if len(calls) == 1:
        raise error

    monkeypatch.setattr(stock.KVMHypervisor, "GetInstanceInfo", trip)
    assert hypervisor.GetInstanceInfo(NAME) is None
    assert len(calls) == 2


class Clock:
  """Passes only where somebody sleeps.

  @ivar naps: how long each sleep was, in seconds

  """

  time = staticmethod(time.time)

  def __init__(self) -> None:
    self.naps: list[float] = []
    self.on_nap: collections.abc.Callable[[], None] = lambda: None

  def monotonic(self) -> float:
    return sum(self.naps)

  def sleep(self, seconds: float) -> None:
    self.naps.append(seconds)
    self.on_nap()


class TestPatience:
  """How long the daemon is waited for that may be about to mark an instance."""

  _SHUTDOWN = TestInfo._SHUTDOWN

  @pytest.fixture(autouse=True)
  def clock(self, monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(patience, "time", found)
    return found

  def _stir(self, place: Place) -> None:
    """Changes something else in the directory."""
    place.mark(Mark.POWERDOWN, OTHER)

  def test_until_it_is_marked(self, hypervisor, place: Place, clock) -> None:
    place.start_daemon(busy=True)
    place.run()
    self._stir(place)

    def mark() -> None:
      if len(clock.naps) == 3:
        place.mark(Mark.SHUTDOWN)

    clock.on_nap = mark
    assert hypervisor.GetInstanceInfo(NAME) == self._SHUTDOWN
    assert len(clock.naps) == 3

  def test_until_the_daemon_rests(
    self, hypervisor, monkeypatch, place: Place, clock
  ) -> None:
    """What it did last may have been just that."""
    place.start_daemon()
    place.run()
    self._stir(place)
    at_work = processes.at_work

    def mark_and_rest(process: int) -> float | None:
      place.mark(Mark.SHUTDOWN)
      return at_work(process)

    monkeypatch.setattr(processes, "at_work", mark_and_rest)
    assert hypervisor.GetInstanceInfo(NAME) == self._SHUTDOWN
    assert clock.naps == []

  def test_until_the_daemon_has_done_enough(
    self, hypervisor, place: Place, clock
  ) -> None:
    """Then there is no end to what it has to do."""
    daemon = place.start_daemon(busy=True)
    place.run()
    self._stir(place)

    def work() -> None:
      before = processes.at_work(daemon)
      lifetime.wait_until(
        lambda: processes.at_work(daemon) >= before + 0.03, "work"
      )

    clock.on_nap = work
    assert hypervisor.GetInstanceInfo(NAME) is None
    assert 1 <= len(clock.naps) <= 4

  def test_no_longer_than_is_of_use(self, hypervisor, place, clock) -> None:
    place.start_daemon(busy=True)
    place.run()
    self._stir(place)
    assert hypervisor.GetInstanceInfo(NAME) is None
    assert 0.0 < sum(clock.naps) < 1.1

  def test_once_for_all_instances(self, hypervisor, place, clock) -> None:
    place.start_daemon(busy=True)
    for number in range(50):
      place.run(f"web{number}")
    self._stir(place)
    assert list(hypervisor.GetAllInstancesInfo()) == []
    assert 0.0 < sum(clock.naps) < 1.1

  @pytest.mark.parametrize(
    "why",
    [
      "it never ran",
      "its journal says that it was killed",
      "its journal says nothing",
      "its journal is of no use",
      "its monitor is still there",
      "nothing has ended just now",
      "no daemon",
      "idle daemon",
      "no directory",
      "no pidfile that can be read",
    ],
  )
  def test_not_at_all(self, hypervisor, place, clock, why: str) -> None:
    if why != "no daemon":
      place.start_daemon(busy=why != "idle daemon")
    if why != "it never ran":
      place.run()
    self._stir(place)
    if why == "its journal says that it was killed":
      place.journal().write_bytes(_GREETING)
    elif why == "its journal says nothing":
      place.journal().write_bytes(b"")
    elif why == "its journal is of no use":
      place.journal().write_bytes(b"no QMP")
    elif why == "its monitor is still there":
      (place.ctrl / f"{NAME}{ctrldir.MONITOR_SUFFIX}").touch()
    elif why == "nothing has ended just now":
      place.settle()
    elif why == "no directory":
      shutil.rmtree(place.ctrl)
    elif why == "no pidfile that can be read":
      place.pid_file.unlink()
      place.pid_file.symlink_to(place.pid_file)
    assert hypervisor.GetInstanceInfo(NAME) is None
    assert clock.naps == []


class TestRule:
  """The hypervisor judges by the daemon's rule, also without a daemon."""

  @pytest.mark.parametrize(
    ("said", "is_user"),
    [
      (None, False),
      ("sequence\n", True),
      ("sequence", True),
      ("cause\n", False),
      ("sequence of events\n", False),
      ("", False),
    ],
  )
  def test_sigterm(self, hypervisor, place, said, is_user: bool) -> None:
    place.journal().write_bytes(_GREETING + _SIGTERM)
    if said is not None:
      (place.ctrl / ctrldir.RULE).write_text(said)
    info = hypervisor.GetInstanceInfo(NAME)
    assert info == (TestInfo._SHUTDOWN if is_user else None)

  @pytest.mark.parametrize("said", [None, "sequence\n"])
  def test_poweroff(self, hypervisor, place, said) -> None:
    place.journal()
    if said is not None:
      (place.ctrl / ctrldir.RULE).write_text(said)
    assert hypervisor.GetInstanceInfo(NAME) == TestInfo._SHUTDOWN


class TestAsStock:
  """Where nothing is to be said, Ganeti is answered as by its own class."""

  @pytest.mark.parametrize("has_directory", [True, False])
  def test_without_runtime_files(
    self, place: Place, caplog, has_directory: bool
  ) -> None:
    if not has_directory:
      shutil.rmtree(place.ctrl)
    caplog.set_level(logging.DEBUG)
    for kind in (stock.KVMHypervisor, hv_kvm.KVMHypervisor):
      hypervisor = kind()
      assert hypervisor.GetInstanceInfo(NAME) is None
      assert hypervisor.StopInstance(_instance()) is None
      assert hypervisor.StopInstance(_instance(), force=True) is None
      assert hypervisor.CleanupInstance(NAME) is None
      assert hypervisor.FinalizeMigrationDst(_instance(), "", False) is None
      assert hypervisor.FinalizeMigrationSource(_instance(), False, 1) is None
      assert list(hypervisor.GetAllInstancesInfo()) == []
      with pytest.raises(errors.HypervisorError, match="not running"):
        hypervisor.RebootInstance(_instance())
    assert place.ctrl.exists() is has_directory
    assert not caplog.records

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What can happen between any two system calls of the daemon."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import time
import typing
from unittest import mock

import ctrl_files
import pytest
from ganeti.kvmd.node import ctrldir, journal_files
from guests import endings, lifetime
from kvmd_process import Daemon

from faults.fake_qemu import FakeQemu
from faults.node import Hypervisor
from faults.steps import Deed, Start
from faults.tracer import Tracer

_VERDICTS = {
  Deed.KILL: endings.KILLED,
  Deed.USER_POWERS_OFF: endings.USER,
}

#: A journal that was made short occupies no more bytes than are reserved, and a
#: page or two.
_SHORT = journal_files.RESERVED + 8 * 1024


@contextlib.contextmanager
def _going_on(tracer: Tracer) -> collections.abc.Iterator[None]:
  """Let the halted daemon go on with what somebody waits for."""

  def step(_seconds: float) -> None:
    tracer.step()

  with mock.patch("time.sleep", step):
    yield


class _Node:
  """A control directory, and the hypervisor."""

  def __init__(self, ctrl_dir: pathlib.Path, log: pathlib.Path) -> None:
    self.ctrl_dir = ctrl_dir
    self.hypervisor = Hypervisor(ctrl_dir)
    self._log = log
    self._history = log.with_name("history")

  @contextlib.contextmanager
  def daemon(self, *options: str) -> collections.abc.Iterator[Daemon]:
    """Run a daemon for some time."""
    daemon = Daemon(
      self.ctrl_dir, self._log, f"--history={self._history}", *options
    )
    try:
      yield daemon
    finally:
      # It may be halted.
      daemon.kill()

  def start(self, name: str, tracer: Tracer, *, journal: bool) -> FakeQemu:
    """Start a guest as Ganeti does, while the daemon is halted."""
    with _going_on(tracer):
      self.hypervisor.prepare_start(name)
      if journal:
        assert self.hypervisor.prepare_journal(name)
    guest = FakeQemu(self.ctrl_dir, name, Start(0), journal=journal)
    guest.begin()
    return guest

  def clean_up(self, name: str) -> None:
    """Remove all that there is of a guest that has ended."""
    self.hypervisor.clean_up(name)
    self.path(name, ctrldir.MONITOR_SUFFIX).unlink(missing_ok=True)

  def path(self, name: str, ending: str) -> pathlib.Path:
    return self.ctrl_dir / (name + ending)

  def is_short(self, name: str) -> bool:
    """Tell whether a journal is."""
    found = self.path(name, ctrldir.JOURNAL_EVENTS).stat()
    return found.st_blocks * 512 <= _SHORT

  def state(self) -> object:
    """Returns what there is in the directory, and how long the history is."""
    found: list[object] = []
    if self._history.exists():
      found.append(self._history.stat().st_size)
    for name in sorted(ctrl_files.names(self.ctrl_dir)):
      stat = (self.ctrl_dir / name).lstat()
      found.append((name, stat.st_ino, stat.st_mtime_ns, stat.st_blocks))
    return found

  def remembered(self) -> list[str]:
    """Returns the verdicts that the history has."""
    return [
      json.loads(line)["verdict"]
      for line in self._history.read_text().splitlines()
    ]

  def wait_clean(self, name: str, *, is_user: bool) -> None:
    """Wait until what is left of an instance is just what is right."""
    sockets = {name + ctrldir.MONITOR_SUFFIX}
    right = {name + ctrldir.Mark.SHUTDOWN.value} if is_user else set()
    lifetime.wait_until(
      lambda: (
        {path.name for path in self.ctrl_dir.glob(f"{name}.*")} - sockets
        == right
      ),
      f"{right or 'nothing'} to be left of {name}",
    )
    assert self.hypervisor.is_user_down(name) == is_user


@pytest.fixture
def node(scratch: pathlib.Path, ctrl_dir: pathlib.Path) -> _Node:
  return _Node(ctrl_dir, scratch / "log")


def _serve_until(
  guest: FakeQemu, condition: collections.abc.Callable[[], bool], what: str
) -> None:
  def is_so() -> bool:
    guest.serve()
    return condition()

  lifetime.wait_until(is_so, what)


def _end(guest: FakeQemu, deed: Deed) -> None:
  guest.end(deed, 0)
  _serve_until(guest, lambda: guest.is_over, "the end")


@dataclasses.dataclass(frozen=True)
class _Scenario:
  """Something that the daemon does for a guest, step by step."""

  name: str
  #: What makes it do that
  deeds: tuple[Deed, ...]
  #: How the guest ends after that, if it lives; it is the user's doing
  end: typing.Optional[Deed]
  #: The daemon has done it, if it waits for something then
  is_done: collections.abc.Callable[[_Node, str], bool]
  journal: bool = True
  options: tuple[str, ...] = ()

  def begin(self, node: _Node, daemon: Daemon, name: str) -> FakeQemu:
    """Let a guest live, and the daemon follow it."""
    # Where the daemon sees a half of it, it waits for a second.
    tracer = Tracer(daemon.pid)
    guest = node.start(name, tracer, journal=self.journal)
    tracer.detach()
    if self.journal:
      daemon.wait_line(rf"instance {name}: its QEMU keeps a journal")
    else:
      _serve_until(guest, lambda: guest.has_client, "a daemon")
      daemon.wait_attached(name)
    return guest

  def act(self, guest: FakeQemu) -> None:
    """Give the daemon something to do."""
    for deed in self.deeds:
      guest.do(deed)
    if self.end is None:
      _end(guest, Deed.USER_POWERS_OFF)

  def finish(self, guest: FakeQemu) -> None:
    """Let the guest end if it lives."""
    if self.end is not None:
      _end(guest, self.end)


def _always(_node: _Node, _name: str) -> bool:
  return True


_JOURNAL_ENDS = _Scenario("journal ends", (), None, _always)
_SOCKET_SPEAKS = _Scenario(
  "socket speaks", (Deed.LIE_DOWN,), Deed.KILL, _always, journal=False
)
_JOURNAL_GROWS = _Scenario(
  "journal grows",
  (Deed.POWERDOWN_IGNORED, Deed.CHATTER, Deed.RESET),
  Deed.USER_POWERS_OFF,
  _Node.is_short,
  options=("--rescan-interval=0.01",),
)
_SCENARIOS = (_JOURNAL_ENDS, _SOCKET_SPEAKS, _JOURNAL_GROWS)


def _steps(
  node: _Node, scenario: _Scenario, tracer: Tracer, name: str
) -> collections.abc.Iterator[None]:
  """Lets the daemon do all its steps."""
  deadline = time.monotonic() + lifetime.PATIENCE
  while True:
    if tracer.step():
      yield
    elif scenario.is_done(node, name):
      return
    assert time.monotonic() < deadline


def test_ganeti_looks_at_any_step(node: _Node) -> None:
  """The answer is there from the moment on at which the process is gone."""
  with node.daemon() as daemon:
    guests = {
      name: _JOURNAL_ENDS.begin(node, daemon, name)
      for name in ("user", "killed")
    }
    # Left by an earlier life: it must not count.
    node.path("killed", ctrldir.Mark.SHUTDOWN.value).touch()
    tracer = Tracer(daemon.pid)
    _end(guests["user"], Deed.USER_POWERS_OFF)
    _end(guests["killed"], Deed.KILL)
    steps = 0
    for _ in _steps(node, _JOURNAL_ENDS, tracer, "user"):
      steps += 1
      assert node.hypervisor.is_user_down("user")
      assert not node.hypervisor.is_user_down("killed")
    tracer.detach()
    assert steps > 50
    assert daemon.wait_outcome("user") == endings.USER
    assert daemon.wait_outcome("killed") == endings.KILLED
    node.wait_clean("user", is_user=True)
    node.wait_clean("killed", is_user=False)


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda each: each.name)
def test_killed_at_any_change(node: _Node, scenario: _Scenario) -> None:
  """Whatever it leaves on the disk, the next one goes on from there."""
  kills = 0
  while _kill_after(node, scenario, changes=kills):
    kills += 1
    if scenario.journal:
      assert node.remembered() == ["user"] * kills
  # A mark is made, and dated.
  assert kills >= 2


def _kill_after(node: _Node, scenario: _Scenario, *, changes: int) -> bool:
  """Kills a daemon as soon as it has changed the directory that often.

  @return: False if it never does

  """
  with node.daemon(*scenario.options) as daemon:
    guest = scenario.begin(node, daemon, "one")
    tracer = Tracer(daemon.pid)
    scenario.act(guest)
    states = [node.state()]
    for _ in _steps(node, scenario, tracer, "one"):
      state = node.state()
      if state != states[-1]:
        states.append(state)
      if len(states) > changes + 1:
        break
  scenario.finish(guest)
  if scenario.journal:
    assert node.hypervisor.is_user_down("one")
  with node.daemon():
    node.wait_clean("one", is_user=True)
  node.clean_up("one")
  return len(states) > changes + 1


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda each: each.name)
@pytest.mark.parametrize(
  "deed", [Deed.KILL, Deed.USER_POWERS_OFF], ids=lambda each: each.value
)
def test_started_anew_at_any_step(
  node: _Node, scenario: _Scenario, deed: Deed
) -> None:
  """What is left to be done for the one life does not harm the next."""
  with node.daemon(*scenario.options) as daemon:
    number = 0
    while _start_anew_after(node, scenario, daemon, deed, steps=number):
      number += 1
    assert number > 10


def _start_anew_after(
  node: _Node, scenario: _Scenario, daemon: Daemon, deed: Deed, *, steps: int
) -> bool:
  """Ends a guest when the daemon has done some steps, and starts it again.

  @param deed: how it ends the second time
  @return: False if the daemon was done before

  """
  name = f"guest{steps}"
  tracer, made = _end_after(node, scenario, daemon, name, steps=steps)
  guest = node.start(name, tracer, journal=scenario.journal)
  tracer.detach()
  if not scenario.journal:
    _serve_until(guest, lambda: guest.has_client, "a daemon")
  _end(guest, deed)
  lifetime.wait_until(
    lambda: daemon.outcomes(name)[-1:] == [_VERDICTS[deed]],
    f"{_VERDICTS[deed]} on {name}",
  )
  node.wait_clean(name, is_user=deed is Deed.USER_POWERS_OFF)
  node.clean_up(name)
  return made == steps


def _end_after(
  node: _Node, scenario: _Scenario, daemon: Daemon, name: str, *, steps: int
) -> tuple[Tracer, int]:
  """Lets a guest live, and end when the daemon has done some steps.

  @return: what halts the daemon, and how many steps it has done

  """
  guest = scenario.begin(node, daemon, name)
  tracer = Tracer(daemon.pid)
  scenario.act(guest)
  made = sum(
    1 for _, _ in zip(range(steps), _steps(node, scenario, tracer, name))
  )
  scenario.finish(guest)
  return tracer, made


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda each: each.name)
def test_cleaned_up_at_any_step(node: _Node, scenario: _Scenario) -> None:
  """What comes after it is the mark at most, which any start removes."""
  with node.daemon(*scenario.options) as daemon:
    number = 0
    while _clean_up_after(node, scenario, daemon, steps=number):
      number += 1
    assert number > 10
    # What was removed before it could be read is not known.
    assert not any(
      "WARNING" in line and ": verdict unknown (" not in line
      for line in daemon.lines
    )


def _clean_up_after(
  node: _Node, scenario: _Scenario, daemon: Daemon, *, steps: int
) -> bool:
  """Ends a guest when the daemon has done some steps, and cleans up.

  @return: False if the daemon was done before

  """
  name = f"guest{steps}"
  tracer, made = _end_after(node, scenario, daemon, name, steps=steps)
  with _going_on(tracer):
    node.clean_up(name)
  while tracer.step():
    pass
  left = ctrl_files.names(node.ctrl_dir)
  assert left <= {name + ctrldir.Mark.SHUTDOWN.value}
  tracer.detach()
  node.clean_up(name)
  return made == steps

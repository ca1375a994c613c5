# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What QEMU says, cut at every byte: by the kernel, by an end, by a kill."""

from __future__ import annotations

import os
import pathlib
import typing

import ctrl_files
import fake_monitor
import kvmd_process
import pytest
from fake_monitor import Connection, FakeMonitor
from ganeti.kvmd.node import ctrldir, journal_files
from guests import endings, lifetime
from guests.stage import Stage
from kvmd_process import Daemon

_GREETING = fake_monitor.encode(fake_monitor.GREETING)
_HANDSHAKE = fake_monitor.BEGINNING
_POWERDOWN = fake_monitor.event("POWERDOWN")
_SHUTDOWN = fake_monitor.event("SHUTDOWN", fake_monitor.USER)
_ALL = _HANDSHAKE + _POWERDOWN + _SHUTDOWN

#: So much of a message makes it whole; the end of the line adds nothing.
_LINE_END = len(b"\r\n")


class _Guest:
  """A fake QEMU, and its present client."""

  def __init__(self, ctrl_dir: pathlib.Path, name: str) -> None:
    self.name = name
    self._monitor = FakeMonitor(ctrl_dir, name)
    self._client: typing.Optional[Connection] = None

  def accept(self) -> None:
    """Wait for the daemon."""
    self._client = kvmd_process.accept(self._monitor)

  def say(self, data: bytes) -> None:
    if data:
      self._client.send(data)

  def negotiate(self) -> None:
    """Let the daemon attach."""
    kvmd_process.negotiate(self._client)

  def die(self) -> None:
    self._monitor.die()

  def quit(self) -> None:
    self._monitor.quit()


def _guests(stage: Stage, prefix: str, number: int) -> list[_Guest]:
  return [_Guest(stage.ctrl_dir, f"{prefix}{each}") for each in range(number)]


def _catch_up(stage: Stage, daemon: Daemon, name: str) -> None:
  """Waits until the daemon has read all that was sent so far."""
  last = _Guest(stage.ctrl_dir, name)
  last.accept()
  last.negotiate()
  daemon.wait_attached(name)
  last.quit()


def _right(heard: bytes) -> str:
  """Returns the verdict on what was heard of events, in order."""
  has_shutdown = _SHUTDOWN[:-_LINE_END] in heard
  if not has_shutdown:
    return endings.KILLED.verdict
  has_powerdown = _POWERDOWN in heard
  right = endings.POWERDOWN if has_powerdown else endings.USER
  return right.verdict


def _check_all(stage: Stage, daemon: Daemon, rights: dict[str, str]) -> None:
  for name, right in rights.items():
    assert daemon.wait_outcome(name).verdict == right, name
    is_user = right == endings.USER.verdict
    lifetime.wait_until(
      lambda name=name, is_user=is_user: (
        daemon.shutdown_file(name).exists() == is_user
      ),
      f"the right mark of {name}",
    )
  assert all(len(daemon.outcomes(name)) == 1 for name in rights)


@pytest.fixture
def stage():
  with Stage() as new_stage:
    yield new_stage


def test_pieces(stage: Stage) -> None:
  """Whatever a read ends with, the rest comes with the next one."""
  daemon = stage.daemon()
  guests = _guests(stage, "cut", len(_ALL))
  for guest in guests:
    guest.accept()
  # The handshake first, as the answer must not come before the command.
  for cut, guest in enumerate(guests):
    guest.say(_GREETING[:cut])
  _catch_up(stage, daemon, "first")
  for cut, guest in enumerate(guests):
    guest.say(_GREETING[cut:])
  _catch_up(stage, daemon, "second")
  rest = _ALL[len(_GREETING) :]
  for cut, guest in enumerate(guests):
    guest.say(rest[: max(0, cut - len(_GREETING))])
  _catch_up(stage, daemon, "third")
  for cut, guest in enumerate(guests):
    guest.say(rest[max(0, cut - len(_GREETING)) :])
    guest.quit()
  right = endings.POWERDOWN.verdict
  _check_all(stage, daemon, {guest.name: right for guest in guests})


def test_ends_in_the_middle(stage: Stage) -> None:
  """What was not said to its end was not said."""
  daemon = stage.daemon()
  guests = _guests(stage, "cut", len(_SHUTDOWN) + 1)
  rights = {}
  for cut, guest in enumerate(guests):
    guest.accept()
    guest.negotiate()
    said = _SHUTDOWN[:cut]
    guest.say(said)
    rights[guest.name] = _right(said)
  _catch_up(stage, daemon, "last")
  for guest in guests:
    guest.die()
  _check_all(stage, daemon, rights)


def test_ends_in_the_handshake(stage: Stage) -> None:
  """That is known of who never spoke, and nobody else is harmed."""
  daemon = stage.daemon()
  guests = _guests(stage, "cut", len(_HANDSHAKE) - _LINE_END)
  for cut, guest in enumerate(guests):
    guest.accept()
    guest.say(_HANDSHAKE[:cut])
  _catch_up(stage, daemon, "first")
  for guest in guests:
    guest.die()
  _catch_up(stage, daemon, "last")
  assert daemon.wait_outcome("last") == endings.KILLED
  for guest in guests:
    assert daemon.wait_outcome(guest.name) == endings.UNHEARD
    assert len(daemon.outcomes(guest.name)) == 1
  assert not list(stage.ctrl_dir.glob("*.shutdown"))


@pytest.mark.parametrize(
  "events", [_SHUTDOWN, _POWERDOWN], ids=["shutdown", "powerdown"]
)
def test_daemon_is_killed_in_the_middle(stage: Stage, events: bytes) -> None:
  """What was read to its end survives the daemon; the rest cannot."""
  first = stage.daemon()
  guests = _guests(stage, "cut", len(events) + 1)
  for cut, guest in enumerate(guests):
    guest.accept()
    guest.negotiate()
    guest.say(events[:cut])
  _catch_up(stage, first, "first")
  os.kill(first.pid, 9)
  second = stage.daemon()
  rights = {}
  for cut, guest in enumerate(guests):
    guest.accept()
    guest.negotiate()
    heard = events[:cut]
    if events == _POWERDOWN:
      # The first daemon has noted it, or has not heard of it.
      guest.say(fake_monitor.event("SHUTDOWN", fake_monitor.USER))
      is_whole = cut >= len(events) - _LINE_END
      right = endings.POWERDOWN if is_whole else endings.USER
      rights[guest.name] = right.verdict
    else:
      rights[guest.name] = _right(heard)
  _catch_up(stage, second, "second")
  for guest in guests:
    guest.quit()
  _check_all(stage, second, rights)


@pytest.mark.parametrize("away", [True, False], ids=["away", "running"])
def test_journal(stage: Stage, away: bool) -> None:
  """A QEMU may be killed in the middle of a write."""
  daemon = None if away else stage.daemon()
  said = _HANDSHAKE + _SHUTDOWN
  rights = {}
  greeted = len(_GREETING) - _LINE_END
  with ctrl_files.opened(stage.ctrl_dir) as directory:
    for cut in range(len(said) + 1):
      name = f"cut{cut}"
      journal_files.prepare(directory, name)
      path = stage.ctrl_dir / (name + ctrldir.JOURNAL_EVENTS)
      with open(path, "r+b", buffering=0) as stream:
        stream.write(said[:cut])
      if cut >= greeted:
        rights[name] = _right(said[:cut])
  daemon = daemon or stage.daemon()
  _check_all(stage, daemon, rights)
  for cut in range(greeted):
    assert not daemon.outcomes(f"cut{cut}")
    assert not daemon.shutdown_file(f"cut{cut}").exists()

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The guests do what the other tests believe they do; no daemon here."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess
import sys

import pytest
from guests import boot_sector, endings, lifetime, linux, qemu
from guests.boot_sector import Command
from guests.endings import Play
from guests.qemu import Machine
from guests.stage import Stage

#: Prints a QEMU's process id and the directory it uses, and then waits
_OWNER = """
import signal
from guests import lifetime, qemu
with lifetime.scratch_directory() as path:
  machine = qemu.Qemu(path, "instance", qemu.Machine())
  machine.wait_ready()
  print(machine.pid, path, flush=True)
  signal.pause()
"""


def _events(machine: qemu.Qemu) -> list[str]:
  """The events of a QEMU until its end, with what QEMU says to them."""
  return [
    " ".join([event["event"], *_words(event.get("data", {}))])
    for event in machine.rest_of_events()
  ]


def _words(data: qemu.Message) -> list[str]:
  return [data[key] for key in ("action", "reason") if key in data]


@pytest.mark.parametrize(
  ("machine", "play", "events"),
  [
    (
      Machine(),
      endings.user(Command.POWER_OFF),
      ["SHUTDOWN guest-shutdown"],
    ),
    (
      Machine(),
      endings.user(Command.HIBERNATE),
      ["SUSPEND_DISK", "SHUTDOWN guest-shutdown"],
    ),
    (
      Machine(no_reboot=True),
      endings.user(Command.RESET),
      ["SHUTDOWN guest-reset"],
    ),
    (
      Machine(no_reboot=True),
      endings.user(Command.TRIPLE_FAULT),
      ["SHUTDOWN guest-reset"],
    ),
    (
      Machine(pvpanic=True),
      endings.user(Command.PANIC),
      ["GUEST_PANICKED poweroff", "SHUTDOWN guest-panic"],
    ),
    (
      Machine(pvpanic=True),
      endings.steps(
        endings.user(Command.LOAD_CRASH_KERNEL),
        endings.user(Command.POWER_OFF),
      ),
      ["GUEST_CRASHLOADED run", "SHUTDOWN guest-shutdown"],
    ),
    (
      endings.watched("poweroff"),
      endings.user(Command.ARM_WATCHDOG),
      ["WATCHDOG poweroff"],
    ),
    (
      endings.watched("shutdown"),
      endings.user(Command.ARM_WATCHDOG),
      ["WATCHDOG shutdown", "POWERDOWN", "SHUTDOWN guest-shutdown"],
    ),
    (
      endings.BAD_DISK,
      endings.steps(
        endings.read_disk, endings.event("STOP"), endings.admin("quit")
      ),
      [
        "BLOCK_IO_ERROR stop Input/output error",
        "STOP",
        "SHUTDOWN host-qmp-quit",
      ],
    ),
    (
      Machine(),
      endings.admin("system_powerdown"),
      ["POWERDOWN", "SHUTDOWN guest-shutdown"],
    ),
    (
      Machine(),
      endings.steps(
        endings.ignored_powerdown,
        endings.user(Command.OBEY_BUTTON),
        endings.admin("system_powerdown"),
      ),
      ["POWERDOWN", "POWERDOWN", "SHUTDOWN guest-shutdown"],
    ),
  ],
  ids=[
    "power off",
    "hibernate",
    "reset",
    "triple fault",
    "panic",
    "crash kernel",
    "watchdog ends QEMU",
    "watchdog presses the power button",
    "disk fails",
    "powerdown",
    "second powerdown",
  ],
)
def test_events(
  stage: Stage, machine: Machine, play: Play, events: list[str]
) -> None:
  instance = stage.qemu(machine)
  instance.wait_ready()
  play(instance)
  # QEMU before 6.0 pauses a guest that panicked, and says so, before it ends.
  told = [each for each in _events(instance) if each != "GUEST_PANICKED pause"]
  assert told == events
  assert instance.wait() == 0


def test_guest_boots_again_after_reset(stage: Stage) -> None:
  instance = stage.qemu()
  instance.wait_ready()
  endings.ignored_powerdown(instance)
  instance.user(Command.RESET)
  instance.wait_ready()
  # It has forgotten what it was told before
  instance.powerdown()
  events = _events(instance)
  assert events[0] == "POWERDOWN"
  # The BIOS may do it once more on its way up
  assert set(events[1:-2]) == {"RESET guest-reset"}
  assert events[-2:] == ["POWERDOWN", "SHUTDOWN guest-shutdown"]


def test_paused_guest_says_nothing_until_resumed(stage: Stage) -> None:
  instance = stage.qemu(Machine(paused=True))
  assert instance.admin("query-status")["running"] is False
  instance.admin("cont")
  instance.wait_ready()


def test_boot_sector_has_its_size_and_signature() -> None:
  image = boot_sector.image()
  assert len(image) == 512
  assert image[-2:] == b"\x55\xaa"


@pytest.mark.parametrize(
  ("play", "events"),
  [
    (
      lambda instance: instance.tell(linux.POWER_OFF),
      ["SHUTDOWN guest-shutdown"],
    ),
    (
      lambda instance: instance.tell(linux.REBOOT),
      ["SHUTDOWN guest-reset"],
    ),
    (
      lambda instance: instance.powerdown(),
      ["POWERDOWN", "SHUTDOWN guest-shutdown"],
    ),
  ],
  ids=["poweroff", "reboot", "powerdown"],
)
def test_linux_events(
  stage: Stage, linux_guest: qemu.Guest, play: Play, events: list[str]
) -> None:
  instance = stage.qemu(Machine(linux_guest, no_reboot=True))
  instance.wait_ready()
  play(instance)
  assert _events(instance) == events


def test_qemu_that_does_not_start_says_why(stage: Stage) -> None:
  instance = stage.qemu(Machine(extra=("-machine", "toaster")))
  with pytest.raises(ConnectionError, match="unsupported machine type"):
    instance.wait_ready()


def test_killed_owner_leaves_nothing_behind() -> None:
  owner = subprocess.Popen(
    [sys.executable, "-c", _OWNER],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    text=True,
  )
  with owner:
    assert owner.stdout is not None
    pid, path = owner.stdout.readline().split()
    instance = os.pidfd_open(int(pid))
    assert pathlib.Path(path).is_dir()
    owner.send_signal(signal.SIGKILL)
  try:
    # A process has ended when its descriptor is readable
    assert select.select([instance], [], [], lifetime.PATIENCE)[0]
  finally:
    os.close(instance)
  lifetime.wait_until(lambda: not pathlib.Path(path).exists(), "path is gone")

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The ways in which a guest goes down, and the right verdict on each.

Each is played on a machine that is up, by the user in a boot-sector guest, by
the administrator at the monitor, or by both.

"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import signal

from kvmd_log import Outcome

from guests import boot_sector, lifetime, qemu
from guests.boot_sector import Command

Play = collections.abc.Callable[[qemu.Qemu], None]

# The right outcomes, in the daemon's words
USER = Outcome("user", "guest-shutdown")
POWERDOWN = Outcome("administrator", "guest-shutdown after powerdown")
SIGNAL = Outcome("administrator", "host-signal")
QUIT = Outcome("administrator", "host-qmp-quit")
HOST_RESET = Outcome("administrator", "host-qmp-system-reset")
REBOOT = Outcome("guest reboot", "guest-reset")
PANIC = Outcome("guest panic", "guest-panic")
MIGRATED = Outcome("migrated", "host-signal")
CRASHED = Outcome("guest panic", "guest-shutdown after panic")
HIBERNATED = Outcome("user", "guest-shutdown, hibernated")
WATCHDOG = Outcome("other", "watchdog poweroff")
WATCHDOG_POWERDOWN = Outcome("other", "guest-shutdown after watchdog")
KILLED = Outcome("killed or crashed", "no SHUTDOWN")
UNHEARD = Outcome("unknown", "ended before the daemon was attached")


@dataclasses.dataclass(frozen=True)
class Ending:
  """A way to go down."""

  #: In words that fit into a table
  what: str
  right: Outcome
  play: Play
  machine: qemu.Machine = qemu.PLAIN
  #: The verdict by the rule that looks at the sequence of events only
  by_sequence: str = USER.verdict
  #: What else is said of it in the log
  remark: str = ""


# The steps that the endings consist of


def user(command: Command) -> Play:
  """The user does something in the guest."""
  return lambda machine: machine.user(command)


def admin(command: str) -> Play:
  """The administrator executes a QMP command."""
  return lambda machine: machine.admin(command)


def send(number: signal.Signals) -> Play:
  """QEMU gets a signal."""
  return lambda machine: machine.signal(number)


def event(name: str) -> Play:
  """QEMU has said that something happened, to all who listen."""

  def play(machine: qemu.Qemu) -> None:
    machine.wait_event(name)
    # It answers only after it has told the others, too
    machine.admin("query-status")

  return play


def ignored_powerdown(machine: qemu.Qemu) -> None:
  """The guest sees that the power button was pressed, and goes on."""
  machine.user(Command.IGNORE_BUTTON)
  machine.powerdown()
  expect_button(machine)


def expect_button(machine: qemu.Qemu) -> None:
  """The guest sees that the power button was pressed."""
  machine.expect(boot_sector.BUTTON)


def read_disk(machine: qemu.Qemu) -> None:
  """The guest reads its disk, and may not come to say more."""
  machine.tell(Command.READ_DISK.value)


def migrated(machine: qemu.Qemu) -> None:
  """The guest went elsewhere, and the hypervisor says so to the daemon."""
  import ctrl_files  # only the build has what it needs
  from ganeti.kvmd.core.marks import Mark
  from ganeti.kvmd.node import mark_files

  machine.admin("migrate", uri="exec:cat >/dev/null")
  machine.wait_event("STOP")
  lifetime.wait_until(
    lambda: machine.admin("query-migrate")["status"] == "completed",
    f"{machine.name} is migrated",
  )
  with ctrl_files.opened(machine.monitor.parent) as directory:
    life = directory.life(machine.name)
    assert mark_files.write(directory, Mark.MIGRATED, machine.name, life)


def up_again(machine: qemu.Qemu) -> None:
  """The guest has booted once more."""
  machine.wait_ready()


def steps(*plays: Play) -> Play:
  """One thing after another."""

  def play(machine: qemu.Qemu) -> None:
    for step in plays:
      step(machine)

  return play


_powers_off = user(Command.POWER_OFF)
_resets = user(Command.RESET)
_powerdown = admin("system_powerdown")
_quit = admin("quit")
_term = send(signal.SIGTERM)
_kill = send(signal.SIGKILL)

# The guest turned itself off, and QEMU stays
_down = steps(_powers_off, event("SHUTDOWN"), event("STOP"))
_down_by_button = steps(_powerdown, event("SHUTDOWN"), event("STOP"))

_NO_REBOOT = qemu.Machine(no_reboot=True)
_NO_SHUTDOWN = qemu.Machine(no_shutdown=True)
_PVPANIC = qemu.Machine(pvpanic=True)

#: A disk that cannot be read, and stops the guest then
BAD_DISK = qemu.Machine(
  extra=(
    "-blockdev",
    json.dumps(
      {
        "driver": "blkdebug",
        "node-name": "bad",
        "image": {"driver": "null-co", "size": 1 << 20},
        "inject-error": [{"event": "none", "iotype": "read", "errno": 5}],
      }
    ),
    "-device",
    "ide-hd,drive=bad,rerror=stop",
  )
)


def watched(action: str) -> qemu.Machine:
  """A machine with a watchdog."""
  return qemu.Machine(extra=("-device", "ib700", "-watchdog-action", action))


_ADMINISTRATOR = POWERDOWN.verdict
_UNSAID = KILLED.verdict

USER_POWEROFF = Ending("user powers off", USER, _powers_off)
KILLED_BY_HOST = Ending("kill -KILL", KILLED, _kill, by_sequence=_UNSAID)

#: What the demo shows
SHOWN = (
  USER_POWEROFF,
  Ending(
    "administrator's powerdown",
    POWERDOWN,
    _powerdown,
    by_sequence=_ADMINISTRATOR,
  ),
  Ending("kill -TERM", SIGNAL, _term),
  KILLED_BY_HOST,
  Ending("QMP quit", QUIT, _quit),
  Ending("guest panics", PANIC, user(Command.PANIC), _PVPANIC),
  Ending("guest reboots, -no-reboot", REBOOT, _resets, _NO_REBOOT),
  Ending(
    "pause, resume, user powers off",
    USER,
    steps(admin("stop"), admin("cont"), _powers_off),
  ),
)

#: The others
FURTHER = (
  Ending("user hibernates", HIBERNATED, user(Command.HIBERNATE)),
  Ending(
    "watchdog=poweroff",
    WATCHDOG,
    user(Command.ARM_WATCHDOG),
    watched("poweroff"),
    by_sequence=WATCHDOG.verdict,
  ),
  Ending(
    "watchdog=shutdown, obeyed",
    WATCHDOG_POWERDOWN,
    user(Command.ARM_WATCHDOG),
    watched("shutdown"),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "watchdog=shutdown ignored, then user powers off",
    WATCHDOG_POWERDOWN,
    steps(
      user(Command.IGNORE_BUTTON),
      user(Command.ARM_WATCHDOG),
      expect_button,
      _powers_off,
    ),
    watched("shutdown"),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "watchdog=shutdown ignored, then powerdown obeyed",
    POWERDOWN,
    steps(
      user(Command.IGNORE_BUTTON),
      user(Command.ARM_WATCHDOG),
      expect_button,
      user(Command.OBEY_BUTTON),
      _powerdown,
    ),
    watched("shutdown"),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "watchdog=reset, then user powers off",
    USER,
    steps(user(Command.ARM_WATCHDOG), up_again, _powers_off),
    watched("reset"),
  ),
  Ending(
    "watchdog=pause, kill -TERM",
    SIGNAL,
    steps(user(Command.ARM_WATCHDOG), event("STOP"), _term),
    watched("pause"),
    by_sequence=_ADMINISTRATOR,
    remark="stopped by its watchdog",
  ),
  Ending(
    "crash kernel powers off",
    CRASHED,
    steps(user(Command.LOAD_CRASH_KERNEL), _powers_off),
    _PVPANIC,
    remark="guest panicked and loaded its crash kernel",
  ),
  Ending(
    "crash kernel reboots, then user powers off",
    USER,
    steps(user(Command.LOAD_CRASH_KERNEL), _resets, up_again, _powers_off),
    _PVPANIC,
  ),
  Ending(
    "disk fails, QMP quit",
    QUIT,
    steps(read_disk, event("BLOCK_IO_ERROR"), event("STOP"), _quit),
    BAD_DISK,
    by_sequence=_ADMINISTRATOR,
    remark="stopped by an I/O error: read of bad: Input/output error",
  ),
  Ending(
    "migrated, kill -TERM",
    MIGRATED,
    steps(migrated, _term),
    by_sequence=MIGRATED.verdict,
  ),
  Ending(
    "migrated, kill -KILL",
    Outcome(MIGRATED.verdict, KILLED.cause),
    steps(migrated, _kill),
    by_sequence=MIGRATED.verdict,
  ),
  Ending(
    "powerdown ignored, migrated, kill -TERM",
    MIGRATED,
    steps(ignored_powerdown, migrated, _term),
    by_sequence=MIGRATED.verdict,
  ),
  Ending(
    "migrated, goes on nevertheless, kill -TERM",
    SIGNAL,
    steps(migrated, admin("cont"), event("RESUME"), _term),
  ),
  Ending("kill -INT", SIGNAL, send(signal.SIGINT)),
  Ending("kill -HUP", SIGNAL, send(signal.SIGHUP)),
  Ending(
    "host's reset under -no-reboot",
    HOST_RESET,
    admin("system_reset"),
    _NO_REBOOT,
  ),
  Ending(
    "triple fault under -no-reboot",
    REBOOT,
    user(Command.TRIPLE_FAULT),
    _NO_REBOOT,
  ),
  Ending(
    "triple fault, then user powers off",
    USER,
    steps(user(Command.TRIPLE_FAULT), up_again, _powers_off),
  ),
  Ending(
    "host's reset, then user powers off",
    USER,
    steps(admin("system_reset"), up_again, _powers_off),
  ),
  Ending(
    "kill -TERM while paused",
    SIGNAL,
    steps(admin("stop"), _term),
    by_sequence=_ADMINISTRATOR,
  ),
  # The power button, and what else may come after it
  Ending(
    "powerdown while paused",
    POWERDOWN,
    steps(admin("stop"), _powerdown, admin("cont")),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "powerdown ignored, then kill -KILL",
    KILLED,
    steps(ignored_powerdown, _kill),
    by_sequence=_UNSAID,
  ),
  Ending(
    "powerdown ignored, then kill -TERM",
    SIGNAL,
    steps(ignored_powerdown, _term),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "powerdown ignored, then user powers off",
    POWERDOWN,
    steps(ignored_powerdown, _powers_off),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "powerdown ignored, then another obeyed",
    POWERDOWN,
    steps(ignored_powerdown, user(Command.OBEY_BUTTON), _powerdown),
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "powerdown, guest reboots, then user powers off",
    USER,
    steps(ignored_powerdown, _resets, up_again, _powers_off),
  ),
  Ending(
    "powerdown, guest reboots under -no-reboot",
    REBOOT,
    steps(ignored_powerdown, _resets),
    _NO_REBOOT,
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "powerdown ignored, then guest panics",
    PANIC,
    steps(ignored_powerdown, user(Command.PANIC)),
    _PVPANIC,
    by_sequence=_ADMINISTRATOR,
  ),
  # QEMU stays when the guest is down, and the host reaps it
  Ending(
    "-no-shutdown: user powers off, QMP quit",
    USER,
    steps(_down, _quit),
    _NO_SHUTDOWN,
  ),
  Ending(
    "-no-shutdown: user powers off, kill -TERM",
    USER,
    steps(_down, _term),
    _NO_SHUTDOWN,
  ),
  Ending(
    "-no-shutdown: user powers off, kill -KILL",
    USER,
    steps(_down, _kill),
    _NO_SHUTDOWN,
  ),
  Ending(
    "-no-shutdown: user powers off, powerdown, QMP quit",
    USER,
    steps(_down, _powerdown, _quit),
    _NO_SHUTDOWN,
  ),
  Ending(
    "-no-shutdown: powerdown, QMP quit",
    POWERDOWN,
    steps(_down_by_button, _quit),
    _NO_SHUTDOWN,
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "-no-shutdown: guest panics, QMP quit",
    QUIT,
    steps(user(Command.PANIC), event("GUEST_PANICKED"), event("STOP"), _quit),
    qemu.Machine(no_shutdown=True, pvpanic=True),
    by_sequence=_ADMINISTRATOR,
    remark="guest panicked",
  ),
  # It may also be started again; then it has not gone down any more
  Ending(
    "-no-shutdown: user powers off, reset, kill -KILL",
    KILLED,
    steps(_down, admin("system_reset"), event("RESET"), _kill),
    _NO_SHUTDOWN,
    by_sequence=_UNSAID,
  ),
  Ending(
    "-no-shutdown: user powers off, reset, kill -TERM",
    SIGNAL,
    steps(_down, admin("system_reset"), event("RESET"), _term),
    _NO_SHUTDOWN,
    by_sequence=_ADMINISTRATOR,
  ),
  Ending(
    "-no-shutdown: user powers off, reset, cont, kill -KILL",
    KILLED,
    steps(_down, admin("system_reset"), admin("cont"), up_again, _kill),
    _NO_SHUTDOWN,
    by_sequence=_UNSAID,
  ),
  Ending(
    "-no-shutdown: user powers off, reset, cont, powers off, QMP quit",
    USER,
    steps(_down, admin("system_reset"), admin("cont"), up_again, _down, _quit),
    _NO_SHUTDOWN,
  ),
  # The same ending, another monitor
  Ending(
    "user powers off, -qmp-pretty",
    USER,
    _powers_off,
    qemu.Machine(pretty=True),
  ),
  Ending(
    "powerdown, -qmp-pretty",
    POWERDOWN,
    _powerdown,
    qemu.Machine(pretty=True),
    by_sequence=_ADMINISTRATOR,
  ),
)

ALL = SHOWN + FURTHER

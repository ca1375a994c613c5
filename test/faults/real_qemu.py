# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A real QEMU process with a boot-sector guest, for schedules."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import signal

from guests import endings
from guests.boot_sector import Command
from guests.qemu import Machine, Qemu

from faults.steps import Deed, Start


class RealQemu:
  """A machine.

  @ivar has_begun: whether the guest was up at any time
  @ivar is_mute: whether there may have been no room for all of its journal

  """

  #: Whoever listens to it would have to be asked.
  has_client = False
  #: Of how much it writes there is a guess.
  written = 4096
  is_met = False
  is_talking = False

  def __init__(
    self, ctrl_dir: pathlib.Path, name: str, plan: Start, *, journal: bool
  ) -> None:
    """Start it.

    @param journal: whether it is to keep a journal
    @raise OSError: if that cannot be prepared

    """
    self._machine = Qemu(
      ctrl_dir,
      name,
      Machine(journal=journal, pvpanic=True, no_shutdown=plan.stays),
    )
    self.has_begun = False
    self.is_mute = False
    self._ignores_button = False
    self._has_failed = False

  @property
  def process(self) -> int:
    return self._machine.pid

  @property
  def is_over(self) -> bool:
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    if not self._has_failed:
      with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, self._machine.pid, flags) is not None
    return True

  def begin(self) -> None:
    """Wait until the guest is up, or QEMU has not even started."""
    if self.has_begun:
      return
    try:
      self._machine.wait_ready()
      self.has_begun = True
    except ConnectionError:
      self._machine.wait()
      self._has_failed = True

  def do(self, deed: Deed, _kilobytes: int) -> None:
    """Let something happen to it that it survives."""
    machine = self._machine
    if deed is Deed.POWERDOWN_IGNORED:
      self._ignores_button = True
      endings.ignored_powerdown(machine)
    elif deed is Deed.RESET:
      self._ignores_button = False
      machine.user(Command.RESET)
      machine.wait_ready()
    elif deed is Deed.PAUSE:
      machine.admin("stop")
      machine.admin("cont")
    elif deed is Deed.LIE_DOWN:
      machine.user(Command.POWER_OFF)
      machine.wait_event("SHUTDOWN")
      machine.wait_event("STOP")
      machine.admin("query-status")
    elif deed is Deed.RISE:
      self._ignores_button = False
      machine.admin("system_reset")
      machine.wait_event("RESET")
      machine.admin("cont")
      machine.wait_ready()

  def end(self, deed: Deed, _: int) -> None:
    """Let it end, which takes the time it takes."""
    machine = self._machine
    if deed in (Deed.ADMINISTRATOR_POWERS_OFF, Deed.GANETI_STOPS):
      if self._ignores_button:
        machine.user(Command.OBEY_BUTTON)
      machine.powerdown()
    elif deed is Deed.QUIT:
      machine.admin("quit")
    else:
      _ENDINGS[deed](machine)

  def serve(self) -> None:
    """Do nothing: it goes on by itself."""

  def end_flood(self) -> None:
    """Do nothing: it is never hostile."""

  def close(self) -> None:
    """End it if it has not ended yet."""
    self._machine.close()


def _tell(command: Command) -> collections.abc.Callable[[Qemu], None]:
  return lambda machine: machine.tell(command.value)


def _send(number: signal.Signals) -> collections.abc.Callable[[Qemu], None]:
  return lambda machine: machine.signal(number)


_ENDINGS = {
  Deed.USER_POWERS_OFF: _tell(Command.POWER_OFF),
  Deed.GOES_FIRST: _tell(Command.POWER_OFF),
  Deed.PANIC: _tell(Command.PANIC),
  Deed.TERMINATE: _send(signal.SIGTERM),
  Deed.KILL: _send(signal.SIGKILL),
  Deed.GANETI_KILLS: _send(signal.SIGKILL),
}

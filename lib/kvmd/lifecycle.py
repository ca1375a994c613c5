# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What QMP events mean: events in, one verdict out.

The events of one QEMU process tell how its guest came to its end:

  - C{SHUTDOWN} says that it did. C{guest} (since QEMU 2.10) says whether by
    itself, C{reason} (since 4.0) by what; see L{REASONS}.
  - C{POWERDOWN} says that an administrator pressed the power button. A guest
    that shuts itself down after that obeyed, and its user had no part in it.
  - C{RESET} says that the guest started anew, C{RESUME} that it runs again.
    Both take back an announced shutdown (under C{-no-shutdown} QEMU outlives
    its guest), and a reset also answers the power button: the guest that it
    was pressed for is gone.
  - C{STOP} says that the guest is paused, which matters only to the rule for
    a QEMU that gives no cause.

Nothing but these events counts, no clock is looked at and no I/O is done.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Callable, Mapping
  from typing import Any, Optional

#: Longest part of an unknown reason that is repeated in a cause, in characters.
_MAX_REASON = 80


class Verdict(enum.Enum):
  """What an instance died of."""

  USER = "user"
  ADMINISTRATOR = "administrator"
  GUEST_REBOOT = "guest reboot"
  GUEST_PANIC = "guest panic"
  OTHER = "other"
  KILLED = "killed or crashed"
  UNKNOWN = "unknown"


class Rule(enum.Enum):
  """How a shutdown is judged.

  C{CAUSE} takes QEMU's word for what caused it. C{SEQUENCE} looks only at the
  order of the events, as Ganeti's first daemon did; it serves any QEMU, and
  C{CAUSE} falls back to it where QEMU gives no cause.

  """

  CAUSE = "cause"
  SEQUENCE = "sequence"


class Outcome(NamedTuple):
  """A verdict and what it rests on.

  @ivar verdict: what the instance died of
  @ivar cause: why, in QEMU's words as far as there are any

  """

  verdict: Verdict
  cause: str


#: QEMU's C{ShutdownCause} (qapi/run-state.json) for a guest's own poweroff.
GUEST_SHUTDOWN = "guest-shutdown"

#: What QEMU's causes begin with when it was not the guest.
_BY_HOST = "host"

#: What is said where QEMU before 4.0 says no more than C{guest: false}.
HOST = "host, not guest"

#: What C{guest} stands for where there is no C{reason}.
_REASON_OF_GUEST: Mapping[bool, str] = {True: GUEST_SHUTDOWN, False: HOST}

#: What the other causes mean, whatever was pending. A cause that is not here,
#: because a newer QEMU brought it, is nobody's order: L{Verdict.OTHER}.
REASONS: Mapping[str, Verdict] = {
  "guest-reset": Verdict.GUEST_REBOOT,
  "guest-panic": Verdict.GUEST_PANIC,
  HOST: Verdict.ADMINISTRATOR,
  "host-signal": Verdict.ADMINISTRATOR,
  "host-qmp-quit": Verdict.ADMINISTRATOR,
  "host-ui": Verdict.ADMINISTRATOR,
  "host-qmp-system-reset": Verdict.ADMINISTRATOR,
  "host-error": Verdict.OTHER,
  "subsystem-reset": Verdict.OTHER,
  "snapshot-load": Verdict.OTHER,
}

#: What of a C{SHUTDOWN} counts.
_SHUTDOWN_DATA = ("guest", "reason")

#: The events that are undone by others, which leave no trace themselves.
_UNDOES: Mapping[str, tuple[str, ...]] = {
  "RESET": ("POWERDOWN", "SHUTDOWN"),
  "RESUME": ("STOP", "SHUTDOWN"),
}

#: The end of a QEMU process that said nothing about it.
UNANNOUNCED = Outcome(Verdict.KILLED, "no SHUTDOWN")

#: A user's shutdown that is known from its file only.
REMEMBERED = Outcome(Verdict.USER, "announced before this daemon attached")


class Lifecycle:
  """What is known of the guest of one QEMU process.

  @ivar announced: the outcome that QEMU has announced, as it stands; None
    while the guest has not come to an end
  @ivar powerdown: whether the guest has yet to answer an administrator who
    pressed the power button

  """

  __slots__ = ("_rule", "_stopped", "announced", "powerdown")

  def __init__(self, rule: Rule) -> None:
    self._rule = rule
    self.powerdown = False
    self._stopped = False
    self.announced: Optional[Outcome] = None

  @property
  def outcome(self) -> Outcome:
    """The outcome, if the process were to end now."""
    return self.announced or UNANNOUNCED

  def receive(self, name: str, data: Mapping[str, Any]) -> None:
    """Takes account of an event.

    @param name: QEMU's name of the event
    @param data: what came with it

    """
    effect = EVENTS.get(name)
    if effect is not None:
      effect(self, data)

  def _powerdown_pressed(self, _: Mapping[str, Any]) -> None:
    self.powerdown = True

  def _reset(self, _: Mapping[str, Any]) -> None:
    self.powerdown = False
    self.announced = None

  def _stop(self, _: Mapping[str, Any]) -> None:
    self._stopped = True

  def _resume(self, _: Mapping[str, Any]) -> None:
    self._stopped = False
    self.announced = None

  def _shutdown(self, data: Mapping[str, Any]) -> None:
    if self._rule is Rule.SEQUENCE or not _has_cause(data):
      if self.announced is None:
        self.announced = self._judge_sequence()
      return
    reason = _reason(data)
    # Under -no-shutdown the guest may be down already; then the host that
    # ends the process only tidies up.
    if self.announced is None or not reason.startswith(_BY_HOST):
      self.announced = self._judge_cause(reason)

  def _judge_cause(self, reason: str) -> Outcome:
    if reason == GUEST_SHUTDOWN:
      if self.powerdown:
        return Outcome(Verdict.ADMINISTRATOR, f"{reason} after powerdown")
      return Outcome(Verdict.USER, reason)
    verdict = REASONS.get(reason)
    if verdict is None:
      return Outcome(Verdict.OTHER, f"unknown reason {reason[:_MAX_REASON]!a}")
    return Outcome(verdict, reason)

  def _judge_sequence(self) -> Outcome:
    if self.powerdown:
      return Outcome(Verdict.ADMINISTRATOR, "shutdown after powerdown")
    if self._stopped:
      return Outcome(Verdict.ADMINISTRATOR, "shutdown while stopped")
    return Outcome(Verdict.USER, "shutdown")


class Essence:
  """The few events that lead to the same state as all that were seen.

  They do so under either rule, and whatever comes after them. However many
  were seen, no more than four are kept.

  @ivar events: their names and data, in order

  """

  def __init__(self) -> None:
    self.events: list[tuple[str, dict[str, Any]]] = []

  def receive(self, name: str, data: Mapping[str, Any]) -> None:
    """Takes account of an event, as L{Lifecycle.receive} does."""
    if name in _UNDOES:
      undone = _UNDOES[name]
      self.events = [event for event in self.events if event[0] not in undone]
      return
    if name not in EVENTS:
      return
    same = [event for event in self.events if event[0] == name]
    if same and name != "SHUTDOWN":
      return
    if same:
      if not _has_cause(data) or _reason(data).startswith(_BY_HOST):
        return
      # The first counts for the one rule, the last for the other.
      if len(same) > 1:
        last = max(i for i, event in enumerate(self.events) if event in same)
        del self.events[last]
    kept = {key: _cut(data[key]) for key in _SHUTDOWN_DATA if key in data}
    self.events.append((name, kept))


def _cut(value: Any) -> Any:
  """Keeps of a value no more than counts, which a hostile one may exceed."""
  if isinstance(value, str):
    return value[:_MAX_REASON]
  return value if isinstance(value, bool) else None


def _has_cause(data: Mapping[str, Any]) -> bool:
  return "guest" in data or "reason" in data


def _reason(data: Mapping[str, Any]) -> str:
  """Says what caused a shutdown, in QEMU's words.

  @param data: of a C{SHUTDOWN} that has C{reason}, C{guest} or both
  @return: the reason; where it is of no use (it is not a string, say), a text
    that is none of QEMU's reasons

  """
  if "reason" in data:
    reason = data["reason"]
  else:
    guest = data["guest"]
    reason = _REASON_OF_GUEST[guest] if isinstance(guest, bool) else None
  return reason if isinstance(reason, str) else ""


#: The events that count, and what each does.
EVENTS: Mapping[str, Callable[[Lifecycle, Mapping[str, Any]], None]] = {
  "POWERDOWN": Lifecycle._powerdown_pressed,
  "RESET": Lifecycle._reset,
  "RESUME": Lifecycle._resume,
  "SHUTDOWN": Lifecycle._shutdown,
  "STOP": Lifecycle._stop,
}

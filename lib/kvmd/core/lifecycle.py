# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What QMP events mean: events in, one verdict out.

The events of one QEMU process tell how its guest came to its end:

  - C{SHUTDOWN} says that it did. C{guest} (since QEMU 2.10) says whether by
    itself, C{reason} (since 4.0) by what; see L{REASONS}.
  - C{POWERDOWN} says that an administrator pressed the power button. A guest
    that shuts itself down after that obeyed, and its user had no part in it.
    The hypervisor's mark says the same of an administrator who was about to.
  - C{RESET} says that the guest started anew, C{RESUME} that it runs again.
    Both take back an announced shutdown (under C{-no-shutdown} QEMU outlives
    its guest), and a reset also answers the power button: the guest that it
    was pressed for is gone.
  - C{STOP} says that the guest is paused, which matters only to the rule for
    a QEMU that gives no cause.
  - C{WATCHDOG} says that the guest hung, and what QEMU does about it. It may
    end without another word, or press the power button itself: who obeys that
    was turned off neither by an administrator nor by a user.
  - C{MEMORY_FAILURE} says that the node's memory failed; QEMU itself may have
    to end by that, without another word.
  - C{GUEST_PANICKED} and C{GUEST_CRASHLOADED} say that the guest's system
    broke down. A shutdown after that is its crash kernel's, and no user's.
  - C{SUSPEND_DISK} says that a shutdown is to come by which the guest
    hibernates. That is a shutdown like any other, and a word in its cause.
  - C{BLOCK_IO_ERROR} says that the guest is paused since a disk failed.

That a guest lives on elsewhere its QEMU does not say: what the hypervisor ends
after a migration looks as if an administrator had, and only its mark tells.

What of this decides nothing is a remark on the end. A reset makes all of it a
matter of the past; what only paused the guest is past when it runs again.

Nothing but these events counts, and some of them only with certain data:
L{events.kind_of} tells. When each of them came matters only for the mark, which
is no event. No clock is looked at and no I/O is done.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import events

if TYPE_CHECKING:
  from collections.abc import Callable, Mapping
  from typing import Any, Optional

#: Longest part of an unknown reason that is repeated in a cause, in characters.
MAX_REASON = 80


class Verdict(enum.Enum):
  """What an instance died of."""

  USER = "user"
  ADMINISTRATOR = "administrator"
  GUEST_REBOOT = "guest reboot"
  GUEST_PANIC = "guest panic"
  MIGRATED = "migrated"
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
BY_HOST = "host"

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

#: The end of a guest that hung, if QEMU is to end then.
_BARKED = Outcome(Verdict.OTHER, "watchdog poweroff")

#: The end of a QEMU whose own memory is broken.
_MEMORY_FAILED = Outcome(Verdict.OTHER, "memory failure")

#: The end of a QEMU process that said nothing about it.
UNANNOUNCED = Outcome(Verdict.KILLED, "no SHUTDOWN")

#: A user's shutdown that is known from its file only.
REMEMBERED = Outcome(Verdict.USER, "announced before this daemon attached")

#: What the end of a QEMU may look like whose guest was migrated.
_OF_A_SOURCE = frozenset(
  {Verdict.ADMINISTRATOR, Verdict.KILLED, Verdict.UNKNOWN}
)

#: The end of a QEMU process that nobody listened to.
UNHEARD = Outcome(Verdict.UNKNOWN, "ended before the daemon was attached")


#: What is known of a guest of which QEMU said nothing else.
_NOTHING: Mapping[str, str] = {}


class Lifecycle:
  """What is known of the guest of one QEMU process.

  @ivar announced: the outcome that QEMU has announced, as it stands; None
    while the guest has not come to an end
  @ivar marked: when the hypervisor marked the instance as about to be stopped
    by an administrator, in seconds since the epoch; None if it did not
  @ivar migrated: when it marked it as migrated to another node, likewise

  """

  __slots__ = (
    "_barks",
    "_is_pressed_by_watchdog",
    "_pressed",
    "_reset_at",
    "_resumed_at",
    "_rule",
    "_said",
    "_stopped",
    "announced",
    "marked",
    "migrated",
  )

  def __init__(self, rule: Rule) -> None:
    self._rule = rule
    self._pressed = False
    self._stopped = False
    # The watchdog presses the power button next, and has pressed it.
    self._barks = False
    self._is_pressed_by_watchdog = False
    # What else was said: the kind of the event, and the words for it, if any.
    self._said: Mapping[str, str] = _NOTHING
    # When the guest last began anew, and when it last went on, in seconds since
    # the epoch.
    self._reset_at = 0.0
    self._resumed_at = 0.0
    self.announced: Optional[Outcome] = None
    self.marked: Optional[float] = None
    self.migrated: Optional[float] = None

  @property
  def outcome(self) -> Outcome:
    """The outcome, if the process were to end now."""
    outcome = self.announced or UNANNOUNCED
    if self.is_migrated and outcome.verdict in _OF_A_SOURCE:
      return Outcome(Verdict.MIGRATED, outcome.cause)
    return outcome

  @property
  def is_migrated(self) -> bool:
    """Whether the guest lives on elsewhere; here it has not gone on since."""
    return self.migrated is not None and self.migrated > max(
      self._reset_at, self._resumed_at
    )

  @property
  def remarks(self) -> list[str]:
    """What else QEMU said that the cause does not tell, each in a few words."""
    return [
      words
      for words in self._said.values()
      if words
      and (
        words != events.PANICKED
        or self.outcome.verdict is not Verdict.GUEST_PANIC
      )
    ]

  @property
  def powerdown(self) -> bool:
    """Whether the guest has yet to answer who pressed the power button.

    If it obeys, that is none of its user's doing.

    """
    return (
      self._pressed
      or self._is_pressed_by_watchdog
      or self._was_marked(math.inf)
    )

  def receive(self, name: str, data: Mapping[str, Any], at: float) -> None:
    """Takes account of an event.

    @param name: QEMU's name of the event
    @param data: what came with it
    @param at: when it came, in seconds since the epoch; 0 if QEMU did not say

    """
    kind = events.kind_of(name, data)
    if not kind:
      return
    if self._said:
      self._said = {
        said: words
        for said, words in self._said.items()
        if name not in events.KINDS[said].undone_by
      }
    effect = _EFFECTS.get(kind)
    if effect is not None:
      effect(self, data, at)
    words = events.KINDS[kind].words
    if words is not None and kind not in self._said:
      self._said = {**self._said, kind: words(data)}

  def _powerdown_pressed(self, _: Mapping[str, Any], __: float) -> None:
    if self._barks:
      self._is_pressed_by_watchdog = True
      self._barks = False
    else:
      self._pressed = True

  def _watchdog_barks(self, _: Mapping[str, Any], __: float) -> None:
    self._barks = True

  def _watchdog_ends_it(self, _: Mapping[str, Any], __: float) -> None:
    self.announced = self.announced or _BARKED

  def _memory_ends_it(self, _: Mapping[str, Any], __: float) -> None:
    self.announced = self.announced or _MEMORY_FAILED

  def _reset(self, _: Mapping[str, Any], at: float) -> None:
    self._pressed = self._barks = self._is_pressed_by_watchdog = False
    # Without a time, it is the order in which the two are known that counts.
    self._reset_at = at or max(self.marked or 0.0, self.migrated or 0.0)
    self.announced = None

  def _stop(self, _: Mapping[str, Any], __: float) -> None:
    self._stopped = True

  def _resume(self, _: Mapping[str, Any], at: float) -> None:
    self._stopped = False
    self._resumed_at = at or self.migrated or 0.0
    self.announced = None

  def _shutdown(self, data: Mapping[str, Any], at: float) -> None:
    # An administrator who came later only tidies up after the guest.
    is_pressed = self._pressed or self._was_marked(at or math.inf)
    if self._rule is Rule.SEQUENCE or not has_cause(data):
      if self.announced is None:
        self.announced = self._judge_sequence(is_pressed=is_pressed)
      return
    reason = reason_of(data)
    # Under -no-shutdown the guest may be down already; then the host that
    # ends the process only tidies up.
    if self.announced is None or not reason.startswith(BY_HOST):
      self.announced = self._judge_cause(reason, is_pressed=is_pressed)

  def _was_marked(self, at: float) -> bool:
    """Tells whether the mark was made by then and is not answered yet."""
    return self.marked is not None and self._reset_at < self.marked <= at

  def _judge_sequence(self, *, is_pressed: bool) -> Outcome:
    if is_pressed or self._is_pressed_by_watchdog:
      return Outcome(Verdict.ADMINISTRATOR, "shutdown after powerdown")
    if self._stopped:
      return Outcome(Verdict.ADMINISTRATOR, "shutdown while stopped")
    return Outcome(Verdict.USER, "shutdown")

  def _judge_cause(self, reason: str, *, is_pressed: bool) -> Outcome:
    if reason == GUEST_SHUTDOWN:
      hibernated = ", hibernated" if "SUSPEND_DISK" in self._said else ""
      verdict, after = self._judge_guest_shutdown(is_pressed=is_pressed)
      return Outcome(verdict, reason + after + hibernated)
    by_reason = REASONS.get(reason)
    if by_reason is None:
      return Outcome(Verdict.OTHER, f"unknown reason {reason[:MAX_REASON]!a}")
    return Outcome(by_reason, reason)

  def _judge_guest_shutdown(self, *, is_pressed: bool) -> tuple[Verdict, str]:
    """Tells whose doing a guest's own poweroff is, and after what it came."""
    if is_pressed:
      return Verdict.ADMINISTRATOR, " after powerdown"
    if self._is_pressed_by_watchdog:
      return Verdict.OTHER, " after watchdog"
    if "GUEST_PANICKED" in self._said or "GUEST_CRASHLOADED" in self._said:
      return Verdict.GUEST_PANIC, " after panic"
    return Verdict.USER, ""


def has_cause(data: Mapping[str, Any]) -> bool:
  """Tells whether QEMU says what caused a shutdown."""
  return "guest" in data or "reason" in data


def reason_of(data: Mapping[str, Any]) -> str:
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


#: What each of L{events.KINDS} does; of the others only is remembered that
#: they were.
_EFFECTS: Mapping[
  str, Callable[[Lifecycle, Mapping[str, Any], float], None]
] = {
  "POWERDOWN": Lifecycle._powerdown_pressed,
  "RESET": Lifecycle._reset,
  "RESUME": Lifecycle._resume,
  "SHUTDOWN": Lifecycle._shutdown,
  "STOP": Lifecycle._stop,
  "WATCHDOG shutdown": Lifecycle._watchdog_barks,
  "WATCHDOG poweroff": Lifecycle._watchdog_ends_it,
  "MEMORY_FAILURE fatal": Lifecycle._memory_ends_it,
}

#: The names of the events that count.
EVENTS = events.NAMES

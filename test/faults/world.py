# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Plays a schedule on one node: its guests live and die."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import pathlib
import time
import typing

from ganeti.kvmd.node import ctrldir
from guests import lifetime

from faults import births, checks, oracle, troubles
from faults.daemons import Daemons
from faults.node import Hypervisor
from faults.oracle import Life
from faults.place import Place
from faults.steps import (
  DOWN,
  FINAL,
  HOSTILE,
  Check,
  Deed,
  Do,
  Engine,
  Fault,
  Pause,
  Schedule,
  Source,
  Start,
  Step,
)
from faults.stranger import Stranger
from faults.tally import Tally

#: Ganeti says first that it is about to do that.
_ANNOUNCED = frozenset({Deed.GANETI_STOPS, Deed.GANETI_KILLS, Deed.GOES_FIRST})

#: And it cleans up after that.
_CLEANED_UP = frozenset({Deed.GANETI_STOPS, Deed.GANETI_KILLS})


@dataclasses.dataclass
class Slot:
  """A guest and its life."""

  guest: births.Guest
  life: Life
  plan: Start
  lies: bool = False
  is_ending: bool = False
  #: When it last wrote a lot, by the daemons' clock
  grown_at: float = 0.0
  #: There must be room for its last words, though the disk is full
  has_room: bool = False


class World:
  """A control directory, its daemon, and the guests.

  @ivar place: the directory
  @ivar hypervisor: Ganeti's
  @ivar daemons: the daemon, over and over
  @ivar slots: the present guests, by their numbers
  @ivar lives: all lives, by the names of the guests, in order
  @ivar tally: what was played so far
  @ivar stranger: another user of the node, while one does something
  @ivar markers: how many guests were there for checks only
  @ivar troubled_at: when the daemon was last kept from its work, by the
    daemons' clock
  @ivar is_exchanged: whether the directory was another one since the last
    check
  @ivar replaced_at: when another directory took the place, by the daemons'
    clock; None if none has

  """

  def __init__(
    self, schedule: Schedule, scratch: pathlib.Path, *options: str
  ) -> None:
    """Start nothing yet.

    @param scratch: an empty directory; this process must have mounts of its
      own
    @param options: further options for the daemon

    """
    self._schedule = schedule
    self._scratch = scratch
    self.place = Place(scratch, in_memory=schedule.in_memory)
    self.hypervisor = Hypervisor(self.place.path)
    self.daemons = Daemons(
      self.place.path,
      scratch,
      f"--rescan-interval={schedule.rescan_interval}",
      *options,
    )
    self.slots: dict[int, Slot] = {}
    self.lives: dict[str, list[Life]] = collections.defaultdict(list)
    self.tally = Tally(schedules=1)
    self.stranger: typing.Optional[Stranger] = None
    self.markers = 0
    self.troubled_at = 0.0
    self.is_exchanged = False
    self.replaced_at: typing.Optional[float] = None

  def let_stranger_in(self) -> None:
    """Let another user of the node lock all that he can open."""
    if self.stranger is None:
      self.stranger = Stranger(self._scratch, self.place.path)

  def let_stranger_go(self) -> None:
    if self.stranger is not None:
      self.stranger.close()
      self.stranger = None

  @property
  def rescan_interval(self) -> float:
    """How often the daemon looks at everything, in seconds."""
    return self._schedule.rescan_interval

  def __enter__(self) -> World:
    return self

  def __exit__(self, *_: object) -> None:
    for slot in self.slots.values():
      slot.guest.close()
      slot.guest.end_flood()
    if self.stranger is not None:
      self.stranger.close()
    self.daemons.close()
    self.place.close()

  def play(self) -> None:
    """Play the schedule.

    @raise WrongError: if something is not right

    """
    for step in self._schedule.steps:
      self._play(step)

  @property
  def log(self) -> list[str]:
    self.daemons.read_log()
    return self.daemons.lines

  def _play(self, step: Step) -> None:
    if isinstance(step, Pause):
      self.pause(step.microseconds / 1e6)
    elif isinstance(step, Start):
      self._start(step)
    elif isinstance(step, Do):
      self._do(step)
    elif isinstance(step, Fault):
      troubles.befall(self, step.what)
    elif isinstance(step, Check):
      troubles.end_all(self)
      checks.check(self)
      self.is_exchanged = False

  # --- Time passes ---

  def pause(self, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    self.serve()
    while (left := deadline - time.monotonic()) > 0:
      time.sleep(min(left, 0.001))
      self.serve()

  def serve(self) -> None:
    self.daemons.check_alive()
    for slot in self.slots.values():
      if slot.life.is_over:
        continue
      slot.guest.serve()
      self._take_note(slot)
      if slot.guest.is_over:
        self._bury(slot)

  def _take_note(self, slot: Slot) -> None:
    """Takes note of who listens to a guest, and how far it has come."""
    if slot.guest.is_talking:
      slot.life.repeat(self.daemons.clock)
    if (
      slot.life.source is Source.SOCKET
      and slot.guest.is_met
      and self.daemons.runs
    ):
      slot.life.is_met = True

  def wait_until(
    self, condition: collections.abc.Callable[[], bool], seconds: float
  ) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
      if time.monotonic() > deadline:
        return False
      self.pause(0.005)
    return True

  # --- Guests ---

  def _start(self, plan: Start) -> None:
    if self.place.is_in_place and self._make_way(plan.guest):
      guest, life = births.start(self, plan)
      self.slots[plan.guest] = Slot(guest, life, plan)

  def is_followed(self, life: Life) -> bool:
    """Tell whether the present daemon follows a guest by its journal."""
    return self.daemons.is_following(life.name, life.followings_before)

  def _make_way(self, number: int) -> bool:
    """Sees to it that the guest that had a place is gone."""
    slot = self.slots.get(number)
    if slot is None:
      return True
    if not slot.life.is_over:
      if not slot.is_ending:
        return False
      self.await_end(slot)
    slot.guest.end_flood()
    del self.slots[number]
    return True

  def await_end(self, slot: Slot) -> None:
    if not self.wait_until(lambda: slot.life.is_over, lifetime.PATIENCE):
      raise TimeoutError(f"does not end: {slot.life}")

  def _do(self, step: Do) -> None:
    slot = self.slots.get(step.guest)
    if slot is None or slot.is_ending or slot.life.is_over:
      return
    guest, life, deed = slot.guest, slot.life, step.deed
    if slot.plan.stays and not _may_stay(slot, deed):
      return
    if not slot.plan.stays and deed in (Deed.LIE_DOWN, Deed.RISE):
      return
    if deed in HOSTILE and (
      life.source is Source.SOCKET or slot.plan.engine is Engine.QEMU
    ):
      return
    if deed in (Deed.GOES_FIRST, Deed.GANETI_KILLS) and (
      not self.place.is_in_place
    ):
      # Another directory would be marked.
      return
    if deed is not Deed.KILL:
      guest.begin()
      if guest.is_over:
        self._bury(slot)
        return
    if guest.has_begun and not life.has_begun:
      life.has_begun = True
      life.known_since = self.daemons.clock
    is_heard = self._is_heard(slot)
    if deed in _ANNOUNCED:
      self.hypervisor.prepare_stop(life.name)
      life.is_marked = self.place.file(
        life.name, ctrldir.Mark.POWERDOWN.value
      ).exists()
    if deed in FINAL:
      slot.is_ending = True
      life.is_exit_due = self._is_exit_due(slot, deed)
      guest.end(deed, step.delay)
    else:
      guest.do(deed, step.kilobytes)
    if deed is Deed.CHATTER:
      slot.grown_at = self.daemons.clock
      slot.has_room = False
    slot.lies = deed is Deed.LIE_DOWN or (slot.lies and deed is not Deed.RISE)
    life.suffer(deed, self.daemons.clock, is_heard=is_heard)
    if deed in _CLEANED_UP:
      life.is_cleaned_up = True
      self.hypervisor.finish_stop(life.name)
    self.serve()

  def _is_heard(self, slot: Slot) -> bool:
    if not self.daemons.runs:
      return False
    life = slot.life
    slot.guest.serve()
    self._take_note(slot)
    if life.source is Source.JOURNAL and life.is_clear:
      life.is_met = self.is_followed(life)
    return self.is_attached(slot)

  def _is_exit_due(self, slot: Slot, deed: Deed) -> bool:
    """Tells whether the daemon has to notice the end of a process.

    It need not know which it is at once, and when it looks at everything it
    forgets those that are gone.

    """
    since = max(slot.life.known_since, self.troubled_at)
    return (
      slot.plan.engine is Engine.QEMU
      and deed in (Deed.KILL, Deed.GANETI_KILLS)
      and self.daemons.runs
      and self.rescan_interval > lifetime.PATIENCE
      and self.daemons.clock - since >= oracle.HEARING
    )

  def is_attached(self, slot: Slot) -> bool:
    life = slot.life
    return slot.guest.has_client or self.daemons.is_attached(
      life.name, life.attachments_before
    )

  def _bury(self, slot: Slot) -> None:
    life = slot.life
    if life.is_over:
      return
    if slot.guest.has_begun and not slot.is_ending:
      raise ChildProcessError(f"QEMU ended by itself: {life}")
    life.is_over = True
    if slot.guest.is_mute and not slot.has_room:
      life.is_robbed = True
    slot.guest.close()
    if life.is_cleaned_up:
      self.hypervisor.clean_up(life.name)
    checks.look_at(self, life)


def _may_stay(slot: Slot, deed: Deed) -> bool:
  """Tells whether a deed makes sense under -no-shutdown."""
  if slot.lies:
    return deed in (Deed.RISE, Deed.TERMINATE, Deed.QUIT, Deed.KILL)
  return deed is not Deed.RISE and deed not in DOWN

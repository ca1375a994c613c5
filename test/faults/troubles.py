# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What happens to the daemon and to the node."""

from __future__ import annotations

import collections.abc
import typing

from faults import checks, oracle
from faults.steps import Engine, Source, Trouble

if typing.TYPE_CHECKING:
  from faults.world import World


def befall(world: World, what: Trouble) -> None:
  """Let something happen, if it makes sense."""
  _TROUBLES[what](world)
  if what not in _HARMLESS:
    world.troubled_at = world.daemons.clock


def end_all(world: World) -> None:
  """Put all in order: a daemon runs, and nothing keeps it from its work."""
  for slot in world.slots.values():
    if slot.is_ending:
      world.await_end(slot)
      slot.guest.end_flood()
  _return_directory(world)
  world.place.ballast.free()
  world.daemons.give_descriptors()
  world.daemons.carry_on()
  if world.daemons.has_few_descriptors:
    _end_daemon(world)
  _start_daemon(world)
  world.daemons.await_watching()


# --- The daemon ---


def _kill_daemon(world: World) -> None:
  if not world.daemons.runs:
    return
  world.tally.kills += 1
  if any(
    slot.plan.engine is Engine.QEMU and not slot.life.is_over
    for slot in world.slots.values()
  ):
    world.tally.kills_beside_qemu += 1
  _lose_daemon(world)
  world.daemons.kill()


def _end_daemon(world: World) -> None:
  if world.daemons.runs:
    _lose_daemon(world)
    world.daemons.end()


def _lose_daemon(world: World) -> None:
  for lives in world.lives.values():
    for life in lives:
      life.lose_daemon(world.daemons.clock)


def _start_daemon(world: World) -> None:
  if not world.daemons.runs:
    world.daemons.start()


def _start_with_few_descriptors(world: World) -> None:
  if not world.daemons.runs:
    world.daemons.start(few_descriptors=True)


def _start_with_other_clock(world: World) -> None:
  if not world.daemons.runs:
    world.daemons.start(clock=True)


def _start_two_daemons(world: World) -> None:
  _kill_daemon(world)
  world.daemons.start_two()


def _start_another_daemon(world: World) -> None:
  """Starts one that has to give way.

  Without a pidfile it has to know by the directory. The daemon that runs may
  have yet to notice that there is another directory now.

  """
  if world.daemons.has_pidfile or (
    world.place.is_in_place and not world.is_exchanged
  ):
    world.daemons.start_another()


# --- The directory ---


def _finish_starts(world: World) -> None:
  """Lets no QEMU make one half of its files here and one half there."""
  for slot in world.slots.values():
    if not slot.life.is_over and not slot.is_ending:
      slot.guest.begin()
  world.serve()


def _lose_sight(world: World) -> None:
  """Takes note that a daemon finds all files gone, or others."""
  world.is_exchanged = True
  for lives in world.lives.values():
    for life in lives:
      life.lose_sight()


def _remove_directory(world: World) -> None:
  if not world.place.is_in_place or world.place.ballast.is_full:
    return
  _finish_starts(world)
  _lose_sight(world)
  world.place.clear()
  for lives in world.lives.values():
    life = lives[-1]
    if life.is_over or life.source is Source.JOURNAL or life.words:
      life.is_robbed = True


def _move_directory(world: World) -> None:
  if world.place.is_in_place:
    _finish_starts(world)
    _lose_sight(world)
    world.place.move_away()


def _replace_directory(world: World) -> None:
  if world.place.is_in_place and not world.place.ballast.is_full:
    _move_directory(world)
    world.place.path.mkdir()
    world.replaced_at = world.daemons.clock
    for lives in world.lives.values():
      lives[-1].is_hidden |= not lives[-1].is_over


def _return_directory(world: World) -> None:
  if world.place.is_in_place:
    return
  if world.replaced_at is not None:
    # The marks of those who ended meanwhile go with the other directory.
    since = world.replaced_at - oracle.HEARING
    world.replaced_at = None
    for lives in world.lives.values():
      life = lives[-1]
      if life.source is Source.SOCKET and any(
        said >= since for said, _ in life.words
      ):
        life.is_robbed = True
  world.place.move_back()


def _overflow(world: World) -> None:
  """Fills the kernel's queue while the daemon does not read it."""
  if not world.place.is_in_place or not world.daemons.runs:
    return
  was_stopped = world.daemons.is_stopped
  world.daemons.stop()
  world.place.churn()
  if not was_stopped:
    world.daemons.carry_on()


# --- The disk ---


def _fill_disk(world: World) -> None:
  if not world.place.is_in_memory:
    return
  world.place.ballast.fill()
  world.serve()
  # A daemon that could do its work has made room for last words.
  latest = world.daemons.clock - world.rescan_interval - oracle.HEARING
  for slot in world.slots.values():
    if (
      slot.guest.written <= oracle.RESERVED
      or max(slot.grown_at, world.troubled_at) <= latest
    ):
      slot.has_room = True


def _fill_inodes(world: World) -> None:
  if world.place.is_in_memory:
    world.place.ballast.fill_inodes()


#: What keeps no daemon from its work
_HARMLESS = frozenset(
  {Trouble.AWAIT_DAEMON, Trouble.DELETE_PIDFILE, Trouble.LOOK}
)

_TROUBLES: dict[Trouble, collections.abc.Callable[[World], None]] = {
  Trouble.KILL_DAEMON: _kill_daemon,
  Trouble.END_DAEMON: _end_daemon,
  Trouble.START_DAEMON: _start_daemon,
  Trouble.START_WITH_FEW_DESCRIPTORS: _start_with_few_descriptors,
  Trouble.START_WITH_OTHER_CLOCK: _start_with_other_clock,
  Trouble.START_TWO_DAEMONS: _start_two_daemons,
  Trouble.START_ANOTHER_DAEMON: _start_another_daemon,
  Trouble.DELETE_PIDFILE: lambda world: world.daemons.delete_pidfile(),
  Trouble.STRANGER_COMES: lambda world: world.let_stranger_in(),
  Trouble.STRANGER_GOES: lambda world: world.let_stranger_go(),
  Trouble.AWAIT_DAEMON: lambda world: world.daemons.await_watching(),
  Trouble.STOP_DAEMON: lambda world: world.daemons.stop(),
  Trouble.CONTINUE_DAEMON: lambda world: world.daemons.carry_on(),
  Trouble.TAKE_DESCRIPTORS: lambda world: world.daemons.take_descriptors(
    spare=0
  ),
  Trouble.LEAVE_A_DESCRIPTOR: lambda world: world.daemons.take_descriptors(
    spare=1
  ),
  Trouble.GIVE_DESCRIPTORS: lambda world: world.daemons.give_descriptors(),
  Trouble.REMOVE_DIRECTORY: _remove_directory,
  Trouble.MOVE_DIRECTORY: _move_directory,
  Trouble.REPLACE_DIRECTORY: _replace_directory,
  Trouble.RETURN_DIRECTORY: _return_directory,
  Trouble.OVERFLOW: _overflow,
  Trouble.FILL_DISK: _fill_disk,
  Trouble.FILL_INODES: _fill_inodes,
  Trouble.FREE_DISK: lambda world: world.place.ballast.free(),
  Trouble.LOOK: checks.look,
}

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How guests are started: as Ganeti does it."""

from __future__ import annotations

import contextlib
import typing

from faults.checks import WrongError
from faults.fake_qemu import FakeQemu
from faults.oracle import Life
from faults.real_qemu import RealQemu
from faults.steps import Engine, Source, Start

if typing.TYPE_CHECKING:
  from faults.world import World

Guest = typing.Union[FakeQemu, RealQemu]

#: Ganeti waits no longer for a daemon that works, in seconds.
_LONG_WAIT = 0.3


def start(world: World, plan: Start) -> tuple[Guest, Life]:
  """Start a guest whose predecessor is gone.

  @raise WrongError: if somebody keeps Ganeti waiting

  """
  name = f"guest{plan.guest}"
  lives = world.lives[name]
  waited = world.hypervisor.waited
  world.daemons.read_log()
  # By wrong dates nobody can know which is the later life.
  is_stock = plan.stock and not any(life.shift for life in lives)
  if is_stock:
    world.hypervisor.prepare_stock_start(name)
  else:
    world.hypervisor.prepare_start(name)
  life = Life(
    name,
    Source.SOCKET,
    len(world.daemons.attachments[name]),
    len(world.daemons.followings[name]),
    shift=plan.shift,
    is_clear=_is_clear(world, name),
  )
  if lives:
    lives[-1].give_way()
  lives.append(life)
  wants_journal = plan.source is Source.JOURNAL and not is_stock
  if plan.engine is Engine.QEMU:
    world.tally.real_lives += 1
    guest, keeps_journal = _start_qemu(world, name, plan, wants_journal)
  else:
    guest, keeps_journal = _start_fake(world, name, plan, wants_journal)
  if keeps_journal:
    world.tally.journal_lives += 1
    life.source = Source.JOURNAL
  else:
    world.tally.socket_lives += 1
  life.process = guest.process
  _check_wait(world, world.hypervisor.waited - waited)
  return guest, life


def _is_clear(world: World, name: str) -> bool:
  """Tells whether the daemon has taken note of all journals of a name."""
  if not world.daemons.runs or not world.lives[name]:
    return True
  last = world.lives[name][-1]
  if last.is_settled or not last.is_clear:
    return last.is_settled
  return last.source is Source.SOCKET or world.is_followed(last)


def _start_qemu(
  world: World, name: str, plan: Start, wants_journal: bool
) -> tuple[Guest, bool]:
  if wants_journal:
    with contextlib.suppress(OSError):
      return RealQemu(world.place.path, name, plan, journal=True), True
  return RealQemu(world.place.path, name, plan, journal=False), False


def _start_fake(
  world: World, name: str, plan: Start, wants_journal: bool
) -> tuple[Guest, bool]:
  keeps_journal = wants_journal and world.hypervisor.prepare_journal(
    name, plan.shift
  )
  guest = FakeQemu(world.place.path, name, plan, journal=keeps_journal)
  return guest, keeps_journal


def _check_wait(world: World, seconds: float) -> None:
  """Makes sure that nobody but the daemon keeps Ganeti waiting.

  @param seconds: for how long it has waited
  @raise WrongError: if somebody does

  """
  # A daemon that is stopped may have stopped anywhere.
  if world.stranger and not world.daemons.is_stopped and seconds > _LONG_WAIT:
    raise WrongError(f"a stranger kept Ganeti waiting for {seconds:.1f} s")

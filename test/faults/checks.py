# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Compares what there is with what the oracle says, now and then."""

from __future__ import annotations

import collections
import collections.abc
import typing

import kvmd_log
from ganeti.kvmd.node import ctrldir, journal_files

from faults import node, oracle
from faults.fake_qemu import FakeQemu
from faults.oracle import Life, Right
from faults.steps import Deed, Source, Start

if typing.TYPE_CHECKING:
  from faults.world import Slot, World

#: Seconds within which the daemon has to have done what is due
PATIENCE = 20.0

#: A journal that occupies as many bytes is made shorter.
_LONG_JOURNAL = 2 * journal_files.RESERVED + 8 * 1024

#: What must not be in the log
_FAULTS = ("a fault of the daemon", "Traceback")


class WrongError(AssertionError):
  """A verdict, or something else, is not right; the text says what."""


# --- What Ganeti sees at any time ---


def look(world: World) -> None:
  """Ask about all guests as Ganeti does."""
  for lives in world.lives.values():
    look_at(world, lives[-1])


def look_at(world: World, life: Life) -> None:
  """Ask as Ganeti does, which needs no daemon where there is a journal.

  Nor does it where the user did nothing that could be taken for his shutdown,
  whatever is there of an earlier life.

  @raise WrongError: if the answer is wrong

  """
  is_told = life.source is Source.JOURNAL and life.must_be_right
  if (
    not life.is_over
    or not world.place.is_in_place
    or not (is_told or life.is_nobodys_doing)
  ):
    return
  is_user_down = world.hypervisor.is_user_down(life.name)
  if is_user_down != (life.right is Right.USER):
    word = "WRONG" if is_user_down else "LOST"
    raise WrongError(
      f"{word}, asked as Ganeti does: {life}\n{world.place.show(life.name)}"
    )


# --- What there is when no trouble is left ---


def check(world: World) -> None:
  """Compare all verdicts, when no trouble is left.

  @raise WrongError: if one is not right

  """
  _synchronise(world)
  world.wait_until(lambda: not _complaints(world), PATIENCE)
  complaints = _complaints(world)
  if complaints:
    raise WrongError("\n".join(complaints))
  _count(world)


def _synchronise(world: World) -> None:
  """Lets a guest live and die after all others.

  When the daemon has judged it, it has taken note of all that was before.

  """
  world.markers += 1
  name = f"marker{world.markers}"
  assert world.hypervisor.prepare_journal(name)
  marker = FakeQemu(world.place.path, name, Start(-1), journal=True)
  marker.begin()
  marker.do(Deed.PAUSE)
  marker.end(Deed.USER_POWERS_OFF, 0)

  def is_judged() -> bool:
    marker.serve()
    return world.place.is_marked(name) and not world.place.has_journal(name)

  is_hostile_there = any(
    life.is_hostile and not life.is_settled
    for lives in world.lives.values()
    for life in lives
  )
  patience = node.PATIENCE if is_hostile_there else PATIENCE
  if not world.wait_until(is_judged, patience):
    raise WrongError(
      f"LOST, or not judged within {patience} s: a guest that nothing happened"
      " to"
    )
  world.hypervisor.clean_up(name)


def _complaints(world: World) -> list[str]:
  world.daemons.read_log()
  verdicts = collections.defaultdict(list)
  for verdict in world.daemons.verdicts:
    verdicts[verdict.instance].append(verdict.verdict)
  complaints = _complaints_of_log(world.daemons.lines)
  history = collections.defaultdict(list)
  for line in world.daemons.history:
    history[line["instance"]].append(line)
  for name, lives in world.lives.items():
    logged = verdicts[name]
    if not oracle.explains(lives, logged):
      told = "\n  ".join(map(str, lives))
      complaints.append(f"WRONG in the log: {logged} on\n  {told}")
    remembered = [line["verdict"] for line in history[name]]
    if not oracle.explains(lives, remembered, is_history=True):
      told = "\n  ".join(map(str, lives))
      complaints.append(f"WRONG in the history: {remembered} on\n  {told}")
    complaints += _complaints_of_processes(world, lives)
    if lives[-1].is_over:
      complaints += _complaints_of(world, lives[-1], logged)
  for slot in world.slots.values():
    if not slot.life.is_over:
      complaints += _complaints_of_living(world, slot)
  return complaints


def _complaints_of_log(lines: list[str]) -> list[str]:
  """Lists the faults of the daemon, each with the whole of its traceback."""
  entries: list[list[str]] = []
  for line in lines:
    if kvmd_log.parse(line) or not entries:
      entries.append([])
    entries[-1].append(line)
  texts = ["\n".join(entry) for entry in entries]
  return [text for text in texts if any(words in text for words in _FAULTS)]


def _complaints_of(
  world: World, life: Life, logged: list[str]
) -> collections.abc.Iterator[str]:
  place = world.place
  expected = life.expected_file
  if expected is not None:
    for is_there, what in (
      (place.is_marked(life.name), "by the shutdown file"),
      (world.hypervisor.is_user_down(life.name), "as Ganeti sees it"),
    ):
      if is_there != expected:
        word = "WRONG" if is_there else "LOST"
        yield f"{word}, {what}: {life}\n{place.show(life.name)}"
  if life.must_be_logged and not (logged and life.allows(logged[-1])):
    yield f"no verdict logged ({logged}): {life}"
  is_done = (
    life.has_begun and not life.is_robbed and life.source is Source.JOURNAL
  )
  if is_done and place.has_journal(life.name):
    yield f"its journal is still there: {life}\n{place.show(life.name)}"


def _complaints_of_processes(
  world: World, lives: list[Life]
) -> collections.abc.Iterator[str]:
  """Lists where a life is not known by the number of its own process."""
  name = lives[0].name
  noticed = world.daemons.exits[name]
  for number in world.daemons.qemus[name] | noticed:
    if number not in {life.process for life in lives}:
      told = "\n  ".join(map(str, lives))
      yield f"knows process {number}, which is none of\n  {told}"
  for life in lives:
    is_missing = life.is_exit_due and life.process not in noticed
    if is_missing and world.daemons.hears_exits:
      yield f"did not notice the end of process {life.process}: {life}"


def _complaints_of_living(
  world: World, slot: Slot
) -> collections.abc.Iterator[str]:
  life = slot.life
  if not _is_followed(world, slot):
    yield f"not attached to: {life}"
  # Who looks at everything only now and then makes it short only then.
  is_kept_short = world.rescan_interval < PATIENCE and not (
    life.is_robbed or life.is_hostile
  )
  if is_kept_short and world.place.journal_size(life.name) >= _LONG_JOURNAL:
    yield f"its journal is long: {life}"


def _is_followed(world: World, slot: Slot) -> bool:
  life = slot.life
  is_reachable = world.place.file(life.name, ctrldir.MONITOR_SUFFIX).exists()
  if life.source is Source.JOURNAL or not is_reachable:
    return True
  slot.guest.begin()
  return world.is_attached(slot)


def _count(world: World) -> None:
  """Takes stock of the lives that were over at a check."""
  for lives in world.lives.values():
    for life in lives:
      if life.is_over and not life.is_settled and life.right is Right.USER:
        world.tally.user_shutdowns += 1
        if life is lives[-1] and not world.place.is_marked(life.name):
          world.tally.unheard += 1
      life.confirm()

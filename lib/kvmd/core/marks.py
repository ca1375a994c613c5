# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The marks: what is left in the control directory to be known. No I/O.

A mark is an empty file that says something of one life of an instance: to
Ganeti, or to a daemon that knows nothing of that life yet. Which marks there
should be follows from what is known of the life, and what one means that is
there is taken into account there: L{MEANINGS} has a row for each. Who adds a
mark adds a row.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import lifecycle

if TYPE_CHECKING:
  from collections.abc import Callable, Mapping
  from typing import Optional

  from ganeti.kvmd.core.lifecycle import Lifecycle


class Mark(enum.Enum):
  """What is left to be known; the value ends the file's name.

  @cvar SHUTDOWN: the instance's user turned it off
  @cvar POWERDOWN: an administrator asked the instance to turn itself off, or
    its watchdog did; if it does, its user did not
  @cvar MIGRATED: the hypervisor ends a QEMU whose guest lives on elsewhere

  """

  SHUTDOWN = ".shutdown"
  POWERDOWN = ".powerdown"
  MIGRATED = ".migrated"

  # Each is itself only; Python's own takes ten times as long.
  __hash__ = object.__hash__


class Meaning(NamedTuple):
  """What a mark means to the daemon.

  @ivar wanted: whether there should be one, from what is known of a life that
    goes on; None if it may be left as it was found
  @ivar wanted_after: the same of a life that is over
  @ivar found: takes into account that there is one, made at that time, in
    seconds since the epoch
  @ivar is_testimony: whether one that was there when a life ended unheard says
    what it died of
  @ivar is_recalled: whether the hypervisor makes it as well, at any time
  @ivar is_sought: whether it is looked for at the end of a life
  @ivar is_logged: whether the log tells when it is written or removed
  @ivar not_written: what it means that it cannot be written
  @ivar not_removed: what it means that it cannot be removed

  """

  wanted: Callable[[Lifecycle], Optional[bool]]
  wanted_after: Callable[[Lifecycle], bool]
  found: Callable[[Lifecycle, float], None]
  is_testimony: bool
  is_recalled: bool
  is_sought: bool
  is_logged: bool
  not_written: str
  not_removed: str


def _is_user(state: Lifecycle) -> bool:
  return state.outcome.verdict is lifecycle.Verdict.USER


def _is_announced_user(state: Lifecycle) -> Optional[bool]:
  return None if state.announced is None else _is_user(state)


def _shutdown_found(state: Lifecycle, _: float) -> None:
  if state.announced in (None, lifecycle.UNHEARD):
    state.announced = lifecycle.REMEMBERED


def _is_pressed(state: Lifecycle) -> Optional[bool]:
  return state.powerdown or None


def _never(_: Lifecycle) -> bool:
  return False


def _is_migrated(state: Lifecycle) -> Optional[bool]:
  return state.is_migrated or None


def _migrated_found(state: Lifecycle, at: float) -> None:
  state.migrated = at


def _powerdown_found(state: Lifecycle, at: float) -> None:
  state.marked = at


MEANINGS: Mapping[Mark, Meaning] = {
  Mark.SHUTDOWN: Meaning(
    wanted=_is_announced_user,
    wanted_after=_is_user,
    found=_shutdown_found,
    is_testimony=True,
    is_recalled=False,
    is_sought=False,
    is_logged=True,
    not_written="Ganeti may take its end for a crash",
    not_removed="Ganeti may take its end for its user's shutdown",
  ),
  Mark.POWERDOWN: Meaning(
    wanted=_is_pressed,
    wanted_after=_never,
    found=_powerdown_found,
    is_testimony=False,
    is_recalled=True,
    is_sought=False,
    is_logged=False,
    not_written="its end may pass for its user's shutdown, should the daemon be"
    " restarted",
    not_removed="its user's shutdown may pass for an administrator's, should"
    " the daemon be restarted",
  ),
  Mark.MIGRATED: Meaning(
    wanted=_is_migrated,
    wanted_after=_never,
    found=_migrated_found,
    is_testimony=True,
    is_recalled=False,
    is_sought=True,
    is_logged=False,
    not_written="its end may pass for an administrator's",
    not_removed="that means nothing",
  ),
}


class Due(NamedTuple):
  """A mark that is not as it is to be.

  @ivar mark: the mark
  @ivar is_wanted: whether it is to be there

  """

  mark: Mark
  is_wanted: bool


class Marks:
  """The marks of one life: which are as they are to be.

  What a mark was found or left as counts; one that was not touched may be
  there or not.

  """

  __slots__ = ("_left",)

  def __init__(self) -> None:
    self._left: dict[Mark, bool] = {}

  def find(self, mark: Mark, state: Lifecycle, at: float) -> None:
    """Takes note that one is there.

    @param state: what is known of the life
    @param at: when it was made, in seconds since the epoch

    """
    self._left[mark] = True
    MEANINGS[mark].found(state, at)

  def leave(self, due: Due) -> None:
    """Takes note that one is as it is to be."""
    self._left[due.mark] = due.is_wanted

  def due(self, state: Lifecycle, *, is_over: bool) -> list[Due]:
    """Lists those that are not as they are to be.

    @param state: what is known of the life
    @param is_over: whether it is over

    """
    due = []
    for mark, meaning in MEANINGS.items():
      wanted = (meaning.wanted_after if is_over else meaning.wanted)(state)
      left = self._left.get(mark)
      if bool(wanted) is not left and (wanted is not None or left is not None):
        due.append(Due(mark, bool(wanted)))
    return due

  def end(self, state: Lifecycle, *, is_heard: bool) -> None:
    """Takes note that the life is over.

    Whoever made it: a mark that would say something wrong now is to go. But an
    end that nobody heard leaves alone what may have been known of it before.

    @param state: what is known of the life
    @param is_heard: whether anything was heard of it

    """
    for mark, meaning in MEANINGS.items():
      if not is_heard and meaning.is_testimony:
        self._left.setdefault(mark, False)
      elif not meaning.is_sought and not meaning.wanted_after(state):
        self._left.pop(mark, None)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""One file of Ganeti's, and the link to ours in its place.

What there is to do follows from what is found, never from what an earlier run
wanted to do. Each step is one change that happens or does not, and after any of
them either Ganeti's file or ours is in the place: there is no moment without.

  ==========================  ===============  ==================  ============
  after                       in the place     beside it           on record
  ==========================  ===============  ==================  ============
  (at first)                  Ganeti's         nothing             no
  record                      Ganeti's         nothing             yes
  keep                        Ganeti's         the same file       yes
  replace                     ours             Ganeti's            yes
  restore                     Ganeti's         nothing             yes
  forget                      Ganeti's         nothing             no
  ==========================  ===============  ==================  ============

An upgrade by dpkg puts Ganeti's file beside ours at any time when it is on
record; an installation without dpkg puts it in the place.
"""

from __future__ import annotations

import enum
import filecmp
import glob
import os
from typing import NamedTuple

from ganeti.tools.kvmd_setup import records, system


class State(enum.Enum):
  """Whose file is in the place.

  @cvar HALFWAY: an earlier run was interrupted, or Ganeti was installed again
  @cvar GONE: it is ours, and Ganeti is not installed any more

  """

  STOCK = "Ganeti's own"
  OURS = "ours"
  HALFWAY = "half-way between Ganeti's own and ours"
  GONE = "ours, but Ganeti's own is not installed any more"


class Paths(NamedTuple):
  """Where the files are.

  @ivar place: where Ganeti looks for its file
  @ivar stock: where Ganeti's own file is while ours is in the place
  @ivar ours: our file

  """

  place: str
  stock: str
  ours: str


class Replacement:
  """One file of Ganeti's that ours can take the place of."""

  def __init__(self, paths: Paths) -> None:
    """Finds out who keeps the record of the file.

    @raise system.TroubleError: if dpkg does not say

    """
    self.paths = paths
    self._record = records.find(paths.place, paths.stock)

  def look(self) -> State:
    """Finds out whose file is in the place.

    @raise system.TroubleError: if it is somebody else's, or one was edited

    """
    place, stock, _ = self.paths
    has_place, has_stock = os.path.lexists(place), os.path.lexists(stock)
    is_recorded = self._record.exists()
    if not is_recorded and not self._is_ours():
      self._check_untouched(has_place=has_place, has_stock=has_stock)
      return State.STOCK
    if not has_stock:
      if has_place and not self._is_ours():
        self._check_unedited(place)
        return State.HALFWAY
      if is_recorded and not self._record.has_owner:
        return State.GONE
      raise system.TroubleError(
        f"Ganeti's own {place} is nowhere, not even at {stock};"
        f" {self._record.remedy}"
      )
    self._check_unedited(stock)
    if not has_place or self._is_same():
      return State.HALFWAY
    if self._is_ours():
      return State.OURS if is_recorded else State.HALFWAY
    if not self._record.is_renewable:
      raise system.TroubleError(
        f"{place} is neither ours nor Ganeti's own, which is {stock}; if you"
        " edited it, save it elsewhere; then remove it"
      )
    return State.HALFWAY

  def enable(self) -> None:
    """Puts ours in the place.

    @raise system.TroubleError: if that is not possible

    """
    place, stock, ours = self.paths
    state = self.look()
    if state is State.GONE:
      raise system.TroubleError(
        f"Ganeti's own {place} is not installed any more; {self._record.remedy}"
      )
    if state is not State.OURS:
      is_theirs = os.path.lexists(place) and not self._is_ours()
      if is_theirs and os.path.lexists(stock) and not self._is_same():
        system.remove(stock)
      self._record.make()
      if not os.path.lexists(stock):
        os.link(place, stock, follow_symlinks=False)
      system.put_link(place, ours)
    self._tidy()

  def disable(self) -> None:
    """Puts Ganeti's own in the place, as it was.

    @raise system.TroubleError: if that is not possible

    """
    place, stock, _ = self.paths
    state = self.look()
    if state is State.GONE:
      system.remove(place)
    elif state is not State.STOCK:
      if self._is_ours() or not os.path.lexists(place):
        os.rename(stock, place)
      else:
        system.remove(stock)
    self._tidy()
    self._record.drop()

  def _is_ours(self) -> bool:
    return system.link_target(self.paths.place) == self.paths.ours

  def _is_same(self) -> bool:
    """Tells whether the files in the place and beside it are the same."""
    place, stock, _ = self.paths
    if os.path.islink(place) or os.path.islink(stock):
      return system.link_target(place) == system.link_target(stock)
    return filecmp.cmp(place, stock, shallow=False)

  def _check_untouched(self, *, has_place: bool, has_stock: bool) -> None:
    place, stock, _ = self.paths
    if has_stock:
      raise system.TroubleError(
        f"{stock} is in the way, and not from this program; move it elsewhere"
      )
    if not has_place:
      raise system.TroubleError(f"there is no {place}; {self._record.remedy}")
    self._check_unedited(place)

  def _check_unedited(self, path: str) -> None:
    if self._record.is_edited(path):
      raise system.TroubleError(
        f"{path} was edited: it is not as Ganeti installed it; save it if you"
        f" need it, then {self._record.remedy}"
      )

  def _tidy(self) -> None:
    """Removes what interrupted runs left, and byte code without a source."""
    place, stock, _ = self.paths
    system.remove(system.temporary_name(place))
    if place.endswith(".py") and not os.path.lexists(stock):
      directory, name = os.path.split(stock)
      pattern = os.path.splitext(name)[0] + ".*.pyc"
      for path in glob.glob(
        os.path.join(glob.escape(directory), "__pycache__", pattern)
      ):
        system.remove(path)

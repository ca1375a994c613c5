# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The delivery of verdicts: marks first, the words about it second.

The shutdown file does not wait for the end of the process. It follows what
QEMU has announced: Ganeti looks for the process first, so that a file beside a
live process does no harm, but one that comes late does. Which marks there
should be is known elsewhere; here the control directory is brought in line
with it, and where that fails it is tried again. Nobody else does that.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.marks import MEANINGS, Due
from ganeti.kvmd.node import mark_files
from ganeti.kvmd.node.ctrldir import MissingDirectoryError

if TYPE_CHECKING:
  from collections.abc import Iterator

  from ganeti.kvmd.follow.instance import Instance
  from ganeti.kvmd.node.ctrldir import Life
  from ganeti.kvmd.node.place import Place

#: The marks that the hypervisor makes as well.
_RECALLED = [mark for mark, row in MEANINGS.items() if row.is_recalled]

#: Those that say how a life ended.
_SOUGHT = [mark for mark, row in MEANINGS.items() if row.is_sought]


#: Those without which a journal tells something else than with them.
_BESIDE_A_JOURNAL = frozenset(_RECALLED + _SOUGHT)


class Verdicts:
  """Gives verdicts, and keeps the marks in line with what is known."""

  def __init__(self, place: Place, interval: float) -> None:
    """Has nothing to do yet.

    @param place: where the control directory is
    @param interval: seconds after which it is tried again to leave marks

    """
    self._place = place
    self._interval = interval
    # The instances whose marks are not as they are to be, by their names.
    self._late: dict[str, Instance] = {}
    self._next = 0.0

  @property
  def due(self) -> float:
    """When L{retry} is to be called, by the monotonic clock."""
    return self._next if self._late else float("inf")

  def retry(self, now: float) -> Iterator[Instance]:
    """Gives the instances for which L{settle} is to be called again.

    @param now: seconds of the monotonic clock

    """
    if now >= self.due:
      self._next = now + self._interval
      yield from list(self._late.values())

  def is_late(self, instance: Instance) -> bool:
    """Tells whether the marks of an instance are not as they are to be."""
    return self._late.get(instance.name) is instance

  def forget(self, instance: Instance) -> None:
    """Leaves the marks of an instance as they are."""
    if self._late.get(instance.name) is instance:
      del self._late[instance.name]

  def end(self, instance: Instance) -> None:
    """Gives the verdict on a life, if there was a QEMU.

    Of one that never said anything an earlier daemon may have heard that its
    user ended it, which its mark tells. If it has a journal, that will tell.

    """
    if not instance.is_met:
      return
    if not instance.is_attached:
      if self.is_journaled(instance):
        return
      instance.lifecycle.announced = lifecycle.UNHEARD
      self.find(instance)
    else:
      self._seek(instance)
    ending = instance.end()
    self.settle(instance)
    instance.report(ending)

  def is_journaled(self, instance: Instance) -> bool:
    """Tells whether there is a journal of an instance's life.

    One that cannot be looked at cannot be followed either.

    """
    try:
      return (
        instance.life is not None
        and self._place.directory.journal_tells_of(instance.name, instance.life)
      )
    except OSError:
      return False

  def find(self, instance: Instance) -> None:
    """Finds out what marks mean that are there already, or removes them."""
    directory = self._place.directory
    if instance.life is None:
      return
    try:
      for mark in MEANINGS:
        found = mark_files.find(directory, mark, instance.name, instance.life)
        if found is None:
          continue
        if found.is_current:
          instance.marks.find(mark, instance.lifecycle, found.at)
        else:
          mark_files.remove(directory, mark, instance.name)
          instance.log_mark(mark, "removed")
    except OSError as err:
      _complain_of(err, instance)

  def recall(self, instance: Instance) -> None:
    """Sees whether the hypervisor says what QEMU did not say yet.

    Where an administrator and a user turn the instance off at once, the
    administrator's word stands.

    """
    if instance.life is None or instance.lifecycle.powerdown:
      return
    try:
      for mark in _RECALLED:
        at = mark_files.marked_at(
          self._place.directory, mark, instance.name, instance.life
        )
        if at is not None:
          instance.marks.find(mark, instance.lifecycle, at)
    except OSError as err:
      _complain_of(err, instance)

  def _seek(self, instance: Instance) -> None:
    """Sees whether the hypervisor says how a life ended."""
    if instance.life is None:
      return
    try:
      for mark in _SOUGHT:
        at = mark_files.marked_at(
          self._place.directory, mark, instance.name, instance.life
        )
        if at is None:
          instance.marks.leave(Due(mark, is_wanted=False))
        else:
          instance.marks.find(mark, instance.lifecycle, at)
    except OSError as err:
      _complain_of(err, instance)

  def tidy_up(self, name: str, life: Life, last: int) -> None:
    """Removes what was left for who reads a journal, after the journal.

    Till then it is judged by that again, should the daemon be restarted. What a
    later life has is its own; each start removes old ones.

    @param life: the one that the journal told of
    @param last: when the journal was written to last, in nanoseconds since the
      epoch

    """
    directory = self._place.directory
    with contextlib.suppress(OSError):
      # A QEMU that was killed leaves its monitor, which is older.
      is_reborn = directory.has_monitor(name) and (
        directory.life(name).born > last
      )
      if is_reborn or directory.has_journal(name):
        return
      for mark in _BESIDE_A_JOURNAL:
        if mark_files.marked_at(directory, mark, name, life) is not None:
          mark_files.remove(directory, mark, name)

  def settle(self, instance: Instance) -> bool:
    """Brings the marks in line with what is known of an instance.

    @return: whether that is done; if not, it is tried again

    """
    if self._bring_in_line(instance):
      self.forget(instance)
      if instance.is_over:
        instance.begin(None)
      return True
    if not self._late:
      self._next = time.monotonic() + self._interval
    self._late[instance.name] = instance
    return False

  def _bring_in_line(self, instance: Instance) -> bool:
    directory = self._place.directory
    stays = _BESIDE_A_JOURNAL if instance.is_over_by_journal else ()
    for due in instance.marks.due(instance.lifecycle, is_over=instance.is_over):
      if instance.life is None:
        return False
      if due.mark in stays:
        continue
      try:
        if due.is_wanted:
          if mark_files.write(
            directory, due.mark, instance.name, instance.life
          ):
            instance.log_mark(due.mark, "written")
        elif mark_files.remove(directory, due.mark, instance.name):
          instance.log_mark(due.mark, "removed")
      except MissingDirectoryError:
        return False
      except OSError as err:
        meaning = MEANINGS[due.mark]
        instance.complain(
          "cannot %s its file %s in %s (%s); trying again every second,"
          " and till then %s",
          "write" if due.is_wanted else "remove",
          err.filename,
          directory.path,
          err.strerror,
          meaning.not_written if due.is_wanted else meaning.not_removed,
        )
        if err.errno != errno.ENAMETOOLONG:
          return False
      instance.marks.leave(due)
    return True


def _complain_of(err: OSError, instance: Instance) -> None:
  if not isinstance(err, MissingDirectoryError):
    instance.complain(
      "cannot find out about its file %s: %s", err.filename, err.strerror
    )

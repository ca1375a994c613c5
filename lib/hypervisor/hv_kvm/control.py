# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the hypervisor does in the control directory.

Nothing of that is worth an instance: whatever goes wrong is logged, with what
it means, and nothing is raised.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.hypervisor.hv_kvm import inquiry
from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import ctrldir, journal_files, mark_files, rule_file

if TYPE_CHECKING:
  from collections.abc import Iterable, Iterator, Mapping


class Deed(NamedTuple):
  """Something that Ganeti can do without.

  @ivar what: what is done
  @ivar meaning: what it means if it fails

  """

  what: str
  meaning: str


FIND_OUT = Deed(
  "find out whether its user shut it down", "it is taken for crashed"
)
_PREPARE = Deed(
  "make its journal",
  "it is started without one; if its user shuts it down while the KVM daemon"
  " does not run, it is taken for crashed",
)
_MARK_POWERDOWN = Deed(
  "mark it as stopped by an administrator",
  "should its user shut it down in the same moment, that is what counts",
)
_MARK_MIGRATED = Deed(
  "mark it as migrated",
  "the KVM daemon's log has it as stopped by an administrator here",
)
_CLEAR = Deed(
  "remove what is known of its last life",
  "it may pass for shut down by its user when it is not; remove that by hand",
)

#: The marks that the hypervisor makes.
MADE: Mapping[Mark, Deed] = {
  Mark.POWERDOWN: _MARK_POWERDOWN,
  Mark.MIGRATED: _MARK_MIGRATED,
}


class Control:
  """The control directory, as the hypervisor uses it.

  It is opened for each deed. Where it is missing there are no marks, and there
  is nothing to do.

  """

  def __init__(self, path: str) -> None:
    self._path = path

  def prepare_journal(self, name: str) -> list[str]:
    """Makes the files of a journal.

    @param name: the instance's
    @return: QEMU's options for it; none if there is no journal

    """
    with self.tolerating(name, _PREPARE), self._opened() as directory:
      return journal_files.prepare(directory, name)
    return []

  def clear(self, name: str, marks: Iterable[Mark] = tuple(Mark)) -> None:
    """Removes what was said of an earlier life of an instance.

    A journal is removed with the marks, unless the instance lives, or is marked
    as migrated still: then it is for the daemon.

    @param name: the instance's

    """
    self.unmark(name, marks)
    with self.tolerating(name, _CLEAR), self._opened() as directory:
      if not (
        journal_files.is_being_written(directory, name)
        or mark_files.is_marked(directory, Mark.MIGRATED, name)
      ):
        journal_files.remove(directory, name)

  def unmark(self, name: str, marks: Iterable[Mark]) -> None:
    """Removes marks.

    @param name: the instance's

    """
    for mark in marks:
      with self.tolerating(name, _CLEAR), self._opened() as directory:
        mark_files.remove(directory, mark, name)

  def mark(self, name: str, mark: Mark) -> None:
    """Marks an instance that runs, and is about to be stopped.

    If that fails, the daemon has only QEMU's word for it, as L{MADE} says.

    @param name: the instance's

    """
    with self.tolerating(name, MADE[mark]), self._opened() as directory:
      mark_files.write(directory, mark, name, directory.life(name))

  def is_user_shutdown(self, name: str, budget: inquiry.Budget) -> bool:
    """Tells whether an instance that is down was turned off by its user.

    @param name: the instance's
    @param budget: how long journals may be read

    """
    with self.tolerating(name, FIND_OUT), self._opened() as directory:
      # The daemon marks an instance before it removes the journal: in this
      # order one of the two is found.
      by_journal = inquiry.is_user_shutdown(
        directory, name, _rule(directory), budget
      )
      if by_journal is not None:
        return by_journal
      return mark_files.is_marked(directory, Mark.SHUTDOWN, name)
    return False

  def may_be_marked(self, name: str, seconds: float) -> bool:
    """Tells whether an instance that is down may be marked just now.

    The daemon knows nothing that we do not know of an instance that left a
    journal, or that was killed and so left its monitor. And if no QEMU has
    removed its sockets a moment ago, none has ended by itself.

    @param name: the instance's; it was started here
    @param seconds: how long a moment is
    @raise OSError: if that cannot be found out

    """
    try:
      with self._opened() as directory:
        changed = os.fstat(directory.descriptor).st_mtime
        return (
          0 <= time.time() - changed < seconds
          and not directory.has_monitor(name)
          and not directory.has_journal(name)
        )
    except ctrldir.MissingDirectoryError:
      return False

  @contextlib.contextmanager
  def tolerating(self, name: str, deed: Deed) -> Iterator[None]:
    """Logs what fails for an instance, and goes on.

    @param name: the instance's
    @param deed: what is done

    """
    try:
      yield
    except ctrldir.MissingDirectoryError:
      pass
    except OSError as err:
      logging.warning(
        "Instance %s: cannot %s (%s: %s): %s",
        name,
        deed.what,
        os.path.join(self._path, str(err.filename or "")),
        err.strerror,
        deed.meaning,
      )
    except Exception:
      logging.exception(
        "Instance %s: cannot %s, by a fault of ganeti-kvmd, please report it:"
        " %s",
        name,
        deed.what,
        deed.meaning,
      )

  @contextlib.contextmanager
  def _opened(self) -> Iterator[ctrldir.ControlDirectory]:
    """Opens the directory for a while.

    @raise ctrldir.MissingDirectoryError: if there is none
    @raise OSError: if it cannot be opened

    """
    try:
      descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as err:
      raise ctrldir.MissingDirectoryError(*err.args, self._path) from None
    try:
      yield ctrldir.ControlDirectory(
        self._path, descriptor, ctrldir.MONITOR_SUFFIX
      )
    finally:
      os.close(descriptor)


def _rule(directory: ctrldir.ControlDirectory) -> lifecycle.Rule:
  """Returns the rule that the daemon judges by, or did while it ran."""
  try:
    return lifecycle.Rule(rule_file.read(directory))
  except ValueError:
    return lifecycle.Rule.CAUSE

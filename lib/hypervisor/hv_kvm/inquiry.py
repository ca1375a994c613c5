# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the journal of an instance that is down tells.

Ganeti's node daemon asks this about all instances of the node at once, and its
jobs wait for the answer. How long a journal is, its QEMU decides. So there is
a budget; a journal for which it does not suffice has no answer, and gets a
digest, so that who asks next goes on from there: each request of the node
daemon is a process of its own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.marks import Mark
from ganeti.kvmd.node import journal, journal_files, mark_files

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Optional

  from ganeti.kvmd.node.ctrldir import ControlDirectory

#: Longest that one journal is read, in seconds.
ONE = 0.25

#: Longest that all journals are read that are asked about at once, in seconds.
ALL = 1.0

#: Questions are asked at once if there are fewer seconds between them.
_PAUSE = 1.0


class Budget:
  """How much time is left for reading journals."""

  def __init__(self) -> None:
    self._spent = 0.0
    self._last = float("-inf")

  @contextlib.contextmanager
  def use(self) -> Iterator[float]:
    """Gives the seconds that one journal may be read, and counts them."""
    began = time.monotonic()
    if began - self._last >= _PAUSE:
      self._spent = 0.0
    try:
      yield max(0.0, min(ONE, ALL - self._spent))
    finally:
      self._last = time.monotonic()
      self._spent += self._last - began


def is_user_shutdown(
  directory: ControlDirectory, name: str, rule: lifecycle.Rule, budget: Budget
) -> Optional[bool]:
  """Tells whether a journal says that an instance's user turned it off.

  That is what the daemon will say as soon as it has read the journal.

  @param name: the instance's; its process is known to be gone
  @param rule: how a shutdown is judged
  @return: None if there is no journal that says anything

  """
  try:
    with journal_files.opened(directory, name) as files:
      if directory.is_journal_outdated(name, files.written_at):
        return None
      with budget.use() as seconds:
        reading = journal.Reading(files, rule)
        marked = mark_files.marked_at(
          directory, Mark.POWERDOWN, name, files.life
        )
        reading.advance(files, marked, seconds)
      if reading.is_complete:
        return _verdict(reading.record(files))
      logging.warning(
        "Instance %s: its journal is too long to be read at once; until it is"
        " read, the instance does not count as turned off by its user",
        name,
      )
      with contextlib.suppress(BlockingIOError):
        files.give_back(reading.digest)
      return False
  except FileNotFoundError:
    return None
  except (journal_files.JournalError, OSError) as err:
    logging.warning("Instance %s: its journal is of no use: %s", name, err)
    return None


def _verdict(record: journal.Record) -> Optional[bool]:
  if not record.version:
    return None
  return record.lifecycle.outcome.verdict is lifecycle.Verdict.USER

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Journals, written as QEMU writes them, and read as the daemon reads them."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Optional

from fake_monitor import USER, event
from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.node import journal, journal_files
from ganeti.kvmd.node.ctrldir import JOURNAL_EVENTS

if TYPE_CHECKING:
  from collections.abc import Callable, Iterator

  from ganeti.kvmd.node.ctrldir import ControlDirectory
  from ganeti.kvmd.node.journal_files import JournalFiles

NAME = "web1"
CHATTER = event("RTC_CHANGE", {"offset": 1})
END = event("SHUTDOWN", USER)


@contextlib.contextmanager
def writing(control: ControlDirectory) -> Iterator[Callable[[bytes], None]]:
  """Makes a journal, and writes into it as QEMU does: at its own place."""
  journal_files.prepare(control, NAME)
  path = os.path.join(control.path, NAME + JOURNAL_EVENTS)
  writer = os.open(path, os.O_WRONLY)

  def append(data: bytes) -> None:
    assert os.write(writer, data) == len(data)

  yield append
  os.close(writer)


def read_whole(
  files: JournalFiles,
  rule: Rule = Rule.CAUSE,
  marked: Optional[float] = None,
) -> journal.Reading:
  """Reads an open journal to its end."""
  reading = journal.Reading(files, rule)
  reading.advance(files, marked, math.inf)
  assert reading.is_complete
  return reading


def replay(
  control: ControlDirectory,
  rule: Rule = Rule.CAUSE,
  marked: Optional[float] = None,
) -> journal.Record:
  """Returns what the journal tells."""
  with journal_files.opened(control, NAME) as files:
    return read_whole(files, rule, marked).record(files)


def condense(control: ControlDirectory, rule: Rule = Rule.CAUSE) -> None:
  """Makes a digest of all that there is of the journal."""
  with journal_files.opened(control, NAME) as files:
    files.give_back(read_whole(files, rule).digest)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What Ganeti and QEMU left behind of how a life ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import history_line
from ganeti.kvmd.core.lifecycle import Verdict
from ganeti.kvmd.node import last_words, reason_trail
from ganeti.kvmd.node.last_words import Fate

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.core.history_line import Ending


class Directories(NamedTuple):
  """Where there may be something.

  @ivar logs: the log files of the instances' QEMUs; None for nowhere
  @ivar reasons: Ganeti's reason trails of the instances; None for nowhere

  """

  logs: Optional[str] = None
  reasons: Optional[str] = None


def add(ending: Ending, directories: Directories) -> Ending:
  """Adds to what is known of an end what can be found out now.

  Of a user's own shutdown there is nothing to be found out: QEMU says no more,
  and Ganeti had no part in it.

  """
  began, known = ending.began, ending.ended or ending.heard
  is_users = ending.outcome.verdict is Verdict.USER
  if is_users or began is None or known is None:
    return ending
  if directories.logs is not None:
    found = last_words.read(
      directories.logs,
      ending.instance,
      began=began,
      ended=known,
      is_reborn=False,
    )
    ending = ending._replace(
      words=found.text,
      telling=found.short,
      is_overwritten=found.fate is Fate.OVERWRITTEN,
    )
  if directories.reasons is not None:
    trail = reason_trail.read(
      directories.reasons, ending.instance, began=began, ended=known
    )
    if trail is not None:
      told = {**trail._asdict(), "at": history_line.written_out(trail.at)}
      ending = ending._replace(
        asked={name: value for name, value in told.items() if value}
      )
  return ending

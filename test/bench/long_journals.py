# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How long the node daemon reads honest journals where no daemon runs.

A guest may run for months, and its journal be long then. Of its events a tenth
tells of resets and pauses, which count; in the end its user turns it off.

"""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import fleet
import node_side
import peers
from pretended import RESET, UNINTERESTING, USER, begin_journal, event

_TIMEOUT = 60
# In every thirty events, that many count.
_CHATTER = 27
_COUNTED = (
  ("RESET", RESET),
  ("STOP",),
  ("RESUME",),
)


class Case(NamedTuple):
  """Some journals.

  @ivar journals: how many there are
  @ivar events: how many events are in each

  """

  journals: int
  events: int


CASES = (Case(1, 100000), Case(1000, 200))


class Row(NamedTuple):
  """What was measured of one L{Case}.

  @ivar seconds: to find out which instances their users turned off, at most
    a minute
  @ivar right: how many were found out to be turned off by their users, as all
    were

  """

  journals: int
  events: int
  seconds: float
  right: int


def _events(count: int) -> bytes:
  lines = [event(*each) for each in _COUNTED]
  lines += [
    event(*each)
    for each in itertools.islice(itertools.cycle(UNINTERESTING), _CHATTER)
  ]
  last = event("SHUTDOWN", USER)
  rounds, rest = divmod(count - 1, len(lines))
  return (
    b"".join(lines) * rounds + b"".join(lines[-rest:] if rest else []) + last
  )


def _measure(case: Case) -> Row:
  node = peers.Node(f"long-{case.journals}")
  try:
    names = fleet.names_of(case.journals)
    text = _events(case.events)
    for name in names:
      journal = begin_journal(os.path.join(node.directory, name))
      with open(journal, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(text)
    with node_side.Request(node, names) as request:
      answer = request.ask(node_side.Question.USERS, _TIMEOUT)
    if answer is None:
      return Row(*case, _TIMEOUT, 0)
    return Row(*case, answer.seconds, answer.shut_down)
  finally:
    node.remove()


def measure_all() -> list[Row]:
  """Measures all cases.

  @raise node_side.RequestError: if there is no Ganeti that could be asked

  """
  return [_measure(case) for case in CASES]

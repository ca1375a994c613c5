# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What those need who follow instances, without a daemon around them."""

from __future__ import annotations

import types

from ganeti.kvmd.core.lifecycle import Rule
from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.core.session import Session
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.history import History
from ganeti.kvmd.follow.shared import Shared
from ganeti.kvmd.follow.verdicts import Verdicts
from ganeti.kvmd.node.evidence import Directories
from ganeti.kvmd.node.processes import Processes

#: The number of a process that nobody looks at.
PROCESS = 2**30


def shared(directory, **timing):
  """Returns the means, for an open control directory.

  @param timing: what is otherwise than usual of it

  """
  place = types.SimpleNamespace(directory=directory)
  times = Timing(**timing)
  return Shared(
    place=place,
    verdicts=Verdicts(place, times.delivery),
    history=no_history(),
    processes=Processes(),
    quota=Quota(),
    rule=Rule.CAUSE,
    timing=times,
  )


class Line:
  """A connection over which comes what it is given.

  @ivar pieces: what is read, one after the other; nothing when all were
  @ivar sent: what was sent so far
  @ivar reads: how often it was read

  """

  def __init__(self, *pieces, number=1000, made=0.0):
    self.pieces = list(pieces)
    self.made = made
    self.session = Session()
    self.process = PROCESS
    self.sent = b""
    self.reads = 0
    self.has_hung_up = False
    self.is_open = True
    self._number = number

  def fileno(self):
    assert self.is_open
    return self._number

  def read(self):
    assert self.is_open
    self.reads += 1
    return self.pieces.pop(0) if self.pieces else None

  def send(self):
    self.sent += self.session.outgoing
    self.session.outgoing = b""

  def close(self):
    self.is_open = False


def no_history():
  """Returns a history that nobody writes down."""
  return History(None, "node1", Timing(), Directories())

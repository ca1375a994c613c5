# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The history: each end of each life becomes a line of a file, once.

It is written after the marks, and whatever becomes of it no verdict depends on
it. Where an end is known from a journal, that stays until the line is written:
so a daemon that is killed in between leaves it to the next one, which finds out
from the history itself what is in there already. Of what it knew from a monitor
alone a daemon that is killed loses the lines that were not written yet, from
what it heard in its last moments.
"""

from __future__ import annotations

import collections
import logging
import time
from typing import TYPE_CHECKING

from ganeti.kvmd.core.history_line import encode_end, encode_more
from ganeti.kvmd.core.lifecycle import UNANNOUNCED

if TYPE_CHECKING:
  from collections.abc import Mapping
  from typing import Optional

  from ganeti.kvmd.core.history_line import Ending
  from ganeti.kvmd.core.timing import Timing
  from ganeti.kvmd.node.history_files import HistoryFiles

#: So many lines are kept that cannot be written just now.
_MAX_PENDING = 20_000

#: Of so many processes it is remembered how they ended till the verdict is
#: given, which may come later.
_MAX_EXITS = 1024


class _Pending:
  """A line that is yet to be written.

  @ivar ending: what it says
  @ivar due: when it is to be written, by the monotonic clock
  @ivar exit: how the process ended; "" if that is not known

  """

  __slots__ = ("due", "ending", "exit")

  def __init__(self, ending: Ending, due: float, exit_: str) -> None:
    self.ending = ending
    self.due = due
    self.exit = exit_


class History:
  """Has each end written down.

  @ivar hears_exits: whether the kernel tells how processes ended

  """

  def __init__(
    self, files: Optional[HistoryFiles], node: str, timing: Timing
  ) -> None:
    """Has nothing to write yet.

    @param files: where to; None for nowhere
    @param node: the name of this node

    """
    self._files = files
    self._node = node
    self._timing = timing
    self.hears_exits = False
    self._pending: collections.deque[_Pending] = collections.deque()
    self._names: collections.Counter[str] = collections.Counter()
    # The lines that are due whatever becomes of an exit.
    self._more: list[bytes] = []
    self._exits: collections.OrderedDict[int, str] = collections.OrderedDict()
    self._due = float("inf")
    self._trouble = ""
    self._missing = 0

  def close(self) -> None:
    """Writes what there is, and lets go of the files."""
    for each in self._pending:
      each.due = 0.0
    self._due = 0.0
    self.run(time.monotonic())
    if self._files is not None:
      self._files.close()

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    return self._due

  def note(self, ending: Ending) -> None:
    """Has an end written down."""
    if self._files is None:
      return
    exit_ = self._exits.pop(ending.process, "")
    now = time.monotonic()
    # Who said why it ends need not be asked how.
    is_awaited = (
      self.hears_exits
      and ending.outcome == UNANNOUNCED
      and bool(ending.process)
      and not exit_
    )
    due = now + self._timing.exit if is_awaited else now
    self._pending.append(_Pending(ending, due, exit_))
    self._names[ending.instance] += 1
    self._due = min(self._due, due)
    if len(self._pending) > _MAX_PENDING:
      self._release(self._pending.popleft())
      self._missing += 1

  def note_more(self, instance: str, verdicts: Mapping[str, int]) -> None:
    """Has it written down how many ends of an instance have no line.

    @param verdicts: how many of each kind

    """
    if self._files is not None and len(self._more) < _MAX_PENDING:
      line = encode_more(instance, self._node, time.time(), verdicts)
      self._more.append(line)
      self._due = 0.0

  def tell_exit(self, process: int, how: str) -> None:
    """Takes note how a process of an instance ended."""
    if self._files is None:
      return
    for each in self._pending:
      if each.ending.process == process:
        each.exit = how
        each.due = self._due = 0.0
        return
    self._exits[process] = how
    if len(self._exits) > _MAX_EXITS:
      self._exits.popitem(last=False)

  def is_pending(self, name: str) -> bool:
    """Tells whether an end of an instance is yet to be written down."""
    return name in self._names

  def run(self, now: float) -> None:
    """Writes what is due.

    @param now: seconds of the monotonic clock

    """
    if self._files is None or now < self._due:
      return
    try:
      self._write(self._files, now)
    except OSError as err:
      self._due = now + self._timing.delivery
      self._complain(err)
    else:
      self._due = min(
        (each.due for each in self._pending), default=float("inf")
      )

  def _write(self, files: HistoryFiles, now: float) -> None:
    due = [each for each in self._pending if each.due <= now]
    files.prepare()
    doubtful = {each.ending.life for each in due if not each.ending.is_new}
    began = min(
      (each.ending.began or 0.0 for each in due if not each.ending.is_new),
      default=0.0,
    )
    known = files.recorded(doubtful, began) if doubtful else doubtful
    date = time.time()
    for each in due:
      if each.ending.is_new or each.ending.life not in known:
        files.add(encode_end(each.ending, self._node, date, each.exit))
      self._pending.remove(each)
      self._release(each)
    while self._more:
      files.add(self._more[0])
      del self._more[0]
    if self._trouble:
      logging.info("the history %s can be written again", files.path)
      self._trouble = ""
    if self._missing:
      logging.warning("%d ends are missing in the history", self._missing)
      self._missing = 0

  def _release(self, each: _Pending) -> None:
    name = each.ending.instance
    self._names[name] -= 1
    if not self._names[name]:
      del self._names[name]

  def _complain(self, err: OSError) -> None:
    trouble = f"{err.filename}: {err.strerror}"
    if trouble != self._trouble:
      self._trouble = trouble
      logging.error(
        "cannot write the history %s; verdicts do not depend on it, and it is"
        " tried again (up to %d ends are kept for that)",
        trouble,
        _MAX_PENDING,
      )

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
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core.history_line import encode_ending, encode_more
from ganeti.kvmd.core.lifecycle import UNANNOUNCED
from ganeti.kvmd.node import evidence

if TYPE_CHECKING:
  from collections.abc import Mapping
  from typing import Optional

  from ganeti.kvmd.core.history_line import Ending
  from ganeti.kvmd.core.timing import Timing
  from ganeti.kvmd.node.evidence import Directories
  from ganeti.kvmd.node.history_files import HistoryFiles

#: So many lines are kept that cannot be written just now.
_MAX_PENDING = 20_000

#: So many lines are written before something else has its turn: in 5 ms or so.
_MAX_LINES = 500

#: Of so many processes it is remembered how they ended till the verdict is
#: given, which may come later.
_MAX_EXITS = 1024


class _Waiting(NamedTuple):
  """A life of whose process the kernel may yet say how it ended.

  @ivar ending: what is known of it
  @ivar deadline: when it is written down in any case, by the monotonic clock

  """

  ending: Ending
  deadline: float


class _Ready(NamedTuple):
  """A life that is to be written down.

  @ivar ending: what is known of it
  @ivar exit: how its process ended; "" if that is not known

  """

  ending: Ending
  exit: str


class _Exit(NamedTuple):
  """How a process ended of which no end is known yet.

  @ivar how: in the kernel's words
  @ivar told: when that was told, by the monotonic clock

  """

  how: str
  told: float


class History:
  """Has each end written down.

  @ivar hears_exits: whether the kernel tells how processes ended

  """

  def __init__(
    self,
    files: Optional[HistoryFiles],
    node: str,
    timing: Timing,
    directories: Directories,
  ) -> None:
    """Has nothing to write yet.

    @param files: where to; None for nowhere
    @param node: the name of this node
    @param directories: where more may be known of an end

    """
    self._files = files
    self._node = node
    self._timing = timing
    self._directories = directories
    self.hears_exits = False
    # By the numbers of their processes, in the order of their deadlines.
    self._waiting: collections.OrderedDict[int, _Waiting] = (
      collections.OrderedDict()
    )
    self._ready: collections.deque[_Ready] = collections.deque()
    # How many of both there are, by the names of the instances.
    self._names: dict[str, int] = {}
    self._more: collections.deque[bytes] = collections.deque()
    self._exits: collections.OrderedDict[int, _Exit] = collections.OrderedDict()
    # When it is tried again to write, after that failed.
    self._next = 0.0
    self._trouble = ""
    self._missing = 0

  def close(self) -> None:
    """Writes what there is, and lets go of the files."""
    self._give_up_waiting(float("inf"))
    self._next = 0.0
    while self._ready or self._more:
      before = len(self._ready) + len(self._more)
      self.run(float("inf"))
      if len(self._ready) + len(self._more) == before:
        break
    if self._files is not None:
      self._files.close()

  @property
  def due(self) -> float:
    """When L{run} is to be called, by the monotonic clock."""
    if self._ready or self._more:
      return self._next
    for waiting in self._waiting.values():
      return waiting.deadline
    return float("inf")

  def complete(self, ending: Ending) -> Ending:
    """Adds to what is known of an end what can be found out now."""
    return evidence.add(ending, self._directories)

  def note(self, ending: Ending) -> None:
    """Has an end written down."""
    if self._files is None:
      return
    name, process = ending.instance, ending.process
    before = self._names.get(name, 0)
    if before:
      # What became of an instance stands there in the order in which it did.
      self._give_up_waiting_for(name)
    self._names[name] = before + 1
    exit_ = self._take_exit(process)
    # Who has said why it ends need not be asked how.
    is_silent = ending.outcome == UNANNOUNCED
    if is_silent and process and self.hears_exits and not exit_:
      other = self._waiting.pop(process, None)
      if other is not None:
        # Its number is another's by now.
        self._ready.append(_Ready(other.ending, ""))
      deadline = time.monotonic() + self._timing.exit
      self._waiting[process] = _Waiting(ending, deadline)
      return
    self._ready.append(_Ready(ending, exit_))
    if len(self._ready) > _MAX_PENDING:
      self._release(self._ready.popleft().ending)
      self._missing += 1

  def note_more(self, instance: str, verdicts: Mapping[str, int]) -> None:
    """Has it written down how many ends of an instance have no line.

    @param verdicts: how many of each kind

    """
    if self._files is not None and len(self._more) < _MAX_PENDING:
      line = encode_more(instance, self._node, time.time(), verdicts)
      self._more.append(line)

  def tell_exit(self, process: int, how: str) -> None:
    """Takes note how a process of an instance ended."""
    if self._files is None:
      return
    waiting = self._waiting.pop(process, None)
    if waiting is not None:
      self._ready.append(_Ready(waiting.ending, how))
      return
    self._exits[process] = _Exit(how, time.monotonic())
    if len(self._exits) > _MAX_EXITS:
      self._exits.popitem(last=False)

  def is_pending(self, name: str) -> bool:
    """Tells whether an end of an instance is yet to be written down."""
    return name in self._names

  def run(self, now: float) -> None:
    """Writes what is due.

    @param now: seconds of the monotonic clock

    """
    if self._files is None:
      return
    self._give_up_waiting(now)
    if now < self._next or not (self._ready or self._more):
      return
    try:
      self._write(self._files)
    except OSError as err:
      self._next = now + self._timing.delivery
      self._complain(err)

  def _take_exit(self, process: int) -> str:
    """Returns how a process ended; "" if that is not known."""
    found = self._exits.pop(process, None)
    # What was told long ago is of another process of that number.
    if found is None or time.monotonic() - found.told > self._timing.exit:
      return ""
    return found.how

  def _give_up_waiting(self, now: float) -> None:
    while self._waiting:
      process, waiting = next(iter(self._waiting.items()))
      if waiting.deadline > now:
        return
      del self._waiting[process]
      self._ready.append(_Ready(waiting.ending, ""))

  def _give_up_waiting_for(self, name: str) -> None:
    for process, waiting in list(self._waiting.items()):
      if waiting.ending.instance == name:
        del self._waiting[process]
        self._ready.append(_Ready(waiting.ending, ""))

  def _write(self, files: HistoryFiles) -> None:
    files.prepare()
    self._pass_over_recorded(files)
    date = time.time()
    for _ in range(min(_MAX_LINES, len(self._ready))):
      ending, exit_ = self._ready[0]
      files.add(encode_ending(ending, self._node, date, exit_))
      self._ready.popleft()
      self._release(ending)
    for _ in range(min(_MAX_LINES, len(self._more))):
      files.add(self._more[0])
      self._more.popleft()
    if self._trouble:
      logging.info("the history %s can be written again", files.path)
      self._trouble = ""
    if self._missing:
      logging.warning("%d ends are missing in the history", self._missing)
      self._missing = 0

  def _pass_over_recorded(self, files: HistoryFiles) -> None:
    """Forgets those that another daemon has written down."""
    old = [each.ending for each in self._ready if not each.ending.is_new]
    if not old:
      return
    began = min(ending.began or 0.0 for ending in old)
    recorded = files.recorded({ending.life for ending in old}, began)
    ready, self._ready = self._ready, collections.deque()
    for each in ready:
      if not each.ending.is_new and each.ending.life in recorded:
        self._release(each.ending)
      else:
        # It is not asked for again.
        self._ready.append(
          each._replace(ending=each.ending._replace(is_new=True))
        )

  def _release(self, ending: Ending) -> None:
    left = self._names.pop(ending.instance) - 1
    if left:
      self._names[ending.instance] = left

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

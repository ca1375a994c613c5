# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""One instance: what is known of its present life, and what is said of it.

Where the events come from does not matter here, and nothing is read or written
but log and history. As long as the life is the same (L{ctrldir.Life}), what was
learnt of it is kept, over any number of connections.
"""

from __future__ import annotations

import enum
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.history_line import Ending
from ganeti.kvmd.core.marks import MEANINGS, Marks

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Optional

  from ganeti.kvmd.core import qmp
  from ganeti.kvmd.core.marks import Mark
  from ganeti.kvmd.core.quota import Quota
  from ganeti.kvmd.follow.history import History
  from ganeti.kvmd.node.ctrldir import Life

#: The verdicts that an administrator may want to do something about.
_LEVELS = {
  lifecycle.Verdict.KILLED: logging.WARNING,
  lifecycle.Verdict.GUEST_PANIC: logging.WARNING,
  lifecycle.Verdict.UNKNOWN: logging.WARNING,
}

#: An end that became known so many seconds later has its time in the log.
_LATE = 1.0

#: So many changes of one life's marks are logged: a hostile QEMU could fill
#: the disk with them.
_MAX_CHANGES = 20


class Told(NamedTuple):
  """What a journal tells of a life that is over.

  @ivar state: what its events led to
  @ivar version: QEMU's; "" if unknown
  @ivar seconds: how long it lasted
  @ivar ended: when it ended, in seconds since the epoch; None if nobody knows
  @ivar heard: when the last was written of it, likewise

  """

  state: lifecycle.Lifecycle
  version: str
  seconds: float
  ended: Optional[float]
  heard: Optional[float]


class Source(enum.Enum):
  """By what an instance is followed."""

  MONITOR = "monitor"
  JOURNAL = "journal"


class Instance:
  """An instance as the daemon knows it.

  @ivar name: its name
  @ivar life: the life that is followed; None if there is none
  @ivar lifecycle: what its events led to
  @ivar marks: the marks of that life
  @ivar may_be_marked: whether marks may be there that were not looked at
  @ivar process: the number of its QEMU; 0 until that is known
  @ivar source: by what it is followed
  @ivar version: that of its QEMU; "" until that is known
  @ivar was_alive: whether this daemon has seen its QEMU alive
  @ivar is_attached: whether events of the life have arrived, from whenever on
  @ivar is_over: whether the verdict was given, and is yet to be delivered

  """

  __slots__ = (
    "_changes",
    "_complaint",
    "_ended",
    "_heard",
    "_history",
    "_quota",
    "_rule",
    "_started",
    "is_attached",
    "is_over",
    "life",
    "lifecycle",
    "marks",
    "may_be_marked",
    "name",
    "process",
    "source",
    "version",
    "was_alive",
  )

  def __init__(
    self,
    name: str,
    rule: lifecycle.Rule,
    quota: Quota,
    history: History,
  ) -> None:
    """Knows nothing yet.

    @param rule: how a shutdown is judged
    @param quota: how much is said of each instance
    @param history: where its ends are written down

    """
    self.name = name
    self._rule = rule
    self._quota = quota
    self._history = history
    # The last trouble that was logged, lest it be logged again and again.
    self._complaint = ""
    self.life: Optional[Life] = None
    self._forget()

  def begin(self, life: Optional[Life]) -> None:
    """Follows another life from now on, and forgets the one before."""
    # Where there was none, nothing is known.
    if self.life is not None:
      self._forget()
    self.life = life

  def _forget(self) -> None:
    self.lifecycle = lifecycle.Lifecycle(self._rule)
    self.marks = Marks()
    # When QEMU was started, by the monotonic clock; None until one was met.
    self._started: Optional[float] = None
    self.is_attached = False
    self.process = 0
    self.version = ""
    self.source = Source.MONITOR
    self.was_alive = False
    self._ended: Optional[float] = None
    self._heard: Optional[float] = None
    self.may_be_marked = True
    self._changes = 0
    self.is_over = False

  @property
  def is_met(self) -> bool:
    """Whether there is, or was, a QEMU whose end is yet to be judged."""
    return self._started is not None and not self.is_over

  @property
  def is_over_by_journal(self) -> bool:
    """Whether the verdict was given, and by its journal."""
    return self.is_over and self.source is Source.JOURNAL

  @property
  def is_remembered(self) -> bool:
    """Whether only its mark says that the guest was shut down."""
    return self.lifecycle.announced is lifecycle.REMEMBERED

  def meet(self) -> None:
    """Takes note that there is a QEMU, though it has said nothing yet."""
    if self._started is None:
      assert self.life is not None
      self._started = _begin_of(self.life)

  def attach(self, version: str, process: int) -> bool:
    """Takes note that events of the life arrive from now on.

    @param version: QEMU's
    @param process: QEMU's number
    @return: whether that is so for the first time

    """
    self._complaint = ""
    self.process = process
    self.version = version
    self.was_alive = True
    if self.is_attached:
      self.log("attached to QEMU %s again", version)
      return False
    self.is_attached = True
    self.meet()
    self.log("attached to QEMU %s, process %d", version, process)
    return True

  def receive(self, event: qmp.Event) -> None:
    """Takes account of an event."""
    logging.debug("instance %s: %s %s", self.name, event.name, event.data)
    self.lifecycle.receive(event.name, event.data, event.at)

  def conclude(self, told: Told) -> None:
    """Takes note that everything is known of the life, by its journal."""
    self.lifecycle = told.state
    self.version = told.version
    self.source = Source.JOURNAL
    self._ended = told.ended
    self._heard = told.heard
    self._started = time.monotonic() - max(0.0, told.seconds)
    self.is_attached = True

  def end(self) -> Ending:
    """Takes note that the life is over.

    It has to be L{is_met}.

    """
    assert self._started is not None
    self.is_over = True
    self.marks.end(self.lifecycle, is_heard=self.is_attached)
    life = self.life
    is_known = self._ended is not None or self._heard is not None
    return Ending(
      instance=self.name,
      life=f"{life.inode}-{life.born}" if life else "",
      began=life.born / 1e9 if life else None,
      ended=self._ended if is_known else time.time(),
      heard=self._heard,
      seconds=time.monotonic() - self._started,
      outcome=self.lifecycle.outcome,
      said=self.lifecycle.remarks,
      source=self.source.value,
      qemu=self.version,
      process=self.process,
      is_marked=self.lifecycle.marked is not None,
      is_new=self.was_alive,
    )

  def log(self, message: str, *args: object) -> None:
    """Logs something about the instance, if it has not said too much."""
    if self._quota.admit_line(self.name, time.monotonic()):
      logging.info("instance %s: " + message, self.name, *args, stacklevel=2)

  def report(self, ending: Ending, remark: str = "") -> None:
    """Writes a verdict to log and history, if there were not too many.

    @param remark: what else is to be said of it in the log

    """
    verdict = ending.outcome.verdict
    if self._quota.admit_verdict(self.name, verdict.value, time.monotonic()):
      ending = self._history.complete(ending)
      logging.log(
        _LEVELS.get(verdict, logging.INFO),
        "instance %s: verdict %s (%s) after %.1f s%s%s",
        self.name,
        verdict.value,
        ending.outcome.cause,
        ending.seconds,
        "".join(f"; {fact}" for fact in _facts(ending)),
        remark,
        stacklevel=2,
      )
      self._history.note(ending)

  def log_mark(self, mark: Mark, what: str) -> None:
    """Logs what became of a mark, as long as that does not change all the time.

    @param what: was done to it

    """
    if not MEANINGS[mark].is_logged:
      return
    self._changes += 1
    kind = mark.value.lstrip(".")
    if self._changes == _MAX_CHANGES:
      self.complain(
        "shut down and reset over and over; what becomes of its %s file is not"
        " logged any more",
        kind,
      )
    elif self._changes < _MAX_CHANGES:
      known = self.is_over or self.lifecycle.announced is not None
      reason = self.lifecycle.outcome.cause if known else "the guest runs"
      self.log("%s file %s (%s)", kind, what, reason)

  def complain(self, message: str, *args: object) -> None:
    """Logs trouble with the instance, if it is another than the last."""
    complaint = message % args
    if complaint != self._complaint:
      self._complaint = complaint
      if self._quota.admit_line(self.name, time.monotonic()):
        logging.warning("instance %s: %s", self.name, complaint, stacklevel=2)


def _begin_of(life: Life) -> float:
  """Returns when a life began, in seconds of the monotonic clock."""
  return time.monotonic() - max(0.0, time.time() - life.born / 1e9)


def _facts(ending: Ending) -> Iterator[str]:
  """Says what else is known of an end."""
  yield from ending.said
  date = ending.ended or ending.heard
  if date is not None and time.time() - date >= _LATE:
    after = "" if ending.ended else "after "
    yield time.strftime(
      f"it ended {after}%Y-%m-%d %H:%M:%S %z", time.localtime(date)
    )
  if ending.telling:
    yield f"its QEMU's last words: {ending.telling}"
  if ending.asked:
    asked = ending.asked
    who = asked.get("command") or asked.get("source") or "Ganeti"
    reason = f" ({asked['reason']})" if "reason" in asked else ""
    job = f", job {asked['job']}" if "job" in asked else ""
    yield f"asked for by {who}{reason}{job}"

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The journal: events that QEMU wrote down itself.

Given two regular files as the two ends of a monitor's pipe, QEMU reads
C{qmp_capabilities} from the one and appends all that it has to say to the
other, whether or not anybody listens. When the process ends, however it ends,
the kernel closes that file. So the daemon needs no connection, and the
hypervisor no daemon, to know what the instance died of.

How long a journal is, its QEMU decides, which may be hostile. So it is read
piece by piece, up to where it ended when the reading began, for as long as the
reader has time; what is odd about it makes the verdict unknown.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import lifecycle, qmp
from ganeti.kvmd.core.digest import Digest, Essence
from ganeti.kvmd.node.journal_files import JournalError

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.node.journal_files import JournalFiles

#: Bytes that are read at a time. What is between two looks at the clock takes
#: no longer than a few milliseconds, whatever it is.
PIECE = 16 * 1024

#: Most that is read of one journal, in bytes: nearly two million events. No
#: honest one comes near it, and it would keep its reader for seconds.
MAX_UNREAD = 256 * 1024 * 1024


class Record(NamedTuple):
  """What a journal tells.

  @ivar lifecycle: the state that its events lead to
  @ivar version: QEMU's version; empty if QEMU never came to open the journal
  @ivar written_at: when QEMU wrote last, in nanoseconds since the epoch

  """

  lifecycle: lifecycle.Lifecycle
  version: str
  written_at: int


class Reading:
  """The reading of one journal, from the end of its digest.

  @ivar life: the life of the instance that the journal tells of

  """

  __slots__ = (
    "_before",
    "_decoder",
    "_end",
    "_essence",
    "_position",
    "_rule",
    "_state",
    "_unheard",
    "_version",
    "life",
  )

  def __init__(self, files: JournalFiles, rule: lifecycle.Rule) -> None:
    """Has read nothing yet.

    @param rule: how a shutdown is judged
    @raise JournalError: if the journal is of no use
    @raise OSError: if that cannot be found out

    """
    self.life = files.life
    self._rule = rule
    self._begin(files, files.read_digest())

  @property
  def is_complete(self) -> bool:
    """Whether all was read that there was when it was last L{extend}ed."""
    return self._position >= self._end

  @property
  def position(self) -> int:
    """How many bytes were read, those that the digest covers included."""
    return self._position

  @property
  def digest(self) -> Digest:
    """What was read so far, in short."""
    return Digest(
      self.life.inode,
      self._position - self._decoder.pending,
      self._version,
      self._essence.events,
    )

  def extend(self, files: JournalFiles) -> None:
    """Reads on to where the journal ends by now.

    @raise JournalError: if that is too far, or before what was read

    """
    end = files.extent().size
    if end < self._position:
      raise JournalError("it is shorter than it was")
    if end - self._position > MAX_UNREAD:
      raise JournalError(f"there are more than {MAX_UNREAD} bytes to be read")
    self._end = end

  def advance(
    self, files: JournalFiles, marked: Optional[float], seconds: float
  ) -> None:
    """Reads on, until all is read or the time is up.

    @param marked: when the hypervisor marked that life of the instance as
      about to be stopped, in seconds since the epoch; None if it did not
    @param seconds: how long it may take; one piece is read in any case
    @raise JournalError: if there is something else in it than QEMU's events
    @raise OSError: if it cannot be read

    """
    stop = time.monotonic() + seconds
    self._recall(marked)
    while not self.is_complete:
      try:
        self._read_piece(files)
      except JournalError:
        # Was what it covers given back while we read?
        after = files.read_digest()
        if after == self._before:
          raise
        self._begin(files, after)
        self._recall(marked)
      if time.monotonic() >= stop:
        return

  def record(self, files: JournalFiles) -> Record:
    """Returns what the part tells that was read."""
    return Record(self._state, self._version, files.written_at)

  def _begin(self, files: JournalFiles, before: Digest) -> None:
    self._before = before
    self._position: int = before.position
    self._state = lifecycle.Lifecycle(self._rule)
    self._unheard = before.events
    self._essence = Essence(before.events)
    self._version = before.version
    self._decoder = qmp.Decoder(lifecycle.EVENTS)
    self.extend(files)

  def _recall(self, marked: Optional[float]) -> None:
    """Takes account of the mark, and only then of what the digest has."""
    self._state.marked = marked
    for event in self._unheard:
      self._state.receive(event.name, event.data, event.at)
    self._unheard = []

  def _read_piece(self, files: JournalFiles) -> None:
    piece = files.read(min(PIECE, self._end - self._position), self._position)
    if not piece:
      raise JournalError("it is shorter than it was")
    # Whole lines take no more than half the time that torn ones do.
    piece = piece[: piece.rfind(b"\n") + 1] or piece
    self._position += len(piece)
    try:
      for message in self._decoder.feed(piece):
        if isinstance(message, qmp.Event):
          self._state.receive(message.name, message.data, message.at)
          self._essence.receive(message.name, message.data, message.at)
        elif isinstance(message, qmp.Greeting):
          self._version = message.version or "unknown"
    except qmp.ProtocolError as err:
      raise JournalError(f"there is {err} in it") from err


def useless(
  files: JournalFiles, rule: lifecycle.Rule, err: JournalError
) -> Record:
  """Returns what a journal tells that is of no use: that nothing is known."""
  return _unknown(rule, f"its journal is of no use: {err}", files.written_at)


def lost(rule: lifecycle.Rule) -> Record:
  """Returns what is known of a life whose journal was not read in time."""
  reason = "its journal was removed before it could be read"
  return _unknown(rule, reason, time.time_ns())


def _unknown(rule: lifecycle.Rule, why: str, written_at: int) -> Record:
  state = lifecycle.Lifecycle(rule)
  state.announced = lifecycle.Outcome(lifecycle.Verdict.UNKNOWN, why)
  return Record(state, "", written_at)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""One instance: what is known of its present life, and the verdict on it.

Where the events come from does not matter here. As long as the life is the
same (L{ctrldir.Life}), what was learnt of it is kept, over any number of
connections; and what must outlive the daemon is marked in the control
directory at once.

The shutdown file does not wait for the end of the process. It follows what
QEMU has announced: Ganeti looks for the process first, so that a file beside a
live process does no harm, but one that comes late does.
"""

from __future__ import annotations

import errno
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import lifecycle
from ganeti.kvmd.ctrldir import Mark

if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Optional

  from ganeti.kvmd import qmp
  from ganeti.kvmd.ctrldir import ControlDirectory, Life
  from ganeti.kvmd.quota import Quota


#: So many changes of one life's shutdown file are logged: a hostile QEMU could
#: fill the disk with them.
_MAX_CHANGES = 20


class _Meaning(NamedTuple):
  """What a mark means to the daemon.

  @ivar not_written: what it means that it cannot be written
  @ivar not_removed: what it means that it cannot be removed
  @ivar is_logged: whether the log tells when it is written or removed

  """

  not_written: str
  not_removed: str
  is_logged: bool


_MEANINGS = {
  Mark.SHUTDOWN: _Meaning(
    "Ganeti may take its end for a crash",
    "Ganeti may take its end for its user's shutdown",
    is_logged=True,
  ),
  Mark.POWERDOWN: _Meaning(
    "its end may pass for its user's shutdown, should the daemon be restarted",
    "its user's shutdown may pass for an administrator's, should the daemon be"
    " restarted",
    is_logged=False,
  ),
}


class Instance:
  """An instance as the daemon knows it.

  @ivar name: its name
  @ivar life: the life that is followed; None if there is none
  @ivar may_be_marked: whether marks may be there that were not looked at
  @ivar process: the number of its QEMU; 0 until that is known
  @ivar is_attached: whether events of the life have arrived, from whenever on
  @ivar is_settled: whether the marks could be left as they are to be

  """

  __slots__ = (
    "_changes",
    "_complaint",
    "_is_over",
    "_lifecycle",
    "_marked",
    "_quota",
    "_rule",
    "_started",
    "is_attached",
    "is_settled",
    "life",
    "may_be_marked",
    "name",
    "process",
  )

  def __init__(self, name: str, rule: lifecycle.Rule, quota: Quota) -> None:
    """Knows nothing yet.

    @param rule: how a shutdown is judged
    @param quota: how much is logged of each instance

    """
    self.name = name
    self._rule = rule
    self._quota = quota
    # The last trouble that was logged, lest it be logged again and again.
    self._complaint = ""
    self.begin(None)

  def begin(self, life: Optional[Life]) -> None:
    """Follows another life from now on, and forgets the one before."""
    self.life = life
    self._lifecycle = lifecycle.Lifecycle(self._rule)
    # When QEMU was started, by the monotonic clock; None until one was met.
    self._started: Optional[float] = None
    self.is_attached = False
    # How the marks were found or left: there, or not. A mark that is not in
    # it was not touched yet.
    self._marked: dict[Mark, bool] = {}
    self.is_settled = True
    self.process = 0
    self.may_be_marked = True
    # How often the shutdown file was written or removed.
    self._changes = 0
    # The verdict was given. What is left to do is to deliver it.
    self._is_over = False

  def meet(self) -> None:
    """Takes note that there is a QEMU, though it has said nothing yet."""
    if self._started is None:
      assert self.life is not None
      self._started = _begin_of(self.life)

  def attach(
    self, version: str, process: int, directory: Optional[ControlDirectory]
  ) -> None:
    """Takes note that events of the life arrive from now on.

    @param version: QEMU's
    @param process: QEMU's number
    @param directory: the control directory; None while it is missing

    """
    self._complaint = ""
    self.process = process
    if self.is_attached:
      self.log("attached to QEMU %s again", version)
      return
    self.is_attached = True
    self.meet()
    self.log("attached to QEMU %s, process %d", version, process)
    if directory is not None and self.life and self.may_be_marked:
      self._take_over(directory, self.life)
      self.settle(directory)

  @property
  def is_over(self) -> bool:
    """Whether the verdict was given, and not all is left as it is to be."""
    return self._is_over

  @property
  def is_remembered(self) -> bool:
    """Whether only its mark says that the guest was shut down."""
    return self._lifecycle.announced is lifecycle.REMEMBERED

  def forget(self, directory: Optional[ControlDirectory]) -> None:
    """Takes back that the guest was shut down, since it runs."""
    self._lifecycle.announced = None
    self.settle(directory)

  def receive(
    self, event: qmp.Event, directory: Optional[ControlDirectory]
  ) -> bool:
    """Takes account of an event.

    @param event: what QEMU said
    @param directory: the control directory; None while it is missing
    @return: whether L{settle} is to be called, after the last of them

    """
    if event.name not in lifecycle.EVENTS:
      return False
    logging.debug("instance %s: %s %s", self.name, event.name, event.data)
    if directory is not None and not self._lifecycle.powerdown:
      self._recall_powerdown(directory)
    self._lifecycle.receive(event.name, event.data, event.at)
    return True

  def conclude(
    self,
    state: lifecycle.Lifecycle,
    seconds: float,
    directory: Optional[ControlDirectory],
  ) -> None:
    """Gives the verdict on a life of which everything is known.

    @param state: what its events led to
    @param seconds: how long it lasted
    @param directory: the control directory; None while it is missing

    """
    self._lifecycle = state
    self._started = time.monotonic() - max(0.0, seconds)
    self.is_attached = True
    self.end(directory)

  def end(self, directory: Optional[ControlDirectory]) -> None:
    """Gives the verdict, if there was a QEMU."""
    if self._started is None or self._is_over:
      return
    if not self.is_attached and not self._end_unheard(directory):
      return
    outcome = self._lifecycle.outcome
    seconds = time.monotonic() - self._started
    self._is_over = True
    if self.is_attached and outcome.verdict is not lifecycle.Verdict.USER:
      # Whoever made it: a file that is there now would say something wrong.
      self._marked.pop(Mark.SHUTDOWN, None)
    self._marked.pop(Mark.POWERDOWN, None)
    # The shutdown file comes before the words about it.
    self.settle(directory)
    self.log_verdict(outcome, seconds)

  def settle(self, directory: Optional[ControlDirectory]) -> None:
    """Brings the marks in line with what is known.

    Where that fails it is left for the next call; L{is_settled} tells.

    """
    self.is_settled = False
    for mark, wanted in list(self._due()):
      if directory is None or self.life is None:
        return
      try:
        if wanted:
          if directory.write(mark, self.name, self.life):
            self._log_mark(mark, "written")
        elif directory.remove(mark, self.name):
          self._log_mark(mark, "removed")
      except OSError as err:
        self.complain(
          "cannot %s its file %s in %s (%s); trying again every second,"
          " and till then %s",
          "write" if wanted else "remove",
          err.filename,
          directory.path,
          err.strerror,
          _MEANINGS[mark].not_written
          if wanted
          else _MEANINGS[mark].not_removed,
        )
        if err.errno != errno.ENAMETOOLONG:
          return
      self._marked[mark] = wanted
    self.is_settled = True
    if self._is_over:
      self.begin(None)

  def log(self, message: str, *args: object) -> None:
    """Logs something about the instance, if it has not said too much."""
    if self._quota.admit_line(self.name, time.monotonic()):
      logging.info("instance %s: " + message, self.name, *args, stacklevel=2)

  def log_verdict(
    self, outcome: lifecycle.Outcome, seconds: float, remark: str = ""
  ) -> None:
    """Logs a verdict, if there were not too many.

    @param seconds: how long the life lasted
    @param remark: what else is to be said of it

    """
    verdict = outcome.verdict.value
    if self._quota.admit_verdict(self.name, verdict, time.monotonic()):
      logging.info(
        "instance %s: verdict %s (%s) after %.1f s%s",
        self.name,
        verdict,
        outcome.cause,
        seconds,
        remark,
        stacklevel=2,
      )

  def complain(self, message: str, *args: object) -> None:
    """Logs trouble with the instance, if it is another than the last."""
    complaint = message % args
    if complaint != self._complaint:
      self._complaint = complaint
      if self._quota.admit_line(self.name, time.monotonic()):
        logging.warning("instance %s: %s", self.name, complaint, stacklevel=2)

  def _due(self) -> Iterator[tuple[Mark, bool]]:
    """Lists the marks that are not as they are to be, and how they are."""
    announced = self._lifecycle.announced
    is_user = (
      announced is not None and announced.verdict is lifecycle.Verdict.USER
    )
    is_pressed = self._lifecycle.powerdown and not self._is_over
    for mark, is_wanted, has_word in (
      (Mark.SHUTDOWN, is_user, self._is_over or announced is not None),
      (Mark.POWERDOWN, is_pressed, self._is_over),
    ):
      done = self._marked.get(mark)
      # What was never touched and is not wanted may be anything, as long as
      # there is nothing to be said about the life.
      if done is None and not is_wanted and not has_word:
        continue
      if is_wanted is not done:
        yield mark, is_wanted

  def _end_unheard(self, directory: Optional[ControlDirectory]) -> bool:
    """Finds out what is known of a life that never said anything.

    An earlier daemon may have heard that its user ended it: its file tells.

    @return: False if that is to be found in a journal

    """
    if directory is not None and self._is_journaled(directory):
      return False
    self._lifecycle.announced = lifecycle.UNHEARD
    if directory is not None and self.life is not None:
      self._take_over(directory, self.life)
    if self._marked.setdefault(Mark.SHUTDOWN, False):
      self._lifecycle.announced = lifecycle.REMEMBERED
    return True

  def _is_journaled(self, directory: ControlDirectory) -> bool:
    """Tells whether there is a journal of the life."""
    try:
      return self.life is not None and directory.journal_tells_of(
        self.name, self.life
      )
    except OSError:
      return False

  def _take_over(self, directory: ControlDirectory, life: Life) -> None:
    """Finds out what marks mean that are there already, or removes them."""
    try:
      for mark in Mark:
        found = directory.look(mark, self.name, life)
        if found is None:
          continue
        if not found.is_current:
          directory.remove(mark, self.name)
          self._log_mark(mark, "removed")
          continue
        self._marked[mark] = True
        if mark is Mark.POWERDOWN:
          self._lifecycle.marked = found.at
        elif mark is Mark.SHUTDOWN and self._lifecycle.announced is None:
          self._lifecycle.announced = lifecycle.REMEMBERED
    except OSError as err:
      self._complain_of_mark(err)

  def _recall_powerdown(self, directory: ControlDirectory) -> None:
    """Sees whether the hypervisor says what QEMU did not say yet.

    Where an administrator and a user turn the instance off at once, the
    administrator's word stands.

    """
    if self.life is None:
      return
    try:
      marked = directory.marked_at(Mark.POWERDOWN, self.name, self.life)
    except OSError as err:
      self._complain_of_mark(err)
      return
    if marked is not None:
      self._lifecycle.marked = marked
      self._marked[Mark.POWERDOWN] = True

  def _complain_of_mark(self, err: OSError) -> None:
    self.complain(
      "cannot find out about its file %s: %s", err.filename, err.strerror
    )

  def _log_mark(self, mark: Mark, what: str) -> None:
    if not _MEANINGS[mark].is_logged:
      return
    self._changes += 1
    if self._changes == _MAX_CHANGES:
      self.complain(
        "shut down and reset over and over; what becomes of its shutdown file"
        " is not logged any more"
      )
    elif self._changes < _MAX_CHANGES:
      known = self._is_over or self._lifecycle.announced is not None
      reason = self._lifecycle.outcome.cause if known else "the guest runs"
      self.log("shutdown file %s (%s)", what, reason)


def _begin_of(life: Life) -> float:
  """Returns when a life began, in seconds of the monotonic clock."""
  return time.monotonic() - max(0.0, time.time() - life.born / 1e9)


def log_fault(name: str, fault: Exception) -> None:
  """Logs that a fault of the daemon's own came up over an instance."""
  logging.error(
    "instance %s: a fault of the daemon, please report it; the instance is"
    " followed anew at the next rescan",
    name,
    exc_info=fault,
  )

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The right verdicts, from what was done; and what may be forgiven.

With a journal nothing may be: the verdict has to be right, and there, whatever
befell the daemon. Only what befell the journal itself counts: it was removed
with its directory, say. And who is hostile loses his own verdict.

Without one the daemon has to be there to hear. What it may have missed, it may
not know; but nobody else's shutdown may ever pass for the user's. And that
there was somebody whose end it missed has to be in the log, as far as it knew.

"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing

from faults.steps import HOSTILE, Deed, Source


class Right(enum.Enum):
  """A right verdict, in the daemon's words."""

  USER = "user"
  ADMINISTRATOR = "administrator"
  PANIC = "guest panic"
  KILLED = "killed or crashed"


#: What is certain to be heard by the end of as many seconds, by a daemon that
#: runs all the time
HEARING = 2.0

#: What is said where nothing is known
_UNKNOWN = "unknown"

#: For as many bytes of a journal there is room from the start on.
RESERVED = 15 * 1024

_RIGHT = {
  Deed.USER_POWERS_OFF: Right.USER,
  Deed.LIE_DOWN: Right.USER,
  Deed.GOES_FIRST: Right.USER,
  Deed.ADMINISTRATOR_POWERS_OFF: Right.ADMINISTRATOR,
  Deed.GANETI_STOPS: Right.ADMINISTRATOR,
  Deed.GANETI_KILLS: Right.KILLED,
  Deed.TERMINATE: Right.ADMINISTRATOR,
  Deed.QUIT: Right.ADMINISTRATOR,
  Deed.PANIC: Right.PANIC,
  Deed.KILL: Right.KILLED,
}

#: What ends the process when the guest may be down already
_REAPING = frozenset({Deed.GANETI_KILLS, Deed.TERMINATE, Deed.QUIT, Deed.KILL})

#: What only who was attached at that moment knows of: a powerdown, and that
#: the guest is up again
_PRESSED = frozenset(
  {Deed.POWERDOWN_IGNORED, Deed.ADMINISTRATOR_POWERS_OFF, Deed.RISE}
)

#: What changes nothing about the verdict
_IDLE = frozenset({Deed.PAUSE, Deed.CHATTER})


@dataclasses.dataclass
class Life:
  """What was done to a guest in one life, and what became of that."""

  name: str
  source: Source
  #: How often daemons had attached to that name before
  attachments_before: int
  #: How often one had followed its journal before
  followings_before: int = 0
  #: The number of its process
  process: int = 0
  #: Seconds that the clock was wrong by when it was started
  shift: int = 0
  #: Its verdict so far; None while it runs
  right: typing.Optional[Right] = None
  deeds: list[Deed] = dataclasses.field(default_factory=list)
  #: QEMU got so far as to say something
  has_begun: bool = False
  is_over: bool = False
  #: Its journal, or its mark, is not there for reasons of its own
  is_robbed: bool = False
  #: What matters was said when nobody heard it for certain
  is_unheard: bool = False
  #: Nobody can know whether an administrator pressed the power button
  is_ambiguous: bool = False
  #: The powerdown was announced to the daemon by Ganeti, too
  is_marked: bool = False
  #: The daemon that runs knows that it lived
  is_met: bool = False
  #: That a journal is followed is said of this life, not of an earlier one.
  is_clear: bool = True
  #: Since when a daemon could have taken note of it, by the daemons' clock
  known_since: float = math.inf
  #: The daemon has to have noticed how its process ended
  is_exit_due: bool = False
  #: Its directory was exchanged while it lived
  is_hidden: bool = False
  #: Ganeti removed its journal, which the daemon may not have read
  is_cleaned_up: bool = False
  #: It was over at the last check
  is_settled: bool = False
  #: When it said what matters, by the daemons' clock
  words: list[tuple[float, Deed]] = dataclasses.field(default_factory=list)

  _powerdown: bool = False

  def suffer(self, deed: Deed, clock: float, *, is_heard: bool) -> None:
    """Take note of a deed.

    @param clock: for how long daemons have run, in seconds
    @param is_heard: whether one is attached

    """
    self.deeds.append(deed)
    self._judge(deed)
    if deed in _IDLE:
      return
    self.words.append((clock, deed))
    if not is_heard:
      self._miss(deed)

  def _judge(self, deed: Deed) -> None:
    if deed is Deed.POWERDOWN_IGNORED:
      self._powerdown = True
    elif deed in (Deed.RESET, Deed.RISE):
      self._powerdown = False
      self.right = None
    elif deed in _RIGHT and not (deed in _REAPING and self.right):
      self.right = _RIGHT[deed]
      if self.right is Right.USER and (self._powerdown or self.is_marked):
        self.right = Right.ADMINISTRATOR

  def lose_daemon(self, clock: float) -> None:
    """Take note that the daemon was killed, which may not have heard it all."""
    for said, deed in self.words:
      if clock - said < HEARING:
        self._miss(deed)
    self.is_met = False
    self.is_exit_due = False
    if self.has_begun:
      self.known_since = clock

  def give_way(self) -> None:
    """Take note that Ganeti removed all that was there, for the next life."""
    self.is_cleaned_up = True
    if self.deeds[-1:] == [Deed.GOES_FIRST] and not self.is_settled:
      # The daemon may read what QEMU said when the mark is gone.
      self.right = None

  def lose_sight(self) -> None:
    """Take note that its files went out of sight."""
    if self.source is Source.JOURNAL and not self.is_settled:
      self.is_met = False
      self.is_clear = False

  def confirm(self) -> None:
    """Take note of a check: what was not heard by then will not be."""
    self.is_settled = self.is_over
    self.words = [(-math.inf, deed) for _, deed in self.words]

  def repeat(self, clock: float) -> None:
    """Take note that the last word is still being said."""
    if self.words:
      self.words[-1] = (clock, self.words[-1][1])

  def _miss(self, deed: Deed) -> None:
    self.is_unheard = True
    if deed in _PRESSED or (deed is Deed.GANETI_STOPS and not self.is_marked):
      self.is_ambiguous = True

  @property
  def is_hostile(self) -> bool:
    return not HOSTILE.isdisjoint(self.deeds)

  @property
  def must_be_right(self) -> bool:
    """Whether nothing excuses it if its verdict is not there."""
    if self.is_robbed or self.is_hostile or not self.has_begun:
      return False
    return self.source is Source.JOURNAL or not self.is_unheard

  @property
  def may_pass_for_user(self) -> bool:
    """Whether nobody could hear what makes its end another's."""
    return self.is_ambiguous and self.source is Source.SOCKET

  @property
  def expected_file(self) -> typing.Optional[bool]:
    """Whether the shutdown file is to be there; None if it may be."""
    if self.right is not Right.USER:
      return None if self.may_pass_for_user else False
    return True if self.must_be_right else None

  @property
  def is_nobodys_doing(self) -> bool:
    """Whether at no time anybody could take its end for its user's."""
    return (
      self.has_begun
      and not self.may_pass_for_user
      and not any(_RIGHT.get(deed) is Right.USER for deed in self.deeds)
    )

  @property
  def must_be_logged(self) -> bool:
    """Whether a verdict has to be in the log."""
    if self.is_robbed or not self.is_over:
      return False
    if self.source is Source.JOURNAL and self.is_cleaned_up:
      return self.is_met
    if self.is_hostile:
      return True
    return self.must_be_right or self.is_met

  @property
  def must_be_remembered(self) -> bool:
    """Whether it has to be in the history, whenever daemons were killed."""
    return (
      self.must_be_logged
      and self.source is Source.JOURNAL
      and not self.is_cleaned_up
    )

  def allows(self, verdict: str) -> bool:
    """Tell whether a verdict may be logged."""
    if self.is_hostile:
      return verdict != Right.USER.value or self.right is Right.USER
    if self.right is None:
      return True
    if verdict == self.right.value:
      return True
    if verdict == _UNKNOWN and (self.is_cleaned_up or self.is_hidden):
      return True
    if self.must_be_right:
      return False
    return (
      verdict != Right.USER.value
      or self.right is Right.USER
      or self.is_ambiguous
    )

  def __str__(self) -> str:
    deeds = ", ".join(deed.value for deed in self.deeds) or "nothing"
    marks = [
      field.name
      for field in dataclasses.fields(self)
      if field.name.startswith("is_") and getattr(self, field.name)
    ]
    return f"{self.name} ({self.source.value}; {deeds}; {', '.join(marks)})"


def explains(
  lives: typing.Sequence[Life],
  verdicts: typing.Sequence[str],
  *,
  is_history: bool = False,
) -> bool:
  """Tell whether verdicts can be those on the lives of one name, in order.

  A life may have none unless it must, and more than one where the daemon was
  killed over it.

  @param is_history: whether they are from the history: there a life with a
    journal has one at most

  """
  # As many of the verdicts may be on the lives so far.
  taken = {0}
  for life in lives:
    must = life.must_be_remembered if is_history else life.must_be_logged
    is_once = is_history and life.source is Source.JOURNAL
    most = 1 if is_once else len(verdicts)
    before, taken = taken, set() if must else set(taken)
    for first in before:
      for last in range(first, min(first + most, len(verdicts))):
        if not life.allows(verdicts[last]):
          break
        taken.add(last + 1)
  return len(verdicts) in taken

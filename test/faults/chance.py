# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Schedules that a seed determines."""

from __future__ import annotations

import dataclasses
import random
import typing

from faults.steps import (
  DOWN,
  Check,
  Deed,
  Do,
  Engine,
  Fault,
  Pause,
  Schedule,
  Source,
  Start,
  Step,
  Trouble,
)


@dataclasses.dataclass(frozen=True)
class Profile:
  """What schedules are like."""

  name: str
  fakes: int
  qemus: int
  #: Events, apart from the time that passes between them
  length: int
  #: How many of them there are between two checks
  stretch: int
  #: Share of them that befalls the daemon or the node
  troubles: float
  #: Milliseconds between two, on average
  pause: float
  #: How often each trouble befalls a daemon that runs, relatively
  weights: dict[Trouble, float]


#: Whatever there is
EVERYTHING = Profile(
  name="everything",
  fakes=10,
  qemus=2,
  length=150,
  stretch=50,
  troubles=0.3,
  pause=12.0,
  weights={
    Trouble.KILL_DAEMON: 10,
    Trouble.END_DAEMON: 3,
    Trouble.START_TWO_DAEMONS: 2,
    Trouble.START_ANOTHER_DAEMON: 1,
    Trouble.DELETE_PIDFILE: 1,
    Trouble.STRANGER_COMES: 1,
    Trouble.AWAIT_DAEMON: 3,
    Trouble.STOP_DAEMON: 5,
    Trouble.TAKE_DESCRIPTORS: 1,
    Trouble.LEAVE_A_DESCRIPTOR: 1,
    Trouble.REMOVE_DIRECTORY: 1,
    Trouble.MOVE_DIRECTORY: 2,
    Trouble.REPLACE_DIRECTORY: 1,
    Trouble.OVERFLOW: 1.5,
    Trouble.FILL_DISK: 2,
    Trouble.FILL_INODES: 2,
    Trouble.LOOK: 5,
  },
)

#: The daemon is killed, and killed again.
KILLS = Profile(
  name="kills",
  fakes=10,
  qemus=2,
  length=300,
  stretch=100,
  troubles=0.4,
  pause=12.0,
  weights={Trouble.KILL_DAEMON: 6, Trouble.AWAIT_DAEMON: 3, Trouble.LOOK: 1},
)

PROFILES = {profile.name: profile for profile in (EVERYTHING, KILLS)}

_STARTS = {
  Trouble.START_DAEMON: 8.0,
  Trouble.START_WITH_FEW_DESCRIPTORS: 1.0,
  Trouble.START_WITH_OTHER_CLOCK: 1.0,
  Trouble.START_TWO_DAEMONS: 1.0,
}

#: What ends a trouble, and which of that only one daemon needs
_CURES = {
  Trouble.STOP_DAEMON: Trouble.CONTINUE_DAEMON,
  Trouble.TAKE_DESCRIPTORS: Trouble.GIVE_DESCRIPTORS,
  Trouble.LEAVE_A_DESCRIPTOR: Trouble.GIVE_DESCRIPTORS,
  Trouble.MOVE_DIRECTORY: Trouble.RETURN_DIRECTORY,
  Trouble.REPLACE_DIRECTORY: Trouble.RETURN_DIRECTORY,
  Trouble.FILL_DISK: Trouble.FREE_DISK,
  Trouble.FILL_INODES: Trouble.FREE_DISK,
  Trouble.STRANGER_COMES: Trouble.STRANGER_GOES,
}
_OF_DAEMON = {Trouble.CONTINUE_DAEMON, Trouble.GIVE_DESCRIPTORS}

_LIVING = {
  Deed.POWERDOWN_IGNORED: 3.0,
  Deed.RESET: 3.0,
  Deed.PAUSE: 1.0,
  Deed.CHATTER: 1.0,
}

#: How likely a guest is to be so, whenever it does something
_HOSTILITY = 0.03

#: How much a talkative QEMU says, in kilobytes
_LENGTHS = (4, 20, 40, 60, 68)

_ENDINGS = {
  Deed.USER_POWERS_OFF: 6.0,
  Deed.ADMINISTRATOR_POWERS_OFF: 2.0,
  Deed.GANETI_STOPS: 2.0,
  Deed.GOES_FIRST: 1.0,
  Deed.GANETI_KILLS: 1.0,
  Deed.TERMINATE: 1.5,
  Deed.QUIT: 1.0,
  Deed.KILL: 3.0,
  Deed.PANIC: 0.5,
}

_Choice = typing.TypeVar("_Choice")


class _Generator:
  """Makes one schedule."""

  def __init__(self, profile: Profile, source: random.Random) -> None:
    self._profile = profile
    self._random = source
    self.steps: list[Step] = []
    self._slots = range(profile.fakes + profile.qemus)
    # How the guests that run were started, and whether each lies down
    self._running: dict[int, Start] = {}
    self._lying: set[int] = set()
    # What the daemon and the node are in
    self._is_down = True
    self._cures: set[Trouble] = set()

  def make(self) -> None:
    for number in range(self._profile.length):
      if number % self._profile.stretch == self._profile.stretch - 1:
        self._check()
      elif self._random.random() < self._profile.troubles:
        self._trouble()
      else:
        self._live(self._random.choice(self._slots))
      self._pause()
    for slot in list(self._running):
      self._end(slot)
      self._pause()
    self._check()

  def _check(self) -> None:
    self.steps.append(Check())
    self._is_down = False
    self._cures.clear()

  def _pause(self) -> None:
    mean = self._profile.pause * 1000
    self.steps.append(Pause(int(self._random.expovariate(1 / mean))))

  def _pick(self, weights: typing.Mapping[_Choice, float]) -> _Choice:
    (choice,) = self._random.choices(list(weights), list(weights.values()))
    return choice

  def _trouble(self) -> None:
    is_bare = self._profile is KILLS
    if self._is_down and self._random.random() < 0.7:
      what = Trouble.START_DAEMON if is_bare else self._pick(_STARTS)
      self._is_down = False
    elif self._cures and self._random.random() < 0.6:
      what = self._random.choice(
        sorted(self._cures, key=lambda each: each.name)
      )
      self._cures.remove(what)
    else:
      what = self._pick(self._profile.weights)
    if what in (Trouble.KILL_DAEMON, Trouble.END_DAEMON):
      self._is_down = True
      self._cures -= _OF_DAEMON
    elif what is Trouble.START_TWO_DAEMONS:
      self._is_down = False
      self._cures -= _OF_DAEMON
    elif what in _CURES:
      self._cures.add(_CURES[what])
    self.steps.append(Fault(what))

  def _live(self, slot: int) -> None:
    if slot not in self._running:
      self._start(slot)
    elif self._random.random() < 0.5:
      self._end(slot)
      # Some have a successor at once.
      if self._random.random() < 0.3:
        self._start(slot)
    elif self._running[slot].stays and self._random.random() < 0.5:
      if slot in self._lying:
        self._lying.remove(slot)
        self._do(slot, Deed.RISE)
      else:
        self._lying.add(slot)
        self._do(slot, Deed.LIE_DOWN)
    elif slot not in self._lying:
      is_hostile = self._is_hostile(slot)
      self._do(slot, Deed.FLOOD if is_hostile else self._pick(_LIVING))

  def _do(self, slot: int, deed: Deed) -> None:
    delay = int(self._random.expovariate(1 / 8))
    kilobytes = self._random.choice(_LENGTHS) if deed is Deed.CHATTER else 0
    self.steps.append(Do(slot, deed, delay, kilobytes))

  def _is_hostile(self, slot: int) -> bool:
    """Tells whether it is a guest that may be hostile, and is."""
    start = self._running[slot]
    is_able = start.engine is Engine.FAKE and start.source is Source.JOURNAL
    return is_able and self._random.random() < _HOSTILITY

  def _end(self, slot: int) -> None:
    if slot not in self._lying and self._is_hostile(slot):
      self._do(slot, Deed.GARBAGE)
      del self._running[slot]
      return
    endings = dict(_ENDINGS)
    if self._running[slot].stays:
      endings = {
        deed: weight for deed, weight in endings.items() if deed not in DOWN
      }
    if slot in self._lying:
      del endings[Deed.GANETI_KILLS]
    self._do(slot, self._pick(endings))
    del self._running[slot]
    self._lying.discard(slot)

  def _start(self, slot: int) -> None:
    roll = self._random.random
    source = Source.JOURNAL if roll() < 0.6 else Source.SOCKET
    stays = roll() < 0.15
    is_stock = source is Source.SOCKET and roll() < 0.3
    if slot >= self._profile.fakes:
      step = Start(slot, Engine.QEMU, source, stays, is_stock)
    else:
      step = Start(
        slot,
        Engine.FAKE,
        source,
        stays,
        is_stock,
        delays=(self._delay(), self._delay(), self._delay()),
        shift=self._shift() if roll() < 0.2 and not is_stock else 0,
        silence=int(roll() * 50) if roll() < 0.1 else 0,
        cuts=(int(roll() * 180),) * 2 if roll() < 0.1 else (),
        piece=1 + int(roll() * 40) if roll() < 0.2 else 0,
      )
    self._running[slot] = step
    self.steps.append(step)

  def _shift(self) -> int:
    return self._random.choice((-1, 1)) * 86400

  def _delay(self) -> int:
    return int(self._random.expovariate(1 / 3))


def make(seed: int, index: int, profile: Profile) -> Schedule:
  """Makes the schedule of a number, the same one each time."""
  source = random.Random(f"{profile.name} {seed} {index}")
  generator = _Generator(profile, source)
  generator.make()
  return Schedule(
    title=f"{profile.name}, seed {seed}, number {index}",
    in_memory=source.random() < 0.8,
    rescan_interval=source.choice((0.1, 0.3, 60.0)),
    steps=tuple(generator.steps),
  )

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Schedules: what is done, in which order, as data that a seed determines.

Any part of a schedule is one, too: a step that makes no sense in the state
that it finds does nothing.

"""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
import random
import typing


class Engine(enum.Enum):
  """What a guest runs in."""

  FAKE = "fake"
  QEMU = "qemu"


class Source(enum.Enum):
  """Where the daemon learns of a guest."""

  SOCKET = "socket"
  #: From a journal; there is a socket, too, as in life
  JOURNAL = "journal"


class Deed(enum.Enum):
  """What happens to a guest.

  An administrator is one at QEMU's monitor, unless Ganeti is named.

  """

  USER_POWERS_OFF = "user powers off"
  ADMINISTRATOR_POWERS_OFF = "administrator's powerdown is obeyed"
  GANETI_STOPS = "Ganeti's powerdown is obeyed"
  POWERDOWN_IGNORED = "powerdown is ignored"
  RESET = "guest resets"
  PAUSE = "administrator pauses and resumes"
  CHATTER = "QEMU says a lot"
  TERMINATE = "SIGTERM"
  QUIT = "QMP quit"
  KILL = "SIGKILL"
  PANIC = "guest panics"
  #: Under -no-shutdown: QEMU stays, and the guest can be started again.
  LIE_DOWN = "user powers off, QEMU stays"
  RISE = "administrator resets and resumes"


#: These end the process.
FINAL = frozenset(
  {
    Deed.USER_POWERS_OFF,
    Deed.ADMINISTRATOR_POWERS_OFF,
    Deed.GANETI_STOPS,
    Deed.TERMINATE,
    Deed.QUIT,
    Deed.KILL,
    Deed.PANIC,
  }
)


class Trouble(enum.Enum):
  """What happens to the daemon and to the node."""

  KILL_DAEMON = "kill -9 the daemon"
  END_DAEMON = "end the daemon"
  START_DAEMON = "start the daemon"
  START_WITH_FEW_DESCRIPTORS = "start the daemon with few descriptors"
  START_WITH_OTHER_CLOCK = "start the daemon with another clock"
  START_TWO_DAEMONS = "start two daemons at once"
  AWAIT_DAEMON = "wait until the daemon watches"
  STOP_DAEMON = "SIGSTOP the daemon"
  CONTINUE_DAEMON = "SIGCONT the daemon"
  TAKE_DESCRIPTORS = "leave the daemon no descriptor"
  LEAVE_A_DESCRIPTOR = "leave the daemon one descriptor"
  GIVE_DESCRIPTORS = "give the daemon descriptors"
  REMOVE_DIRECTORY = "remove the directory and make it anew"
  MOVE_DIRECTORY = "rename the directory away"
  REPLACE_DIRECTORY = "rename the directory away and make another"
  RETURN_DIRECTORY = "rename the directory back"
  OVERFLOW = "overflow the inotify queue"
  FILL_DISK = "fill the disk"
  FILL_INODES = "use up the inodes"
  FREE_DISK = "make room"
  LOOK = "Ganeti looks"


@dataclasses.dataclass(frozen=True)
class Start:
  """A guest is started, once its predecessor of the same name is gone.

  What follows C{stays} is for fake ones only.

  """

  guest: int
  engine: Engine = Engine.FAKE
  source: Source = Source.JOURNAL
  #: Under -no-shutdown
  stays: bool = False
  #: Milliseconds until its socket is there, is listened to, and until its
  #: journal is open, one after the other
  delays: tuple[int, int, int] = (0, 0, 0)
  #: Seconds that the clock was wrong by when it was started
  shift: int = 0
  #: Milliseconds for which nobody is greeted
  silence: int = 0
  #: Bytes after which it hangs up on the first connections
  cuts: tuple[int, ...] = ()
  #: Bytes that are sent at a time; 0 for all
  piece: int = 0


@dataclasses.dataclass(frozen=True)
class Do:
  """Something happens to a guest."""

  guest: int
  deed: Deed
  #: Milliseconds that QEMU takes to end, if it is a fake one
  delay: int = 0


@dataclasses.dataclass(frozen=True)
class Fault:
  """Something happens to the daemon or the node."""

  what: Trouble


@dataclasses.dataclass(frozen=True)
class Pause:
  """Time passes."""

  microseconds: int


@dataclasses.dataclass(frozen=True)
class Check:
  """All is put in order, and the oracle compares all verdicts."""


Step = typing.Union[Start, Do, Fault, Pause, Check]

_KINDS: dict[str, type] = {
  kind.__name__: kind for kind in (Start, Do, Fault, Pause, Check)
}
_ENUMS = {"engine": Engine, "source": Source, "deed": Deed, "what": Trouble}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Steps, and what they begin with."""

  title: str
  #: On a small file system in memory, as /run is; else on the machine's disk
  in_memory: bool
  #: Seconds between the daemon's looks at everything
  rescan_interval: float
  steps: tuple[Step, ...]

  def save(self, path: pathlib.Path) -> None:
    """Write it to a file, one step a line.

    The steps are written out, so that the file means the same when there are
    more kinds of them.

    """
    header = {
      "title": self.title,
      "in_memory": self.in_memory,
      "rescan_interval": self.rescan_interval,
    }
    lines = [header, *map(_to_data, self.steps)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

  def part(self, steps: typing.Sequence[Step]) -> Schedule:
    """Returns one with other steps."""
    return dataclasses.replace(self, steps=tuple(steps))


def load(path: pathlib.Path) -> Schedule:
  """Reads what L{Schedule.save} wrote.

  @raise OSError: if the file cannot be read
  @raise ValueError: if something else is in it; the text says in which line

  """
  header, *lines = path.read_text().splitlines() or [""]
  number = 1
  try:
    empty = Schedule(steps=(), **json.loads(header))
    steps = []
    for number, line in enumerate(lines, 2):  # noqa: B007
      steps.append(_from_data(json.loads(line)))
  except (ValueError, TypeError, KeyError, AttributeError) as err:
    raise ValueError(f"line {number} is not of a schedule: {err}") from err
  return empty.part(steps)


def _to_data(step: Step) -> dict[str, typing.Any]:
  """Tells in what a step differs from the plainest of its kind."""
  data = {"step": type(step).__name__}
  for field in dataclasses.fields(step):
    value = getattr(step, field.name)
    if value != field.default:
      data[field.name] = value.value if isinstance(value, enum.Enum) else value
  return data


def _from_data(data: dict[str, typing.Any]) -> Step:
  kind = _KINDS[data.pop("step")]
  for key, value in data.items():
    if key in _ENUMS:
      data[key] = _ENUMS[key](value)
    elif isinstance(value, list):
      data[key] = tuple(value)
  return typing.cast(Step, kind(**data))


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
}
_OF_DAEMON = {Trouble.CONTINUE_DAEMON, Trouble.GIVE_DESCRIPTORS}

_LIVING = {
  Deed.POWERDOWN_IGNORED: 3.0,
  Deed.RESET: 3.0,
  Deed.PAUSE: 1.0,
  Deed.CHATTER: 1.0,
}

_ENDINGS = {
  Deed.USER_POWERS_OFF: 6.0,
  Deed.ADMINISTRATOR_POWERS_OFF: 2.0,
  Deed.GANETI_STOPS: 2.0,
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
      self._do(slot, self._pick(_LIVING))

  def _do(self, slot: int, deed: Deed) -> None:
    delay = int(self._random.expovariate(1 / 8))
    self.steps.append(Do(slot, deed, delay))

  def _end(self, slot: int) -> None:
    endings = dict(_ENDINGS)
    if self._running[slot].stays:
      del endings[Deed.USER_POWERS_OFF]
      del endings[Deed.ADMINISTRATOR_POWERS_OFF]
      del endings[Deed.GANETI_STOPS]
      del endings[Deed.PANIC]
    self._do(slot, self._pick(endings))
    del self._running[slot]
    self._lying.discard(slot)

  def _start(self, slot: int) -> None:
    roll = self._random.random
    source = Source.JOURNAL if roll() < 0.6 else Source.SOCKET
    stays = roll() < 0.15
    if slot >= self._profile.fakes:
      step = Start(slot, Engine.QEMU, source, stays)
    else:
      step = Start(
        slot,
        Engine.FAKE,
        source,
        stays,
        delays=(self._delay(), self._delay(), self._delay()),
        shift=self._random.choice((-1, 1)) * 86400 if roll() < 0.2 else 0,
        silence=int(roll() * 50) if roll() < 0.1 else 0,
        cuts=(int(roll() * 180),) * 2 if roll() < 0.1 else (),
        piece=1 + int(roll() * 40) if roll() < 0.2 else 0,
      )
    self._running[slot] = step
    self.steps.append(step)

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

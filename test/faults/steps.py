# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Schedules: what is done, in which order, as data.

Any part of a schedule is one, too: a step that makes no sense in the state
that it finds does nothing.

"""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
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
  #: And Ganeti gets no further than to say that it will.
  GOES_FIRST = "user powers off just before Ganeti's powerdown"
  POWERDOWN_IGNORED = "powerdown is ignored"
  RESET = "guest resets"
  PAUSE = "administrator pauses and resumes"
  CHATTER = "QEMU says a lot"
  GANETI_KILLS = "Ganeti kills it and cleans up"
  TERMINATE = "SIGTERM"
  QUIT = "QMP quit"
  KILL = "SIGKILL"
  PANIC = "guest panics"
  #: Of a fake one with a journal, from here on
  FLOOD = "hostile QEMU writes its journal without end"
  GARBAGE = "hostile QEMU ends with garbage in its journal"
  #: Under -no-shutdown: QEMU stays, and the guest can be started again.
  LIE_DOWN = "user powers off, QEMU stays"
  RISE = "administrator resets and resumes"


#: In these the guest goes down; the process, too, but under -no-shutdown.
DOWN = frozenset(
  {
    Deed.USER_POWERS_OFF,
    Deed.ADMINISTRATOR_POWERS_OFF,
    Deed.GANETI_STOPS,
    Deed.GOES_FIRST,
    Deed.PANIC,
  }
)

#: These end the process.
FINAL = DOWN | {
  Deed.GANETI_KILLS,
  Deed.TERMINATE,
  Deed.QUIT,
  Deed.KILL,
  Deed.GARBAGE,
}

#: Who does that is hostile.
HOSTILE = frozenset({Deed.FLOOD, Deed.GARBAGE})


class Trouble(enum.Enum):
  """What happens to the daemon and to the node."""

  KILL_DAEMON = "kill -9 the daemon"
  END_DAEMON = "end the daemon"
  START_DAEMON = "start the daemon"
  START_WITH_FEW_DESCRIPTORS = "start the daemon with few descriptors"
  START_WITH_OTHER_CLOCK = "start the daemon with another clock"
  START_TWO_DAEMONS = "start two daemons at once"
  START_ANOTHER_DAEMON = "start another daemon beside the one that runs"
  DELETE_PIDFILE = "delete the pidfile"
  STRANGER_COMES = "a stranger locks what he can open"
  STRANGER_GOES = "the stranger goes"
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

  What follows C{stock} is for fake ones only.

  """

  guest: int
  engine: Engine = Engine.FAKE
  source: Source = Source.JOURNAL
  #: Under -no-shutdown
  stays: bool = False
  #: By Ganeti's own hypervisor code, which knows nothing of journals
  stock: bool = False
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
  #: How much it says if it says a lot
  kilobytes: int = 80


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

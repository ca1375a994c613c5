# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Plays a schedule on one node, and lets the oracle compare."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
import typing

from ganeti.kvmd import ctrldir
from guests import lifetime

from faults import disk, oracle
from faults.daemons import Daemons
from faults.fake_qemu import FakeQemu
from faults.node import Hypervisor
from faults.oracle import Life, Right
from faults.real_qemu import RealQemu
from faults.steps import (
  FINAL,
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

Guest = typing.Union[FakeQemu, RealQemu]

#: Seconds within which the daemon has to have done what is due
PATIENCE = 20.0

_MAX_QUEUED = pathlib.Path("/proc/sys/fs/inotify/max_queued_events")

#: So much of a file is shown when something is wrong, in bytes.
_SHOWN = 300

#: What must not be in the log
_FAULTS = ("a fault of the daemon", "Traceback")


class WrongError(AssertionError):
  """A verdict, or something else, is not right; the text says what."""


@dataclasses.dataclass
class Tally:
  """What was played."""

  schedules: int = 0
  kills: int = 0
  #: Kills while a real QEMU ran or had just ended
  kills_beside_qemu: int = 0
  journal_lives: int = 0
  socket_lives: int = 0
  real_lives: int = 0
  user_shutdowns: int = 0
  #: User shutdowns without a journal that nobody was there to hear
  unheard: int = 0

  def add(self, other: Tally) -> None:
    for field in dataclasses.fields(self):
      total = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, total)

  def __str__(self) -> str:
    lives = self.journal_lives + self.socket_lives
    return (
      f"{self.schedules} schedules, {self.kills} daemon kills"
      f" ({self.kills_beside_qemu} beside real QEMU), {lives} lives"
      f" ({self.journal_lives} with a journal, {self.real_lives} in real QEMU),"
      f" {self.user_shutdowns} user shutdowns: 0 wrong, 0 lost with a journal,"
      f" {self.unheard} without one that nobody was there to hear"
    )


@dataclasses.dataclass
class _Slot:
  """A guest and its life."""

  guest: Guest
  life: Life
  plan: Start
  lies: bool = False
  is_ending: bool = False


class World:
  """A control directory, its daemon, and the guests."""

  def __init__(
    self, schedule: Schedule, scratch: pathlib.Path, *options: str
  ) -> None:
    """Start nothing yet.

    @param scratch: an empty directory; this process must have mounts of its
      own
    @param options: further options for the daemon

    """
    self._schedule = schedule
    self._stack = contextlib.ExitStack()
    self._disk = scratch / "disk"
    self._disk.mkdir()
    if schedule.in_memory:
      disk.mount_small(self._disk)
      self._stack.callback(disk.unmount, self._disk)
    self._ballast = disk.Ballast(self._disk)
    self.ctrl_dir = self._disk / "ctrl"
    self.ctrl_dir.mkdir()
    self._away = self._disk / "away"
    self._replaced_at: typing.Optional[float] = None
    self._hypervisor = Hypervisor(self.ctrl_dir)
    self._daemons = Daemons(
      self.ctrl_dir,
      scratch,
      f"--rescan-interval={schedule.rescan_interval}",
      *options,
    )
    self._slots: dict[int, _Slot] = {}
    self._lives: dict[str, list[Life]] = collections.defaultdict(list)
    self._markers = 0
    self.tally = Tally(schedules=1)

  def __enter__(self) -> World:
    return self

  def __exit__(self, *_: object) -> None:
    for slot in self._slots.values():
      slot.guest.close()
    self._daemons.close()
    self._stack.close()

  def play(self) -> None:
    """Play the schedule.

    @raise WrongError: if something is not right

    """
    for step in self._schedule.steps:
      self._play(step)

  @property
  def log(self) -> list[str]:
    self._daemons.read_log()
    return self._daemons.lines

  def _play(self, step: Step) -> None:
    if isinstance(step, Pause):
      self._pause(step.microseconds / 1e6)
    elif isinstance(step, Start):
      self._start(step)
    elif isinstance(step, Do):
      self._do(step)
    elif isinstance(step, Fault):
      _TROUBLES[step.what](self)
    elif isinstance(step, Check):
      self._check()

  # --- Time passes ---

  def _pause(self, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    self._serve()
    while (left := deadline - time.monotonic()) > 0:
      time.sleep(min(left, 0.001))
      self._serve()

  def _serve(self) -> None:
    self._daemons.check_alive()
    for slot in self._slots.values():
      if slot.life.is_over:
        continue
      slot.guest.serve()
      if slot.guest.is_talking:
        slot.life.repeat(self._daemons.clock)
      if slot.guest.is_over:
        self._bury(slot)

  def _wait_until(
    self, condition: collections.abc.Callable[[], bool], seconds: float
  ) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
      if time.monotonic() > deadline:
        return False
      self._pause(0.005)
    return True

  # --- Guests ---

  def _start(self, plan: Start) -> None:
    if not self._is_in_place or not self._make_way(plan.guest):
      return
    name = f"guest{plan.guest}"
    self._daemons.read_log()
    self._hypervisor.prepare_start(name)
    life = Life(name, plan.source, len(self._daemons.attachments[name]))
    self._lives[name].append(life)
    wants_journal = plan.source is Source.JOURNAL
    guest: Guest
    if plan.engine is Engine.QEMU:
      self.tally.real_lives += 1
      guest, keeps_journal = self._start_qemu(name, plan, wants_journal)
    else:
      keeps_journal = wants_journal and self._hypervisor.prepare_journal(name)
      if keeps_journal:
        self._shift(name, plan.shift)
      guest = FakeQemu(self.ctrl_dir, name, plan, journal=keeps_journal)
    if keeps_journal:
      self.tally.journal_lives += 1
    else:
      self.tally.socket_lives += 1
      life.source = Source.SOCKET
    self._slots[plan.guest] = _Slot(guest, life, plan)

  def _start_qemu(
    self, name: str, plan: Start, wants_journal: bool
  ) -> tuple[Guest, bool]:
    if wants_journal:
      with contextlib.suppress(OSError):
        return RealQemu(self.ctrl_dir, name, plan, journal=True), True
    return RealQemu(self.ctrl_dir, name, plan, journal=False), False

  def _shift(self, name: str, seconds: int) -> None:
    path = self.ctrl_dir / (name + ctrldir.JOURNAL_COMMANDS)
    if seconds:
      date = path.stat().st_mtime_ns + seconds * 10**9
      os.utime(path, ns=(date, date))

  def _make_way(self, number: int) -> bool:
    """Sees to it that the guest that had a place is gone."""
    slot = self._slots.get(number)
    if slot is None:
      return True
    if not slot.life.is_over:
      if not slot.is_ending:
        return False
      self._await_end(slot)
    del self._slots[number]
    return True

  def _await_end(self, slot: _Slot) -> None:
    if not self._wait_until(lambda: slot.life.is_over, lifetime.PATIENCE):
      raise TimeoutError(f"does not end: {slot.life}")

  def _do(self, step: Do) -> None:
    slot = self._slots.get(step.guest)
    if slot is None or slot.is_ending or slot.life.is_over:
      return
    guest, life, deed = slot.guest, slot.life, step.deed
    if slot.plan.stays and not _may_stay(slot, deed):
      return
    if not slot.plan.stays and deed in (Deed.LIE_DOWN, Deed.RISE):
      return
    if deed is not Deed.KILL:
      guest.begin()
      if guest.is_over:
        self._bury(slot)
        return
    life.has_begun = guest.has_begun
    is_heard = self._is_heard(slot)
    if deed is Deed.GANETI_STOPS:
      self._hypervisor.prepare_stop(life.name)
      life.is_marked = self._path(life, ctrldir.Mark.POWERDOWN.value).exists()
    if deed in FINAL:
      slot.is_ending = True
      guest.end(deed, step.delay)
    else:
      guest.do(deed)
    slot.lies = deed is Deed.LIE_DOWN or (slot.lies and deed is not Deed.RISE)
    life.suffer(deed, self._daemons.clock, is_heard=is_heard)
    if deed is Deed.GANETI_STOPS:
      life.is_cleaned_up = True
      self._hypervisor.finish_stop(life.name)
    self._serve()

  def _is_heard(self, slot: _Slot) -> bool:
    if not self._daemons.runs:
      return False
    slot.guest.serve()
    return self._is_attached(slot)

  def _is_attached(self, slot: _Slot) -> bool:
    life = slot.life
    return slot.guest.has_client or self._daemons.is_attached(
      life.name, life.attachments_before
    )

  def _bury(self, slot: _Slot) -> None:
    life = slot.life
    if life.is_over:
      return
    if slot.guest.has_begun and not slot.is_ending:
      raise ChildProcessError(f"QEMU ended by itself: {life}")
    life.is_over = True
    life.is_robbed = life.is_robbed or slot.guest.is_mute
    slot.guest.close()
    if life.is_cleaned_up:
      self._hypervisor.clean_up(life.name)
    self._look_at(life)

  # --- What Ganeti sees ---

  def _look(self) -> None:
    for lives in self._lives.values():
      self._look_at(lives[-1])

  def _look_at(self, life: Life) -> None:
    """Asks as Ganeti does, which needs no daemon where there is a journal."""
    if (
      not life.is_over
      or not self._is_in_place
      or life.source is not Source.JOURNAL
      or not life.must_be_right
    ):
      return
    is_user_down = self._hypervisor.is_user_down(life.name)
    if is_user_down != (life.right is Right.USER):
      word = "WRONG" if is_user_down else "LOST"
      raise WrongError(
        f"{word}, asked as Ganeti does: {life}\n{self._files_of(life)}"
      )

  def _files_of(self, life: Life) -> str:
    """Shows the files of a guest, and the ends of those that are short."""
    lines = []
    for path in sorted(self.ctrl_dir.glob(f"{life.name}.*")):
      line = f"  {path.name}"
      with contextlib.suppress(OSError):
        found = path.lstat()
        line += f" {found.st_ino} {found.st_mtime_ns} {found.st_size}"
        if path.is_file():
          line += f" {path.read_bytes()[-_SHOWN:]!r}"
      lines.append(line)
    return "\n".join(lines)

  def _path(self, life: Life, ending: str) -> pathlib.Path:
    return self.ctrl_dir / (life.name + ending)

  # --- The daemon ---

  def _kill_daemon(self) -> None:
    if not self._daemons.runs:
      return
    self.tally.kills += 1
    if any(
      slot.plan.engine is Engine.QEMU and not slot.life.is_over
      for slot in self._slots.values()
    ):
      self.tally.kills_beside_qemu += 1
    self._lose_daemon()
    self._daemons.kill()

  def _end_daemon(self) -> None:
    if self._daemons.runs:
      self._lose_daemon()
      self._daemons.end()

  def _lose_daemon(self) -> None:
    for lives in self._lives.values():
      for life in lives:
        life.lose_daemon(self._daemons.clock)

  def _start_daemon(self) -> None:
    if not self._daemons.runs:
      self._daemons.start()

  def _start_with_few_descriptors(self) -> None:
    if not self._daemons.runs:
      self._daemons.start(few_descriptors=True)

  def _start_with_other_clock(self) -> None:
    if not self._daemons.runs:
      self._daemons.start(clock=True)

  def _start_two_daemons(self) -> None:
    self._kill_daemon()
    self._daemons.start_two()

  # --- The node ---

  @property
  def _is_in_place(self) -> bool:
    return not self._away.exists()

  def _finish_starts(self) -> None:
    """Lets no QEMU make one half of its files here and one half there."""
    for slot in self._slots.values():
      if not slot.life.is_over and not slot.is_ending:
        slot.guest.begin()
    self._serve()

  def _remove_directory(self) -> None:
    if not self._is_in_place or self._ballast.is_full:
      return
    self._finish_starts()
    _remove(self.ctrl_dir)
    self.ctrl_dir.mkdir()
    for lives in self._lives.values():
      life = lives[-1]
      if life.is_over or life.source is Source.JOURNAL or life.words:
        life.is_robbed = True

  def _move_directory(self) -> None:
    if self._is_in_place:
      self._finish_starts()
      self.ctrl_dir.rename(self._away)

  def _replace_directory(self) -> None:
    if self._is_in_place and not self._ballast.is_full:
      self._move_directory()
      self.ctrl_dir.mkdir()
      self._replaced_at = self._daemons.clock

  def _return_directory(self) -> None:
    if self._is_in_place:
      return
    if self._replaced_at is not None:
      # The marks of those who ended meanwhile go with the other directory.
      _remove(self.ctrl_dir)
      since = self._replaced_at - oracle.HEARING
      self._replaced_at = None
      for lives in self._lives.values():
        life = lives[-1]
        if life.source is Source.SOCKET and any(
          said >= since for said, _ in life.words
        ):
          life.is_robbed = True
    self._away.rename(self.ctrl_dir)

  def _overflow(self) -> None:
    """Fills the kernel's queue while the daemon does not read it."""
    if not self._is_in_place or not self._daemons.runs:
      return
    was_stopped = self._daemons.is_stopped
    self._daemons.stop()
    ends = [self.ctrl_dir / ".one", self.ctrl_dir / ".other"]
    with contextlib.suppress(OSError):
      ends[0].touch()
      for _ in range(int(_MAX_QUEUED.read_text()) // 2 + 100):
        ends[0].rename(ends[1])
        ends[1].rename(ends[0])
      ends[0].unlink()
    if not was_stopped:
      self._daemons.carry_on()

  def _fill_disk(self) -> None:
    if self._schedule.in_memory:
      self._ballast.fill()

  def _fill_inodes(self) -> None:
    if self._schedule.in_memory:
      self._ballast.fill_inodes()

  # --- The oracle ---

  def _check(self) -> None:
    self._put_in_order()
    self._synchronise()
    self._wait_until(lambda: not self._complaints(), PATIENCE)
    complaints = self._complaints()
    if complaints:
      raise WrongError("\n".join(complaints))
    self._count()

  def _put_in_order(self) -> None:
    for slot in self._slots.values():
      if slot.is_ending:
        self._await_end(slot)
    self._return_directory()
    self._ballast.free()
    self._daemons.give_descriptors()
    self._daemons.carry_on()
    if self._daemons.has_few_descriptors:
      self._end_daemon()
    self._start_daemon()
    self._daemons.await_watching()

  def _synchronise(self) -> None:
    """Lets a guest live and die after all others.

    When the daemon has judged it, it has taken note of all that was before.

    """
    self._markers += 1
    name = f"marker{self._markers}"
    assert self._hypervisor.prepare_journal(name)
    marker = FakeQemu(self.ctrl_dir, name, Start(-1), journal=True)
    marker.begin()
    marker.do(Deed.PAUSE)
    marker.end(Deed.USER_POWERS_OFF, 0)
    mark = self.ctrl_dir / (name + ctrldir.Mark.SHUTDOWN.value)

    def is_judged() -> bool:
      marker.serve()
      return mark.exists() and not self._has_journal(name)

    if not self._wait_until(is_judged, PATIENCE):
      raise WrongError("LOST: a guest that nothing happened to")
    self._hypervisor.clean_up(name)

  def _complaints(self) -> list[str]:
    self._daemons.read_log()
    verdicts = collections.defaultdict(list)
    for verdict in self._daemons.verdicts:
      verdicts[verdict.name].append(verdict.verdict)
    complaints = [
      line
      for line in self._daemons.lines
      if any(words in line for words in _FAULTS)
    ]
    for name, lives in self._lives.items():
      logged = verdicts[name]
      if not oracle.explains(lives, logged):
        told = "\n  ".join(map(str, lives))
        complaints.append(f"WRONG in the log: {logged} on\n  {told}")
      if lives[-1].is_over:
        complaints += self._complaints_of(lives[-1], logged)
    for slot in self._slots.values():
      if not slot.life.is_over and not self._is_followed(slot):
        complaints.append(f"not attached to: {slot.life}")
    return complaints

  def _complaints_of(
    self, life: Life, logged: list[str]
  ) -> collections.abc.Iterator[str]:
    mark = self._path(life, ctrldir.Mark.SHUTDOWN.value)
    expected = life.expected_file
    if expected is not None:
      for is_there, what in (
        (mark.exists(), "by the shutdown file"),
        (self._hypervisor.is_user_down(life.name), "as Ganeti sees it"),
      ):
        if is_there != expected:
          word = "WRONG" if is_there else "LOST"
          yield f"{word}, {what}: {life}\n{self._files_of(life)}"
    if life.must_be_logged and not (logged and life.allows(logged[-1])):
      yield f"no verdict logged ({logged}): {life}"
    is_done = (
      life.has_begun and not life.is_robbed and life.source is Source.JOURNAL
    )
    if is_done and self._has_journal(life.name):
      files = self._files_of(life)
      yield f"its journal is still there: {life}\n{files}"

  def _is_followed(self, slot: _Slot) -> bool:
    life = slot.life
    is_reachable = self._path(life, ctrldir.MONITOR_SUFFIX).exists()
    if life.source is Source.JOURNAL or not is_reachable:
      return True
    slot.guest.begin()
    return self._is_attached(slot)

  def _has_journal(self, name: str) -> bool:
    return (self.ctrl_dir / (name + ctrldir.JOURNAL_EVENTS)).exists()

  def _count(self) -> None:
    """Takes stock of the lives that were over at a check."""
    for lives in self._lives.values():
      for life in lives:
        if life.is_over and not life.is_settled and life.right is Right.USER:
          self.tally.user_shutdowns += 1
          mark = self._path(life, ctrldir.Mark.SHUTDOWN.value)
          if life is lives[-1] and not mark.exists():
            self.tally.unheard += 1
        life.confirm()


def _may_stay(slot: _Slot, deed: Deed) -> bool:
  """Tells whether a deed makes sense under -no-shutdown."""
  if slot.lies:
    return deed in (Deed.RISE, Deed.TERMINATE, Deed.QUIT, Deed.KILL)
  return deed not in (
    Deed.RISE,
    Deed.USER_POWERS_OFF,
    Deed.ADMINISTRATOR_POWERS_OFF,
    Deed.GANETI_STOPS,
    Deed.PANIC,
  )


def _remove(path: pathlib.Path) -> None:
  while path.exists():
    # Something may be put there meanwhile.
    shutil.rmtree(path, ignore_errors=True)


_TROUBLES: dict[Trouble, collections.abc.Callable[[World], None]] = {
  Trouble.KILL_DAEMON: World._kill_daemon,
  Trouble.END_DAEMON: World._end_daemon,
  Trouble.START_DAEMON: World._start_daemon,
  Trouble.START_WITH_FEW_DESCRIPTORS: World._start_with_few_descriptors,
  Trouble.START_WITH_OTHER_CLOCK: World._start_with_other_clock,
  Trouble.START_TWO_DAEMONS: World._start_two_daemons,
  Trouble.AWAIT_DAEMON: lambda world: world._daemons.await_watching(),
  Trouble.STOP_DAEMON: lambda world: world._daemons.stop(),
  Trouble.CONTINUE_DAEMON: lambda world: world._daemons.carry_on(),
  Trouble.TAKE_DESCRIPTORS: lambda world: world._daemons.take_descriptors(
    spare=0
  ),
  Trouble.LEAVE_A_DESCRIPTOR: lambda world: world._daemons.take_descriptors(
    spare=1
  ),
  Trouble.GIVE_DESCRIPTORS: lambda world: world._daemons.give_descriptors(),
  Trouble.REMOVE_DIRECTORY: World._remove_directory,
  Trouble.MOVE_DIRECTORY: World._move_directory,
  Trouble.REPLACE_DIRECTORY: World._replace_directory,
  Trouble.RETURN_DIRECTORY: World._return_directory,
  Trouble.OVERFLOW: World._overflow,
  Trouble.FILL_DISK: World._fill_disk,
  Trouble.FILL_INODES: World._fill_inodes,
  Trouble.FREE_DISK: lambda world: world._ballast.free(),
  Trouble.LOOK: World._look,
}

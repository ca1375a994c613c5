# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What there may be too much, or too little, of: events, disk, and queue."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import typing

import fake_monitor
import forked
import kvmd_process
import pytest
from fake_monitor import FakeMonitor
from ganeti.kvmd.node import ctrldir, journal_files
from guests import endings, lifetime
from kvmd_process import Daemon

from faults import disk
from faults.fake_qemu import FakeQemu
from faults.node import Hypervisor
from faults.steps import Deed, Start

_FEW = 10
_MANY = 100_000

#: As much more memory the daemon may need for many events, in KiB: what it
#: takes to look at any, not at all of them, which have ten times that.
_SLACK = 1024

_EVENT = fake_monitor.event("RTC_CHANGE", {"offset": 1})
_SHUTDOWN = fake_monitor.event("SHUTDOWN", fake_monitor.USER)
_HANDSHAKE = fake_monitor.BEGINNING

_PAGE = os.sysconf("SC_PAGESIZE")

_MAX_QUEUED = int(
  pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text()
)


class _Guest:
  """A fake QEMU that lives while somebody waits for something."""

  def __init__(
    self, ctrl_dir: pathlib.Path, name: str, *, journal: bool
  ) -> None:
    hypervisor = Hypervisor(ctrl_dir)
    hypervisor.prepare_start(name)
    if journal:
      assert hypervisor.prepare_journal(name)
    self.name = name
    self.events = ctrl_dir / (name + ctrldir.JOURNAL_EVENTS)
    self._qemu = FakeQemu(ctrl_dir, name, Start(0), journal=journal)
    self._qemu.begin()
    assert self._qemu.has_begun

  def attach(self) -> None:
    self.wait_until(lambda: self._qemu.has_client, "a daemon that listens")

  def wait_until(self, condition: typing.Callable[[], bool], what: str) -> None:
    def is_so() -> bool:
      self._qemu.serve()
      return condition()

    lifetime.wait_until(is_so, what)

  def do(self, deed: Deed) -> None:
    self._qemu.do(deed)

  def end(self, deed: Deed = Deed.USER_POWERS_OFF) -> None:
    self._qemu.end(deed, 0)
    self.wait_until(lambda: self._qemu.is_over, "the end")


def _memory(daemon: Daemon) -> int:
  """Returns how much memory a daemon has ever used, in KiB."""
  status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
  found = re.search(r"VmHWM:\s+(\d+) kB", status)
  assert found is not None
  return int(found.group(1))


def _send(daemon: Daemon, ctrl_dir: pathlib.Path, count: int) -> None:
  """Lets a monitor say as many events, and end."""
  monitor = FakeMonitor(ctrl_dir, "one")
  client = kvmd_process.attach(monitor)
  data = memoryview(_EVENT * count + _SHUTDOWN)

  def is_said() -> bool:
    nonlocal data
    while sent := client.try_send(bytes(data[:65536])):
      data = data[sent:]
    return not data

  lifetime.wait_until(is_said, "all to be said")
  monitor.quit()
  assert daemon.wait_outcome("one") == endings.USER


def _read_at_start(daemon: Daemon, *_: object) -> None:
  assert daemon.wait_outcome("one") == endings.USER


def _write_closed_journal(ctrl_dir: pathlib.Path, count: int) -> None:
  assert Hypervisor(ctrl_dir).prepare_journal("one")
  path = ctrl_dir / ("one" + ctrldir.JOURNAL_EVENTS)
  with open(path, "r+b") as stream:
    stream.write(_HANDSHAKE)
    stream.write(_EVENT * count)
    stream.write(_SHUTDOWN)


def _write_open_journal(
  daemon: Daemon, ctrl_dir: pathlib.Path, count: int
) -> None:
  """Lets a QEMU write as many events while the daemon keeps it short."""
  assert Hypervisor(ctrl_dir).prepare_journal("one")
  path = ctrl_dir / ("one" + ctrldir.JOURNAL_EVENTS)
  with open(path, "r+b", buffering=0) as stream:
    stream.write(_HANDSHAKE)
    while count > 0:
      stream.write(_EVENT * min(count, 5000))
      count -= 5000
      # Or until it has found out that there is nothing to give back.
      _wait_until_short(path)
    stream.write(_SHUTDOWN)
  assert daemon.wait_outcome("one") == endings.USER


def _wait_until_short(path: pathlib.Path) -> None:
  lifetime.wait_until(lambda: _allocated(path) <= _BOUND, "a short journal")


def _allocated(path: pathlib.Path) -> int:
  return path.stat().st_blocks * 512


#: A journal that the daemon has just made short takes no more bytes than are
#: reserved, and a page for what is half read, and one for what is begun.
_BOUND = journal_files.RESERVED + 2 * _PAGE


@pytest.mark.parametrize("way", ["monitor", "closed journal", "open journal"])
def test_many_events_cost_no_memory(scratch: pathlib.Path, way: str) -> None:
  used = []
  for count in (_FEW, _MANY):
    ctrl_dir = scratch / f"ctrl{count}"
    ctrl_dir.mkdir()
    if way == "closed journal":
      _write_closed_journal(ctrl_dir, count)
    play = {
      "monitor": _send,
      "closed journal": _read_at_start,
      "open journal": _write_open_journal,
    }[way]
    daemon = Daemon(ctrl_dir, scratch / "log", "--rescan-interval=0.1")
    try:
      play(daemon, ctrl_dir, count)
      used.append(_memory(daemon))
    finally:
      daemon.end()
  few, many = used
  assert many <= few + _SLACK


def _grow_journal(ctrl_dir: pathlib.Path, log: pathlib.Path) -> None:
  """Lets the daemon be killed over a journal that grows and grows."""
  guest = _Guest(ctrl_dir, "one", journal=True)
  guest.do(Deed.POWERDOWN_IGNORED)
  highest = 0
  for _ in range(5):
    daemon = Daemon(ctrl_dir, log, "--rescan-interval=0.01")
    try:
      for _ in range(20):
        guest.do(Deed.CHATTER)
        highest = max(highest, _allocated(guest.events))
        _wait_until_short(guest.events)
    finally:
      daemon.kill()
  # It was written to for some time; and one burst is all that it ever held.
  assert guest.events.stat().st_size > 4_000_000
  assert highest <= 3 * _BOUND
  guest.end()
  hypervisor = Hypervisor(ctrl_dir)
  assert not hypervisor.is_user_down("one")
  daemon = Daemon(ctrl_dir, log)
  try:
    assert daemon.wait_outcome("one") == endings.POWERDOWN
  finally:
    daemon.end()
  assert not list(ctrl_dir.glob("one.*"))


def test_journal_on_disk_is_kept_short(
  scratch: pathlib.Path, ctrl_dir: pathlib.Path
) -> None:
  _grow_journal(ctrl_dir, scratch / "log")


def test_journal_in_memory_is_kept_short(
  scratch: pathlib.Path, ctrl_dir: pathlib.Path
) -> None:
  def play() -> None:
    disk.mount_small(ctrl_dir)
    _grow_journal(ctrl_dir, scratch / "log")

  forked.run(play, forked.Place.OWN_MOUNTS)


def _warnings(daemon: Daemon, name: str) -> list[str]:
  return [
    line
    for line in daemon.lines
    if " WARNING " in line and f"instance {name}:" in line
  ]


def _fill_page(guest: _Guest) -> None:
  """Lets the next event need a page of its own."""
  while -guest.events.stat().st_size % _PAGE not in range(1, len(_SHUTDOWN)):
    guest.do(Deed.PAUSE)


def _naps(daemon: Daemon) -> int:
  """Returns how often a daemon has waited for something."""
  status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
  found = re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)
  assert found is not None
  return int(found.group(1))


def _play_full_disk(scratch: pathlib.Path, *, has_inodes: bool) -> None:
  place = scratch / "disk"
  place.mkdir()
  disk.mount_small(place)
  ballast = disk.Ballast(place)
  ctrl_dir = place / "ctrl"
  ctrl_dir.mkdir()
  daemon = Daemon(ctrl_dir, scratch / "log", "--rescan-interval=0.2")
  names = ["socket1", "socket2", "journal1", "journal2", "journal3"]
  guests = {
    name: _Guest(ctrl_dir, name, journal=name.startswith("journal"))
    for name in names
  }
  for name, guest in guests.items():
    if name.startswith("journal"):
      daemon.wait_line(rf"instance {name}: its QEMU keeps a journal")
    else:
      guest.attach()
  guests["journal3"].do(Deed.CHATTER)
  _wait_until_short(guests["journal3"].events)
  for name in ("journal1", "journal2", "journal3"):
    _fill_page(guests[name])
  ballast.fill()
  if not has_inodes:
    ballast.fill_inodes()

  # Those that an administrator turned off need no mark, and make room.
  users = ["socket1", "journal1", "journal3"]
  hypervisor = Hypervisor(ctrl_dir)
  for name in users:
    guests[name].do(Deed.LIE_DOWN)
    guests[name].end(Deed.KILL)
    assert daemon.wait_outcome(name) == endings.USER
  for name in ("journal1", "journal3"):
    assert hypervisor.is_user_down(name)
  if not has_inodes:
    for name in users:
      daemon.wait_line(rf"instance {name}: cannot write its file .*No space")
      assert not daemon.shutdown_file(name).exists()
    # It is tried again, and not said again.
    before = _naps(daemon)
    lifetime.wait_until(lambda: _naps(daemon) > before + 15, "more attempts")
  for name in ("socket2", "journal2"):
    guests[name].do(Deed.POWERDOWN_IGNORED)
    guests[name].do(Deed.LIE_DOWN)
    guests[name].end(Deed.KILL)
    assert daemon.wait_outcome(name) == endings.POWERDOWN
    assert not daemon.shutdown_file(name).exists()

  ballast.free()
  for name in users:
    lifetime.wait_until(daemon.shutdown_file(name).exists, f"mark of {name}")
  lifetime.wait_until(
    lambda: not list(ctrl_dir.glob("*.journal.*")), "no journal to be left"
  )
  for name in names:
    # That an administrator pressed the button has to be marked, too.
    has_marks = name in users or name == "socket2"
    warnings = _warnings(daemon, name)
    assert len(warnings) == (has_marks and not has_inodes), warnings
    assert len(daemon.outcomes(name)) == 1
  assert daemon.end() == 0


@pytest.mark.parametrize("has_inodes", [True, False], ids=["bytes", "inodes"])
def test_full_disk(scratch: pathlib.Path, has_inodes: bool) -> None:
  forked.run(
    lambda: _play_full_disk(scratch, has_inodes=has_inodes),
    forked.Place.OWN_MOUNTS,
  )


@pytest.mark.parametrize("journal", [True, False], ids=["journal", "socket"])
def test_queue_overflows(
  scratch: pathlib.Path, ctrl_dir: pathlib.Path, journal: bool
) -> None:
  daemon = Daemon(ctrl_dir, scratch / "log")
  try:
    daemon.send_signal(signal.SIGSTOP)
    ends = [ctrl_dir / "one", ctrl_dir / "other"]
    ends[0].touch()
    for _ in range(_MAX_QUEUED // 2 + 10):
      ends[0].rename(ends[1])
      ends[1].rename(ends[0])
    early = _Guest(ctrl_dir, "early", journal=journal)
    late = _Guest(ctrl_dir, "late", journal=journal)
    if journal:
      early.end()
    daemon.send_signal(signal.SIGCONT)
    daemon.wait_line("lost track of what appeared in ")
    if not journal:
      early.attach()
      early.end()
      late.attach()
    late.end()
    for guest in (early, late):
      assert daemon.wait_outcome(guest.name) == endings.USER
      assert daemon.shutdown_file(guest.name).exists()
  finally:
    daemon.end()

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of when to connect to which monitor."""

from __future__ import annotations

import os
import resource
import socket
import time
from unittest import mock

import ctrl_files
import forked
import kvmd_log
import pytest
from fake_monitor import (
  USER,
  VERSION,
  FakeMonitor,
)
from ganeti.kvmd.follow import monitor_follower
from scene import Qemu, stale


def test_instance_that_was_there_before(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.start()
  scene.serve(monitor)
  (attached,) = filter(None, map(kvmd_log.attached, scene.lines))
  assert attached == ("web1", VERSION, os.getpid())


def test_instance_that_appears_later(scene):
  scene.turn()
  scene.attach("web1")


def test_instance_that_is_moved_into_place(scene, scratch):
  monitor = FakeMonitor(scratch, "web1")
  scene.turn()
  monitor.path.rename(scene.ctrl_dir / "web1.kvmd")
  scene.serve(monitor)


def test_suffix(scene):
  scene.start(monitor_suffix=".qmp")
  other = FakeMonitor(scene.ctrl_dir, "web1")
  qemu = scene.attach("web1", suffix=".qmp")
  assert other.accept() is None
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "web1")
  other.quit()


@pytest.mark.parametrize("existed", [True, False])
def test_socket_before_qemu_listens(scene, existed):
  if existed:
    scene.stop()
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False)
  if existed:
    scene.start()
  # Several attempts, each later than the one before.
  for _ in range(4):
    scene.daemon.turn(0.02)
  monitor.listen()
  scene.serve(monitor).quit()
  assert scene.verdict("web1") == "killed or crashed"
  assert scene.verdicts("web1") == ["killed or crashed"]


def test_qemu_that_never_listens_gets_no_verdict(scene):
  FakeMonitor(scene.ctrl_dir, "web1", listens=False).quit()
  monitor = FakeMonitor(scene.ctrl_dir, "web2", listens=False)
  scene.fence()
  monitor.quit()
  scene.fence()
  assert not scene.count("web")


def test_stale_socket_is_tried_for_ever(scene):
  """More often than a delay that doubles fits into a number."""
  scene.start(timing={"rescan": 1e-9})
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False)
  for _ in range(1200):
    scene.turn()
  assert not scene.count("web1")
  monitor.listen()
  scene.serve(monitor)


def test_stale_socket_is_replaced_by_a_new_one(scene):
  FakeMonitor(scene.ctrl_dir, "web1").die()
  scene.start()
  scene.fence()
  scene.attach("web1").quit()
  scene.verdict("web1")
  assert scene.verdicts("web1") == ["killed or crashed"]


def test_more_waiting_clients_than_the_monitor_takes(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False, backlog=0)
  monitor.listen()
  others = [socket.socket(socket.AF_UNIX) for _ in range(2)]
  for other in others:
    other.setblocking(False)
    try:
      other.connect(str(monitor.path))
    except BlockingIOError:
      break
  scene.says("clients")
  assert scene.verdicts("web1") == []
  while (waiting := monitor.accept()) is not None:
    if waiting.is_open:
      waiting.close()
    for other in others:
      other.close()
  scene.serve(monitor)
  assert scene.count("clients") == 1


@pytest.mark.parametrize("accepts", [True, False])
def test_monitor_that_does_not_greet(scene, monkeypatch, accepts):
  scene.hurry(greeting=0.01)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.says("instance web1: waiting for its monitor")
  connection = scene.accept(monitor) if accepts else None
  for _ in range(3):
    scene.fence()
  assert scene.count("waiting") == 1
  if connection is None:
    connection = scene.accept(monitor)
  connection.greet()
  scene.until(connection.receive)
  connection.answer()
  scene.says("web1: attached")
  connection.event("SHUTDOWN", USER)
  monitor.quit()
  assert scene.verdict("web1") == "user"


@pytest.mark.parametrize(
  "greets", [True, False], ids=["greets", "does not greet"]
)
@pytest.mark.parametrize(
  ("age", "verdict"),
  [(None, "unknown"), (1, "unknown"), (-1, "user")],
  ids=["no file", "file of an earlier life", "file of this life"],
)
@pytest.mark.parametrize("leaves_socket", [True, False])
def test_end_of_an_instance_that_was_never_attached(
  scene, greets, age, verdict, leaves_socket
):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  connection = scene.accept(monitor)
  if greets:
    connection.greet()
  if age is not None:
    stale(scene, monitor, age=age)
  scene.fence()
  assert scene.verdicts("web1") == []
  if leaves_socket:
    monitor.die()
  else:
    monitor.quit()
  assert scene.verdict("web1") == verdict
  assert scene.has_file("web1") is (verdict == "user")
  # Once, however often the socket that stays is tried.
  scene.start(timing={"rescan": 0.01})
  for _ in range(3):
    scene.fence()
  assert scene.verdicts("web1") == [verdict]
  assert scene.has_file("web1") is (verdict == "user")


def test_end_while_another_client_holds_the_monitor(scene):
  monitor = FakeMonitor(scene.ctrl_dir, "web1", listens=False, backlog=0)
  monitor.listen()
  other = socket.socket(socket.AF_UNIX)
  other.connect(str(monitor.path))
  scene.says("clients")
  monitor.quit()
  other.close()
  assert scene.verdict("web1") == "unknown"
  scene.fence()
  assert scene.verdicts("web1") == ["unknown"]


def test_end_before_the_next_is_started(scene):
  """Which life it was is known, if nothing else is."""
  old = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(old)
  old.die()
  new = scene.attach("web1")
  new.event("SHUTDOWN", USER)
  new.quit()
  assert scene.verdict("web1", 2) == "user"
  assert scene.verdicts("web1") == ["unknown", "user"]


def test_directory_is_away_when_one_ends_that_was_never_attached(
  scene, scratch
):
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(monitor)
  stale(scene, monitor, age=-1)
  scene.ctrl_dir.rename(scratch / "away")
  scene.says("is gone")
  monitor.die()
  for _ in range(10):
    scene.daemon.turn(0.01)
  # It may live and only have hung up; and its user may have ended it.
  assert scene.verdicts("web1") == []
  (scratch / "away").rename(scene.ctrl_dir)
  assert scene.verdict("web1") == "user"
  for _ in range(3):
    scene.fence()
  assert scene.verdicts("web1") == ["user"]
  assert scene.has_file("web1")


def test_monitor_that_greets_and_hangs(scene, monkeypatch):
  scene.hurry(greeting=0.01)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  connection = scene.accept(monitor)
  connection.greet()
  scene.says("instance web1: waiting for QEMU")
  for _ in range(3):
    scene.fence()
  assert scene.count("waiting") == 1
  connection.answer()
  scene.says("web1: attached")


def test_waiting_takes_no_time(scene):
  """No turn is taken for a monitor that says nothing."""
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  scene.accept(monitor)
  scene.fence()
  turns = 0
  end = time.monotonic() + 0.1
  while time.monotonic() < end:
    scene.daemon.turn(0.2)
    turns += 1
  # Some are taken for what others do in the parents of the directory.
  assert turns < 50


@pytest.mark.parametrize(
  "kind", ["file", "directory", "fifo", "link", "broken"]
)
def test_what_is_no_socket(scene, kind, scratch):
  """It is named once, and followed no more than any other file."""
  path = scene.ctrl_dir / "web1.kvmd"
  if kind == "file":
    path.touch()
  elif kind == "directory":
    path.mkdir()
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "link":
    path.symlink_to(FakeMonitor(scratch, "elsewhere").path)
  else:
    path.symlink_to("missing")
  scene.says("instance web1: cannot reach its monitor web1.kvmd: ")
  for _ in range(2):
    scene.fence()
  assert scene.count("web1") == 1
  if kind == "directory":
    path.rmdir()
  else:
    path.unlink()
  scene.attach("web1")


def test_socket_of_another_kind(scene):
  listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  with listener:
    listener.bind(str(scene.ctrl_dir / "web1.kvmd"))
    listener.listen()
    scene.says("instance web1: cannot connect to its monitor")
    scene.fence()
    assert scene.count("web1") == 1


@pytest.mark.parametrize(
  "name",
  [".", "..", "-rf", "$(reboot)", "ü", os.fsdecode(b"\xff\x80"), "a.kvmd"],
)
def test_name(scene, name):
  qemu = scene.attach(name)
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, name)
  qemu.quit()
  assert scene.verdict(name) == "user"


def test_name_with_white_space(scene):
  qemu = scene.attach("a b\nc")
  qemu.event("SHUTDOWN", USER)
  scene.until(scene.has_file, "a b\nc")


@pytest.mark.parametrize("length", [238, 246, 247, 250])
@pytest.mark.parametrize("events", [[], [("SHUTDOWN", USER)]])
def test_long_name(scene, scratch, length, events, monkeypatch):
  """Some are too long for a shutdown file, with the monitor's shorter name."""
  scene.hurry(delivery=0.01)
  name = "x" * length
  fits = len(scene.file(name).name) <= 255
  monitor = FakeMonitor(scratch, "short")
  monitor.path.rename(scene.ctrl_dir / f"{name}.kvmd")
  qemu = scene.serve(monitor)
  for event_name, data in events:
    qemu.event(event_name, data)
  qemu.die()
  assert scene.verdict(name) == ("user" if events else "killed or crashed")
  for _ in range(3):
    scene.fence()
  if fits:
    assert scene.has_file(name) is bool(events)
  assert scene.count("too long") == (0 if fits else len(events))


def test_many_instances(scene):
  before = len(os.listdir("/proc/self/fd"))
  machines = [FakeMonitor(scene.ctrl_dir, f"web{n}") for n in range(200)]
  scene.start()
  qemus = [scene.serve(machine) for machine in machines]
  for number, qemu in enumerate(qemus):
    if number % 2:
      qemu.event("SHUTDOWN", USER)
    qemu.quit()
  for number in range(200):
    expected = "user" if number % 2 else "killed or crashed"
    assert scene.verdict(f"web{number}") == expected
  scene.fence()
  assert ctrl_files.names(scene.ctrl_dir) == {
    f"web{number}.shutdown" for number in range(1, 200, 2)
  }
  assert len(os.listdir("/proc/self/fd")) == before


def test_instances_that_come_and_go_leave_nothing(scene):
  before = len(os.listdir("/proc/self/fd"))
  for number in range(50):
    qemu = scene.attach(f"web{number % 7}")
    if number % 3:
      qemu.event("SHUTDOWN", USER)
    if number % 2:
      qemu.quit()
    else:
      qemu.die()
    scene.until(lambda n=number: len(kvmd_log.verdicts(scene.lines)) == n + 1)
  assert len(os.listdir("/proc/self/fd")) == before


def test_out_of_descriptors(scene):
  scene.stop()

  def check():
    # The fakes live in this process, too, and need theirs.
    machines = [FakeMonitor(scene.ctrl_dir, f"web{n:02}") for n in range(40)]
    in_use = len(os.listdir("/proc/self/fd"))
    room = 2 * 20 + monitor_follower._RESERVED + in_use
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    reserved = monitor_follower._RESERVED
    with mock.patch.object(
      monitor_follower, "_RESERVED", reserved + in_use + 20
    ):
      scene.start(timing={"rescan": 0.05})
      attached = {}

      def serve_all():
        for machine in machines:
          connection = machine.accept()
          if connection is not None:
            connection.greet()
            connection.answer()
            attached[machine.instance] = Qemu(machine, connection)
        return len(attached)

      scene.until(lambda: serve_all() == 20)
      scene.says("20 instances cannot be watched")
      for _ in range(20):
        scene.daemon.turn(0.01)
      assert serve_all() == 20
      assert scene.count("cannot be watched") == 1
      # One that waits for a place in vain may go.
      waiting = [each for each in machines if each.instance not in attached]
      for machine in waiting[:5]:
        machine.quit()
        machines.remove(machine)
      scene.says("15 instances cannot be watched")
      # As some end, others take their places.
      first = list(attached)
      for name in first:
        attached[name].event("SHUTDOWN", USER)
        attached[name].quit()
        machines.remove(attached[name].monitor)
        assert scene.verdict(name) == "user"
      scene.until(lambda: serve_all() == 35)
      assert scene.count("web") >= 35
      scene.stop()

  forked.run(check)


@pytest.mark.parametrize("left", range(4))
def test_hardly_a_descriptor_is_left(scene, scratch, left, monkeypatch):
  """Others may have taken them all; it works on as soon as there are some."""
  scene.hurry(trouble=0.05)
  scene.hurry(opening=0.05)
  scene.stop()

  def check():
    monitor = FakeMonitor(scratch, "web1")
    scene.start()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is one for numbers, and the lowest free number is taken first.
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + left, hard))
    monitor.path.rename(scene.ctrl_dir / "web1.kvmd")
    if left:
      for _ in range(5):
        scene.turn()
    else:
      scene.says("Too many open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    qemu = scene.serve(monitor)
    qemu.event("SHUTDOWN", USER)
    qemu.quit()
    assert scene.verdict("web1") == "user"
    scene.stop()

  forked.run(check)

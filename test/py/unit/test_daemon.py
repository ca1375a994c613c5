# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the event loop, and of all that is behind it."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import time
from unittest import mock

import pytest
from fake_monitor import (
  USER,
  VERSION,
  FakeMonitor,
  event,
)
from ganeti.kvmd import daemon
from ganeti.kvmd.core import quota
from ganeti.kvmd.node import (
  exits,
)
from histories import HISTORIES, judge
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import begin_journal, play_qemu


def test_instance_that_ends_and_begins_all_the_time(scene):
  for _ in range(quota.MAX_VERDICTS + 7):
    qemu = scene.attach("web1")
    qemu.die()
    scene.fence()
  assert scene.verdicts("web1") == ["killed or crashed"] * quota.MAX_VERDICTS
  assert scene.count("instance web1: more than 20 ends in an hour") == 1
  # Others are as they were.
  other = scene.attach("web2")
  other.event("SHUTDOWN", USER)
  other.quit()
  assert scene.verdict("web2") == "user"
  scene.stop()
  assert scene.count("instance web1: 7 more ends") == 1
  assert scene.count("killed or crashed 7") == 1


def test_monitor_that_hangs_up_all_the_time(scene, monkeypatch):
  scene.hurry(retry=0.0)
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  for _ in range(quota.MAX_LINES + 20):
    connection = scene.accept(monitor)
    connection.greet()
    connection.answer()
    scene.turn()
    connection.close()
  scene.fence()
  lines = scene.count("instance web1: ")
  assert lines <= quota.MAX_LINES + 1
  assert scene.count("instance web1: more than 60 lines about it") == 1
  scene.stop()
  assert scene.count("more lines about it were left out") == 1


class Ends:
  """What the kernel tells of the ends of processes, here: what a test says."""

  def __init__(self):
    self._told = []
    self._lost = False
    self._reader, self._writer = os.pipe()

  def tell(self, *, seconds=0.0, lost=False):
    """Tells of the end of the process of all fake monitors, which is ours.

    @param seconds: how long from now it ended

    """
    ended = time.monotonic() + seconds
    self._told.append(exits.Exit(os.getpid(), ended, "was killed by SIGKILL"))
    self._lost = lost
    os.write(self._writer, b"x")

  def read(self, known):
    os.read(self._reader, 100)
    told, self._told = self._told, []
    matter = [each for each in told if each.process in known]
    return exits.Told(matter, self._lost)

  def fileno(self):
    return self._reader

  def close(self):
    os.close(self._reader)
    os.close(self._writer)


@pytest.fixture
def ends(scene, monkeypatch):
  made = Ends()
  monkeypatch.setattr(daemon, "_listen_for_exits", lambda: made)
  scene.start()
  return made


HOW = f"instance web1: its process {os.getpid()} was killed by SIGKILL"


@pytest.fixture(params=["monitor", "journal"])
def followed(scene, ends, request):
  """An instance that is followed; it ends when it is called."""
  if request.param == "monitor":
    return scene.attach("web1").die
  monitor = FakeMonitor(scene.ctrl_dir, "web1")
  file = begin_journal(scene.ctrl_dir, "web1")
  scene.says("instance web1: its QEMU keeps a journal")

  def end():
    monitor.die()
    file.close()

  return end


@pytest.mark.parametrize("told_first", [True, False])
def test_how_its_process_ended_is_logged(scene, ends, followed, told_first):
  if told_first:
    ends.tell()
    scene.turn()
  followed()
  assert scene.verdict("web1") == "killed or crashed"
  if not told_first:
    ends.tell()
  scene.says(HOW)
  # Whoever gets the number next is none of ours.
  ends.tell()
  scene.turn()
  assert scene.count("its process") == 1


def test_number_of_a_process_that_ended_well_is_given_out_again(
  scene, ends, followed
):
  followed()
  scene.verdict("web1")
  ends.tell(seconds=1.5)
  scene.turn()
  assert scene.count("its process") == 0


def test_number_is_given_out_again_while_the_mark_cannot_be_removed(
  scene, ends, monkeypatch
):
  qemu = scene.attach("web1")
  scene.file("web1").touch()
  unlink = mock.Mock(side_effect=OSError(errno.EROFS, "Read-only", "file"))
  monkeypatch.setattr(os, "unlink", unlink)
  qemu.die()
  scene.verdict("web1")
  monkeypatch.undo()
  ends.tell(seconds=1.5)
  scene.turn()
  assert scene.count("its process") == 0


def test_instance_that_is_started_anew_at_once(scene, ends):
  scene.attach("web1").die()
  second = scene.attach("web1")
  ends.tell()
  scene.says(HOW)
  second.die()
  scene.verdict("web1", 2)


def test_loss_of_ends_is_told_once(scene, ends):
  for _ in range(3):
    ends.tell(lost=True)
    scene.turn()
  assert scene.count("more processes failed at once") == 1


def test_real_process_is_killed(scene, monkeypatch):
  monkeypatch.undo()
  scene.start()
  says_how = not scene.count("cannot learn how QEMUs end")
  child = play_qemu(scene.ctrl_dir, "web1")
  scene.says(f"instance web1: attached to QEMU {VERSION}, process {child}")
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  assert scene.verdict("web1") == "killed or crashed"
  how = f"instance web1: its process {child} was killed by SIGKILL"
  if says_how:
    scene.says(how)
  assert scene.count("its process") == says_how


def test_any_history_over_any_connections(scene):
  """However it arrives, the verdict is what the whole history says."""

  @settings(max_examples=settings.default.max_examples // 2)
  @given(
    HISTORIES,
    st.lists(st.sampled_from(["on", "cut", "turn", "link"]), max_size=9),
  )
  def check(history, ways):
    name = os.path.basename(tempfile.mktemp(prefix="web"))
    qemu = scene.attach(name)
    for place, (event_name, data) in enumerate(history):
      text = event(event_name, data)
      way = ways[place] if place < len(ways) else "on"
      if way == "cut":
        qemu.connection.send(text[:30])
        scene.turn()
        text = text[30:]
      qemu.connection.send(text)
      if way == "turn":
        scene.turn()
        announced = judge(history[: place + 1]).value
        assert scene.has_file(name) is (announced == "user")
      elif way == "link":
        qemu.connection.close()
        qemu = scene.serve(qemu.monitor)
    qemu.quit()
    expected = judge(history).value
    assert scene.verdict(name) == expected
    scene.until(lambda: scene.has_file(name) is (expected == "user"))
    assert scene.verdicts(name) == [expected]

  check()

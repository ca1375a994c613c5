# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is seen of the control directory."""

from __future__ import annotations

import os
import pathlib
import select
import shutil
import signal
import time
from unittest import mock

import forked
import pytest
from fake_monitor import (
  USER,
)
from ganeti.kvmd.node import (
  watch,
)
from scene import play_qemu


def test_more_happens_than_the_kernel_tells(scene):
  limit = int(
    pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text()
  )
  one, two = scene.ctrl_dir / "one", scene.ctrl_dir / "two"
  one.touch()
  for _ in range(limit // 2 + 1):
    one.rename(two)
    two.rename(one)
  scene.attach("web1")
  scene.says("lost track")


def test_more_happens_all_the_time(scene, monkeypatch):
  """That takes neither the log nor all of the time."""
  nothing = watch.Changes(0, set(), set(), False, False)
  lost = nothing._replace(number=1, lost=True)
  rescans = []
  monkeypatch.setattr(
    scene.daemon._lookout,
    "_rescan",
    lambda *, thoroughly, elsewhere: rescans.append(thoroughly),
  )
  monkeypatch.setattr(
    scene.daemon._lookout, "_last_rescan", time.monotonic() - 2.0
  )
  monkeypatch.setattr(scene.daemon._place.watch, "read", [nothing, lost].pop)
  scene.daemon._lookout.look()
  assert rescans == [True]
  scene.daemon._lookout._last_rescan = time.monotonic()
  for _ in range(100):
    monkeypatch.setattr(scene.daemon._place.watch, "read", [nothing, lost].pop)
    scene.daemon._lookout.look()
  assert rescans == [True]
  assert scene.count("lost track") == 1
  # It is made up for as soon as that has been a while ago.
  assert scene.daemon._lookout._next_rescan < time.monotonic() + 1.1
  scene.daemon._lookout.look_again()
  assert rescans == [True, True]


def count_calls(monkeypatch, place, name):
  """Counts the calls of a method from now on."""
  counter = mock.Mock(wraps=getattr(place, name))
  monkeypatch.setattr(place, name, counter)
  return counter


@pytest.mark.parametrize(
  ("ending", "acts"), [(".kvmd", 24), (".journal.out", 24), (".other", 0)]
)
def test_names_without_end_keep_nobody_waiting(
  scene, monkeypatch, ending, acts
):
  for number in range(2000):
    (scene.ctrl_dir / f"guest{number}.example.com{ending}").mkdir()
  looks = count_calls(
    monkeypatch, scene.daemon._lookout.table._journals, "look"
  )
  reads = count_calls(monkeypatch, scene.daemon._place.watch, "read")
  names = 0
  turns = 0
  while select.select([scene.daemon._place.watch], [], [], 0)[0]:
    scene.turn()
    turns += 1
    assert reads.call_count <= 40
    # Those that were read together are looked at together.
    assert looks.call_count < acts + 32
    names += looks.call_count
    looks.reset_mock()
    reads.reset_mock()
  assert names == (2000 if acts else 0)
  assert turns < 200


@pytest.mark.parametrize(
  ("limits", "words"),
  [
    ({"instances": 0}, "out of inotify instances"),
    ({"watches": 0}, "out of inotify watches"),
    ({"watches": 3}, "out of inotify watches"),
  ],
)
def test_directory_that_cannot_be_watched(scene, monkeypatch, limits, words):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify(**limits)
    scene.start()
    assert scene.daemon.has_directory
    qemu = scene.attach("web1")
    qemu.event("SHUTDOWN", USER)
    scene.until(scene.has_file, "web1")
    qemu.quit()
    assert scene.verdict("web1") == "user"
    # It is made anew, and nobody tells.
    shutil.rmtree(scene.ctrl_dir)
    scene.ctrl_dir.mkdir()
    scene.attach("web2").quit()
    assert scene.verdict("web2") == "killed or crashed"
    assert scene.count(f"cannot watch {scene.ctrl_dir}: {words}") == 1
    assert scene.count("cannot watch") == 1
    forked.limit_inotify()
    scene.says(f"watching {scene.ctrl_dir} again")
    scene.attach("web3").quit()
    assert scene.verdict("web3") == "killed or crashed"
    # It does not look by itself any more than it has to.
    assert scene.daemon._lookout._next_rescan > time.monotonic() + 30.0
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_watches_run_out_while_the_directory_is_made_anew(scene, monkeypatch):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify()
    scene.start()
    shutil.rmtree(scene.ctrl_dir)
    scene.says("is gone")
    forked.limit_inotify(watches=1)
    scene.ctrl_dir.mkdir()
    scene.says("out of inotify watches")
    scene.attach("web1")
    forked.limit_inotify()
    scene.says(f"watching {scene.ctrl_dir} again")
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_journal_that_is_closed_while_nobody_tells(scene, monkeypatch):
  scene.hurry(trouble=0.05)

  def check():
    forked.limit_inotify(watches=0)
    scene.start()
    child = play_qemu(scene.ctrl_dir, "web1", has_journal=True)
    scene.says("instance web1: its QEMU keeps a journal")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert scene.verdict("web1") == "killed or crashed"
    scene.stop()

  scene.stop()
  forked.run(check, forked.Place.OWN_LIMITS)


def test_looking_takes_no_more_than_its_part_of_the_time(scene, monkeypatch):
  scene.fence()
  scene.daemon._lookout._rescan_took = 0.5
  monkeypatch.setattr(scene.daemon._place.watch, "follow", lambda: False)
  scene.daemon._place.watch.blindness = "out of something"
  scene.daemon._lookout._follow()
  left = scene.daemon._lookout._next_rescan - time.monotonic()
  assert 4.5 < left <= 5.0

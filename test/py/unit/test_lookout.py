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
import types
from unittest import mock

import ctrl_files
import forked
import pytest
from fake_monitor import (
  USER,
)
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.lookout import Lookout
from ganeti.kvmd.node import (
  watch,
)
from ganeti.kvmd.node.ctrldir import LOCK_FILE, Instances
from ganeti.kvmd.node.place import Change
from scene import play_qemu

_NOTHING = watch.Changes(0, set(), set(), False, False)
_NOBODY = Instances(set(), set(), set())
_FOUND = Instances({"a"}, {"b"}, {"c"})


class Played:
  """A lookout over a place and a table that only write down what is asked.

  @ivar lookout: the lookout
  @ivar now: its clock
  @ivar asked: what the table was asked for: the method, and what was given
  @ivar tables: how many there were
  @ivar changes: what the watch has seen: one for each time it is read
  @ivar reads: how often it was read
  @ivar change: what the path has come to when it is followed
  @ivar follows: how often it was followed
  @ivar act: what a rescan does beyond that

  """

  def __init__(self, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: self.now)
    self.now = 1000.0
    self.asked = []
    self.tables = 0
    self.changes = []
    self.reads = 0
    self.change = Change.NONE
    self.follows = 0
    self.act = lambda: None
    self.shortage = ""
    names = ctrl_files.missing("/far/away")
    self.watch = types.SimpleNamespace(
      path="/far/away", blindness="", read=self._read
    )
    self.directory = types.SimpleNamespace(
      instances=lambda: _FOUND,
      journaled_by=names.journaled_by,
      monitored_by=names.monitored_by,
    )
    self.place = types.SimpleNamespace(
      watch=self.watch,
      directory=self.directory,
      is_left_to_others=False,
      patience=float("inf"),
      follow=self._follow,
      say_rule=mock.Mock(),
      complain_of_lock=mock.Mock(),
      report=mock.Mock(),
    )
    timing = Timing(
      rescan=50.0, thorough=4, trouble=2.0, looking=0.125, repeat=900.0
    )
    self.lookout = Lookout(self.place, self._new_table, timing)

  def _new_table(self):
    self.tables += 1
    number = self.tables

    def note(what):
      return lambda *given: self.asked.append((what, *given))

    def rescan(found, *, thoroughly, elsewhere):
      self.asked.append(("rescan", found, thoroughly, elsewhere))
      self.act()

    return types.SimpleNamespace(
      number=number,
      close=note("close"),
      journal_appeared=note("journal appeared"),
      journal_closed=note("journal closed"),
      monitor_appeared=note("monitor appeared"),
      rescan=rescan,
      shortage=lambda: self.shortage,
      processes=types.SimpleNamespace(sweep=note("sweep")),
    )

  def _read(self):
    self.reads += 1
    return self.changes.pop(0) if self.changes else _NOTHING

  def _follow(self):
    self.follows += 1
    return self.change

  def settle(self):
    """Looks at everything, and forgets that."""
    self.lookout.look_again()
    self.asked.clear()
    self.follows = 0

  def sees(self, **changes):
    """Lets it look when the watch has seen that."""
    self.changes.append(_NOTHING._replace(number=1, **changes))
    self.lookout.look()

  @property
  def rescans(self):
    """What was looked at everything for: thoroughly, elsewhere."""
    return [each[2:] for each in self.asked if each[0] == "rescan"]


@pytest.fixture
def played(monkeypatch):
  return Played(monkeypatch)


def test_everything_is_looked_at_at_once_and_from_then_on(played):
  assert played.lookout.due == played.now
  thoroughly = []
  for _ in range(10):
    played.now = played.lookout.due
    played.lookout.look_again()
    assert played.lookout.due == played.now + 50.0
    thoroughly.append(played.rescans[-1][0])
  assert thoroughly == [True, False, False, False] * 2 + [True, False]
  assert played.now == 1000.0 + 9 * 50.0
  assert played.follows == 10
  assert played.tables == 1


def test_what_belongs_to_a_look_at_everything(played):
  played.lookout.look_again()
  assert played.asked == [
    ("rescan", _FOUND, True, False),
    ("sweep", played.now),
  ]
  played.place.say_rule.assert_called_once_with()
  played.place.complain_of_lock.assert_called_once_with()
  played.place.report.assert_not_called()
  played.shortage = "too few files"
  played.lookout.look_again()
  played.place.report.assert_called_once_with("too few files")


@pytest.mark.parametrize("change", [Change.ELSEWHERE, Change.LEFT])
def test_another_directory_is_looked_at_thoroughly(played, change):
  played.settle()
  played.change = change
  played.lookout.look_again()
  assert played.rescans == [(True, True)]


def test_whoever_is_another_daemons_is_left(played):
  played.settle()
  played.change = Change.LEFT
  played.lookout.look_again()
  assert [each[0] for each in played.asked] == ["close", "rescan", "sweep"]
  assert played.lookout.table.number == played.tables == 2
  played.change = Change.ELSEWHERE
  played.lookout.look_again()
  assert played.tables == 2


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, set()),
    ({"names": {"a.kvmd", "b.kvmd"}}, {("monitor", "a"), ("monitor", "b")}),
    ({"names": {"a.journal.out"}}, {("journal", "a")}),
    ({"closed": {"a.journal.out"}}, {("closed", "a")}),
    (
      {"names": {"a.journal.out"}, "closed": {"a.journal.out"}},
      {("journal", "a")},
    ),
    ({"closed": {"a.kvmd"}}, set()),
    ({"names": {"a.qmp", ".kvmd"}, "closed": {"a.shutdown"}}, set()),
    ({"closed": {LOCK_FILE}}, set()),
  ],
)
@pytest.mark.parametrize("is_left", [False, True])
def test_what_is_seen(played, changes, expected, is_left):
  """Is for the table, unless the directory is another daemon's."""
  words = {
    "monitor appeared": "monitor",
    "journal appeared": "journal",
    "journal closed": "closed",
  }
  played.settle()
  played.place.is_left_to_others = is_left
  played.sees(**changes)
  asked = [(words[what], name) for what, name in played.asked]
  assert len(asked) == len(set(asked))
  assert set(asked) == (set() if is_left else expected)
  assert played.follows == 0


def test_journals_come_before_monitors(played):
  """Who has both is followed by the journal."""
  played.settle()
  played.sees(names={"a.kvmd", "a.journal.out"})
  assert played.asked == [("journal appeared", "a"), ("monitor appeared", "a")]


@pytest.mark.parametrize(
  ("changes", "change", "follows", "rescans", "others"),
  [
    ({}, Change.ELSEWHERE, 0, [], 1),
    ({"path": True}, Change.NONE, 1, [], 1),
    ({"path": True}, Change.ELSEWHERE, 1, [(True, True)], 0),
    ({"path": True}, Change.LEFT, 1, [(True, True)], 0),
    ({"names": {LOCK_FILE, "a.kvmd"}}, Change.NONE, 1, [], 1),
    ({"names": {LOCK_FILE, "a.kvmd"}}, Change.LEFT, 1, [(True, True)], 0),
    ({"closed": {LOCK_FILE}}, Change.LEFT, 0, [], 1),
    ({"lost": True}, Change.NONE, 1, [(True, False)], 0),
    ({"lost": True}, Change.ELSEWHERE, 1, [(True, True)], 0),
  ],
)
def test_when_the_path_is_followed(
  played, changes, change, follows, rescans, others
):
  """If that leads elsewhere, all is looked at, and names mean nothing."""
  played.settle()
  played.now += 10.0
  played.change = change
  played.sees(**{"names": {"a.kvmd"}, **changes})
  assert (played.follows, played.rescans) == (follows, rescans)
  appeared = [each for each in played.asked if each[0] == "monitor appeared"]
  assert len(appeared) == others
  # What comes after that is for the next time.
  assert played.reads == (1 if rescans else 2)


@pytest.mark.parametrize(
  ("changes", "is_left", "seconds"),
  [
    ({"closed": {LOCK_FILE}}, True, 2.0),
    ({"closed": {LOCK_FILE}}, False, 50.0),
    ({"closed": {"other"}}, True, 50.0),
  ],
)
def test_another_daemon_may_have_ended(played, changes, is_left, seconds):
  played.settle()
  played.place.is_left_to_others = is_left
  played.sees(**changes)
  assert played.lookout.due == played.now + seconds


@pytest.mark.parametrize(
  ("patience", "took", "blindness", "seconds"),
  [
    (float("inf"), 0.0, "", 50.0),
    (3.0, 0.0, "", 3.0),
    (70.0, 0.0, "", 50.0),
    # Where nothing can be watched, an eighth of the time is spent on looking.
    (3.0, 0.25, "out of it", 3.0),
    (3.0, 0.5, "out of it", 4.0),
    (3.0, 0.5, "", 3.0),
    (3.0, 10.0, "out of it", 50.0),
  ],
)
def test_when_it_is_looked_again(played, patience, took, blindness, seconds):
  def pass_time():
    played.now += took

  played.act = pass_time
  played.settle()
  played.now += 20.0
  played.place.patience = patience
  played.watch.blindness = blindness
  began = played.now
  played.lookout.look_again()
  assert played.lookout.due == began + seconds


def test_no_directory_has_nobody(played):
  played.directory.instances = ctrl_files.missing("/far/away").instances
  played.lookout.look_again()
  assert played.asked[0] == ("rescan", _NOBODY, True, False)
  played.place.report.assert_not_called()


def test_directory_that_cannot_be_listed_says_nothing_of_anybody(played):
  error = OSError(5, "Input/output error")
  played.directory.instances = mock.Mock(side_effect=error)
  played.lookout.look_again()
  assert played.asked == []
  played.place.report.assert_called_once_with(
    "cannot list /far/away: Input/output error"
  )
  assert played.lookout.due == played.now + 2.0


def test_names_that_are_lost_all_the_time(played, caplog):
  """All is looked at every two seconds, and that is logged every 900."""
  played.settle()
  began = played.now
  looked = []
  said = []
  for step in range(4 * 900 + 1):
    played.now = began + step / 4
    if played.now >= played.lookout.due:
      played.lookout.look_again()
    played.sees(lost=True)
    looked += [step / 4] * len(played.rescans)
    said += [step / 4] * len(caplog.records)
    assert all(thoroughly for thoroughly, _ in played.rescans)
    played.asked.clear()
    caplog.clear()
  assert looked == [2.0 * number for number in range(1, 451)]
  assert said == [0.0, 900.0]


@pytest.mark.parametrize(
  ("passed", "later"), [(0.0, 2.0), (1.75, 0.25), (2.0, 0.0), (9.0, 0.0)]
)
def test_what_is_lost_is_looked_for_soon(played, passed, later):
  played.settle()
  played.now += passed
  played.sees(lost=True)
  assert played.rescans == ([] if later else [(True, False)])
  if later:
    assert played.lookout.due == played.now + later
    played.now += later
    played.lookout.look_again()
    assert played.rescans == [(True, False)]


@pytest.mark.parametrize(
  ("name", "reads"), [("a.kvmd", 24), ("a.journal.out", 24), ("a", 40)]
)
def test_how_much_is_looked_at_at_a_time(played, name, reads):
  played.settle()
  played.changes = [_NOTHING._replace(number=1, names={name})] * 100
  played.lookout.look()
  assert played.reads == reads
  assert len(played.asked) == (reads if reads == 24 else 0)


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

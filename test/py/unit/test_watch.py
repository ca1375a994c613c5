# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of following a path, whatever becomes of it."""

from __future__ import annotations

import ctypes.util
import errno
import os
import pathlib
import select
import shutil
import signal
import struct
import tempfile
from unittest import mock

import forked
import pyinotify
import pytest
from ganeti.kvmd.node import watch
from hypothesis import given, settings
from hypothesis import strategies as st


class Eye:
  """Follows a path as the daemon does.

  @ivar trouble: what came of following it last; None if nothing
  @ivar names: what was seen to appear in the directory
  @ivar closed: what was seen to be closed there
  @ivar lost: how often events were lost

  """

  def __init__(self, path):
    self.path = str(path)
    self.watch = watch.Watch(self.path)
    self.trouble = None
    self.names = set()
    self.closed = set()
    self.lost = 0
    self.follow()

  def follow(self):
    self.trouble = None
    try:
      return self.watch.follow()
    except OSError as err:
      assert self.watch.directory is None
      self.trouble = err
      return True

  def look(self):
    """Takes note of all that has happened; the kernel does not delay it."""
    if self.watch.blindness:
      self.follow()
    while select.select([self.watch], [], [], 0)[0]:
      changes = self.watch.read()
      if changes.lost:
        self.lost += 1
      if (changes.path or changes.lost) and self.follow():
        self.names.clear()
        self.closed.clear()
      else:
        self.names |= changes.names
        self.closed |= changes.closed

  def sees(self, directory):
    """Tells whether the path leads where new names are seen."""
    self.look()
    if self.watch.directory is None:
      return False
    there = os.path.samestat(os.fstat(self.watch.directory), os.stat(directory))
    return there and self._sees_names(directory)

  def _sees_names(self, directory):
    made = tempfile.mkdtemp(dir=directory)
    moved = made + ".moved"
    os.rename(made, moved)
    self.look()
    os.rmdir(moved)
    return {os.path.basename(made), os.path.basename(moved)} <= self.names

  @property
  def watches(self):
    """How many directories the kernel watches for it."""
    path = f"/proc/self/fdinfo/{self.watch._manager.get_fd()}"
    return pathlib.Path(path).read_text().count("inotify wd:")


@pytest.fixture
def eye():
  """Makes eyes, and sees that they leave no descriptor open."""
  before = set(os.listdir("/proc/self/fd"))
  eyes = []

  def make(path):
    eyes.append(Eye(path))
    return eyes[-1]

  yield make
  for each in eyes:
    each.watch.close()
  assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(scratch):
  """A path of which only the beginning exists."""
  return scratch / "run" / "ganeti" / "ctrl"


def test_directory_is_there(ctrl_dir, eye):
  seen = eye(ctrl_dir)
  assert seen.sees(ctrl_dir)
  assert seen.watch.follow() is False
  assert seen.sees(ctrl_dir)


def test_only_new_names_are_told(ctrl_dir, eye):
  (ctrl_dir / "old").touch()
  seen = eye(ctrl_dir)
  (ctrl_dir / "new").touch()
  (ctrl_dir / "new").write_text("more")
  (ctrl_dir / "new").chmod(0o600)
  (ctrl_dir / "old").unlink()
  (ctrl_dir / "gone").touch()
  (ctrl_dir / "gone").unlink()
  (ctrl_dir / "sub").mkdir()
  (ctrl_dir / "sub" / "deeper").touch()
  seen.look()
  assert seen.names == {"new", "gone", "sub"}
  assert seen.watch.read() == (0, set(), set(), False, False)


def test_only_files_that_could_be_written_are_told_when_closed(ctrl_dir, eye):
  for name in "read", "written", "open", "removed":
    (ctrl_dir / name).touch()
  seen = eye(ctrl_dir)
  with open(ctrl_dir / "open", "w") as stays_open:
    stays_open.write("text")
    stays_open.flush()
    (ctrl_dir / "read").read_text()
    (ctrl_dir / "written").open("a").close()
    with open(ctrl_dir / "removed", "a"):
      (ctrl_dir / "removed").unlink()
    seen.look()
    assert seen.closed - {"removed"} == {"written"}
    assert seen.names == set()
  seen.look()
  assert "open" in seen.closed


def test_file_is_closed_when_its_writer_is_killed(ctrl_dir, eye):
  seen = eye(ctrl_dir)

  def write_and_die():
    stays_open = open(ctrl_dir / "journal", "w")  # noqa: SIM115
    stays_open.write("text")
    os.kill(os.getpid(), signal.SIGKILL)

  with pytest.raises(AssertionError):
    forked.run(write_and_die)
  seen.look()
  assert seen.closed == {"journal"}


def test_name_of_any_bytes(ctrl_dir, eye):
  seen = eye(ctrl_dir)
  names = [b"\xff\xfe", "ü".encode(), b"a\nb", b"\x1b[2J", b"x" * 255, b" "]
  for name in names:
    (ctrl_dir / os.fsdecode(name)).touch()
  seen.look()
  assert {os.fsencode(name) for name in seen.names} == set(names)


def test_path_of_any_bytes(scratch, eye):
  path = scratch / os.fsdecode(b"\xff \n") / "ctrl"
  seen = eye(path)
  assert seen.watch.directory is None
  path.mkdir(parents=True)
  assert seen.sees(path)


@pytest.mark.parametrize("looks", [True, False])
def test_path_appears_step_by_step(path, eye, looks):
  seen = eye(path)
  assert seen.watch.directory is None
  for step in path.parent.parent, path.parent, path:
    step.mkdir()
    if looks:
      seen.look()
  assert seen.sees(path)


def test_path_appears_at_once(path, eye):
  seen = eye(path)
  path.mkdir(parents=True)
  assert seen.sees(path)


def test_path_is_moved_into_place_from_elsewhere(path, scratch, eye):
  for depth in range(3):
    target = [path, path.parent, path.parent.parent][depth]
    shutil.rmtree(scratch / "run", ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = eye(path)
    assert seen.watch.directory is None
    ready = scratch / f"ready{depth}"
    (ready / path.relative_to(target)).mkdir(parents=True)
    ready.rename(target)
    assert seen.sees(path)


@pytest.mark.parametrize("depth", range(3))
def test_path_is_moved_away_and_back(path, scratch, eye, depth):
  path.mkdir(parents=True)
  step = [path, path.parent, path.parent.parent][depth]
  seen = eye(path)
  for _ in range(3):
    step.rename(scratch / "away")
    seen.look()
    assert seen.watch.directory is None
    (scratch / "away").rename(step)
    assert seen.sees(path)


@pytest.mark.parametrize("depth", range(3))
@pytest.mark.parametrize("looks", [True, False])
def test_path_is_removed_and_made_anew(path, eye, depth, looks):
  path.mkdir(parents=True)
  seen = eye(path)
  watches = seen.watches
  for _ in range(20):
    shutil.rmtree([path, path.parent, path.parent.parent][depth])
    if looks:
      seen.look()
      assert seen.watch.directory is None
    path.mkdir(parents=True)
    assert seen.sees(path)
    assert seen.watches == watches


def test_directory_is_exchanged_for_another(path, scratch, eye):
  path.mkdir(parents=True)
  seen = eye(path)
  for number in range(3):
    (scratch / "other").mkdir()
    path.rename(scratch / f"old{number}")
    (scratch / "other").rename(path)
    assert seen.sees(path)
    # What goes on in the old one is no business of ours any more.
    (scratch / f"old{number}" / "name").touch()
    seen.look()
    assert "name" not in seen.names


def test_path_through_links(scratch, eye):
  """As /var/run, which is a link to /run."""
  path = scratch / "run" / "ganeti" / "ctrl"
  (scratch / "var").mkdir()
  (scratch / "var" / "run").symlink_to(scratch / "run")
  seen = eye(scratch / "var" / "run" / "ganeti" / "ctrl")
  path.mkdir(parents=True)
  assert seen.sees(path)
  shutil.rmtree(path.parent)
  seen.look()
  assert seen.watch.directory is None
  path.mkdir(parents=True)
  assert seen.sees(path)
  (scratch / "run").rename(scratch / "away")
  seen.look()
  assert seen.watch.directory is None
  (scratch / "var" / "run").unlink()
  (scratch / "var" / "run").symlink_to("../away")
  assert seen.sees(scratch / "away" / "ganeti" / "ctrl")


@pytest.mark.parametrize("last", ["", "ctrl"])
def test_link_is_changed(scratch, eye, last):
  for name in "one", "two":
    (scratch / name / last).mkdir(parents=True, exist_ok=True)
  link = scratch / "link"
  link.symlink_to("one")
  seen = eye(link / last)
  assert seen.sees(scratch / "one" / last)
  for target in ["two", "one", scratch / "two", "./one/../one", "two/"]:
    new = scratch / "new"
    new.symlink_to(target)
    new.rename(link)
    assert seen.sees(scratch / target / last)


def test_link_is_moved_away(scratch, eye):
  (scratch / "ctrl").mkdir()
  (scratch / "link").symlink_to("ctrl")
  seen = eye(scratch / "link")
  (scratch / "link").rename(scratch / "away")
  seen.look()
  assert seen.watch.directory is None
  (scratch / "away").rename(scratch / "link")
  assert seen.sees(scratch / "ctrl")


def test_path_that_leads_through_its_own_end(ctrl_dir, eye):
  """One directory is watched for two reasons then."""
  (ctrl_dir / "link").symlink_to(".")
  seen = eye(ctrl_dir / "link")
  assert seen.sees(ctrl_dir)
  (ctrl_dir / "link").rename(ctrl_dir / "away")
  seen.look()
  assert seen.watch.directory is None
  (ctrl_dir / "away").rename(ctrl_dir / "link")
  assert seen.sees(ctrl_dir)


def test_no_more_is_watched_than_the_path(path, scratch, eye):
  path.mkdir(parents=True)
  seen = eye(path)
  before = seen.watches
  (scratch / "run").rename(scratch / "away")
  seen.look()
  assert seen.watches == before - 3
  path.mkdir(parents=True)
  assert seen.sees(path)
  assert seen.watches == before


def test_chain_of_links(scratch, eye):
  (scratch / "ctrl").mkdir()
  previous = scratch / "ctrl"
  for number in range(30):
    link = scratch / f"link{number}"
    link.symlink_to(previous.name)
    previous = link
  seen = eye(previous)
  assert seen.sees(scratch / "ctrl")
  (scratch / "link7").unlink()
  seen.look()
  assert seen.watch.directory is None
  (scratch / "link7").symlink_to("link6")
  assert seen.sees(scratch / "ctrl")


def test_dangling_link_leads_somewhere_later(scratch, eye):
  (scratch / "link").symlink_to(scratch / "a" / "b")
  seen = eye(scratch / "link" / "ctrl")
  assert (seen.watch.directory, seen.trouble) == (None, None)
  (scratch / "a" / "b" / "ctrl").mkdir(parents=True)
  assert seen.sees(scratch / "a" / "b" / "ctrl")


def test_dots_mean_what_they_mean_to_the_kernel(scratch, eye):
  (scratch / "far" / "away").mkdir(parents=True)
  (scratch / "far" / "ctrl").mkdir()
  (scratch / "link").symlink_to("far/away")
  seen = eye(f"{scratch}/link/../ctrl")
  assert seen.sees(scratch / "far" / "ctrl")
  again = eye(f"{scratch}/.//./far/../link/./../ctrl/.")
  assert again.sees(scratch / "far" / "ctrl")
  (scratch / "link").unlink()
  seen.look()
  assert seen.watch.directory is None
  (scratch / "ctrl").mkdir()
  (scratch / "link").symlink_to("far")
  assert seen.sees(scratch / "ctrl")


def test_root_itself(eye):
  seen = eye("/")
  assert os.path.samestat(os.fstat(seen.watch.directory), os.stat("/"))


@pytest.mark.parametrize("depth", range(2))
@pytest.mark.parametrize("make", [pathlib.Path.touch, os.mkfifo])
def test_path_through_a_file(path, eye, depth, make):
  step = [path, path.parent][depth]
  step.parent.mkdir(parents=True)
  make(step)
  seen = eye(path)
  assert seen.watch.directory is None
  assert seen.trouble.errno == errno.ENOTDIR
  assert seen.trouble.filename == str(step)
  step.unlink()
  seen.look()
  assert (seen.watch.directory, seen.trouble) == (None, None)
  path.mkdir(parents=True)
  assert seen.sees(path)
  path.rmdir()
  path.touch()
  seen.look()
  assert seen.watch.directory is None
  assert seen.trouble.errno == errno.ENOTDIR


def test_links_in_a_circle(scratch, eye):
  (scratch / "one").symlink_to("two")
  (scratch / "two").symlink_to("one")
  seen = eye(scratch / "one" / "ctrl")
  assert seen.watch.directory is None
  assert seen.trouble.errno == errno.ELOOP
  (scratch / "two").unlink()
  (scratch / "two" / "ctrl").mkdir(parents=True)
  assert seen.sees(scratch / "two" / "ctrl")


def test_too_many_links_for_the_kernel_are_too_many(scratch, eye):
  (scratch / "0").mkdir()
  for number in range(1, 60):
    (scratch / str(number)).symlink_to(str(number - 1))
    try:
      os.stat(scratch / str(number))
      expected = None
    except OSError as err:
      expected = err.errno
    seen = eye(scratch / str(number))
    assert getattr(seen.trouble, "errno", None) == expected


def test_overflow_of_the_queue(ctrl_dir, scratch, eye):
  limit = int(
    pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text()
  )
  seen = eye(ctrl_dir)
  one, two = ctrl_dir / "one", ctrl_dir / "two"
  one.touch()
  # Not the same name twice, which the kernel would take for one event.
  for _ in range(limit // 2):
    os.rename(one, two)
    os.rename(two, one)
  # Nobody will tell of this.
  ctrl_dir.rename(scratch / "old")
  ctrl_dir.mkdir()
  seen.look()
  assert seen.lost == 1
  assert seen.sees(ctrl_dir)
  assert seen.lost == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_parent_that_may_not_be_read(path, depth):
  path.mkdir(parents=True)
  path.chmod(0o777)
  parent = [path, path.parent, path.parent.parent][depth]
  parent.chmod(0o311)

  def check():
    seen = Eye(path)
    assert seen.trouble is None
    assert seen.sees(path)

  forked.run(check, forked.Place.UNPRIVILEGED)
  parent.chmod(0o755)


def test_change_behind_an_unreadable_parent_is_found_at_the_next_look(path):
  path.parent.mkdir(parents=True)
  path.parent.chmod(0o777)
  path.parent.parent.chmod(0o311)

  def check():
    seen = Eye(path)
    assert (seen.watch.directory, seen.trouble) == (None, None)
    path.mkdir()
    assert seen.sees(path)
    path.rename(path.parent / "old")
    path.mkdir()
    seen.follow()
    assert seen.sees(path)

  forked.run(check, forked.Place.UNPRIVILEGED)
  path.parent.parent.chmod(0o755)


@pytest.mark.parametrize("depth", range(3))
def test_step_that_may_not_be_entered(path, depth):
  path.mkdir(parents=True)
  step = [path, path.parent, path.parent.parent][depth]
  step.chmod(0)

  def check():
    seen = Eye(path)
    assert isinstance(seen.trouble, PermissionError)
    assert str(path).startswith(seen.trouble.filename)
    assert seen.watch.directory is None

  forked.run(check, forked.Place.UNPRIVILEGED)
  step.chmod(0o755)


def leads_there(seen):
  """Tells whether the open directory is the one that the path leads to."""
  opened = seen.watch.directory
  if not os.path.isdir(seen.path):
    return opened is None
  return os.path.samestat(os.fstat(opened), os.stat(seen.path))


def play_blind(path, reason, **limits):
  """Follows a path without enough watches, and then with enough."""
  forked.limit_inotify(**limits)
  before = len(os.listdir("/proc/self/fd"))
  seen = Eye(path)
  assert seen.trouble is None
  assert reason in seen.watch.blindness
  assert leads_there(seen)
  # Who looks finds what nobody tells.
  path.rename(path.parent / "old")
  seen.follow()
  assert seen.watch.directory is None
  path.mkdir()
  assert seen.follow()
  assert leads_there(seen)
  assert reason in seen.watch.blindness
  forked.limit_inotify()
  assert not seen.follow()
  assert seen.watch.blindness == ""
  assert seen.sees(path)
  # What is watched stays so.
  forked.limit_inotify(**limits)
  seen.follow()
  assert seen.watch.blindness == ""
  seen.watch.close()
  assert len(os.listdir("/proc/self/fd")) == before


def test_no_inotify_instance(path):
  path.mkdir(parents=True)
  forked.run(
    lambda: play_blind(path, "fs.inotify.max_user_instances", instances=0),
    forked.Place.OWN_LIMITS,
  )


@pytest.mark.parametrize("missing", range(1, 5))
def test_out_of_inotify_watches(path, eye, missing):
  path.mkdir(parents=True)
  number = eye(path).watches - missing
  forked.run(
    lambda: play_blind(path, "fs.inotify.max_user_watches", watches=number),
    forked.Place.OWN_LIMITS,
  )


def test_looking_for_an_inotify_instance_is_cheap(path, monkeypatch):
  """It is done every second, and must not start a process each time."""
  path.mkdir(parents=True)

  def check():
    forked.limit_inotify(instances=0)
    seen = Eye(path)
    with mock.patch.object(ctypes.util, "find_library") as asked:
      for _ in range(10):
        seen.follow()
    assert asked.call_count == 0

  forked.run(check, forked.Place.OWN_LIMITS)


def touch(path):
  pathlib.Path(path).touch(exist_ok=False)


# All that can happen to a path of two steps and the links in it.
STEPS = st.sampled_from(["a", "b", "a/c", "b/c", "a/d", "b/d"])
TARGETS = st.sampled_from(
  [".", "..", "a", "b", "c", "d", "../b", "../b/c", "../b/..", "missing"]
)
ACTIONS = st.one_of(
  st.tuples(st.just(os.mkdir), STEPS),
  st.tuples(st.just(os.makedirs), STEPS),
  st.tuples(st.just(shutil.rmtree), STEPS),
  st.tuples(st.just(os.unlink), STEPS),
  st.tuples(st.just(os.rename), STEPS, STEPS),
  st.tuples(st.just(touch), STEPS),
  st.tuples(st.just(os.symlink), TARGETS, STEPS),
)


def act(base, function, *places):
  """Does something to the path, if it can be done just now."""
  try:
    if function is os.symlink:
      function(places[0], os.path.join(base, places[1]))
    else:
      function(*(os.path.join(base, place) for place in places))
  except OSError:
    pass


def check_anything(scratch, set_limit, limits):
  """Does anything to a path, and looks now and then.

  @param set_limit: says how many watches there may be
  @param limits: how many that are, at each step

  """

  @settings(max_examples=settings.default.max_examples // 2)
  @given(
    st.sampled_from(["a", "a/c"]),
    st.booleans(),
    st.lists(st.tuples(ACTIONS, st.booleans(), limits), max_size=14),
  )
  def check(path, exists, actions):
    base = tempfile.mkdtemp(dir=scratch)
    if exists:
      os.makedirs(f"{base}/a/c")
    seen = Eye(os.path.join(base, path))
    try:
      for action, looks, limit in actions:
        set_limit(watches=limit)
        act(base, *action)
        if looks:
          seen.look()
      seen.look()
      assert leads_there(seen)
      set_limit(watches=1000)
      if seen.watch.blindness:
        seen.follow()
      if os.path.isdir(seen.path):
        assert seen.sees(seen.path)
      # No more is watched than a look from anew would.
      fresh = Eye(seen.path)
      try:
        assert seen.watches == fresh.watches
      finally:
        fresh.watch.close()
    finally:
      seen.watch.close()
      shutil.rmtree(base)

  check()


def test_whatever_happens_to_the_path(scratch):
  check_anything(scratch, mock.Mock(), st.none())


def test_whatever_happens_while_watches_are_scarce(scratch):
  forked.run(
    lambda: check_anything(
      scratch, forked.limit_inotify, st.integers(0, 8) | st.just(1000)
    ),
    forked.Place.OWN_LIMITS,
  )


def test_so_many_at_a_time(ctrl_dir, eye):
  """The rest waits, and is not forgotten."""
  seen = eye(ctrl_dir)
  for number in range(100):
    (ctrl_dir / f"guest{number}.example.com.kvmd").touch()
  turns = []
  while select.select([seen.watch], [], [], 0)[0]:
    turns.append(seen.watch.read())
  assert max(each.number for each in turns) <= 32
  # Each is made, and closed.
  assert sum(each.number for each in turns) == 200
  assert len(set().union(*(each.names for each in turns))) == 100


def test_directory_tells_itself_that_it_is_moved(ctrl_dir, eye):
  # As if none of the directories above could be read.
  with mock.patch.object(watch.Watch, "_watch_step"):
    seen = eye(ctrl_dir)
    assert not seen.watch.read().path
    ctrl_dir.rename(ctrl_dir.with_name("moved"))
    assert seen.watch.read().path
    assert not seen.watch.read().path


def _event(number, mask, name=""):
  """As the kernel writes one; see inotify(7)."""
  raw = name.encode()
  raw += bytes(-len(raw) % 16)
  return struct.pack("=iIII", number, mask, 0, len(raw)) + raw


def _read(seen, *events):
  data = b"".join(_event(*each) for each in events)
  with mock.patch.object(seen.watch, "_read", return_value=data):
    return seen.watch.read()


def test_each_event_is_taken_for_what_it_is(ctrl_dir, eye):
  seen = eye(ctrl_dir)
  target = seen.watch._target
  other = 4711
  changes = _read(
    seen,
    (-1, pyinotify.IN_Q_OVERFLOW),
    (other, pyinotify.IN_DELETE_SELF),
    (target, pyinotify.IN_CREATE, "made"),
    (target, pyinotify.IN_CREATE | pyinotify.IN_ISDIR, "directory"),
    (target, pyinotify.IN_MOVED_TO, "moved"),
    (target, pyinotify.IN_CLOSE_WRITE, "closed"),
    (other, pyinotify.IN_CREATE, "elsewhere"),
    (other, pyinotify.IN_CLOSE_WRITE, "elsewhere"),
  )
  assert changes == watch.Changes(
    8, {"made", "directory", "moved"}, {"closed"}, path=False, lost=True
  )
  assert _read(seen) == watch.Changes(0, set(), set(), path=False, lost=False)


@pytest.mark.parametrize(
  ("masks", "is_forgotten"),
  [
    ([pyinotify.IN_MOVE_SELF], False),
    ([pyinotify.IN_MOVE_SELF | pyinotify.IN_ISDIR], False),
    ([pyinotify.IN_DELETE_SELF, pyinotify.IN_IGNORED], True),
    ([pyinotify.IN_IGNORED], True),
  ],
)
def test_watch_is_forgotten_when_the_kernel_says_so(
  ctrl_dir, eye, masks, is_forgotten
):
  seen = eye(ctrl_dir)
  target = seen.watch._target
  changes = _read(seen, *((target, mask) for mask in masks))
  assert changes == watch.Changes(
    len(masks), set(), set(), path=True, lost=False
  )
  assert (seen.watch._target is None) is is_forgotten


def test_descriptors_are_not_for_children(ctrl_dir, eye):
  seen = eye(ctrl_dir)
  for descriptor in (
    seen.watch.fileno(),
    seen.watch.directory,
    seen.watch._manager.get_fd(),
  ):
    assert not os.get_inheritable(descriptor)


def test_last_inotify_instance_is_taken_in_between(ctrl_dir, eye):
  with mock.patch("pyinotify.WatchManager", side_effect=OSError):
    seen = eye(ctrl_dir)
  assert "inotify instances" in seen.watch.blindness
  assert seen.watch.directory is not None
  seen.follow()
  assert not seen.watch.blindness

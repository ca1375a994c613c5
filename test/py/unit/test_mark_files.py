# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the marks in a control directory."""

from __future__ import annotations

import errno
import os
import stat
import time
from unittest import mock

import ctrl_files
import forked
import pytest
from ctrl_files import NAMES
from fake_monitor import FakeMonitor
from ganeti.kvmd.node import ctrldir, mark_files
from ganeti.kvmd.node.ctrldir import Life, Mark

SECOND = 10**9
LIFE = Life(1, 1795438800 * SECOND + 137)


@pytest.fixture
def elsewhere(scratch):
  """A file that is nobody's business, and a check that it was let alone."""
  path = scratch / "elsewhere"
  path.write_text("precious")
  os.chmod(path, 0o640)
  os.utime(path, ns=(5 * SECOND, 7 * SECOND))
  before = os.lstat(path)
  yield path
  after = os.lstat(path)
  assert path.read_text() == "precious"
  for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ino"):
    assert getattr(after, field) == getattr(before, field), field


def names(ctrl_dir):
  return sorted(os.listdir(ctrl_dir))


def has(control, mark, name, life):
  """Tells in which life an instance is marked; None if it is not."""
  found = mark_files.find(control, mark, name, life)
  return None if found is None else found.is_current


@pytest.mark.parametrize("name", NAMES)
def test_written_and_removed(ctrl_dir, control, mark, name):
  path = ctrl_dir / (name + mark.value)
  assert has(control, mark, name, LIFE) is None
  assert mark_files.write(control, mark, name, LIFE)
  assert names(ctrl_dir) == [path.name]
  found = os.lstat(path)
  assert stat.S_ISREG(found.st_mode)
  assert stat.S_IMODE(found.st_mode) == 0o600
  assert found.st_size == 0
  assert has(control, mark, name, LIFE) is True
  # It is left as it is; that it is open keeps its number from another.
  with path.open("rb"):
    assert mark_files.write(control, mark, name, LIFE)
    assert os.lstat(path).st_ino == found.st_ino
  assert has(control, mark, name, LIFE) is True
  assert mark_files.remove(control, mark, name) is True
  assert names(ctrl_dir) == []
  assert mark_files.remove(control, mark, name) is False


def test_marks_are_apart(ctrl_dir, control, mark):
  for each in Mark:
    mark_files.write(control, each, "a", LIFE)
    mark_files.write(control, each, "ab", LIFE)
  mark_files.remove(control, mark, "a")
  assert names(ctrl_dir) == sorted(
    name + each.value
    for each in Mark
    for name in ("a", "ab")
    if (each, name) != (mark, "a")
  )


@pytest.mark.parametrize("length", [245, 246, 247, 250])
def test_name_too_long_for_a_mark(ctrl_dir, control, mark, length):
  """Its monitor's name, which is shorter, may exist."""
  name = "x" * length
  (ctrl_dir / (name + ctrldir.MONITOR_SUFFIX)).touch()
  if len(name + mark.value) <= 255:
    assert mark_files.write(control, mark, name, LIFE) is False
    return
  assert has(control, mark, name, LIFE) is None
  assert mark_files.remove(control, mark, name) is False


def test_name_too_long_is_an_error_to_write(control, mark):
  with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
    mark_files.write(control, mark, "x" * 250, LIFE)


@pytest.mark.parametrize(
  ("date", "belongs"),
  [
    (LIFE.born - SECOND, False),
    (LIFE.born - 1, False),
    (LIFE.born, False),
    (LIFE.born + 1, True),
    (LIFE.born + 1000 * SECOND, True),
    (0, False),
  ],
)
def test_mark_belongs_to_a_life_by_its_date(
  ctrl_dir, control, mark, date, belongs
):
  path = ctrl_dir / f"a{mark.value}"
  path.touch()
  os.utime(path, ns=(date, date))
  assert has(control, mark, "a", LIFE) is belongs


def test_mark_is_never_of_a_later_life(control, mark):
  mark_files.write(control, mark, "a", LIFE)
  assert has(control, mark, "a", LIFE)
  assert not has(control, mark, "a", Life(2, LIFE.born + 1))
  assert not has(control, mark, "a", Life(1, LIFE.born + SECOND))


def test_old_mark_is_made_new(ctrl_dir, control, mark):
  mark_files.write(control, mark, "a", Life(1, LIFE.born - SECOND))
  assert has(control, mark, "a", LIFE) is False
  mark_files.write(control, mark, "a", LIFE)
  assert has(control, mark, "a", LIFE) is True


def test_reborn_instance_is_not_marked(ctrl_dir, control, mark):
  old = FakeMonitor(ctrl_dir, "a")
  opened = control.open_monitor("a")
  os.close(opened.descriptor)
  assert mark_files.write(control, mark, "a", opened.life)
  mark_files.remove(control, mark, "a")
  old.die()
  new = FakeMonitor(ctrl_dir, "a")
  assert mark_files.write(control, mark, "a", opened.life) is False
  assert has(control, mark, "a", opened.life) is None
  new.quit()
  assert mark_files.write(control, mark, "a", opened.life)


def test_link_is_replaced_and_not_followed(ctrl_dir, control, mark, elsewhere):
  path = ctrl_dir / f"a{mark.value}"
  path.symlink_to(elsewhere)
  assert mark_files.write(control, mark, "a", LIFE)
  assert stat.S_ISREG(os.lstat(path).st_mode)
  assert has(control, mark, "a", LIFE)


def test_dangling_link_is_replaced_and_not_followed(
  ctrl_dir, control, mark, scratch
):
  path = ctrl_dir / f"a{mark.value}"
  path.symlink_to(scratch / "missing")
  assert mark_files.write(control, mark, "a", LIFE)
  assert stat.S_ISREG(os.lstat(path).st_mode)
  assert not (scratch / "missing").exists()


@pytest.mark.parametrize("content", ["", "precious"])
def test_hard_link_is_replaced(ctrl_dir, control, mark, elsewhere, content):
  elsewhere.write_text(content)
  os.utime(elsewhere, ns=(5 * SECOND, 7 * SECOND))
  path = ctrl_dir / f"a{mark.value}"
  os.link(elsewhere, path)
  assert mark_files.write(control, mark, "a", LIFE)
  assert not path.samefile(elsewhere)
  assert path.stat().st_size == 0
  assert elsewhere.stat().st_mtime_ns == 7 * SECOND
  elsewhere.write_text("precious")
  os.utime(elsewhere, ns=(5 * SECOND, 7 * SECOND))


def test_file_with_content_is_replaced(ctrl_dir, control, mark):
  path = ctrl_dir / f"a{mark.value}"
  path.write_text("whatever")
  assert mark_files.write(control, mark, "a", LIFE)
  assert path.stat().st_size == 0


def test_fifo_and_socket_are_replaced(ctrl_dir, control, mark):
  os.mkfifo(ctrl_dir / f"a{mark.value}")
  FakeMonitor(ctrl_dir, "b", suffix=mark.value).die()
  for name in "a", "b":
    assert mark_files.write(control, mark, name, LIFE)
    assert stat.S_ISREG(os.lstat(ctrl_dir / f"{name}{mark.value}").st_mode)


@pytest.mark.parametrize("make", ["fifo", "link", "dangling", "socket"])
def test_whatever_it_is_it_is_removed(ctrl_dir, control, mark, elsewhere, make):
  path = ctrl_dir / f"a{mark.value}"
  if make == "fifo":
    os.mkfifo(path)
  elif make == "socket":
    FakeMonitor(ctrl_dir, "a", suffix=mark.value).die()
  else:
    path.symlink_to(elsewhere if make == "link" else "missing")
  assert has(control, mark, "a", LIFE) is not None
  assert mark_files.remove(control, mark, "a")
  assert names(ctrl_dir) == []


def test_directory_stays_and_is_an_error(ctrl_dir, control, mark):
  path = ctrl_dir / f"a{mark.value}"
  (path / "file").mkdir(parents=True)
  with pytest.raises(OSError, match="directory"):
    mark_files.write(control, mark, "a", LIFE)
  with pytest.raises(OSError, match="directory"):
    mark_files.remove(control, mark, "a")
  assert (path / "file").is_dir()


def test_directory_that_was_removed_is_an_error_to_write_in(
  ctrl_dir, control, mark
):
  ctrl_dir.rmdir()
  ctrl_dir.mkdir()
  with pytest.raises(FileNotFoundError):
    mark_files.write(control, mark, "a", LIFE)
  assert mark_files.remove(control, mark, "a") is False
  assert control.instances().monitored == set()
  assert names(ctrl_dir) == []


def test_mark_that_is_removed_at_once(ctrl_dir, control, mark):
  """The hypervisor did it, and means it."""
  date = os.utime

  def remove_before(*arguments, **options):
    assert mark_files.remove(control, mark, "a")
    date(*arguments, **options)

  with mock.patch("os.utime", remove_before):
    assert mark_files.write(control, mark, "a", LIFE) is False
  assert os.listdir(ctrl_dir) == []


def test_mark_that_cannot_be_dated(control, mark, monkeypatch):
  fault = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
  monkeypatch.setattr(os, "utime", mock.Mock(side_effect=fault))
  with pytest.raises(PermissionError) as err:
    mark_files.write(control, mark, "a", LIFE)
  assert err.value.filename == f"a{mark.value}"


def test_no_room_on_the_disk(ctrl_dir, mark):
  def check():
    forked.mount_small(str(ctrl_dir), files=1)
    (ctrl_dir / "full").touch()
    opened = os.open(ctrl_dir, os.O_RDONLY)
    control = ctrldir.ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as err:
      mark_files.write(control, mark, "a", LIFE)
    assert err.value.filename == f"a{mark.value}"
    (ctrl_dir / "full").unlink()
    assert mark_files.write(control, mark, "a", LIFE)
    assert has(control, mark, "a", LIFE)

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_since_when_an_instance_is_marked(control):
  before = time.time()
  mark_files.write(control, Mark.POWERDOWN, "a", LIFE)
  found = mark_files.find(control, Mark.POWERDOWN, "a", LIFE)
  # The kernel's date may be a tick old.
  assert before - 0.02 <= found.at <= time.time()


def test_mark_of_one_whose_socket_is_left(control, ctrl_dir):
  """It was killed, and the clock was set back before; that is no later life."""
  commands = ctrl_dir / ("a" + ctrldir.JOURNAL_COMMANDS)
  commands.touch()
  later = time.time_ns() + 86400 * SECOND
  os.utime(commands, ns=(later + 5, later))
  for ending, content in (
    (ctrldir.JOURNAL_DIGEST, b""),
    (
      ctrldir.JOURNAL_EVENTS,
      b"x",
    ),
  ):
    (ctrl_dir / ("a" + ending)).write_bytes(content)
  (ctrl_dir / "a.kvmd").touch()
  os.utime(ctrl_dir / "a.kvmd", ns=(later + 3, later + 3))
  life = Life((ctrl_dir / ("a" + ctrldir.JOURNAL_EVENTS)).stat().st_ino, later)
  os.utime(ctrl_dir / ("a" + ctrldir.JOURNAL_DIGEST), ns=(later, later))
  assert mark_files.write(control, Mark.SHUTDOWN, "a", life)
  assert mark_files.find(control, Mark.SHUTDOWN, "a", life).is_current
  assert mark_files.is_marked(control, Mark.SHUTDOWN, "a")
  # Of a later life it says nothing.
  os.utime(ctrl_dir / "a.kvmd", ns=(later + 9, later + 9))
  assert not mark_files.is_marked(control, Mark.SHUTDOWN, "a")


@pytest.mark.parametrize("born", [0, LIFE.born])
@pytest.mark.parametrize("started", [None, -SECOND, SECOND])
def test_date_of_a_mark(ctrl_dir, control, mark, born, started):
  """It is just after all was made that belongs to the start of the life."""
  commands = ctrl_dir / f"a{ctrldir.JOURNAL_COMMANDS}"
  read = max(0, born + (started or 0))
  if started is not None:
    commands.touch()
    os.utime(commands, ns=(read, 0))
  assert mark_files.write(control, mark, "a", Life(1, born))
  path = ctrl_dir / f"a{mark.value}"
  assert path.stat().st_mtime_ns == max(born, read) + 1


def test_when_a_life_was_marked(ctrl_dir, control, mark):
  assert mark_files.marked_at(control, mark, "a", LIFE) is None
  # The kernel's own clock for files advances every few milliseconds.
  for _ in range(20):
    before = time.time_ns() / 1e9
    mark_files.write(control, mark, "a", LIFE)
    made = mark_files.marked_at(control, mark, "a", LIFE)
    assert before <= made <= time.time_ns() / 1e9
  later = Life(2, LIFE.born + SECOND)
  assert mark_files.marked_at(control, mark, "a", later) is None


def test_when_a_mark_was_made_that_does_not_say_it(ctrl_dir, control, mark):
  """As those of an earlier version."""
  path = ctrl_dir / f"a{mark.value}"
  path.touch()
  os.utime(path, ns=(LIFE.born + 1, LIFE.born + 1))
  made = path.stat().st_ctime_ns / 1e9
  assert mark_files.marked_at(control, mark, "a", LIFE) == made


@pytest.mark.parametrize("name", ["a.kvmd", "a.qmp"])
@pytest.mark.parametrize("was_set_back", [False, True])
def test_something_younger_than_a_mark(ctrl_dir, control, name, was_set_back):
  """That is what was made after it, by the clock of then and of now."""
  assert not mark_files.is_marked(control, Mark.SHUTDOWN, "a")
  path = ctrl_dir / "a.shutdown"
  path.touch()
  dated = time.time_ns() + (60 if was_set_back else -60) * SECOND
  os.utime(path, ns=(dated, dated))
  first = dated if was_set_back else path.stat().st_ctime_ns + 1
  assert mark_files.is_marked(control, Mark.SHUTDOWN, "a")
  (ctrl_dir / name).touch()
  for date, counts in (first - 1, True), (first, False):
    os.utime(ctrl_dir / name, ns=(0, date))
    assert mark_files.is_marked(control, Mark.SHUTDOWN, "a") is counts


def test_mark_that_was_there_is_removed_at_once(ctrl_dir, control, mark):
  """The hypervisor did it, and means it."""
  make = os.mknod
  path = ctrl_dir / f"a{mark.value}"
  path.touch()

  def remove_after(*arguments, **options):
    try:
      make(*arguments, **options)
    finally:
      path.unlink()

  with mock.patch("os.mknod", remove_after):
    assert mark_files.write(control, mark, "a", LIFE) is False
  assert names(ctrl_dir) == []


def test_link_in_place_of_a_mark_that_was_just_made(
  ctrl_dir, control, mark, elsewhere
):
  """Its target is not dated."""
  make = os.mknod
  path = ctrl_dir / f"a{mark.value}"

  def replace_after(*arguments, **options):
    make(*arguments, **options)
    path.unlink()
    path.symlink_to(elsewhere)

  with mock.patch("os.mknod", replace_after):
    mark_files.write(control, mark, "a", LIFE)


@pytest.mark.parametrize("has_socket", [False, True])
@pytest.mark.parametrize("has_journal", [False, True])
def test_what_a_mark_costs(
  ctrl_dir, control, monkeypatch, has_socket, has_journal
):
  """So many calls of the kernel, which is what a storm of ends consists of."""
  life = LIFE
  if has_journal:
    for ending in (ctrldir.JOURNAL_DIGEST, ctrldir.JOURNAL_EVENTS):
      (ctrl_dir / f"a{ending}").touch()
    life = control.journaled_life("a")
  if has_socket:
    FakeMonitor(ctrl_dir, "a")
    life = control.life("a")
  calls = []

  def counted(name):
    real = getattr(os, name)

    def call(*arguments, **options):
      calls.append(name)
      return real(*arguments, **options)

    return call

  for name in ("stat", "mknod", "utime", "open", "unlink", "lstat", "listdir"):
    monkeypatch.setattr(os, name, counted(name))
  assert mark_files.write(control, Mark.SHUTDOWN, "a", life)
  looks = 2 if has_socket else 3 + has_journal
  assert sorted(calls) == ["mknod", *["stat"] * looks, "utime"]
  calls.clear()
  assert mark_files.marked_at(control, Mark.SHUTDOWN, "a", life) is not None
  assert mark_files.remove(control, Mark.SHUTDOWN, "a")
  assert calls == ["stat", "unlink"]


@pytest.mark.parametrize(
  ("use", "arguments"),
  [
    (mark_files.find, ("a", LIFE)),
    (mark_files.marked_at, ("a", LIFE)),
    (mark_files.is_marked, ("a",)),
    (mark_files.write, ("a", LIFE)),
    (mark_files.remove, ("a",)),
  ],
)
def test_missing_directory(mark, use, arguments):
  with pytest.raises(ctrldir.MissingDirectoryError) as caught:
    use(ctrl_files.missing("/far/away"), mark, *arguments)
  assert caught.value.filename == "/far/away"

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the rule that the daemon says it judges by."""

from __future__ import annotations

import errno
import os
import stat

import ctrl_files
import forked
import pytest
from fake_monitor import FakeMonitor
from ganeti.kvmd.node import ctrldir, rule_file
from ganeti.kvmd.node.ctrldir import NEW_RULE, RULE


def names(ctrl_dir):
  return sorted(os.listdir(ctrl_dir))


def test_rule(ctrl_dir, control):
  assert rule_file.read(control) is None
  rule_file.write(control, None)
  assert names(ctrl_dir) == []
  rule_file.write(control, "sequence")
  assert names(ctrl_dir) == [RULE]
  found = os.lstat(ctrl_dir / RULE)
  assert stat.S_ISREG(found.st_mode)
  assert stat.S_IMODE(found.st_mode) == 0o600
  assert (ctrl_dir / RULE).read_text() == "sequence\n"
  assert rule_file.read(control) == "sequence"
  rule_file.write(control, "other")
  assert rule_file.read(control) == "other"
  rule_file.write(control, None)
  assert names(ctrl_dir) == []


def test_rule_is_replaced_in_one_step(ctrl_dir, control):
  rule_file.write(control, "sequence")
  with (ctrl_dir / RULE).open() as before:
    rule_file.write(control, "other")
    assert before.read() == "sequence\n"


def test_rule_that_was_said_is_not_said_again(ctrl_dir, control):
  rule_file.write(control, "sequence")
  before = os.lstat(ctrl_dir / RULE)
  rule_file.write(control, "sequence")
  assert os.lstat(ctrl_dir / RULE) == before


@pytest.mark.parametrize(
  "make",
  [
    lambda path, other: path.symlink_to(other),
    lambda path, other: path.symlink_to(path.parent / "nothing"),
    lambda path, other: os.link(other, path),
    lambda path, _: os.mkfifo(path),
    lambda path, _: path.write_text("sequence\n") and path.chmod(0o620),
    lambda path, _: path.write_text("sequence\n") and path.chmod(0o602),
    lambda path, _: path.write_bytes(b""),
    lambda path, _: path.write_bytes(b"\xff\n"),
    lambda path, _: path.write_bytes(b"sequence" * 1000),
    lambda path, _: FakeMonitor(path.parent, "", suffix=path.name),
  ],
)
def test_what_is_not_the_daemons_says_no_rule(ctrl_dir, control, scratch, make):
  other = scratch / "other"
  other.write_text("sequence\n")
  os.chmod(other, 0o600)
  make((ctrl_dir / RULE), other)
  assert rule_file.read(control) != "sequence"
  rule_file.write(control, "sequence")
  assert rule_file.read(control) == "sequence"
  assert names(ctrl_dir) == [RULE]
  rule_file.write(control, None)
  assert names(ctrl_dir) == []
  assert other.read_text() == "sequence\n"


def test_strangers_say_no_rule(control, monkeypatch):
  rule_file.write(control, "sequence")
  stranger = os.geteuid() + 1
  monkeypatch.setattr(os, "geteuid", lambda: stranger)
  assert rule_file.read(control) is None


@pytest.mark.parametrize("rule", [None, "sequence"])
def test_directory_in_place_of_the_rule_is_an_error(ctrl_dir, control, rule):
  (ctrl_dir / RULE).mkdir()
  assert rule_file.read(control) is None
  with pytest.raises(IsADirectoryError) as err:
    rule_file.write(control, rule)
  assert err.value.filename == RULE


def test_no_room_on_the_disk_for_the_rule(ctrl_dir):
  def check():
    forked.mount_small(str(ctrl_dir), files=1)
    (ctrl_dir / "full").touch()
    opened = os.open(ctrl_dir, os.O_RDONLY)
    control = ctrldir.ControlDirectory(str(ctrl_dir), opened, ".kvmd")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as err:
      rule_file.write(control, "sequence")
    assert err.value.filename == RULE
    assert rule_file.read(control) is None
    (ctrl_dir / "full").unlink()
    rule_file.write(control, "sequence")
    assert rule_file.read(control) == "sequence"

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_no_more_is_read_than_a_rule_has(ctrl_dir, control):
  (ctrl_dir / RULE).write_bytes(b"x" * 1000)
  assert rule_file.read(control) == "x" * 64


@pytest.mark.parametrize("rule", [None, "other"])
def test_rule_that_was_left_half_written(ctrl_dir, control, rule):
  """The daemon was killed just then."""
  rule_file.write(control, "sequence")
  (ctrl_dir / NEW_RULE).write_text("seq")
  rule_file.write(control, rule)
  assert rule_file.read(control) == rule
  assert names(ctrl_dir) == ([] if rule is None else [RULE])


@pytest.mark.parametrize(
  ("rule", "named"), [(None, NEW_RULE), ("sequence", RULE)]
)
def test_directory_beside_the_rule_is_an_error(ctrl_dir, control, rule, named):
  (ctrl_dir / NEW_RULE).mkdir()
  with pytest.raises(IsADirectoryError) as err:
    rule_file.write(control, rule)
  assert err.value.filename == named


@pytest.mark.parametrize("rule", [None, "sequence"])
def test_missing_directory(rule):
  missing = ctrl_files.missing("/far/away")
  assert rule_file.read(missing) is None
  with pytest.raises(ctrldir.MissingDirectoryError) as caught:
    rule_file.write(missing, rule)
  assert caught.value.filename == "/far/away"

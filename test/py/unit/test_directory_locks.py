# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the locks of a control directory."""

from __future__ import annotations

import os
import signal
import time
from unittest import mock

import forked
import pytest
from ganeti.kvmd.node import directory_locks
from ganeti.kvmd.node.directory_locks import LOCK_FILE, DirectoryLocks
from ganeti.kvmd.node.lockfile import LockedError


@pytest.fixture
def locks(ctrl_dir):
  opened = os.open(ctrl_dir, os.O_RDONLY)
  yield DirectoryLocks(str(ctrl_dir), opened)
  os.close(opened)


@pytest.fixture
def other(ctrl_dir):
  """What another process knows of the directory."""
  opened = os.open(ctrl_dir, os.O_RDONLY)
  yield DirectoryLocks(str(ctrl_dir), opened)
  os.close(opened)


def test_one_daemon(ctrl_dir, locks, other):
  assert directory_locks.daemon_of(str(ctrl_dir)) is None
  for _ in range(2):
    locks.claim()
    assert directory_locks.daemon_of(str(ctrl_dir)) == os.getpid()
    with pytest.raises(LockedError) as caught:
      other.claim()
    path = ctrl_dir / LOCK_FILE
    assert str(caught.value) == f"process {os.getpid()} holds {path}"
  locks.release()
  locks.release()
  assert directory_locks.daemon_of(str(ctrl_dir)) is None
  other.claim()
  with pytest.raises(LockedError):
    locks.claim()
  other.release()


def test_no_directory_no_daemon(scratch):
  assert directory_locks.daemon_of(str(scratch / "missing")) is None


def test_claim_costs_little_when_all_is_well(locks):
  locks.claim()
  with mock.patch("os.open", side_effect=AssertionError):
    locks.claim()
  locks.release()


@pytest.mark.parametrize("what", ["removed", "opened"])
def test_claim_is_renewed(ctrl_dir, locks, other, what):
  locks.claim()
  path = ctrl_dir / LOCK_FILE
  before = path.stat().st_ino
  if what == "removed":
    path.unlink()
    path.with_name("keeps the number").touch()
  else:
    path.chmod(0o644)
  locks.claim()
  assert path.stat().st_ino != before
  with pytest.raises(LockedError):
    other.claim()
  locks.release()


def test_claim_is_lost(ctrl_dir, locks, other):
  locks.claim()
  (ctrl_dir / LOCK_FILE).unlink()
  other.claim()
  before = len(os.listdir("/proc/self/fd"))
  with pytest.raises(LockedError):
    locks.claim()
  assert len(os.listdir("/proc/self/fd")) == before - 1
  other.release()
  locks.claim()
  locks.release()


def test_claim_stays_where_it_cannot_be_renewed(ctrl_dir, locks):
  locks.claim()
  path = ctrl_dir / LOCK_FILE
  path.unlink()
  path.mkdir()
  with pytest.raises(IsADirectoryError) as caught:
    locks.claim()
  assert caught.value.filename == str(path)
  path.rmdir()
  locks.claim()
  locks.release()


def test_claim_is_lost_to_another_user(ctrl_dir, locks):
  """Whose lock file cannot be looked into."""
  locks.claim()
  path = ctrl_dir / LOCK_FILE
  path.unlink()
  path.touch()
  path.chmod(0o644)
  before = len(os.listdir("/proc/self/fd"))
  stranger = path.stat().st_uid + 1
  with mock.patch("os.geteuid", return_value=stranger):
    with pytest.raises(PermissionError) as caught:
      locks.claim()
  assert caught.value.filename == str(path)
  assert len(os.listdir("/proc/self/fd")) == before - 1


def test_lock_file_that_cannot_be_made(ctrl_dir, locks, monkeypatch):
  """There is nothing to wait for then."""
  monkeypatch.setattr(time, "sleep", mock.Mock(side_effect=AssertionError))
  path = ctrl_dir / LOCK_FILE
  path.mkdir()
  assert not locks.lock(10.0)
  assert locks.kept_out.reason == f"cannot use {path}: Is a directory"


@pytest.mark.parametrize("is_daemon", [True, False])
def test_lock_for_changes(ctrl_dir, locks, other, is_daemon):
  before = len(os.listdir("/proc/self/fd"))
  if is_daemon:
    locks.claim()
  for mine, others in [(locks, other), (other, locks)] * 2:
    assert mine.lock(0.0)
    assert not others.lock(0.0)
    path = ctrl_dir / LOCK_FILE
    assert others.kept_out.reason == f"process {os.getpid()} holds {path}"
    mine.unlock()
    assert others.lock(0.0)
    assert others.kept_out is None
    others.unlock()
  if is_daemon:
    assert directory_locks.daemon_of(str(ctrl_dir)) == os.getpid()
  locks.release()
  assert len(os.listdir("/proc/self/fd")) == before


def test_somebody_has_the_lock_for_long(locks, other, monkeypatch):
  clock = mock.Mock(return_value=1000.0)
  monkeypatch.setattr(time, "monotonic", clock)
  assert other.lock(0.0)
  for now in (1000.0, 1010.0, 1070.0):
    clock.return_value = now
    assert not locks.lock(0.0)
    assert (locks.kept_out.first, locks.kept_out.last) == (1000.0, now)
  other.unlock()
  assert locks.lock(0.0)
  locks.unlock()
  assert locks.kept_out is None


def test_waiting_for_the_lock(locks, other, monkeypatch):
  """In short naps, and for no longer than it is worth."""
  now = [0.0]
  naps = []

  def sleep(seconds):
    naps.append(seconds)
    now[0] += seconds
    if len(naps) == 150:
      other.unlock()

  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(time, "sleep", sleep)
  assert other.lock(0.0)
  assert not locks.lock(1.0)
  assert 99 <= len(naps) <= 101
  assert locks.lock(1.0)
  assert len(naps) == 150
  locks.unlock()


def test_stopped_process_keeps_it(ctrl_dir, locks):
  def hold():
    opened = os.open(ctrl_dir, os.O_RDONLY)
    held = DirectoryLocks(str(ctrl_dir), opened)
    held.claim()
    assert held.lock(0.0)

  with forked.living_on(hold) as process:
    os.kill(process, signal.SIGSTOP)
    assert not locks.lock(0.03)
    assert f"process {process} " in locks.kept_out.reason
    with pytest.raises(LockedError, match=f"process {process} "):
      locks.claim()
  locks.claim()
  assert locks.lock(0.0)
  locks.unlock()
  locks.release()


def test_lock_file_is_made_by_whoever_comes_first(ctrl_dir, locks, other):
  assert locks.lock(0.0)
  before = (ctrl_dir / LOCK_FILE).stat().st_ino
  other.claim()
  assert (ctrl_dir / LOCK_FILE).stat().st_ino == before
  assert not other.lock(0.0)
  locks.unlock()
  other.release()
  assert (ctrl_dir / LOCK_FILE).stat().st_ino == before


@pytest.mark.parametrize("is_daemon", [True, False])
def test_lock_is_let_go_of_once(ctrl_dir, locks, other, is_daemon):
  """Who has none lets go of none, be it again or after it was refused."""
  if is_daemon:
    locks.claim()
  assert locks.lock(0.0)
  locks.unlock()
  locks.unlock()
  assert other.lock(0.0)
  assert not locks.lock(0.0)
  locks.unlock()
  assert not DirectoryLocks(str(ctrl_dir), other._directory).lock(0.0)
  other.unlock()
  locks.release()


def test_claim_is_no_lock_for_changes(locks, other):
  """So one can be had while the other is somebody else's."""
  locks.claim()
  assert other.lock(0.0)
  other.unlock()
  locks.release()


def test_claim_that_is_renewed_leaves_no_file_open(ctrl_dir, locks):
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(3):
    locks.claim()
    (ctrl_dir / LOCK_FILE).unlink()
  assert len(os.listdir("/proc/self/fd")) == before + 1
  locks.release()
  assert len(os.listdir("/proc/self/fd")) == before

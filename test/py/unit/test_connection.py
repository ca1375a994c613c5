# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the connection to a monitor, by real sockets and files."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time

import ctrl_files
import forked
import pytest
from fake_monitor import FakeMonitor, end_all
from ganeti.kvmd.core import qmp, session
from ganeti.kvmd.node import connection
from ganeti.kvmd.node.connection import Attempt, Result
from ganeti.kvmd.node.ctrldir import ControlDirectory, Life


def open_files():
  return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def directory(ctrl_dir):
  before = open_files()
  with ctrl_files.opened(ctrl_dir) as directory:
    yield directory
  end_all()
  assert open_files() == before


def life(path):
  found = path.lstat()
  return Life(found.st_ino, found.st_mtime_ns)


@pytest.fixture
def monitor(directory, ctrl_dir):
  return FakeMonitor(ctrl_dir, "web1")


@contextlib.contextmanager
def connected(directory):
  made = connection.connect(directory, "web1").connection
  try:
    yield made
  finally:
    made.close()


def test_connected(directory, monitor):
  before = open_files()
  began = time.monotonic()
  attempt = connection.connect(directory, "web1")
  assert attempt.result is Result.CONNECTED
  assert attempt.life == life(monitor.path)
  assert attempt.trouble == ""
  made = attempt.connection
  # The file of the socket is not held any more.
  assert open_files() == before + 1
  assert not os.get_inheritable(made.fileno())
  assert began <= made.made <= time.monotonic()
  assert made.process == os.getpid()
  assert made.session.state is session.State.CONNECTED
  assert monitor.accept().is_open
  made.close()
  assert open_files() == before + 1  # that of the fake


def test_name_and_path_may_be_longer_than_an_address(directory, ctrl_dir):
  name = "x" * 250
  monitor = FakeMonitor(ctrl_dir, "short")
  monitor.path.rename(ctrl_dir / f"{name}.kvmd")
  made = connection.connect(directory, name).connection
  assert monitor.accept() is not None
  made.close()


@pytest.mark.parametrize("ended", [True, False])
def test_nobody_listens(directory, ctrl_dir, ended):
  monitor = FakeMonitor(ctrl_dir, "web1", listens=ended)
  if ended:
    monitor.die()
  before = open_files()
  assert connection.connect(directory, "web1") == Attempt(
    Result.REFUSED, life(monitor.path)
  )
  assert open_files() == before


def test_too_many_wait(directory, ctrl_dir):
  monitor = FakeMonitor(ctrl_dir, "web1", backlog=0)
  with connected(directory):
    before = open_files()
    assert connection.connect(directory, "web1") == Attempt(
      Result.BUSY, life(monitor.path)
    )
    assert open_files() == before


def test_socket_of_another_kind(directory, ctrl_dir):
  path = ctrl_dir / "web1.kvmd"
  with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(str(path))
    listener.listen()
    before = open_files()
    assert connection.connect(directory, "web1") == Attempt(
      Result.FAILED, life(path), trouble="Protocol wrong type for socket"
    )
    assert open_files() == before


@pytest.mark.parametrize("left", [0, 1])
def test_no_descriptor_is_left(directory, monitor, left):
  trouble = "Too many open files"
  expected = [
    Attempt(Result.UNREACHABLE, trouble=f"web1.kvmd: {trouble}"),
    Attempt(Result.FAILED, life(monitor.path), trouble=trouble),
  ]

  def check():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + left, hard))
    assert connection.connect(directory, "web1") == expected[left]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert os.dup(0) == first_free

  forked.run(check)


def test_no_socket(directory):
  assert connection.connect(directory, "web1") == Attempt(Result.NO_SOCKET)


@pytest.mark.parametrize(
  "make",
  [
    lambda path, _: path.touch(),
    lambda path, _: path.mkdir(),
    lambda path, _: os.mkfifo(path),
    lambda path, elsewhere: path.symlink_to(elsewhere),
    lambda path, _: path.symlink_to("missing"),
  ],
  ids=["file", "directory", "fifo", "link", "broken link"],
)
def test_not_a_socket(directory, ctrl_dir, scratch, make):
  make(ctrl_dir / "web1.kvmd", FakeMonitor(scratch, "elsewhere").path)
  assert connection.connect(directory, "web1") == Attempt(
    Result.NOT_A_SOCKET,
    trouble="web1.kvmd: Socket operation on non-socket",
  )


def test_unreachable(directory):
  name = "x" * 251
  assert connection.connect(directory, name) == Attempt(
    Result.UNREACHABLE, trouble=f"{name}.kvmd: File name too long"
  )


def test_no_directory(ctrl_dir):
  missing = ControlDirectory(str(ctrl_dir), None, ".kvmd")
  assert connection.connect(missing, "web1") == Attempt(Result.NO_DIRECTORY)


def test_reading(directory, monitor):
  with connected(directory) as made:
    assert made.read() is None
    end = monitor.accept()
    end.send(b"x" * 40000)
    # So that each gets its turn.
    sizes = [len(made.read()) for _ in range(3)]
    assert sizes == [16384, 16384, 40000 - 2 * 16384]
    assert made.read() is None
    end.close()
    assert made.read() == b""


def test_connection_is_reset(directory, monitor):
  with connected(directory) as made:
    made.send()
    # What was sent is not read.
    monitor.accept().close()
    assert made.read() == b""


def test_sending(directory, monitor):
  with connected(directory) as made:
    end = monitor.accept()
    made.send()
    assert end.receive() == 1
    assert made.session.outgoing == b""
    made.session.ask_status()
    assert made.session.outgoing == qmp.QUERY_STATUS
    made.send()
    assert end.receive() == 2
    made.session.ask_status()
    end.close()
    made.send()
    assert made.session.outgoing == b""
    assert made.read() == b""


@pytest.mark.parametrize("accepts", [True, False])
def test_hanging_up(directory, monitor, accepts):
  with connected(directory) as made:
    if accepts:
      monitor.accept()
    assert made.has_hung_up is False
    monitor.die()
    assert made.has_hung_up is True


def test_what_is_still_to_be_read_is_no_hanging_up(directory, monitor):
  with connected(directory) as made:
    monitor.accept().send(b"x")
    assert made.has_hung_up is False


def test_process(directory, monitor):
  before = open_files()
  assert connection.find_process(directory, "web1") == os.getpid()
  assert open_files() == before
  assert not monitor.accept().is_open
  monitor.die()
  assert connection.find_process(directory, "web1") == 0
  assert connection.find_process(directory, "web2") == 0

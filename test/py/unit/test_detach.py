# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of detaching, with daemons that say what they see and end.

Whoever starts one here has a process of its own, which learns of the daemon's
end: it is the reaper of its orphans.
"""

from __future__ import annotations

import ctypes
import json
import logging
import logging.handlers
import os
import pathlib
import signal

import forked
import pytest
from ganeti.kvmd.process import detach
from guests import lifetime

_PR_SET_CHILD_SUBREAPER = 36


def starter(check):
  """Runs a function in a process that daemons can be started by."""

  def run():
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    check()
    # Of those that came in between nothing is left.
    with pytest.raises(ChildProcessError):
      os.waitpid(-1, 0)

  forked.run(run)


def status_of_daemon():
  """Waits for the end of the daemon."""
  return os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])


def descriptors():
  """Says what is open, without what it takes to see that."""
  found = {}
  for number in os.listdir("/proc/self/fd"):
    try:
      found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
      continue
  return found


def put(path, value):
  """Makes a file that is complete as soon as it is there."""
  new = path.with_suffix(".new")
  new.write_text(json.dumps(value))
  new.rename(path)


def test_starter_returns_when_the_daemon_is_ready_and_it_lives_on(scratch):
  go, done = scratch / "go", scratch / "done"

  def serve(on_ready):
    on_ready()
    lifetime.wait_until(go.exists, "the starter")
    put(done, os.getpid())

  def check():
    detach.run(serve)
    assert not done.exists()
    assert os.waitpid(-1, os.WNOHANG) == (0, 0)
    go.touch()
    assert status_of_daemon() == 0
    assert done.exists()

  starter(check)


def test_starter_does_not_return_before(scratch):
  def serve(on_ready):
    put(scratch / "before", True)
    on_ready()

  def check():
    detach.run(serve)
    assert (scratch / "before").exists()
    assert status_of_daemon() == 0

  starter(check)


def test_daemon_has_nothing_of_its_starter(scratch):
  def serve(on_ready):
    before = descriptors()
    on_ready()
    put(
      scratch / "seen",
      {
        "process": os.getpid(),
        "session": os.getsid(0),
        "directory": os.getcwd(),
        "umask": os.umask(0),
        "before": before,
        "after": descriptors(),
      },
    )

  def check():
    os.umask(0o022)
    os.chdir(scratch)
    inherited = os.open(scratch, os.O_RDONLY)
    os.dup2(inherited, 300)
    standard = {
      str(number): os.readlink(f"/proc/self/fd/{number}") for number in range(3)
    }
    opened = descriptors()
    detach.run(serve)
    assert status_of_daemon() == 0
    # Its own is as it was.
    assert descriptors() == opened
    assert pathlib.Path.cwd() == scratch
    assert os.umask(0) == 0o022
    seen = json.loads((scratch / "seen").read_text())
    assert seen["directory"] == "/"
    assert seen["umask"] == 0o077
    assert seen["session"] not in {os.getsid(0), os.getpid(), seen["process"]}
    # It still speaks to its starter, on the terminal and by a pipe.
    assert standard.items() <= seen["before"].items()
    others = [
      target
      for number, target in seen["before"].items()
      if number not in standard and "/fd" not in target
    ]
    assert len(others) == 1
    assert others[0].startswith("pipe:")
    assert {"0", "1", "2"} <= set(seen["after"])
    assert {
      target for target in seen["after"].values() if "/fd" not in target
    } == {os.devnull}

  starter(check)


@pytest.mark.parametrize(
  ("error", "text"),
  [
    (ValueError("no room"), "no room"),
    (OSError("a\udcffb"), "a\\udcffb"),
    (SystemExit("enough"), "enough"),
    (KeyboardInterrupt("a key"), "a key"),
    (ValueError("ä"), "ä"),
    (ValueError(), "it ended without a word"),
    (ValueError("x" * 1_000_000), "x" * 1_000_000),
  ],
  ids=lambda value: str(value)[:9].encode("ascii", "replace").decode(),
)
def test_starter_learns_what_went_wrong(error, text):
  def serve(_):
    raise error

  def check():
    with pytest.raises(detach.FailedError) as caught:
      detach.run(serve)
    assert str(caught.value) == text
    assert status_of_daemon() == 1

  starter(check)


@pytest.mark.parametrize(
  ("end", "status"),
  [
    (lambda: None, 0),
    (lambda: os._exit(3), 3),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), -9),
  ],
  ids=["returns", "exits", "is killed"],
)
def test_starter_learns_that_it_just_ended(end, status):
  def check():
    with pytest.raises(detach.FailedError, match=r"^it ended without a word$"):
      detach.run(lambda _: end())
    assert status_of_daemon() == status

  starter(check)


def test_fault_after_the_start_is_logged(scratch):
  log = scratch / "log"

  def serve(on_ready):
    on_ready()
    # It is not written before it has to be.
    logging.getLogger().handlers[:] = [
      logging.handlers.MemoryHandler(
        1000, logging.CRITICAL, logging.FileHandler(log)
      )
    ]
    raise ValueError("an odd thing")

  def check():
    detach.run(serve)
    assert status_of_daemon() == 1
    text = log.read_text()
    assert text.startswith("ended by a fault of its own, please report it\n")
    assert text.endswith("ValueError: an odd thing\n")

  starter(check)


def test_end_without_a_fault_is_not_logged(scratch):
  def serve(on_ready):
    on_ready()
    logging.getLogger().handlers[:] = [logging.FileHandler(scratch / "log")]

  def check():
    detach.run(serve)
    assert status_of_daemon() == 0
    assert (scratch / "log").read_text() == ""

  starter(check)


@pytest.mark.parametrize("closed", [[0], [1], [2], [1, 2], [0, 1, 2]])
def test_closed_standard_descriptors_are_not_taken_by_others(scratch, closed):
  def serve(on_ready):
    before = descriptors()
    on_ready()
    put(scratch / "seen", [before, descriptors()])

  def check():
    for number in closed:
      os.close(number)
    detach.run(serve)
    mine = descriptors()
    assert status_of_daemon() == 0
    before, after = json.loads((scratch / "seen").read_text())
    for seen in mine, {int(key): value for key, value in before.items()}:
      assert [seen[number] for number in closed] == [os.devnull] * len(closed)
    assert [after[number] for number in "012"] == [os.devnull] * 3

  starter(check)

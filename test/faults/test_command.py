# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The fault suite as a command: what it takes, and what it leaves."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import typing

import forked
import pytest
from guests import lifetime

from faults import steps

_COMMAND = pathlib.Path(__file__).parents[2] / "devel" / "faults"


def _replay(scratch: pathlib.Path, path: str) -> tuple[int, str]:
  """Plays a schedule as a developer does who stands in a directory.

  @return: the exit status, and all that was said

  """
  said = scratch / "said"

  def play() -> None:
    with open(said, "wb") as stream:
      status = subprocess.call(
        [_COMMAND, "--replay", path], cwd=scratch, stdout=stream, stderr=stream
      )
    (scratch / "status").write_text(str(status))

  # Root, as the command wants it, whoever plays the tests
  forked.run(play, forked.Place.OWN_MOUNTS)
  return int((scratch / "status").read_text()), said.read_text()


def test_replay_takes_a_path_from_where_one_stands(
  scratch: pathlib.Path,
) -> None:
  schedule = steps.Schedule("nothing", False, 60.0, (steps.Pause(1),))
  schedule.save(scratch / "nothing.json")
  status, said = _replay(scratch, "nothing.json")
  assert (status, "nothing: ok" in said) == (0, True), said


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (None, "No such file or directory"),
    ("", "line 1 is not of a schedule"),
    ("{}", "line 1 is not of a schedule"),
    ('{"title": "", "in_memory": false, "rescan_interval": 1}\n{}', "line 2"),
  ],
)
def test_what_cannot_be_replayed(
  scratch: pathlib.Path, content: typing.Optional[str], reason: str
) -> None:
  if content is not None:
    (scratch / "broken.json").write_text(content)
  status, said = _replay(scratch, "broken.json")
  assert (status, reason in said) == (2, True), said
  assert "Traceback" not in said


def test_killed_suite_leaves_nothing(scratch: pathlib.Path) -> None:
  playing = subprocess.Popen(
    [_COMMAND, "--seed=1", "--profile=kills"],
    env={**os.environ, "TMPDIR": str(scratch)},
    stdout=subprocess.DEVNULL,
  )
  try:
    lifetime.wait_until(
      lambda: len(_users_of(scratch)) > 2, "QEMU and a daemon"
    )
  finally:
    playing.send_signal(signal.SIGKILL)
    playing.wait()
  lifetime.wait_until(
    lambda: not _users_of(scratch) and not any(scratch.iterdir()),
    "everything to be gone",
  )


def _users_of(path: pathlib.Path) -> list[str]:
  """Returns the processes that have a path in their command line."""
  found = []
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
      continue
    if os.fsencode(path) in words:
      found.append(process.name)
  return found

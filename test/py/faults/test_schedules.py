# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A fixed share of the schedules, and whether the suite notices anything."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import signal
import subprocess
import typing

import forked
import pytest
from guests import lifetime

from faults import chance, checks, oracle, steps, suite
from faults.oracle import Life
from faults.steps import Deed, Source

_SEED = 1

#: Schedules that failed once, or that no chance would make
_SAVED = sorted((pathlib.Path(__file__).parent / "saved").iterdir())


@pytest.mark.parametrize(
  ("profile", "number"),
  [*[("everything", number) for number in range(3)], ("kills", 0)],
)
def test_schedule(scratch: pathlib.Path, profile: str, number: int) -> None:
  schedule = chance.make(_SEED, number, chance.PROFILES[profile])
  _play(
    schedule, scratch, f"--seed {_SEED} --profile {profile} --number {number}"
  )


@pytest.mark.parametrize("path", _SAVED, ids=lambda path: path.stem)
def test_saved_schedule(scratch: pathlib.Path, path: pathlib.Path) -> None:
  _play(steps.load(path), scratch, f"--replay {path}")


def _play(
  schedule: steps.Schedule, scratch: pathlib.Path, options: str
) -> None:
  try:
    forked.run(
      lambda: _discard(suite.play(schedule, scratch)), forked.Place.OWN_MOUNTS
    )
  except AssertionError as err:
    raise AssertionError(
      f"{err}\nPlay it again with devel/faults {options}"
    ) from None


def _discard(_: object) -> None:
  pass


def test_same_seed_same_schedule(scratch: pathlib.Path) -> None:
  for profile in chance.PROFILES.values():
    made = [chance.make(seed, 3, profile) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    made[0].save(scratch / "saved")
    assert steps.load(scratch / "saved") == made[0]


_COMMAND = pathlib.Path(__file__).parents[3] / "devel" / "faults"


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


def _fails(
  scratch: pathlib.Path, *options: str
) -> collections.abc.Callable[[], None]:
  schedule = chance.make(_SEED, 0, chance.KILLS)

  def play() -> None:
    checks.PATIENCE = 3.0
    with pytest.raises(suite.FailedError) as caught:
      suite.play(schedule, scratch, *options)
    (scratch / "reason").write_text(caught.value.reason)

  return play


@pytest.mark.parametrize(
  ("option", "reason"),
  [
    # Takes the host's signals for the user's shutdown.
    ("--rule=sequence", "WRONG"),
    # Hears nothing.
    ("--monitor-suffix=.other", "not attached to"),
  ],
)
def test_bad_daemon_is_noticed(
  scratch: pathlib.Path, option: str, reason: str
) -> None:
  forked.run(_fails(scratch, option), forked.Place.OWN_MOUNTS)
  assert reason in (scratch / "reason").read_text()


def _life(source: Source, *deeds: Deed, is_heard: bool) -> Life:
  life = Life("one", source, 0, has_begun=True)
  for deed in deeds:
    life.suffer(deed, 0.0, is_heard=is_heard)
  return life


def test_oracle_forgives_only_what_nobody_can_know() -> None:
  deed = Deed.USER_POWERS_OFF
  for source, is_heard, expected in (
    (Source.JOURNAL, True, True),
    (Source.JOURNAL, False, True),
    (Source.SOCKET, True, True),
    (Source.SOCKET, False, None),
  ):
    assert _life(source, deed, is_heard=is_heard).expected_file is expected
    killed = _life(source, Deed.KILL, is_heard=is_heard)
    assert killed.expected_file is False
    assert not killed.allows("user")
  # The daemon may have been killed before it had read it, or long after.
  life = _life(Source.SOCKET, deed, is_heard=True)
  life.lose_daemon(oracle.HEARING + 1)
  assert life.expected_file is True
  life.lose_daemon(oracle.HEARING / 2)
  assert life.expected_file is None


def test_oracle_explains_verdicts_in_order() -> None:
  lives = [
    _life(Source.JOURNAL, deed, is_heard=True)
    for deed in (Deed.USER_POWERS_OFF, Deed.KILL)
  ]
  user, killed = "user", "killed or crashed"
  for right in ([], [user], [killed], [user, user, killed]):
    assert oracle.explains(lives, right)
  for wrong in ([killed, user], ["administrator"], [user, "other"]):
    assert not oracle.explains(lives, wrong)


def test_oracle_wants_a_line_for_each_end_that_can_be_known_of() -> None:
  user, killed, unknown = "user", "killed or crashed", "unknown"
  heard = _life(Source.SOCKET, Deed.USER_POWERS_OFF, is_heard=True)
  met = _life(Source.SOCKET, Deed.KILL, is_heard=False)
  met.is_met = True
  lives = [heard, met]
  assert oracle.explains(lives, [])
  for life in lives:
    life.is_over = True
  for right in ([user, unknown], [user, killed], [user, user, unknown]):
    assert oracle.explains(lives, right)
  for wrong in ([], [user], [unknown], [unknown, user], [user, unknown, user]):
    assert not oracle.explains(lives, wrong)
  # One that is killed itself says nothing more.
  met.lose_daemon(0.0)
  assert oracle.explains(lives, [user])


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

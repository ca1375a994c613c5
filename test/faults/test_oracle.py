# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the oracle forgives, and what it does not."""

from __future__ import annotations

from faults import oracle
from faults.oracle import Life
from faults.steps import Deed, Source


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

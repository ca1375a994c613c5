# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is known of one name."""

from __future__ import annotations

import pytest
from ganeti.kvmd.core.following import State
from ganeti.kvmd.follow.record import Record


def test_nothing_is_known_at_first():
  record = Record("web1")
  assert record.name == "web1"
  assert (record.monitor, record.journal) == (None, None)
  assert record.state is State.MONITOR


@pytest.mark.parametrize("state", State)
def test_who_follows(state):
  record = Record("web1")
  record.state = state
  by_journal = {State.AWAITED, State.WRITTEN, State.READ}
  assert record.is_journaled is (state in by_journal)

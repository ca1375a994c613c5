# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is passed over; what a parser makes of it is in test_qmp."""

from __future__ import annotations

import pytest
from fake_monitor import event
from ganeti.kvmd.core import chatter

NAMES = frozenset({"SHUTDOWN", "RESET"})


@pytest.mark.parametrize(
  ("said", "is_meaningless"),
  [
    (b" \t\r\n", True),
    (b"{}", True),
    (b"{ \n}", True),
    (event("RTC_CHANGE", {"offset": -1}), True),
    (event("RTC_CHANGE", {"offset": -1, "path": {"a": "b"}}), True),
    (event("NIC_RX_FILTER_CHANGED") * 3, True),
    # Names that only begin as one that means something, or end so.
    (event("SHUTDOWNS"), True),
    (event("PRESHUTDOWN"), True),
    (event("SHUTDOWN"), False),
    (event("RTC_CHANGE") + event("RESET"), False),
    # What takes a parser.
    (event("RTC_CHANGE", {"a": {"b": {"c": 1}}}), False),
    (event("RTC_CHANGE", {"a": [1]}), False),
    (event("RTC_CHANGE", {"a": "\\"}), False),
    (event("RTC_CHANGE", {"a": 1.5}), False),
    (event("RTC_CHANGE")[:-3], False),
    (b'{"return": {}}', False),
    ("ö".encode(), False),
    (b"", False),
  ],
)
def test_what_means_nothing(said, is_meaningless):
  assert chatter.of(NAMES).is_meaningless(said) is is_meaningless


@pytest.mark.parametrize(
  "end", [event("RTC_CHANGE")[:-3], event("RESET"), b"x"]
)
@pytest.mark.parametrize("space", [b"\r\n", b" " * 100])
def test_to_give_up_takes_no_longer_than_to_come_there(space, end):
  """It would not end in this universe else."""
  said = (event("RTC_CHANGE").strip() + space) * 100 + end
  assert not chatter.of(NAMES).is_meaningless(said)


def test_all_who_want_the_same_share_it():
  assert chatter.of(NAMES) is chatter.of(frozenset(NAMES))
  assert chatter.of(NAMES).names == NAMES

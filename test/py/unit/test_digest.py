# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is kept of a journal in short."""

from __future__ import annotations

import json

import pytest
from ganeti.kvmd.core import digest, events, lifecycle
from ganeti.kvmd.core.lifecycle import Rule
from histories import (
  BARK,
  HISTORIES,
  MEMORY_FATAL,
  POWERDOWN,
  WATCHDOG_PAUSE,
  WATCHDOG_POWEROFF,
)
from hypothesis import given
from hypothesis import strategies as st


def outcome(events, rule):
  life = lifecycle.Lifecycle(rule)
  for name, data in events:
    life.receive(name, data, 0.0)
  return life.outcome


@pytest.mark.parametrize("rule", Rule)
def test_essence_leads_to_the_same_whatever_comes_after_it(rule):
  @given(HISTORIES, HISTORIES)
  def check(before, after):
    essence = digest.Essence([])
    for name, data in before:
      essence.receive(name, data, 0.0)
    # It is kept as JSON.
    kept = digest.parse(digest.Digest(1, 2, "", essence.events).encode())
    events = [(event.name, event.data) for event in kept.events]
    assert outcome(events + after, rule) == outcome(before + after, rule)
    whole = lifecycle.Lifecycle(rule)
    short = lifecycle.Lifecycle(rule)
    for name, data in before:
      whole.receive(name, data, 0.0)
    for name, data in events:
      short.receive(name, data, 0.0)
    assert short.powerdown == whole.powerdown
    assert short.announced == whole.announced
    assert short.remarks == whole.remarks
    for name, data in after:
      whole.receive(name, data, 0.0)
      short.receive(name, data, 0.0)
    assert short.remarks == whole.remarks
    assert short.powerdown == whole.powerdown

  check()


@given(st.lists(HISTORIES, max_size=9))
def test_essence_is_short(histories):
  essence = digest.Essence([])
  for history in histories:
    for name, data in history:
      essence.receive(name, data, 0.0)
      assert len(essence.events) <= digest.MAX_EVENTS == 16


def test_essence_of_an_essence_is_itself():
  @given(HISTORIES, HISTORIES)
  def check(before, after):
    whole = digest.Essence([])
    for name, data in before + after:
      whole.receive(name, data, 0.0)
    first = digest.Essence([])
    for name, data in before:
      first.receive(name, data, 0.0)
    second = digest.Essence(first.events)
    for name, data in after:
      second.receive(name, data, 0.0)
    assert second.events == whole.events

  check()


@pytest.mark.parametrize(
  "data",
  [
    {"reason": "x" * 10**6, "guest": True},
    {"reason": ["x" * 1000] * 1000},
    {"guest": {str(number): number for number in range(10000)}},
    {"reason": "guest-shutdown", "guest": True, "more": "x" * 10**6},
    {"action": "shutdown", "more": "x" * 10**6},
    {"action": "x" * 10**6},
    {"action": "stop", "device": ["x"] * 10**6, "node-name": "x" * 10**6},
    {"action": "stop", "reason": {"type": "x" * 10**6}},
    {"action": "fatal", "recipient": ["hypervisor"] * 10**6},
    {"info": "x" * 10**6},
    {"info": ["x" * 10**6]},
    {"info": {str(number): number for number in range(10000)}},
    {"info": {"type": "x" * 10**6, "arg1": 10**3000, "arg2": {"arg1": {}}}},
    {"info": {"arg1": -1, "arg2": 0.5, "arg3": float("inf"), "arg4": [[[]]]}},
    {"info": {"type": True, "reason": "\ud800", "core": 2**64 - 1}},
  ],
  ids=range(15),
)
def test_essence_of_hostile_data_is_small_and_the_same(data):
  for name in lifecycle.EVENTS:
    essence = digest.Essence([])
    essence.receive(name, data, 0.0)
    kept = digest.parse(digest.Digest(1, 2, "", essence.events).encode()).events
    assert len(json.dumps(kept)) < 1000
    for rule in Rule:
      whole = lifecycle.Lifecycle(rule)
      whole.receive(name, data, 0.0)
      short = lifecycle.Lifecycle(rule)
      for event in kept:
        short.receive(event.name, event.data, event.at)
      assert short.outcome == whole.outcome
      assert short.remarks == whole.remarks


# What a version wrote that knew of fewer events, and what that means.
OLD_DIGESTS = [
  ([], "killed or crashed"),
  ([["RESET", {}, 5.0], ["POWERDOWN", {}, 6.0]], "administrator"),
  ([["STOP", {}, 5.0]], "user"),
  (
    [
      ["STOP", {}, 5.0],
      ["SHUTDOWN", {"guest": False, "reason": "host-signal"}, 6.0],
      ["SHUTDOWN", {"guest": True, "reason": "guest-panic"}, 7.0],
    ],
    "guest panic",
  ),
]


@pytest.mark.parametrize(("kept", "expected"), OLD_DIGESTS)
def test_digest_of_the_version_before(kept, expected):
  found = digest.parse(json.dumps([1, 2, "7.2.19", kept]).encode("ascii"))
  essence = digest.Essence(found.events)
  if expected in ("administrator", "user"):
    data = {"guest": True, "reason": "guest-shutdown"}
    essence.receive("SHUTDOWN", data, 8.0)
  events = [(event.name, event.data) for event in essence.events]
  assert outcome(events, Rule.CAUSE).verdict.value == expected


def test_digest_of_a_later_version():
  """What means nothing to us stays, and does no harm."""
  later = digest.Kept("GUEST_TELEPORTED", {"to": "node2"}, 5.0)
  essence = digest.Essence([later])
  essence.receive("RESET", {}, 6.0)
  assert essence.events == [later, digest.Kept("RESET", {}, 6.0)]


TIMED = st.lists(
  st.tuples(
    st.sampled_from(sorted(events.KINDS)),
    st.integers(1, 9),
  ),
  max_size=9,
).map(lambda events: sorted(events, key=lambda event: event[1]))


def of_kind(kind):
  name, _, action = kind.partition(" ")
  data = {"guest": True, "reason": "guest-shutdown", "recipient": "hypervisor"}
  return name, {**data, "action": action or "stop"}


MARKED = st.none() | st.integers(1, 9)


@given(TIMED, TIMED, MARKED, MARKED, st.sampled_from(Rule))
def test_essence_leads_to_the_same_whenever_the_marks_were_made(
  before, after, marked, migrated, rule
):
  whole = lifecycle.Lifecycle(rule)
  short = lifecycle.Lifecycle(rule)
  whole.marked = short.marked = marked
  whole.migrated = short.migrated = migrated
  essence = digest.Essence([])
  for kind, at in before:
    name, data = of_kind(kind)
    whole.receive(name, data, at)
    essence.receive(name, data, at)
  for event in essence.events:
    short.receive(event.name, event.data, event.at)
  for kind, at in after:
    name, data = of_kind(kind)
    whole.receive(name, data, at)
    short.receive(name, data, at)
    assert short.outcome == whole.outcome
    assert short.powerdown == whole.powerdown


@pytest.mark.parametrize("position", [0, 1, 2**63])
def test_digest_is_read_as_it_was_written(position):
  kept = digest.Kept("SHUTDOWN", {"guest": True}, 1795438800.5)
  written = digest.Digest(0, position, "7.2.19", [kept])
  assert digest.parse(written.encode()) == written


def test_longest_digest_has_room():
  essence = digest.Essence([])
  text = "\U0001f600" * 1000
  shutdown = ("SHUTDOWN", {"guest": None, "reason": text})
  info = dict.fromkeys(events.PANIC_INFO, text)
  fields = ("device", "node-name", "qom-path", "operation", "reason")
  for name, data in [
    *(("RESET", {}), ("RESUME", {}), ("STOP", {}), ("SUSPEND_DISK", {})),
    *(BARK, POWERDOWN, BARK, MEMORY_FATAL, WATCHDOG_POWEROFF, WATCHDOG_PAUSE),
    *(shutdown, shutdown),
    ("MEMORY_FAILURE", {"recipient": text, "action": text}),
    ("GUEST_PANICKED", {"info": info}),
    ("GUEST_CRASHLOADED", {"info": info}),
    ("BLOCK_IO_ERROR", {"action": "stop", **dict.fromkeys(fields, text)}),
  ]:
    essence.receive(name, data, 1795438800.123456)
  assert len(essence.events) == digest.MAX_EVENTS
  longest = digest.Digest(
    2**64, 2**64, "1000000.1000000.1000000", essence.events
  )
  assert len(longest.encode()) < digest.MAX_SIZE
  # It is read at once, and whoever writes to the directory can fill it.
  assert digest.MAX_SIZE < 100_000


@pytest.mark.parametrize(
  "text",
  [
    b"",
    b"\xff",
    b"null",
    b"7",
    b"{}",
    b"[]",
    b'[1, 2, ""]',
    b'[1, 2, "", [], 3]',
    b'["1", 2, "", []]',
    b'[1.0, 2, "", []]',
    b'[null, 2, "", []]',
    b'[1, "2", "", []]',
    b'[1, 2.0, "", []]',
    b'[1, -1, "", []]',
    b"[1, 2, 7, []]",
    b"[1, 2, null, []]",
    b'[1, 2, "", 7]',
    b'[1, 2, "", [7]]',
    b'[1, 2, "", [["STOP", {}]]]',
    b'[1, 2, "", [["STOP", 7, 0.0]]]',
    b'[1, 2, "", [["STOP", {}, "soon"]]]',
    b'[1, 2, "", [["STOP", {}, null]]]',
    b"[" * 100_000,
  ],
  ids=lambda text: text[:30].decode("latin-1") or "nothing",
)
def test_what_is_no_digest_is_damaged(text):
  with pytest.raises(digest.DamagedError, match=r"^its digest is damaged$"):
    digest.parse(text)


@pytest.mark.parametrize("name", ["POWERDOWN", "STOP"])
def test_event_with_the_data_of_another_is_kept_once(name):
  essence = digest.Essence([])
  for number in range(3):
    # Not the same object each time, as none of a journal is.
    received = "".join(list(name))
    essence.receive(
      received, {"guest": True, "reason": "guest-shutdown"}, float(number)
    )
  ((kept, _, at),) = essence.events
  assert (kept, at) == (name, 0.0)


def test_first_and_last_shutdown_are_kept():
  essence = digest.Essence([])
  for number in range(4):
    essence.receive("".join(["SHUT", "DOWN"]), {"guest": True}, float(number))
  assert [event.at for event in essence.events] == [0.0, 3.0]


# Who pressed the power button, p, where the watchdog may have barked before, w;
# what is kept of it, by when it came.
PRESSES = [
  ("p", "p0"),
  ("pp", "p0"),
  ("pw", "p0"),
  ("pwp", "p0"),
  ("w", "w0"),
  ("ww", "w0"),
  ("wp", "w0 p1"),
  ("wwp", "w0 p2"),
  ("wpp", "w0 p1 p2"),
  ("wppp", "w0 p1 p2"),
  ("wppw", "w0 p1 p2"),
  ("wpw", "w0 p1 w2"),
  ("wpww", "w0 p1 w2"),
  ("wpwp", "w0 p1"),
  ("wpwpp", "w0 p1 p4"),
  ("wpwpw", "w0 p1 w4"),
]


@pytest.mark.parametrize(("pressed", "kept"), PRESSES)
def test_who_pressed_the_power_button(pressed, kept):
  essence = digest.Essence([])
  for at, letter in enumerate(pressed):
    # Other events in between change nothing.
    essence.receive("STOP", {}, float(at))
    name, data = {"p": POWERDOWN, "w": BARK}[letter]
    essence.receive(name, dict(data), float(at))
  said = [
    f"{event.name[0].lower()}{event.at:.0f}"
    for event in essence.events
    if event.name != "STOP"
  ]
  assert said == kept.split()
  assert essence.events[0].name == "STOP"

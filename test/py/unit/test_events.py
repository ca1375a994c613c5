# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of which events count, when each is past, and of the words for it."""

from __future__ import annotations

import json

import pytest
from ganeti.kvmd.core import events
from histories import (
  CRASHLOADED,
  IGNORED,
  IO_ERROR,
  MEMORY_FATAL,
  MEMORY_INJECT,
  PANIC,
  STOP_CODE,
  WATCHDOG_PAUSE,
)

S390 = {
  "type": "s390",
  "core": 1.0,
  "psw-mask": 281474976710656.0,
  "psw-addr": 12.0,
  "reason": "disabled-wait",
}


@pytest.mark.parametrize(
  ("event", "kind"),
  [
    (("SHUTDOWN", {}), "SHUTDOWN"),
    (WATCHDOG_PAUSE, "WATCHDOG pause"),
    (MEMORY_FATAL, "MEMORY_FAILURE fatal"),
    (MEMORY_INJECT, "MEMORY_FAILURE"),
    # What QEMU 5.2 says before it resets a guest.
    (
      ("MEMORY_FAILURE", {"recipient": "guest", "action": "fatal"}),
      "MEMORY_FAILURE",
    ),
    (
      ("MEMORY_FAILURE", {"recipient": "visitor", "action": "fatal"}),
      "MEMORY_FAILURE",
    ),
    (IO_ERROR, "BLOCK_IO_ERROR"),
    (("BLOCK_IO_ERROR", {"action": "teleport"}), ""),
    (("RTC_CHANGE", {"action": "stop"}), ""),
    (("WATCHDOG shutdown", {}), "WATCHDOG shutdown"),
    (("", {}), ""),
    *((event, "") for event in IGNORED),
  ],
)
def test_kind(event, kind):
  name, data = event
  assert events.kind_of(name, data) == kind
  # Not the same strings, as none that was received is.
  assert events.kind_of(name, json.loads(json.dumps(data))) == kind


def test_names():
  assert {"SHUTDOWN", "WATCHDOG", "MEMORY_FAILURE"} < events.NAMES
  assert all(name.replace("_", "").isupper() for name in events.NAMES)
  assert {"RESET", "RESUME"} == events.UNDOING


@pytest.mark.parametrize("kind", sorted(set(events.KINDS) - {"RESUME"}))
def test_reset_or_resume_makes_it_past(kind):
  assert events.KINDS[kind].undone_by


@pytest.mark.parametrize(
  ("event", "words"),
  [
    (WATCHDOG_PAUSE, "stopped by its watchdog"),
    (PANIC, "guest panicked"),
    (STOP_CODE, "guest panicked: hyper-v 0xd1 0x28 0x2 0x0 ?"),
    (
      ("GUEST_PANICKED", {"info": S390}),
      "guest panicked: s390 0x1 0x1000000000000 0xc disabled-wait",
    ),
    (
      ("GUEST_PANICKED", {"info": {"arg5": 2**64 - 1}}),
      "guest panicked: 0xffffffffffffffff",
    ),
    (("GUEST_PANICKED", {"info": {"arg5": 2**64}}), "guest panicked: ?"),
    (("GUEST_PANICKED", {"info": {"arg5": 2.0**53}}), "guest panicked: ?"),
    (
      ("GUEST_PANICKED", {"info": {"arg1": -1, "arg2": True, "arg3": 0.5}}),
      "guest panicked: ? ? ?",
    ),
    (("GUEST_PANICKED", {"info": {}}), "guest panicked"),
    (("GUEST_PANICKED", {"info": ["arg1"]}), "guest panicked"),
    (("GUEST_PANICKED", {"info": {"arg9": 7}}), "guest panicked"),
    (CRASHLOADED, "guest panicked and loaded its crash kernel"),
    (
      ("GUEST_CRASHLOADED", {"info": {"type": "hyper-v", "arg1": 7.0}}),
      "guest panicked and loaded its crash kernel: hyper-v 0x7",
    ),
    (MEMORY_INJECT, "memory failure of guest: inject"),
    (("MEMORY_FAILURE", {"action": "x"}), "memory failure of ?: x"),
    (
      IO_ERROR,
      "stopped by an I/O error: write of disk0: No space left on device",
    ),
    (
      ("BLOCK_IO_ERROR", {"device": "a", "node-name": "b", "action": "stop"}),
      "stopped by an I/O error: ? of a: ?",
    ),
    (
      ("BLOCK_IO_ERROR", {"qom-path": "/machine/a", "action": "stop"}),
      "stopped by an I/O error: ? of /machine/a: ?",
    ),
    (
      ("BLOCK_IO_ERROR", {"device": 7, "reason": "a\nb\x1b", "action": "stop"}),
      "stopped by an I/O error: ? of ?: a\\nb\\x1b",
    ),
    (("SUSPEND_DISK", {}), ""),
  ],
)
def test_words(event, words):
  row = events.KINDS[events.kind_of(*event)]
  assert row.words is not None
  assert row.words(event[1]) == words


@pytest.mark.parametrize("text", ["x" * 10**6, "\U0001f600" * 10**6, "\n" * 99])
def test_words_are_short_and_printable(text):
  info = dict.fromkeys(events.PANIC_INFO, text)
  fields = dict.fromkeys(events.KINDS["BLOCK_IO_ERROR"].data, text)
  data = {**fields, "info": info, "recipient": text}
  for row in events.KINDS.values():
    if row.words is not None:
      words = row.words(data)
      assert words.isascii()
      assert words.isprintable()
      assert len(words) < 10 * 10 * (events.MAX_TEXT + 1)


@pytest.mark.parametrize(
  ("value", "is_code"),
  [
    *((0, True), (0.0, True), (1, True), (2**64 - 1, True), (126.0, True)),
    *(
      (2.0**53 - 1, True),
      (2.0**53, False),
      (2**64, False),
      (2**64 + 1, False),
    ),
    *((-1, False), (-1.0, False), (0.5, False), (float("inf"), False)),
    *((float("nan"), False), (True, False), ("1", False), (None, False)),
  ],
)
def test_code(value, is_code):
  """Whoever parsed it may have made a float of it, which is exact so far."""
  assert events.is_code(value) is is_code

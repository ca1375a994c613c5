# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what QMP events mean."""

from __future__ import annotations

import json

import pytest
from ganeti.kvmd.core import lifecycle, qmp
from ganeti.kvmd.core.lifecycle import Rule, Verdict
from histories import (
  BARE,
  BARK,
  CRASHLOADED,
  HIBERNATE,
  HISTORIES,
  IGNORED,
  IO_ERROR,
  MEMORY_FATAL,
  MEMORY_INJECT,
  PANIC,
  POWERDOWN,
  RESET,
  RESUME,
  SIGNAL,
  STOP,
  STOP_CODE,
  TABLE,
  UNRELATED,
  USER,
  WATCHDOG_PAUSE,
  WATCHDOG_POWEROFF,
  judge,
)
from hypothesis import given
from hypothesis import strategies as st


def guest_only(guest):
  """A shutdown as QEMU 2.10 to 3.1 announces it."""
  return ("SHUTDOWN", {"guest": guest})


def reason(word, guest=None):
  """A shutdown as QEMU announces it since 4.0."""
  if guest is None:
    guest = word.startswith("guest")
  return ("SHUTDOWN", {"guest": guest, "reason": word})


def outcome(events, rule=Rule.CAUSE):
  life = lifecycle.Lifecycle(rule)
  for name, data in events:
    life.receive(name, data, 0.0)
  return life.outcome


def verdict(events, rule=Rule.CAUSE):
  return outcome(events, rule).verdict


@pytest.mark.parametrize(("word", "expected", "pending"), TABLE)
def test_reason(word, expected, pending):
  for guest in True, False:
    events = [reason(word, guest)]
    assert verdict(events) is expected
    assert verdict([POWERDOWN, *events]) is pending
    assert verdict([STOP, *events]) is expected
    assert verdict([STOP, RESUME, POWERDOWN, STOP, *events]) is pending
    assert verdict([POWERDOWN, RESET, *events]) is expected


@pytest.mark.parametrize("word", [row[0] for row in TABLE if row[0]])
def test_cause_is_in_the_words_of_qemu(word):
  assert word in outcome([reason(word)]).cause


def test_cause_after_powerdown():
  assert outcome([POWERDOWN, USER]).cause == "guest-shutdown after powerdown"


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
  "events", [[], [POWERDOWN], [STOP], [RESET], [RESUME], [UNRELATED]]
)
def test_end_without_a_word(events, rule):
  assert outcome(events, rule) == (Verdict.KILLED, "no SHUTDOWN")


@pytest.mark.parametrize("after", ["", "guest-shutdown" * 10**5])
def test_cause_is_short(after):
  assert len(outcome([reason("x" * 10**6 + after)]).cause) < 200


@pytest.mark.parametrize("word", ["a\nb", "\x1b[2J", "\ud800", "ü", "\x7f"])
def test_unknown_reason_is_escaped(word):
  cause = outcome([reason(word)]).cause
  assert cause.isascii()
  assert cause.isprintable()


@pytest.mark.parametrize(
  ("events", "expected"),
  [
    ([guest_only(True)], Verdict.USER),
    ([guest_only(False)], Verdict.ADMINISTRATOR),
    ([POWERDOWN, guest_only(True)], Verdict.ADMINISTRATOR),
    ([POWERDOWN, guest_only(False)], Verdict.ADMINISTRATOR),
    ([POWERDOWN, RESET, guest_only(True)], Verdict.USER),
    ([STOP, guest_only(True)], Verdict.USER),
  ],
)
def test_guest_without_reason(events, expected):
  assert verdict(events) is expected


# What Ganeti's first daemon looked at.
SEQUENCES = [
  ([BARE], Verdict.USER),
  ([POWERDOWN, BARE], Verdict.ADMINISTRATOR),
  ([POWERDOWN, RESET, BARE], Verdict.USER),
  ([RESET, POWERDOWN, BARE], Verdict.ADMINISTRATOR),
  ([STOP, BARE], Verdict.ADMINISTRATOR),
  ([STOP, RESUME, BARE], Verdict.USER),
  ([RESUME, STOP, BARE], Verdict.ADMINISTRATOR),
  ([STOP, RESET, BARE], Verdict.ADMINISTRATOR),
  ([STOP, POWERDOWN, RESUME, BARE], Verdict.ADMINISTRATOR),
  ([UNRELATED, BARE, UNRELATED], Verdict.USER),
  ([BARE, RESET], Verdict.KILLED),
  ([BARE, RESUME], Verdict.KILLED),
  ([BARE, BARE], Verdict.USER),
  ([BARE, STOP, BARE], Verdict.USER),
  ([BARE, POWERDOWN], Verdict.USER),
]


@pytest.mark.parametrize(("events", "expected"), SEQUENCES)
def test_sequence(events, expected):
  assert verdict(events, Rule.CAUSE) is expected
  for shutdown in BARE, USER, SIGNAL, reason("x"), guest_only(False):
    asked_for = [shutdown if event == BARE else event for event in events]
    assert verdict(asked_for, Rule.SEQUENCE) is expected


# -no-shutdown: QEMU goes on after its guest has gone.
@pytest.mark.parametrize(
  ("events", "expected"),
  [
    ([USER, STOP, SIGNAL], Verdict.USER),
    ([USER, STOP, reason("host-qmp-quit")], Verdict.USER),
    ([USER, STOP, reason("host-error")], Verdict.USER),
    ([USER, STOP, reason("host-signal"), BARE], Verdict.USER),
    ([guest_only(True), STOP, guest_only(False)], Verdict.USER),
    ([POWERDOWN, USER, STOP, SIGNAL], Verdict.ADMINISTRATOR),
    ([reason("guest-panic"), STOP, SIGNAL], Verdict.GUEST_PANIC),
    ([USER, STOP, POWERDOWN, SIGNAL], Verdict.USER),
    ([USER, STOP, RESET], Verdict.KILLED),
    ([USER, STOP, RESUME], Verdict.KILLED),
    ([USER, STOP, RESET, SIGNAL], Verdict.ADMINISTRATOR),
    ([USER, STOP, RESET, RESUME, USER], Verdict.USER),
    ([USER, STOP, RESUME, POWERDOWN, USER], Verdict.ADMINISTRATOR),
    ([POWERDOWN, USER, STOP, RESET, RESUME, USER], Verdict.USER),
    ([SIGNAL, USER], Verdict.USER),
    ([USER, reason("guest-panic")], Verdict.GUEST_PANIC),
    ([USER, reason("from-the-future")], Verdict.OTHER),
  ],
)
def test_guest_that_qemu_outlives(events, expected):
  assert verdict(events) is expected


@pytest.mark.parametrize(
  "data",
  [
    {"reason": value, **guest}
    for value in [None, 0, 1, 1.0, True, [], ["guest-shutdown"], {}, "", "user"]
    for guest in [{}, {"guest": True}, {"guest": "guest-shutdown"}]
  ]
  + [
    {"guest": value}
    for value in [None, 0, 1, 1.0, 0.0, "true", "", [], [True], {}, "yes"]
  ],
  ids=json.dumps,
)
@pytest.mark.parametrize("before", [[], [POWERDOWN], [STOP]], ids=len)
def test_odd_data_is_never_the_user(data, before):
  assert verdict([*before, ("SHUTDOWN", data)]) is Verdict.OTHER


@pytest.mark.parametrize(
  "text",
  [
    '{"event": "STOP", "data": {"reason": "SHUTDOWN"}}',
    '{"event": "RTC_CHANGE", "data": {"SHUTDOWN": {"event": "SHUTDOWN"}}}',
    '{"event": "X", "data": {"a": "{\\"event\\": \\"SHUTDOWN\\"}"}}',
    '{"event": "SHUTDOWN ", "data": {"guest": true}}',
    '{"event": " SHUTDOWN"}',
    '{"event": "shutdown"}',
    '{"event": "GUEST_SHUTDOWN"}',
    '{"event": "SHUTDOWN_DONE"}',
    '{"event": "MEMORY_DEVICE_SHUTDOWN"}',
    '{"Event": "SHUTDOWN"}',
    '{"event ": "SHUTDOWN"}',
    '{"SHUTDOWN": "event"}',
    '{"data": {"event": "SHUTDOWN"}}',
    '{"return": {"event": "SHUTDOWN", "data": {}}}',
    '{"return": {}, "id": "SHUTDOWN"}',
    '{"return": {}, "id": {"event": "SHUTDOWN"}}',
    '{"error": {"class": "SHUTDOWN", "desc": "SHUTDOWN"}, "id": "SHUTDOWN"}',
    '{"QMP": {"event": "SHUTDOWN"}}',
    '{"event": "SHUTDOWN", "event": "STOP"}',
  ],
)
@pytest.mark.parametrize("rule", Rule)
def test_the_word_alone_is_no_event(text, rule):
  life = lifecycle.Lifecycle(rule)
  for message in qmp.Decoder(lifecycle.EVENTS).feed(text.encode()):
    if isinstance(message, qmp.Event):
      life.receive(message.name, message.data, message.at)
  assert life.outcome == lifecycle.UNANNOUNCED


@pytest.mark.parametrize("name", ["POWERDOWN", "STOP", "RESET", "RESUME"])
def test_words_for_other_events_count_only_as_events(name):
  events = [
    ("RTC_CHANGE", {"event": name}),
    (name.lower(), {}),
    (name[:-1], {}),
  ]
  assert verdict([*events, USER]) is Verdict.USER
  assert verdict([BARE, *events], Rule.SEQUENCE) is Verdict.USER
  assert verdict([POWERDOWN, *events, USER]) is Verdict.ADMINISTRATOR


def test_announcement_stands_before_the_end():
  life = lifecycle.Lifecycle(Rule.CAUSE)
  assert life.announced is None
  life.receive(*USER, 0.0)
  assert life.announced == life.outcome == (Verdict.USER, "guest-shutdown")
  life.receive(*RESET, 0.0)
  assert life.announced is None


def test_administrator_waits_for_an_answer():
  life = lifecycle.Lifecycle(Rule.CAUSE)
  assert life.powerdown is False
  life.receive(*POWERDOWN, 1.0)
  assert life.powerdown is True
  life.receive(*RESET, 2.0)
  assert life.powerdown is False
  # What was marked before is answered by now.
  life.marked = 2.0
  assert life.powerdown is False
  life.marked = 3.0
  assert life.powerdown is True


@pytest.mark.parametrize("rule", Rule)
def test_any_history(rule):
  @given(HISTORIES)
  def check(history):
    assert verdict(history, rule) is judge(history, rule)

  check()


@given(HISTORIES, st.lists(st.text(max_size=9)), st.sampled_from(Rule))
def test_other_events_change_nothing(history, names, rule):
  others = [
    (name, {"guest": True, "reason": "guest-shutdown"}) for name in names
  ]
  mixed = list(history)
  for place, other in enumerate(others):
    mixed.insert(place * 2, other)
  assert outcome(mixed, rule) == outcome(history, rule)


@given(HISTORIES)
def test_powerdown_is_never_taken_for_the_user(history):
  assert verdict([*history, RESET, POWERDOWN, USER]) is Verdict.ADMINISTRATOR


@given(HISTORIES)
def test_reset_makes_a_user_free_again(history):
  assert verdict([*history, RESET, USER]) is Verdict.USER


# When the hypervisor marked the instance, what QEMU said and when, and whether
# that was the user.
MARKS = [
  (None, [(USER, 5)], Verdict.USER),
  (4, [(USER, 5)], Verdict.ADMINISTRATOR),
  (5, [(USER, 5)], Verdict.ADMINISTRATOR),
  # By a clock that was never set
  (0.5, [(USER, 0.75)], Verdict.ADMINISTRATOR),
  # The guest was down already.
  (6, [(USER, 5)], Verdict.USER),
  (6, [(USER, 5), (STOP, 5), (SIGNAL, 7)], Verdict.USER),
  # It began anew, and what the mark was made for is gone.
  (4, [(RESET, 5), (USER, 6)], Verdict.USER),
  (5, [(RESET, 5), (USER, 6)], Verdict.USER),
  (6, [(RESET, 5), (USER, 6)], Verdict.ADMINISTRATOR),
  (4, [(RESET, 5), (POWERDOWN, 6), (USER, 7)], Verdict.ADMINISTRATOR),
  # QEMU does not say when.
  (4, [(USER, 0)], Verdict.ADMINISTRATOR),
  (4, [(RESET, 0), (USER, 0)], Verdict.USER),
  # Other ends are what they are.
  (4, [], Verdict.KILLED),
  (4, [(reason("guest-panic"), 5)], Verdict.GUEST_PANIC),
]


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(("marked", "events", "expected"), MARKS)
def test_mark_of_the_hypervisor(marked, events, expected, rule):
  life = lifecycle.Lifecycle(rule)
  life.marked = marked
  for (name, data), at in events:
    life.receive(name, data, at)
  if expected is Verdict.GUEST_PANIC and rule is Rule.SEQUENCE:
    expected = Verdict.ADMINISTRATOR
  assert life.outcome.verdict is expected


def test_mark_after_a_reset_without_a_time():
  life = lifecycle.Lifecycle(Rule.CAUSE)
  life.receive(*RESET, 0.0)
  life.marked = 0.5
  life.receive(*USER, 0.0)
  assert life.outcome.verdict is Verdict.ADMINISTRATOR


BLUE = "guest panicked: hyper-v 0xd1 0x28 0x2 0x0 ?"
CRASH = "guest panicked and loaded its crash kernel"
PAUSED = "stopped by its watchdog"
FAILED = "memory failure of guest: inject"
FULL = "stopped by an I/O error: write of disk0: No space left on device"

# What was said besides; verdict and cause; the remarks.
BESIDES = [
  # The watchdog ends QEMU, or would.
  ([WATCHDOG_POWEROFF], "other (watchdog poweroff)", []),
  ([POWERDOWN, WATCHDOG_POWEROFF], "other (watchdog poweroff)", []),
  ([USER, STOP, WATCHDOG_POWEROFF], "user (guest-shutdown)", []),
  ([WATCHDOG_POWEROFF, SIGNAL], "other (watchdog poweroff)", []),
  ([WATCHDOG_POWEROFF, RESET], "killed or crashed (no SHUTDOWN)", []),
  ([WATCHDOG_POWEROFF, RESUME], "killed or crashed (no SHUTDOWN)", []),
  # It presses the power button.
  ([BARK, POWERDOWN, USER], "other (guest-shutdown after watchdog)", []),
  ([BARK, POWERDOWN, SIGNAL], "administrator (host-signal)", []),
  ([BARK, POWERDOWN], "killed or crashed (no SHUTDOWN)", []),
  ([BARK, POWERDOWN, RESET, USER], "user (guest-shutdown)", []),
  ([BARK, RESET, USER], "user (guest-shutdown)", []),
  (
    [BARK, POWERDOWN, STOP, RESUME, USER],
    "other (guest-shutdown after watchdog)",
    [],
  ),
  (
    [BARK, POWERDOWN, BARK, POWERDOWN, USER],
    "other (guest-shutdown after watchdog)",
    [],
  ),
  # An administrator did so as well.
  (
    [POWERDOWN, BARK, POWERDOWN, USER],
    "administrator (guest-shutdown after powerdown)",
    [],
  ),
  (
    [BARK, POWERDOWN, POWERDOWN, USER],
    "administrator (guest-shutdown after powerdown)",
    [],
  ),
  # It pauses the guest.
  ([WATCHDOG_PAUSE, STOP, SIGNAL], "administrator (host-signal)", [PAUSED]),
  ([WATCHDOG_PAUSE, STOP, RESUME, USER], "user (guest-shutdown)", []),
  ([WATCHDOG_PAUSE, STOP, RESET, USER], "user (guest-shutdown)", [PAUSED]),
  # The guest's system broke down.
  ([PANIC, reason("guest-panic")], "guest panic (guest-panic)", []),
  ([STOP_CODE, reason("guest-panic")], "guest panic (guest-panic)", [BLUE]),
  ([STOP_CODE, PANIC, SIGNAL], "administrator (host-signal)", [BLUE]),
  ([PANIC, STOP, SIGNAL], "administrator (host-signal)", ["guest panicked"]),
  ([PANIC], "killed or crashed (no SHUTDOWN)", ["guest panicked"]),
  ([PANIC, USER], "guest panic (guest-shutdown after panic)", []),
  ([PANIC, RESET, USER], "user (guest-shutdown)", []),
  (
    [STOP_CODE, STOP, RESUME, USER],
    "guest panic (guest-shutdown after panic)",
    [BLUE],
  ),
  ([CRASHLOADED, USER], "guest panic (guest-shutdown after panic)", [CRASH]),
  ([CRASHLOADED, RESET, USER], "user (guest-shutdown)", []),
  ([USER, STOP, CRASHLOADED], "user (guest-shutdown)", [CRASH]),
  (
    [CRASHLOADED, POWERDOWN, USER],
    "administrator (guest-shutdown after powerdown)",
    [CRASH],
  ),
  # It hibernates.
  ([HIBERNATE, USER], "user (guest-shutdown, hibernated)", []),
  ([HIBERNATE, guest_only(True)], "user (guest-shutdown, hibernated)", []),
  ([HIBERNATE], "killed or crashed (no SHUTDOWN)", []),
  ([HIBERNATE, SIGNAL], "administrator (host-signal)", []),
  ([HIBERNATE, RESET, USER], "user (guest-shutdown)", []),
  ([HIBERNATE, USER, STOP, RESET, RESUME, USER], "user (guest-shutdown)", []),
  (
    [POWERDOWN, HIBERNATE, USER],
    "administrator (guest-shutdown after powerdown, hibernated)",
    [],
  ),
  (
    [BARK, POWERDOWN, HIBERNATE, USER],
    "other (guest-shutdown after watchdog, hibernated)",
    [],
  ),
  # Memory and disks fail.
  ([MEMORY_FATAL], "other (memory failure)", []),
  ([MEMORY_INJECT, MEMORY_FATAL], "other (memory failure)", [FAILED]),
  ([MEMORY_INJECT], "killed or crashed (no SHUTDOWN)", [FAILED]),
  ([MEMORY_INJECT, RESUME, USER], "user (guest-shutdown)", [FAILED]),
  ([MEMORY_INJECT, RESET, USER], "user (guest-shutdown)", []),
  ([USER, STOP, MEMORY_FATAL], "user (guest-shutdown)", []),
  ([IO_ERROR, STOP, SIGNAL], "administrator (host-signal)", [FULL]),
  ([IO_ERROR, IO_ERROR, STOP], "killed or crashed (no SHUTDOWN)", [FULL]),
  ([IO_ERROR, STOP, RESUME, USER], "user (guest-shutdown)", []),
  (
    [MEMORY_INJECT, IO_ERROR, STOP, WATCHDOG_PAUSE],
    "killed or crashed (no SHUTDOWN)",
    [FAILED, FULL, PAUSED],
  ),
  ([*IGNORED, POWERDOWN], "killed or crashed (no SHUTDOWN)", []),
]


@pytest.mark.parametrize(("events", "expected", "remarks"), BESIDES)
def test_what_is_said_besides(events, expected, remarks):
  life = lifecycle.Lifecycle(Rule.CAUSE)
  for name, data in events:
    life.receive(name, data, 0.0)
  verdict, cause = life.outcome
  assert f"{verdict.value} ({cause})" == expected
  assert life.remarks == remarks


def test_what_the_watchdog_asked_for_waits_for_an_answer():
  """A daemon that comes later is not to take the answer for the user's."""
  life = lifecycle.Lifecycle(Rule.CAUSE)
  life.receive(*BARK, 1.0)
  assert life.powerdown is False
  life.receive(*POWERDOWN, 1.0)
  assert life.powerdown is True
  life.receive(*RESET, 2.0)
  assert life.powerdown is False


# By the sequence of events, it is as ever.
@pytest.mark.parametrize(
  ("events", "expected"),
  [
    ([BARK, POWERDOWN, USER], "administrator (shutdown after powerdown)"),
    ([HIBERNATE, USER], "user (shutdown)"),
    ([CRASHLOADED, USER], "user (shutdown)"),
    ([IO_ERROR, STOP, BARE], "administrator (shutdown while stopped)"),
    # What needs no SHUTDOWN does not depend on how one is judged.
    ([WATCHDOG_POWEROFF], "other (watchdog poweroff)"),
    ([MEMORY_FATAL], "other (memory failure)"),
  ],
)
def test_what_is_said_besides_by_sequence(events, expected):
  found, cause = outcome(events, Rule.SEQUENCE)
  assert f"{found.value} ({cause})" == expected


# When the hypervisor marked it as migrated, what QEMU said and when, and the
# verdict.
MIGRATED = [
  (6, [(STOP, 5), (SIGNAL, 7)], "migrated (host-signal)"),
  # The mark is found before, or there is no SHUTDOWN.
  (6, [(STOP, 5)], "migrated (no SHUTDOWN)"),
  (6, [], "migrated (no SHUTDOWN)"),
  # It was killed by somebody else just before.
  (6, [(STOP, 4), (SIGNAL, 5)], "migrated (host-signal)"),
  # It was to be moved before, and went on; or the button was ignored.
  (
    6,
    [(STOP, 3), (RESUME, 4), (STOP, 5), (SIGNAL, 7)],
    "migrated (host-signal)",
  ),
  (6, [(POWERDOWN, 3), (STOP, 5), (SIGNAL, 7)], "migrated (host-signal)"),
  # Where QEMU gives no cause, only one that is stopped is no user's.
  (6, [(STOP, 5), (BARE, 7)], "migrated (shutdown while stopped)"),
  (6, [(BARE, 7)], "user (shutdown)"),
  # By a clock that was never set
  (0.5, [(STOP, 0.25), (SIGNAL, 0.75)], "migrated (host-signal)"),
  # It goes on in spite of that.
  (6, [(STOP, 5), (RESUME, 7), (SIGNAL, 8)], "administrator (host-signal)"),
  (6, [(STOP, 5), (RESET, 7), (SIGNAL, 8)], "administrator (host-signal)"),
  (6, [(STOP, 5), (RESUME, 0), (SIGNAL, 8)], "administrator (host-signal)"),
  (6, [(STOP, 5), (RESET, 0), (SIGNAL, 8)], "administrator (host-signal)"),
  # What the guest did itself is what it is.
  (6, [(USER, 5)], "user (guest-shutdown)"),
  (6, [(reason("guest-panic"), 5)], "guest panic (guest-panic)"),
  (None, [(STOP, 5), (SIGNAL, 7)], "administrator (host-signal)"),
]


@pytest.mark.parametrize(("migrated", "events", "expected"), MIGRATED)
def test_migrated(migrated, events, expected):
  life = lifecycle.Lifecycle(Rule.CAUSE)
  life.migrated = migrated
  for (name, data), at in events:
    life.receive(name, data, at)
  verdict, cause = life.outcome
  assert f"{verdict.value} ({cause})" == expected


@pytest.mark.parametrize("event", [RESUME, RESET])
def test_migrated_after_it_went_on_without_a_time(event):
  life = lifecycle.Lifecycle(Rule.CAUSE)
  life.receive(*event, 0.0)
  life.migrated = 0.5
  life.receive(*SIGNAL, 0.0)
  assert life.outcome == (Verdict.MIGRATED, "host-signal")


def test_migrated_by_sequence():
  life = lifecycle.Lifecycle(Rule.SEQUENCE)
  life.migrated = 6
  for (name, data), at in [(STOP, 5), (SIGNAL, 7)]:
    life.receive(name, data, at)
  assert life.outcome == (Verdict.MIGRATED, "shutdown while stopped")


def test_migrated_without_a_word():
  life = lifecycle.Lifecycle(Rule.CAUSE)
  life.announced = lifecycle.UNHEARD
  life.migrated = 6.0
  assert life.outcome == (Verdict.MIGRATED, lifecycle.UNHEARD.cause)
  life.announced = lifecycle.REMEMBERED
  assert life.outcome is lifecycle.REMEMBERED

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is known of one life of an instance, and what is said of it."""

from __future__ import annotations

import logging
import time

import means
import pytest
from fake_monitor import SIGNAL, USER
from ganeti.kvmd.core import lifecycle, quota
from ganeti.kvmd.core.history_line import Ending
from ganeti.kvmd.core.lifecycle import Lifecycle, Rule, Verdict
from ganeti.kvmd.core.marks import Due, Mark
from ganeti.kvmd.core.qmp import Event
from ganeti.kvmd.follow import instance as module
from ganeti.kvmd.follow.instance import Instance, Told
from ganeti.kvmd.node.ctrldir import Life
from histories import PANIC, WATCHDOG_PAUSE

NOW = time.time_ns()
LIFE = Life(7, NOW)


def ending(outcome, seconds, **others):
  """Returns the end of a life of which no more is known."""
  end = Ending(
    instance="web1",
    life="",
    began=None,
    ended=None,
    heard=None,
    seconds=seconds,
    outcome=outcome,
    said=[],
    source="monitor",
    qemu="",
    process=0,
    is_marked=False,
    is_new=True,
  )
  return end._replace(**others)


@pytest.fixture
def lines(caplog):
  caplog.set_level(logging.DEBUG)
  return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def web1():
  return Instance("web1", Rule.CAUSE, quota.Quota(), means.no_history())


def attached(known):
  known.begin(LIFE)
  known.meet()
  assert known.attach("7.2.0", 42)
  return known


def test_nothing_is_known_at_first(web1):
  assert web1.life is None
  assert not web1.is_met
  assert not web1.is_attached
  assert not web1.is_over
  assert not web1.is_remembered
  assert web1.may_be_marked
  assert web1.process == 0
  assert web1.lifecycle.announced is None


def test_first_life(web1):
  """What was found out before one was known of is that there is nothing."""
  before = web1.lifecycle
  web1.may_be_marked = False
  web1.begin(LIFE)
  assert web1.life == LIFE
  assert web1.lifecycle is before
  assert not web1.may_be_marked


@pytest.mark.parametrize("life", [None, Life(8, NOW)])
def test_another_life_forgets_the_one_before(web1, life):
  attached(web1)
  web1.may_be_marked = False
  web1.receive(Event("SHUTDOWN", USER))
  web1.marks.leave(Due(Mark.SHUTDOWN, is_wanted=True))
  web1.end()
  web1.begin(life)
  assert web1.life == life
  assert not web1.is_met
  assert not web1.is_attached
  assert not web1.is_over
  assert web1.may_be_marked
  assert web1.process == 0
  assert web1.lifecycle.announced is None
  assert web1.marks.due(web1.lifecycle, is_over=False) == []


def test_one_that_was_met_has_an_end(web1):
  web1.begin(LIFE)
  assert not web1.is_met
  web1.meet()
  assert web1.is_met
  web1.end()
  assert web1.is_over
  assert not web1.is_met


def test_attached(web1, lines):
  attached(web1)
  assert web1.is_attached
  assert web1.process == 42
  assert lines() == ["instance web1: attached to QEMU 7.2.0, process 42"]
  assert not web1.attach("7.2.0", 43)
  assert web1.process == 43
  assert lines()[1:] == ["instance web1: attached to QEMU 7.2.0 again"]


class Clock:
  """What the time is, by the clock that is set and by the one that is not."""

  def __init__(self):
    self.since_boot = 5000.0
    self.of_day = 1795438800.0

  def monotonic(self):
    return self.since_boot

  def time(self):
    return self.of_day

  def pass_by(self, seconds):
    self.since_boot += seconds
    self.of_day += seconds


@pytest.fixture
def clock(monkeypatch):
  found = Clock()
  monkeypatch.setattr(module, "time", found)
  return found


@pytest.mark.parametrize(
  ("age", "seconds"),
  [
    (0.0, 0.0),
    (90.25, 90.25),
    (10**6 + 0.5, 10**6 + 0.5),
    # The clock was set back since then.
    (-0.5, 0.0),
    (-3600.0, 0.0),
  ],
)
@pytest.mark.parametrize("is_met_before", [True, False])
def test_how_long_it_ran(web1, clock, age, seconds, is_met_before):
  """It counts from its birth, whenever it is met, or met again."""
  web1.begin(Life(7, int((clock.of_day - age) * 1e9)))
  if is_met_before:
    web1.meet()
    clock.pass_by(2.5)
    web1.meet()
    clock.pass_by(-2.5)
  assert web1.attach("7.2.0", 42)
  assert web1.is_met
  clock.pass_by(7.5)
  assert web1.end().seconds == pytest.approx(seconds + 7.5)


def test_how_long_it_ran_whatever_the_clock_is_set_to(web1, clock):
  web1.begin(Life(7, int((clock.of_day - 2) * 1e9)))
  web1.meet()
  clock.pass_by(3.0)
  clock.of_day -= 86400.0
  assert web1.end().seconds == pytest.approx(5.0)


def test_events_count(web1, lines):
  attached(web1)
  web1.receive(Event("SHUTDOWN", SIGNAL))
  assert lines()[-1] == f"instance web1: SHUTDOWN {SIGNAL}"
  assert web1.end().outcome.verdict is Verdict.ADMINISTRATOR


def test_time_of_an_event_counts(web1):
  attached(web1)
  web1.lifecycle.marked = 100.0
  web1.receive(Event("SHUTDOWN", USER, 99.0))
  assert web1.end().outcome.verdict is Verdict.USER


def test_end_that_nobody_heard_leaves_the_file(web1):
  web1.begin(LIFE)
  web1.meet()
  web1.lifecycle.announced = lifecycle.UNHEARD
  assert web1.end().outcome is lifecycle.UNHEARD
  assert web1.marks.due(web1.lifecycle, is_over=True) == [
    Due(Mark.POWERDOWN, is_wanted=False)
  ]


def test_end_that_was_heard_removes_the_file(web1):
  attached(web1)
  web1.marks.leave(Due(Mark.SHUTDOWN, is_wanted=False))
  web1.end()
  due = web1.marks.due(web1.lifecycle, is_over=True)
  assert Due(Mark.SHUTDOWN, is_wanted=False) in due


@pytest.mark.parametrize(
  ("said", "seconds"), [(12.5, 12.5), (0.5, 0.5), (-3.0, 0.0)]
)
def test_everything_is_known(web1, clock, said, seconds):
  state = Lifecycle(Rule.CAUSE)
  state.receive("SHUTDOWN", USER, 0.0)
  web1.begin(LIFE)
  web1.conclude(Told(state, "9.8.7", said, NOW, None))
  assert web1.is_met
  assert web1.is_attached
  clock.pass_by(0.25)
  ending = web1.end()
  assert ending.outcome.verdict is Verdict.USER
  assert ending.seconds == pytest.approx(seconds + 0.25)
  assert (ending.ended, ending.heard) == (NOW, None)


def test_remembered(web1):
  web1.lifecycle.announced = lifecycle.REMEMBERED
  assert web1.is_remembered
  web1.lifecycle.announced = lifecycle.UNHEARD
  assert not web1.is_remembered


def test_verdict_line(web1, lines):
  web1.report(ending(lifecycle.REMEMBERED, 1.25), "; and so on")
  (line,) = lines()
  assert line == (
    "instance web1: verdict user (announced before this daemon attached) after"
    " 1.2 s; and so on"
  )


@pytest.mark.parametrize(
  ("verdict", "level"),
  [
    (Verdict.USER, logging.INFO),
    (Verdict.ADMINISTRATOR, logging.INFO),
    (Verdict.GUEST_REBOOT, logging.INFO),
    (Verdict.OTHER, logging.INFO),
    (Verdict.GUEST_PANIC, logging.WARNING),
    (Verdict.KILLED, logging.WARNING),
    (Verdict.UNKNOWN, logging.WARNING),
  ],
)
def test_what_is_worth_a_warning(web1, caplog, verdict, level):
  caplog.set_level(logging.INFO)
  web1.report(ending(lifecycle.Outcome(verdict, "so"), 1.0))
  assert [record.levelno for record in caplog.records] == [level]


DATE = 1795000000.5
SHOWN = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(DATE))


@pytest.mark.parametrize(
  ("dates", "said"),
  [
    ({}, ""),
    ({"ended": DATE}, f"; it ended {SHOWN}"),
    ({"heard": DATE}, f"; it ended after {SHOWN}"),
    # The clock was set back since.
    ({"ended": NOW / 1e9 + 3600.0}, ""),
  ],
)
def test_end_that_became_known_later(web1, lines, dates, said):
  web1.report(ending(lifecycle.UNHEARD, 1.0, **dates))
  assert lines()[0].partition(" after 1.0 s")[2] == said


def test_end_that_became_known_at_once(web1, lines):
  web1.report(ending(lifecycle.UNHEARD, 1.0, ended=time.time()))
  assert lines()[0].endswith(" after 1.0 s")


def test_verdict_line_has_what_else_was_said(web1, lines):
  web1.begin(LIFE)
  web1.meet()
  web1.receive(Event(*PANIC))
  web1.receive(Event(*WATCHDOG_PAUSE))
  web1.report(web1.end(), "; and so on")
  assert lines()[-1].endswith(
    " s; guest panicked; stopped by its watchdog; and so on"
  )


def test_complaint_is_said_once(web1, lines, caplog):
  for what in ("a", "a", "b", "b", "a"):
    web1.complain("%s is wrong", what)
  assert lines() == [f"instance web1: {x} is wrong" for x in "aba"]
  assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_complaint_outlasts_a_life_but_no_attachment(web1, lines):
  web1.begin(LIFE)
  web1.complain("bad")
  web1.begin(Life(8, NOW))
  web1.complain("bad")
  assert len(lines()) == 1
  web1.attach("7.2.0", 42)
  web1.complain("bad")
  assert lines()[-1] == "instance web1: bad"


@pytest.mark.parametrize(
  ("said", "reason"), [([], "the guest runs"), ([USER], "guest-shutdown")]
)
def test_mark_line(web1, lines, said, reason):
  attached(web1)
  for data in said:
    web1.receive(Event("SHUTDOWN", data))
  web1.log_mark(Mark.SHUTDOWN, "removed")
  assert lines()[-1] == f"instance web1: shutdown file removed ({reason})"


def test_mark_line_of_one_that_is_over(web1, lines):
  attached(web1)
  web1.end()
  web1.log_mark(Mark.SHUTDOWN, "removed")
  assert lines()[-1] == "instance web1: shutdown file removed (no SHUTDOWN)"


def test_mark_that_is_not_logged(web1, lines):
  for _ in range(50):
    web1.log_mark(Mark.POWERDOWN, "written")
  assert lines() == []


def test_mark_that_changes_all_the_time(web1, lines):
  for _ in range(100):
    web1.log_mark(Mark.SHUTDOWN, "written")
  assert len(lines()) == module._MAX_CHANGES
  assert "its shutdown file is not logged any more" in lines()[-1]
  # Not even if there was other trouble since then.
  web1.complain("bad")
  web1.log_mark(Mark.SHUTDOWN, "written")
  assert lines()[module._MAX_CHANGES :] == ["instance web1: bad"]
  attached(web1)
  web1.begin(Life(8, NOW))
  web1.log_mark(Mark.SHUTDOWN, "written")
  assert lines()[-1].startswith("instance web1: shutdown file written")


def test_quota(lines):
  web1 = Instance("web1", Rule.CAUSE, quota.Quota(), means.no_history())
  for number in range(quota.MAX_LINES + 5):
    web1.log("line %d", number)
  assert len(lines()) == quota.MAX_LINES
  for _ in range(quota.MAX_VERDICTS + 5):
    web1.report(ending(lifecycle.UNHEARD, 0.0))
  web1.complain("one more")
  assert len(lines()) == quota.MAX_LINES + quota.MAX_VERDICTS


@pytest.mark.parametrize(
  ("known", "said"),
  [
    (
      {"telling": "terminating on signal 15"},
      "; its QEMU's last words: terminating on signal 15",
    ),
    ({"asked": {"source": "gnt:watcher"}}, "; asked for by gnt:watcher"),
    ({"asked": {"at": "2026"}}, "; asked for by Ganeti"),
    (
      {
        "said": ["guest panicked"],
        "asked": {
          "source": "gnt:client:gnt-instance",
          "command": "gnt-instance shutdown",
          "reason": "too loud",
          "job": 12,
        },
      },
      "; guest panicked; asked for by gnt-instance shutdown (too loud), job 12",
    ),
  ],
)
def test_what_else_is_known(web1, lines, known, said):
  web1.report(ending(lifecycle.UNHEARD, 1.0, **known))
  assert lines()[0].partition(" after 1.0 s")[2] == said

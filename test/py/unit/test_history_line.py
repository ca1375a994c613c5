# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what a line of the history says."""

from __future__ import annotations

import json

import pytest
from ganeti.kvmd.core import history_line
from ganeti.kvmd.core.history_line import Ending, encode_ending, encode_more
from ganeti.kvmd.core.lifecycle import Outcome, Verdict
from hypothesis import given
from hypothesis import strategies as some

NOW = 1795599490.25

END = Ending(
  instance="web1",
  life="7-1795599400123456789",
  began=1795599400.1234567,
  ended=1795599489.9996,
  heard=None,
  seconds=89.87649,
  outcome=Outcome(Verdict.KILLED, "no SHUTDOWN"),
  said=["guest panicked"],
  source="journal",
  qemu="9.8.7",
  process=4711,
  is_marked=True,
  is_new=True,
)

NOTHING = END._replace(
  life="", said=(), began=None, ended=None, qemu="", process=0, is_marked=False
)


def decoded(line):
  """Returns what a reader makes of a line."""
  assert line.endswith(b"\n")
  assert line.count(b"\n") == 1
  return json.loads(line)


def test_end():
  assert decoded(encode_ending(END, "node1", NOW, "was killed by SIGKILL")) == {
    "version": 1,
    "time": "2026-11-25T09:38:10.250Z",
    "node": "node1",
    "instance": "web1",
    "life": "7-1795599400123456789",
    "began": "2026-11-25T09:36:40.123Z",
    "ended": "2026-11-25T09:38:09.999Z",
    "seconds": 89.876,
    "verdict": "killed or crashed",
    "cause": "no SHUTDOWN",
    "said": ["guest panicked"],
    "source": "journal",
    "qemu": "9.8.7",
    "process": 4711,
    "exit": "was killed by SIGKILL",
    "marked": True,
  }


def test_what_is_not_known_is_left_out():
  end = NOTHING._replace(heard=1795599400.0)
  assert decoded(encode_ending(end, "node1", NOW, "")) == {
    "version": 1,
    "time": "2026-11-25T09:38:10.250Z",
    "node": "node1",
    "instance": "web1",
    "heard": "2026-11-25T09:36:40.000Z",
    "seconds": 89.876,
    "verdict": "killed or crashed",
    "cause": "no SHUTDOWN",
    "source": "journal",
  }


def test_further_ends():
  verdicts = {"user": 54, "killed or crashed": 3}
  assert decoded(encode_more("web1", "node1", NOW, verdicts)) == {
    "version": 1,
    "time": "2026-11-25T09:38:10.250Z",
    "node": "node1",
    "instance": "web1",
    "more": 57,
    "verdicts": verdicts,
  }


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.0, "1970-01-01T00:00:00.000Z"),
    (0.0009, "1970-01-01T00:00:00.000Z"),
    (253402300799.0, "9999-12-31T23:59:59.000Z"),
    # Whose file it is may have dated it as he likes.
    (253402300799.5, None),
    (-0.5, None),
    (2.0**63 / 1e9, "2262-04-11T23:47:16.854Z"),
    (float("inf"), None),
    (float("nan"), None),
  ],
)
def test_times(seconds, text):
  line = decoded(encode_ending(END._replace(began=seconds), "node1", NOW, ""))
  assert line.get("began") == text


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("web 1", "web 1"),
    ("Zürich", "Zürich"),
    ('a"b\\c', 'a"b\\c'),
    ("a\nb\x1b[2J\0", "a\\nb\\x1b[2J\\x00"),
    # What was no UTF-8 in a file's name.
    ("a\udcff", "a\\udcff"),
    ("\u2028\u202e", "\\u2028\\u202e"),
    ("x" * 1001, "x" * 997 + "..."),
    ("\n" * 999, "\\n" * 498 + "..."),
  ],
)
@pytest.mark.parametrize("field", ["instance", "cause", "qemu", "exit", "node"])
def test_what_was_said_can_be_shown(text, shown, field):
  ends = {
    "instance": END._replace(instance=text),
    "cause": END._replace(outcome=Outcome(Verdict.OTHER, text)),
    "qemu": END._replace(qemu=text),
  }
  node = text if field == "node" else "node1"
  exit_ = text if field == "exit" else ""
  line = decoded(encode_ending(ends.get(field, END), node, NOW, exit_))
  assert line[field] == shown


TEXTS = some.text(max_size=2000) | some.builds(
  lambda each: each * 2000, some.characters()
)


@given(name=TEXTS, cause=TEXTS, qemu=TEXTS, node=TEXTS, exit_=TEXTS)
def test_no_line_is_longer(name, cause, qemu, node, exit_):
  end = END._replace(
    instance=name, qemu=qemu, outcome=Outcome(Verdict.OTHER, cause)
  )
  line = encode_ending(end, node, NOW, exit_)
  assert len(line) <= history_line.MAX_LINE
  assert all(
    len(text) <= history_line.MAX_TEXT and text.isprintable()
    for text in decoded(line).values()
    if isinstance(text, str)
  )

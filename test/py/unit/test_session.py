# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of a session: bytes in, what they mean out, and no socket anywhere."""

from __future__ import annotations

import json
import typing
from unittest import mock

import pytest
from fake_monitor import GREETING, NEGOTIATED, VERSION, encode, event
from ganeti.kvmd.core import lifecycle, qmp
from ganeti.kvmd.core.session import Attached, Running, Session, State
from histories import CHATTER
from hypothesis import given
from hypothesis import strategies as st

STOP = encode({"event": "STOP", "timestamp": {"seconds": 7, "microseconds": 0}})
STOPPED = qmp.Event("STOP", {}, 7.0)
REFUSED = encode({"error": {"class": "GenericError", "desc": "not today"}})


def status(value, ident=qmp.STATUS_ID):
  """An answer to query-status."""
  return encode({"return": value, "id": ident})


RUNNING = status({"status": "running", "running": True})

#: What leads to each state, and what is said of that.
WAYS = {
  State.CONNECTED: (b"", []),
  State.GREETED: (encode(GREETING), []),
  State.ATTACHED: (encode(GREETING) + NEGOTIATED, [Attached(VERSION, "")]),
}


def reached(state):
  """A session that has come so far."""
  session = Session()
  data, said = WAYS[state]
  assert list(session.receive(data)) == said
  assert session.state is state
  return session


class Row(typing.NamedTuple):
  """What a message leads to from one state."""

  before: State
  data: bytes
  facts: list
  after: State


ROWS = [
  Row(State.CONNECTED, encode(GREETING), [], State.GREETED),
  Row(State.CONNECTED, STOP, [STOPPED], State.CONNECTED),
  Row(State.CONNECTED, NEGOTIATED, [], State.CONNECTED),
  Row(State.CONNECTED, REFUSED, [], State.CONNECTED),
  Row(State.CONNECTED, RUNNING, [], State.CONNECTED),
  Row(State.GREETED, NEGOTIATED, [Attached(VERSION, "")], State.ATTACHED),
  Row(State.GREETED, REFUSED, [Attached(VERSION, "not today")], State.ATTACHED),
  # Whatever it says: QEMU gives its answers in the order of the commands.
  Row(State.GREETED, RUNNING, [Attached(VERSION, "")], State.ATTACHED),
  Row(State.GREETED, STOP, [STOPPED], State.GREETED),
  Row(State.ATTACHED, STOP, [STOPPED], State.ATTACHED),
  Row(State.ATTACHED, RUNNING, [Running()], State.ATTACHED),
  Row(State.ATTACHED, NEGOTIATED, [], State.ATTACHED),
  Row(State.ATTACHED, REFUSED, [], State.ATTACHED),
  *(
    Row(state, data, [], state)
    for state in State
    for data in (
      b"",
      b"\r\n",
      b"{}",
      encode({"event": "RTC_CHANGE", "data": {"offset": 1}}),
      # Of a kind that QMP may have one day; and one that takes a parser.
      encode({"hint": "STOP"}),
      b'{"event":"WAKEUP"}',
    )
  ),
]


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
  session = reached(row.before)
  session.outgoing = b""
  assert list(session.receive(row.data)) == row.facts
  assert session.state is row.after
  # Nothing is answered.
  assert session.outgoing == b""


def test_event_that_means_nothing_is_passed_over():
  session = reached(State.ATTACHED)
  chatter = event("RTC_CHANGE", {"offset": 1})
  with mock.patch.object(qmp.Decoder, "feed", side_effect=AssertionError):
    assert list(session.receive(chatter)) == []


@pytest.mark.parametrize("state", [State.GREETED, State.ATTACHED])
def test_second_greeting_is_no_qmp(state):
  session = reached(state)
  facts = session.receive(STOP + encode(GREETING) + STOP)
  # What came before counts.
  assert next(facts) == STOPPED
  with pytest.raises(qmp.ProtocolError, match=r"^a second greeting$"):
    next(facts)
  assert session.state is state


@pytest.mark.parametrize("state", State)
def test_what_is_not_qmp(state):
  facts = reached(state).receive(STOP + b"HTTP/1.1 200 OK")
  assert next(facts) == STOPPED
  with pytest.raises(qmp.ProtocolError):
    next(facts)


@pytest.mark.parametrize("name", lifecycle.EVENTS)
def test_every_event_that_counts_is_given(name):
  data = {"guest": True}
  event = encode({"event": name, "data": data})
  assert list(Session().receive(event)) == [qmp.Event(name, data, 0.0)]


@pytest.mark.parametrize(
  "greeting",
  [{"QMP": {}}, {"QMP": {"version": {"qemu": {"major": 9}}}}, {"QMP": None}],
  ids=json.dumps,
)
def test_version_that_nobody_knows(greeting):
  session = Session()
  assert list(session.receive(encode(greeting) + NEGOTIATED)) == [
    Attached("of unknown version", "")
  ]


@pytest.mark.parametrize(
  ("answer", "runs"),
  [
    (status({"status": "running"}), True),
    (status({"status": "paused"}), True),
    (status({"status": "suspended"}), True),
    (status({"status": "shutdown"}), False),
    (status({"running": True}), False),
    (status({}), False),
    (status(None), False),
    (status("running"), False),
    (status(["status"]), False),
    (status({"status": "running"}, "other"), False),
    (status({"status": "running"}, None), False),
    (status({"status": "running"}, ["status"]), False),
    (encode({"return": {"status": "running"}}), False),
    (encode({"error": {"desc": "running"}, "id": qmp.STATUS_ID}), False),
  ],
)
def test_answer_to_the_question_whether_the_guest_runs(answer, runs):
  said = list(reached(State.ATTACHED).receive(answer))
  assert said == ([Running()] if runs else [])


def test_what_is_to_be_sent():
  session = Session()
  assert session.outgoing == b'{"execute": "qmp_capabilities"}\r\n'
  # What the sender could not send yet stays in front.
  session.ask_status()
  capabilities, query, rest = session.outgoing.split(b"\r\n")
  assert json.loads(capabilities) == {"execute": "qmp_capabilities"}
  assert json.loads(query) == {"execute": "query-status", "id": "status"}
  assert rest == b""
  session.outgoing = b""
  session.ask_status()
  assert session.outgoing == query + b"\r\n"


_CONVERSATIONS = st.lists(
  st.sampled_from(
    [STOP, NEGOTIATED, REFUSED, RUNNING, b"{}\n", b" ", b'{"new": "kind"}']
    + [encode({"event": name, "data": data}) for name, data in CHATTER]
  ),
  max_size=8,
)


@given(
  st.tuples(_CONVERSATIONS, _CONVERSATIONS),
  st.lists(st.integers(0, 600), max_size=20),
)
def test_pieces_of_any_size(parts, cuts):
  """However it arrives, it means the same."""
  text = encode(GREETING).join(b"".join(part) for part in parts)
  whole = Session()
  expected = list(whole.receive(text))
  session, found = Session(), []
  places = sorted(min(cut, len(text)) for cut in cuts)
  for begin, end in zip([0, *places], [*places, len(text)]):
    found += session.receive(text[begin:end])
  assert found == expected
  assert session.state is whole.state


@given(_CONVERSATIONS, _CONVERSATIONS)
def test_nobody_is_attached_to_twice(before, after):
  session = Session()
  data = b"".join([*before, encode(GREETING), *after])
  said = [type(fact) for fact in session.receive(data)]
  is_answered = bool({NEGOTIATED, REFUSED, RUNNING}.intersection(after))
  assert said.count(Attached) == is_answered
  assert (session.state is State.ATTACHED) is is_answered
  if Running in said:
    assert said.index(Attached) < said.index(Running)

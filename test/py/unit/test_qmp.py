# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of QMP on the wire."""

from __future__ import annotations

import collections
import json
import time
import tracemalloc
from unittest import mock

import pytest
from ganeti.kvmd import qmp
from hypothesis import given
from hypothesis import strategies as st

GREETING = (
  b'{"QMP": {"version": {"qemu": {"micro": 19, "minor": 2, "major": 7},'
  b' "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}\r\n'
)
SHUTDOWN = (
  b'{"timestamp": {"seconds": 1795438800, "microseconds": 5}, "event":'
  b' "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\r\n'
)
# Text in which each character is one that a careless reader trips over.
TRICKY = st.text('{}[]"\\,: \n\r\t\0\x1e/aé€😀\ud800', max_size=12)
WHITESPACE = st.text(" \t\r\n", max_size=3).map(str.encode)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def decode(pieces):
  """Feeds pieces to a new decoder.

  @return: the messages, and the text of the error that ended them, if any

  """
  decoder = qmp.Decoder()
  messages = []
  try:
    for piece in pieces:
      messages.extend(decoder.feed(piece))
  except qmp.ProtocolError as err:
    return messages, str(err)
  return messages, None


def cut(data, places):
  """Cuts data into pieces."""
  bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
  return [data[start:end] for start, end in zip(bounds, bounds[1:])]


def bytewise(data):
  return [data[place : place + 1] for place in range(len(data))]


# Numbers that Python's float holds exactly.
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TRICKY,
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3)
  ),
  max_leaves=6,
)
OBJECTS = st.dictionaries(TRICKY, VALUES, max_size=3)
EVENTS = st.tuples(TRICKY, OBJECTS).map(
  lambda pair: (
    {"timestamp": {"seconds": 1}, "event": pair[0], "data": pair[1]},
    qmp.Event(pair[0], pair[1]),
  )
)
BARE_EVENTS = TRICKY.map(lambda name: ({"event": name}, qmp.Event(name, {})))
REPLIES = st.tuples(VALUES, VALUES).map(
  lambda pair: (
    {"return": pair[0], "id": pair[1]},
    qmp.Reply(pair[1], pair[0], None),
  )
)
FAILURES = st.tuples(TRICKY, VALUES).map(
  lambda pair: (
    {"error": {"class": "GenericError", "desc": pair[0]}, "id": pair[1]},
    qmp.Reply(pair[1], None, pair[0]),
  )
)
GREETINGS = st.tuples(*[st.integers(0, 99)] * 3).map(
  lambda numbers: (
    {
      "QMP": {
        "version": {
          "qemu": dict(zip(("major", "minor", "micro"), numbers)),
          "package": "{",
        },
        "capabilities": [],
      }
    },
    qmp.Greeting("%d.%d.%d" % numbers),
  )
)
UNKNOWN = st.dictionaries(st.sampled_from("abc{}"), VALUES, max_size=2).map(
  lambda content: (content, None)
)
FORMS = st.sampled_from(
  [
    {},
    {"separators": (",", ":")},
    {"indent": 4},
    {"indent": "\t", "sort_keys": True},
  ]
)


@st.composite
def streams(draw):
  """Bytes that a monitor might send, and the messages in them."""
  data = bytearray()
  expected = []
  for content, message in draw(
    st.lists(
      EVENTS | BARE_EVENTS | REPLIES | FAILURES | GREETINGS | UNKNOWN,
      max_size=5,
    )
  ):
    # As QEMU: ASCII, or UTF-8 where that is possible.
    text = json.dumps(content, **draw(FORMS))
    if draw(st.booleans()):
      wide = json.dumps(content, ensure_ascii=False)
      text = text if "\ud800" in wide else wide
    data += draw(WHITESPACE) + text.encode("utf-8") + draw(WHITESPACE)
    if message is not None:
      expected.append(message)
  return bytes(data), expected


@given(streams(), CUTS)
def test_messages_do_not_depend_on_how_they_arrive(stream, places):
  data, expected = stream
  assert decode(cut(data, places)) == (expected, None)
  assert decode(bytewise(data)) == (expected, None)


# What comes close to being QMP.
NEAR_QMP = st.lists(
  st.sampled_from(
    [
      b"{",
      b"}",
      b"[",
      b"]",
      b'"',
      b"\\",
      b":",
      b",",
      b" ",
      b"\n",
      b"\r",
      b"1",
      b"a",
      b'"event"',
      b'"return"',
      b"null",
      b'{"event": "X"}',
      b"\xc3",
      b"\xa9",
      b"\x00",
      b"\xff",
      b"\xef\xbb\xbf",
    ]
  ),
  max_size=40,
).map(b"".join) | st.binary(max_size=40)


@given(NEAR_QMP, CUTS)
def test_any_bytes_come_to_the_same_however_they_arrive(data, places):
  assert decode(cut(data, places)) == decode([data]) == decode(bytewise(data))


@given(NEAR_QMP, CUTS, st.integers(2, 40), st.integers(1, 6))
def test_bounds_are_the_same_however_bytes_arrive(data, places, size, depth):
  with mock.patch.multiple(qmp, MAX_MESSAGE=size, MAX_DEPTH=depth):
    assert decode(cut(data, places)) == decode([data]) == decode(bytewise(data))


@pytest.mark.parametrize(
  "garbage",
  [
    pytest.param(garbage, id=repr(garbage)[:40])
    for garbage in [
      b"garbage",
      b"SHUTDOWN",
      b"\0",
      b"\x7fELF\x02\x01\x01\0\0",
      b"\xff\xfe{\0}\0",
      b"\xef\xbb\xbf{}",
      '{"QMP": {}}'.encode("utf-16"),
      '{"QMP": {}}'.encode("utf-16-be"),
      '{"QMP": {}}'.encode("utf-32-le"),
      b"\x0b{}",
      b"\x0c{}",
      b"\xc2\xa0{}",
      b"[]",
      b'[{"event": "SHUTDOWN"}]',
      b'"event"',
      b"1",
      b"null",
      b"}",
      b"]",
      b",",
      b"{]",
      b'{"a": [}]',
      b'{"a": 1]',
      b'{"a"}',
      b'{"a": }',
      b'{"a": 1,}',
      b'{"a": 1 "b": 2}',
      b"{'a': 1}",
      b"{a: 1}",
      b'{"a": NaN}',
      b'{"a": Infinity}',
      b'{"a": -Infinity}',
      b'{"a": 01}',
      b'{"a": +1}',
      b'{"a": .5}',
      b'{"a": 0x10}',
      b'{"a": True}',
      b'{"a": "\n"}',
      b'{"a": "\0"}',
      b'{"a": "\x1f"}',
      b'{"a": "\xff"}',
      b'{"a": "\xc0\x80"}',
      b'{"a": "\xed\xa0\x80"}',
      b'{"a": "\\x41"}',
      b'{"a": "\\u12"}',
      b"{/* */}",
      b'{"event": 1}',
      b'{"event": null, "data": {}}',
      b'{"event": ["SHUTDOWN"]}',
      b'{"event": "SHUTDOWN", "data": null}',
      b'{"event": "SHUTDOWN", "data": []}',
      b'{"event": "SHUTDOWN", "data": "guest"}',
      b'{"a": ' + b"[" * qmp.MAX_DEPTH,
    ]
  ],
)
@pytest.mark.parametrize("gap", [b"", b"\n"])
def test_garbage_is_refused_after_the_messages_in_front_of_it(garbage, gap):
  data = GREETING + SHUTDOWN.strip() + gap + garbage
  whole, error = decode([data])
  assert [type(message) for message in whole] == [qmp.Greeting, qmp.Event]
  assert error is not None
  assert decode(bytewise(data)) == (whole, error)
  for place in range(len(data)):
    assert decode([data[:place], data[place:]]) == (whole, error)


@pytest.mark.parametrize(
  "first", [b"g", b"\0", b"[", b'"', b"1", b"}", b"\xff", b"\xef"]
)
def test_what_cannot_be_qmp_is_refused_at_its_first_byte(first):
  assert decode([b" \r\n" + first])[1] is not None


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b'{"return": {}}', qmp.Reply(None, {}, None)),
    (b'{"return": [], "id": "status"}', qmp.Reply("status", [], None)),
    (b'{"return": null, "id": {"a": 1}}', qmp.Reply({"a": 1}, None, None)),
    (
      b'{"error": {"class": "CommandNotFound", "desc": "no"}, "id": 7}',
      qmp.Reply(7, None, "no"),
    ),
    (b'{"error": {}}', qmp.Reply(None, None, "no description")),
    (b'{"error": null}', qmp.Reply(None, None, "no description")),
    (b'{"error": {"desc": 5}}', qmp.Reply(None, None, "no description")),
    (b'{"event": "STOP"}', qmp.Event("STOP", {})),
    (b'{"event": ""}', qmp.Event("", {})),
    (b'{"event": "A", "event": "B"}', qmp.Event("B", {})),
    (b'{"event": "A", "data": {"b": 1, "b": 2}}', qmp.Event("A", {"b": 2})),
    (b'{"event": "A", "return": {}, "error": {}}', qmp.Event("A", {})),
    (b'{"\\u0065vent": "A"}', qmp.Event("A", {})),
    (b'{"event": "\\ud83d\\ude00"}', qmp.Event("😀", {})),
    (b'{"event": "\\ud83d"}', qmp.Event("\ud83d", {})),
    (b'{"QMP": {}}', qmp.Greeting("")),
    (b'{"QMP": null}', qmp.Greeting("")),
    (b'{"QMP": [7]}', qmp.Greeting("")),
    (b'{"QMP": {"version": "7.2.19"}}', qmp.Greeting("")),
    (b'{"QMP": {"version": {"qemu": {"major": 7}}}}', qmp.Greeting("")),
    (
      b'{"QMP": {"version": {"qemu": {"major": 1, "minor": 1, "micro": "x"}}}}',
      qmp.Greeting(""),
    ),
    (
      (
        b'{"QMP": {"version":'
        b' {"qemu": {"major": 1, "minor": 1, "micro": 1e999}}}}'
      ),
      qmp.Greeting(""),
    ),
  ],
)
def test_message(text, message):
  assert decode([text]) == ([message], None)


@pytest.mark.parametrize("text", [b"{}", b'{"QEMU": 1}', b'{"id": 1}'])
def test_object_of_an_unknown_kind_is_passed_over(text):
  assert decode([text + SHUTDOWN]) == decode([SHUTDOWN])


def test_greeting_tells_the_version():
  assert decode([GREETING]) == ([qmp.Greeting("7.2.19")], None)


@pytest.mark.parametrize(
  "number",
  [b"9" * 5000, b"-" + b"9" * 500000, b"1e999", b"0." + b"3" * 500000],
  ids=len,
)
def test_number_of_any_length_is_taken(number):
  text = b'{"event": "A", "data": {"n": %s}}' % number
  messages, error = decode([text])
  assert error is None
  assert isinstance(messages[0].data["n"], float)


def sized(size):
  """An event of a given size."""
  frame = b'{"event": "A", "data": {"a": "%s"}}'
  return frame % (b"x" * (size - len(frame) + 2))


def chunks(data, size=16384):
  return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("split", [chunks, lambda data: [data]])
def test_longest_message(split):
  longest = sized(qmp.MAX_MESSAGE)
  messages, error = decode(split(b" " + longest + b"\r\n" + SHUTDOWN))
  assert [message.name for message in messages] == ["A", "SHUTDOWN"]
  assert error is None
  too_long = sized(qmp.MAX_MESSAGE + 1)
  messages, error = decode(split(SHUTDOWN + too_long + SHUTDOWN))
  assert [message.name for message in messages] == ["SHUTDOWN"]
  assert str(qmp.MAX_MESSAGE) in error


@pytest.mark.parametrize(
  ("start", "more"),
  [
    (b'{"a": "', b"x"),
    (b'{"a": "', b'\\"'),
    (b'{"a": "', b"{"),
    (b'{"a": "', b"\n"),
    (b'{"a": ', b" "),
    (b'{"a": [', b"[],"),
    (b"{", b"x"),
    (b"{", b"\0"),
    (b"{", b'"",'),
  ],
)
def test_message_without_an_end_is_given_up(start, more):
  decoder = qmp.Decoder()
  assert list(decoder.feed(start)) == []
  block = more * 4096
  taken = 0
  with pytest.raises(qmp.ProtocolError):
    while taken <= 2 * qmp.MAX_MESSAGE:
      list(decoder.feed(block))
      taken += len(block)
  assert taken <= qmp.MAX_MESSAGE


def test_depth_is_bounded():
  inner = qmp.MAX_DEPTH - 2
  text = b'{"event": "A", "data": {"a": %s}}'
  for brackets in b"[]", b"{}":
    opening, closing = brackets[:1], brackets[1:]
    if opening == b"{":
      opening = b'{"a":'
      deepest = opening * (inner - 1) + b"{}" + closing * (inner - 1)
      deeper = opening * inner + b"{}" + closing * inner
    else:
      deepest = opening * inner + closing * inner
      deeper = opening * (inner + 1) + closing * (inner + 1)
    for split in bytewise, lambda data: [data], lambda data: cut(data, [70]):
      messages, error = decode(split(text % deepest))
      assert error is None
      assert len(messages) == 1
      messages, error = decode(split(SHUTDOWN + text % deeper))
      assert "deep" in error
      assert len(messages) == 1


def test_brackets_in_strings_have_no_depth():
  many = "[{" * 500
  text = json.dumps({"event": "A", "data": {many: many}}).encode()
  expected = [qmp.Event("A", {many: many})]
  assert decode([text]) == decode(bytewise(text)) == (expected, None)


def test_message_too_long_and_too_deep_is_one_error_however_it_arrives():
  long = b"x" * (2 * qmp.MAX_MESSAGE)
  data = b'{"a": "' + long + b'", "b": ' + b"[" * qmp.MAX_DEPTH
  assert decode([data]) == decode(chunks(data)) == decode(cut(data, [9, 999]))


def test_white_space_without_end_is_no_message():
  decoder = qmp.Decoder()
  for _ in range(2 * qmp.MAX_MESSAGE // 4096):
    assert list(decoder.feed(b" \r\n\t" * 1024)) == []
  assert len(list(decoder.feed(SHUTDOWN))) == 1


def memory_kept(pieces):
  """Tells how many bytes a decoder keeps after what it was fed."""
  tracemalloc.start()
  try:
    decoder = qmp.Decoder()
    before, _ = tracemalloc.get_traced_memory()
    for piece in pieces:
      collections.deque(decoder.feed(piece), maxlen=0)
    after, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  return after - before


def test_decoder_keeps_no_memory():
  longest = sized(qmp.MAX_MESSAGE) + b"\r\n"
  list(qmp.Decoder().feed(longest))  # fills Python's own caches
  for pieces in (
    chunks(longest),
    [longest],
    [SHUTDOWN] * 2000,
    chunks(SHUTDOWN * 500, 100),
    [b" " * 16384] * 100,
  ):
    assert memory_kept(pieces) < 4096


def test_time_is_linear_in_length():
  # One long message takes as long as many short ones, give or take: each byte
  # is looked at once. Anything quadratic takes 60 times as long.
  def seconds(size):
    pieces = bytewise(sized(size))
    began = time.process_time()
    for _ in range(128 * 1024 // size):
      decode(pieces)
    return time.process_time() - began

  # A machine that is busy with other things may spoil an attempt.
  assert any(seconds(128 * 1024) < 3 * seconds(2048) for _ in range(4))

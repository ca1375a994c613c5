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
from ganeti.kvmd.core import lifecycle, qmp
from histories import judge, transcripts
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

# As QEMU 7.2 writes them: its own, and some that have all that it may write.
CHATTER = [
  b'{"timestamp": {"seconds": 1795567387, "microseconds": 614678}, %s}\r\n'
  % rest
  for rest in (
    b'"event": "WAKEUP"',
    b'"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/rng0"}',
    (
      b'"event": "BLOCK_JOB_READY", "data": {"device": "m", "len": 1048576,'
      b' "offset": 1048576, "speed": 0, "type": "mirror"}'
    ),
    (
      b'"event": "VNC_CONNECTED", "data": {"server": {"auth": "none", "family":'
      b' "unix", "service": "vnc", "host": "", "websocket": false}, "client":'
      b' {"family": "unix", "service": "", "host": "", "websocket": false}}'
    ),
    (
      b'"event": "RTC_CHANGE", "data": {"offset": -3600, "": {"a": null,'
      b' "b": true}}'
    ),
    b'"event": "X_1", "data": {}',
  )
]

# The events that these tests ask for.
WANTED = ("SHUTDOWN", "STOP", "A", "B", "", "AA", "😀", "\ud83d", '"]\\', "a:")

# Text in which each character is one that a careless reader trips over.
TRICKY = st.text('{}[]"\\,: \n\r\t\0\x1e/aé€😀\ud800', max_size=12)
WHITESPACE = st.text(" \t\r\n", max_size=3).map(str.encode)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def feed(decoder, piece):
  """Gives what a decoder makes of one piece, without the places to stop at."""
  return (
    timeless(message) for message in decoder.feed(piece) if message is not None
  )


def timeless(message):
  """Takes from an event when it happened, which has tests of its own."""
  return message._replace(at=0.0) if isinstance(message, qmp.Event) else message


def decode(pieces):
  """Feeds pieces to a new decoder.

  @return: the messages, and the text of the error that ended them, if any

  """
  decoder = qmp.Decoder(WANTED)
  messages = []
  try:
    for piece in pieces:
      messages.extend(feed(decoder, piece))
  except qmp.ProtocolError as err:
    return messages, str(err)
  return messages, None


def decode_slowly(data):
  """Does the same by the letter, a byte at a time, with no fast way."""
  messages = []
  text = bytearray()
  depth = 0
  in_string = escaped = False
  for byte in bytewise(data):
    if not text and byte.isspace() and byte in b" \t\r\n":
      continue
    text += byte
    if not text.startswith(b"{"):
      return messages, "not JSON"
    if len(text) > qmp.MAX_MESSAGE:
      return messages, f"a message of more than {qmp.MAX_MESSAGE} bytes"
    if byte == b'"' and not escaped:
      in_string = not in_string
    elif not in_string:
      depth += (byte in b"{[") - (byte in b"}]")
    escaped = byte == b"\\" and not escaped
    if depth > qmp.MAX_DEPTH:
      return messages, f"nested more than {qmp.MAX_DEPTH} deep"
    if not depth:
      try:
        message = understand(bytes(text))
      except ValueError as err:
        return messages, str(err)
      if is_wanted(message):
        messages.append(message)
      text.clear()
  return messages, None


def is_wanted(message):
  if isinstance(message, qmp.Event):
    return message.name in WANTED
  return message is not None


def refuse(_):
  raise ValueError("not JSON")


def understand(text):
  """Gives the message that some JSON is.

  @raise ValueError: if it is none; with the text of the decoder's error

  """
  try:
    content = json.loads(
      text.decode("utf-8"), parse_int=float, parse_constant=refuse
    )
  except ValueError:
    refuse(text)
  if "event" in content:
    event = qmp.Event(content["event"], content.get("data", {}))
    if isinstance(event.name, str) and isinstance(event.data, dict):
      return event
    raise ValueError("an event without a name or with odd data")
  ident = content.get("id")
  if "return" in content:
    return qmp.Reply(ident, content["return"], None)
  if "error" in content:
    error = content["error"]
    description = error.get("desc") if isinstance(error, dict) else None
    if not isinstance(description, str):
      description = "no description"
    return qmp.Reply(ident, None, description)
  return qmp.Greeting(version_in(content["QMP"])) if "QMP" in content else None


def version_in(greeting):
  try:
    numbers = greeting["version"]["qemu"]
    return "{major:.0f}.{minor:.0f}.{micro:.0f}".format_map(numbers)
  except (KeyError, TypeError, ValueError):
    return ""


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
NAMES = TRICKY | st.sampled_from(
  [*WANTED, "STOPPED", "NOSTOP", "AAA", "RTC_CHANGE", "STOP_2", "STOP ", "stop"]
)
# What QEMU really sends.
PLAIN = st.recursive(
  st.booleans()
  | st.integers(-(2**53), 2**53)
  | st.text(" {/:,}az", max_size=9),
  lambda inner: st.dictionaries(st.text("-{ a", max_size=3), inner, max_size=3),
  max_leaves=6,
)
DATA = OBJECTS | st.dictionaries(st.text("-{ a", max_size=3), PLAIN, max_size=3)
TIMES = st.integers(-1, 2**31)
EVENTS = st.tuples(NAMES, DATA, TIMES, TIMES).map(
  lambda drawn: (
    {
      "timestamp": {"seconds": drawn[2], "microseconds": drawn[3]},
      "event": drawn[0],
      "data": drawn[1],
    },
    qmp.Event(drawn[0], drawn[1]),
  )
)
BARE_EVENTS = NAMES.map(lambda name: ({"event": name}, qmp.Event(name, {})))
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
      text = text if "\ud800" in wide or "\ud83d" in wide else wide
    data += draw(WHITESPACE) + text.encode("utf-8") + draw(WHITESPACE)
    if is_wanted(message):
      expected.append(message)
  return bytes(data), expected


@given(streams(), CUTS)
def test_messages_do_not_depend_on_how_they_arrive(stream, places):
  data, expected = stream
  assert decode(cut(data, places)) == (expected, None)
  assert decode(bytewise(data)) == (expected, None)


@pytest.mark.parametrize(
  "text",
  [
    rb'{"event": "A", "data": {"a": "\"", "b": "\\", "c": "{\"[\\"}}',
    rb'{"event": "A", "data": {"\\\"{": ["}\\", "\\\\\"]"]}}',
    rb'{"event": "A", "data": {"a": "]\\\\\\\"}\\\\", "b": [[], {}]}}',
  ],
)
def test_message_may_be_cut_anywhere(text):
  expected = ([qmp.Event("A", json.loads(text)["data"])], None)
  for first in range(len(text)):
    for second in range(first, len(text)):
      assert decode(cut(text, [first, second])) == expected


@given(streams(), CUTS)
def test_what_is_pending_begins_behind_a_message(stream, places):
  """Also while messages are given, and the rest of a piece waits."""
  data, expected = stream
  decoder = qmp.Decoder(WANTED)
  taken = 0
  messages = []
  for piece in cut(data, places):
    taken += len(piece)
    for message in decoder.feed(piece):
      if message is not None:
        messages.append(timeless(message))
      boundary = taken - decoder.pending
      assert decode([data[:boundary]]) == (messages, None)
      assert decode([data[boundary:]]) == (expected[len(messages) :], None)
    boundary = taken - decoder.pending
    assert decode([data[:boundary]]) == (messages, None)
    assert decode([data[boundary:]]) == (expected[len(messages) :], None)
  assert not decoder.pending


@given(streams(), CUTS)
def test_what_is_passed_over_means_nothing(stream, places):
  data, expected = stream
  decoder = qmp.Decoder(WANTED)
  messages = []
  for piece in cut(data, places):
    if not decoder.passes_over(piece):
      messages.extend(feed(decoder, piece))
  assert messages == expected


@given(transcripts(), CUTS)
def test_no_verdict_depends_on_how_its_events_are_written(transcript, places):
  data, history = transcript
  life = lifecycle.Lifecycle(lifecycle.Rule.CAUSE)
  decoder = qmp.Decoder(lifecycle.EVENTS)
  for piece in cut(data, places):
    for message in feed(decoder, piece):
      assert message.name in lifecycle.EVENTS
      life.receive(message.name, message.data, message.at)
  assert life.outcome.verdict is judge(history)


@pytest.mark.parametrize("line", CHATTER)
def test_event_that_means_nothing_takes_no_parser(line):
  with mock.patch.object(qmp, "_decode_json", side_effect=AssertionError):
    decoder = qmp.Decoder(lifecycle.EVENTS)
    # Longer than what is passed over at a time.
    lines = line * (2 * qmp.MAX_MESSAGE // len(line))
    while lines:
      # As in a long run one may be cut, a hundred of them arrive at a time.
      assert list(decoder.feed(lines[: 30 * len(line)])) == []
      lines = lines[30 * len(line) :]
    assert not decoder.pending


@pytest.mark.parametrize("line", CHATTER)
def test_event_that_means_nothing_is_passed_over(line):
  decoder = qmp.Decoder(lifecycle.EVENTS)
  with mock.patch.object(qmp.Decoder, "_read", side_effect=AssertionError):
    assert decoder.passes_over(line)
    assert decoder.passes_over(line * 3)
  assert not decoder.passes_over(line + b"{")
  assert not decoder.passes_over(b"")
  # No more at a time than takes little memory.
  many = 8192 // len(line)
  assert decoder.passes_over(line * many)
  assert not decoder.passes_over(line * (many + 1))
  assert not decoder.pending
  # Not behind the beginning of something else.
  assert list(decoder.feed(b'{"a": ')) == []
  assert not decoder.passes_over(line)
  assert decoder.pending == 6


@pytest.mark.parametrize("line", CHATTER)
@pytest.mark.parametrize("name", ["STOP", "RESET"])
def test_event_that_means_something_is_noticed_in_the_midst(line, name):
  wanted = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "%s"}\n'
  data = line + wanted % name.encode() + line
  decoder = qmp.Decoder(lifecycle.EVENTS)
  assert list(feed(decoder, data)) == [qmp.Event(name, {})]


def test_greetings_in_the_same_words_are_parsed_once():
  answer = b'{"return": {}}\r\n'
  qmp._read_common.cache_clear()
  parser = mock.Mock(side_effect=qmp._decode_json)
  with mock.patch.object(qmp, "_decode_json", parser):
    for _ in range(100):
      assert decode([GREETING, answer]) == decode([GREETING + answer])
  assert parser.call_count == 4


def test_bytes_are_pending_where_characters_have_more_than_one():
  decoder = qmp.Decoder(WANTED)
  other = '{"event": "A", "data": {"é": "😀"}}'.encode()
  messages = feed(decoder, SHUTDOWN + other + other[:-5])
  pending = [decoder.pending for _ in messages]
  pending.append(decoder.pending)
  rest = len(other) - 5
  # The end of a line goes with what comes after it.
  assert pending == [2 + len(other) + rest, rest, rest]


def test_short_piece_that_is_known_leaves_the_same_pending():
  piece = b'{"return": 1} {"id": 1}{"return": 2}\r\n'
  for _ in range(3):
    decoder = qmp.Decoder(WANTED)
    steps = [(message, decoder.pending) for message in decoder.feed(piece)]
    assert steps == [
      (qmp.Reply(None, 1, None), 25),
      (None, 15),
      (qmp.Reply(None, 2, None), 2),
    ]
    assert decoder.pending == 0


def test_message_that_took_a_parser_is_a_place_to_stop_at():
  decoder = qmp.Decoder(WANTED)
  odd = b'{"id": 1}' + b'{"event":"X"}' + b'{"\\u0065vent": "X"}'
  assert list(decoder.feed(odd)) == [None] * 3
  assert list(decoder.feed(b"{}{ }" + CHATTER[0])) == []


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_message_in_pieces_is_not_parsed_with_each(size):
  qmp._read_common.cache_clear()
  pieces = chunks(sized(6000), size)
  parser = mock.Mock(side_effect=qmp._decode_json)
  with mock.patch.object(qmp, "_decode_json", parser):
    messages, error = decode(pieces)
  assert len(messages) == 1
  assert error is None
  # When it begins, perhaps once more because that is short, and at its end.
  assert parser.call_count <= 3


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


@st.composite
def damaged_streams(draw):
  """Bytes that were messages before something was cut out or put in."""
  data, _ = draw(streams())
  data += draw(st.sampled_from(CHATTER))
  for start, length in draw(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 9)), max_size=3)
  ):
    place = start % (len(data) + 1)
    data = data[:place] + draw(NEAR_QMP) + data[place + length :]
  return data


@given(NEAR_QMP | damaged_streams(), CUTS)
def test_any_bytes_come_to_the_same_however_they_arrive(data, places):
  expected = decode_slowly(data)
  assert decode([data]) == expected
  assert decode(cut(data, places)) == expected
  assert decode(bytewise(data)) == expected


@given(NEAR_QMP, CUTS, st.integers(2, 40), st.integers(1, 6))
def test_bounds_are_the_same_however_bytes_arrive(data, places, size, depth):
  # What was remembered outlives the bounds that are set here.
  bounds = {
    "MAX_MESSAGE": size,
    "MAX_DEPTH": depth,
    "_MAX_RUN": size,
    "_MAX_COMMON": -1,
  }
  with mock.patch.multiple(qmp, **bounds):
    expected = decode_slowly(data)
    assert decode([data]) == expected
    assert decode(cut(data, places)) == expected
    assert decode(bytewise(data)) == expected


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
  ("found", "instead"),
  [
    (b"-3600", b"-03600"),
    (b"-3600", b"--3600"),
    (b"-3600", b"+3600"),
    (b"-3600", b"-"),
    (b"-3600", b"3600 3600"),
    (b'seconds": ', b'seconds": 0'),
    (b", ", b",, "),
    (b", ", b" "),
    (b": ", b" "),
    (b": ", b", "),
    (b"}", b", }"),
    (b"}", b"]"),
    (b'"event": "', b'"event": '),
    (b'"event": "', b'"event": 1, "b": "'),
    (b'"event": "', b'"event": null, "b": "'),
    (b'": {"offset"', b'": {{"offset"'),
    (b'"data": {', b'"data": [{'),
    (b'"data": {', b'"data": null}'),
    (b'"data": {', b'"data": []}'),
    (b'"data": {', b'"data": ""}'),
    (b'"data": {', b'"data": 1}'),
    (b'"data": {', b'"event": {'),
    (b'"data": {', b'"data": "", "b": {'),
    (b'"data": {', b'"data": null, "b": {'),
    (b'"data": {', b'"data": {"": {"": 1,}, '),
    (b'"data": {', b'"data": {"": {"": 1, 2}, '),
    (b'"data": {', b'"data": {"": True, '),
    (b'"data": {', b'"data": {"": nul, '),
    (b'"data": {', b'"data": {"": .5, '),
    (b'"data": {', b'"data": {"": 5., '),
    (b'"data": {', b'"data": {a: 1, '),
    (b'"data": {', b'"data": {"a" "b", '),
    (b"RTC", b"R\tC"),
    (b"RTC", b"R\0C"),
    (b"RTC", b"R\xc3C"),
    (b"RTC", b"R\\C"),
    (b"RTC", b'R"C'),
    (b"RTC", b"R\nC"),
    (b"off", b"o\x1ff"),
    (b"off", b"o\xfff"),
    (b"off", b'o"f'),
    (b"off", b"o\\of"),
  ],
)
def test_what_is_no_event_is_not_passed_over_as_one(found, instead):
  """It is refused, or has not ended before the end of the data."""
  line = CHATTER[4]
  assert found in line
  for place in range(line.count(found)):
    parts = line.split(found)
    parts[place : place + 2] = [instead.join(parts[place : place + 2])]
    data = CHATTER[0] + found.join(parts) + SHUTDOWN
    messages, error = decode([data])
    assert messages == []
    assert decode_slowly(data) == (messages, error)


def test_short_piece_gives_what_stands_in_front_of_garbage():
  reply = qmp.Reply(None, {}, None)
  assert decode([b'{"return": {}}\r\ngarbage']) == ([reply], "not JSON")


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


@pytest.mark.parametrize(
  ("timestamp", "at"),
  [
    ('{"seconds": 5, "microseconds": 250000}', 5.25),
    ('{"seconds": 5, "microseconds": 0, "more": 1}', 5.0),
    ('{"seconds": 0, "microseconds": 0}', 0.0),
    ('{"seconds": 0, "microseconds": 500000}', 0.5),
    ('{"seconds": -1, "microseconds": 500000}', 0.0),
    ('{"seconds": -1, "microseconds": -1}', 0.0),
    ('{"seconds": 1e999, "microseconds": 0}', 0.0),
    ('{"seconds": "5", "microseconds": 0}', 0.0),
    ('{"seconds": 5}', 0.0),
    ("[5, 0]", 0.0),
    ("5", 0.0),
    ("null", 0.0),
  ],
)
def test_event_tells_when_it_happened(timestamp, at):
  text = f'{{"timestamp": {timestamp}, "event": "STOP"}}\r\n'.encode()
  (message,) = qmp.Decoder(WANTED).feed(text)
  assert message == qmp.Event("STOP", {}, at)


def test_greeting_tells_the_version():
  assert decode([GREETING]) == ([qmp.Greeting("7.2.19")], None)


def test_version_is_one_string_for_all_instances():
  # What is remembered of a whole greeting is not what makes it one.
  greetings = [
    GREETING.replace(b"Debian", package * 40) for package in (b"here", b"there")
  ]
  first, second = (decode([greeting])[0][0] for greeting in greetings)
  assert first.version == "7.2.19"
  assert first.version is second.version


@pytest.mark.parametrize(
  ("command", "expected"),
  [
    (qmp.CAPABILITIES, {"execute": "qmp_capabilities"}),
    (qmp.QUERY_STATUS, {"execute": "query-status", "id": qmp.STATUS_ID}),
  ],
)
def test_command_is_one_line_of_json(command, expected):
  assert command.endswith(b"\r\n")
  assert command.count(b"\n") == 1
  assert json.loads(command) == expected


@pytest.mark.parametrize(
  "number",
  [b"9" * 5000, b"-" + b"9" * 60000, b"1e999", b"0." + b"3" * 60000],
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


def halves(data):
  return [data[: len(data) // 2], data[len(data) // 2 :]]


@pytest.mark.parametrize("split", [chunks, lambda data: [data], halves])
def test_longest_message(split):
  longest = sized(qmp.MAX_MESSAGE)
  messages, error = decode(split(b" " + longest + b"\r\n" + SHUTDOWN))
  assert [message.name for message in messages] == ["A", "SHUTDOWN"]
  assert error is None
  too_long = sized(qmp.MAX_MESSAGE + 1)
  messages, error = decode(split(SHUTDOWN + too_long + SHUTDOWN))
  assert [message.name for message in messages] == ["SHUTDOWN"]
  assert str(qmp.MAX_MESSAGE) in error


@pytest.mark.parametrize("split", [chunks, lambda data: [data], halves])
@pytest.mark.parametrize(
  ("opening", "closing"),
  [
    (b'{"a": "', b'"}'),
    (b'{"event": "X", "data": {"a": "', b'"}}'),
    (CHATTER[1][:-5], CHATTER[1][-5:-2]),
    (b'{"a": "\xc3\xa9', b'"}'),
    (b'{"a": "\\\\', b'"}'),
    (b'{"a": "', b'\\""}'),
    (b'{"a": {}, "b": "', b'"}'),
  ],
)
def test_longest_message_of_any_kind(split, opening, closing):
  room = 64 * 1024 - len(opening) - len(closing)
  for more, is_refused in ((0, False), (1, True)):
    text = opening + b"x" * (room + more) + closing
    assert decode(split(text[:-1])) == ([], None)
    messages, error = decode(split(text + SHUTDOWN))
    assert len(messages) == (not is_refused)
    assert (error is not None) == is_refused
    assert decode_slowly(text + SHUTDOWN) == (messages, error)


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
  decoder = qmp.Decoder(WANTED)
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


def test_shortest_message_that_is_too_deep():
  deep = 100 - 1
  deepest = b'{"":' + b"[" * deep + b"]" * deep + b"}"
  deeper = b'{"":' + b"[" * (deep + 1) + b"]" * (deep + 1) + b"}"
  for front in b"", b"{}", SHUTDOWN, CHATTER[0], deepest:
    before, _ = decode([front])
    assert decode([front + deepest]) == (before, None)
    error = decode([front + deeper])
    assert error == (before, f"nested more than {qmp.MAX_DEPTH} deep")
    # Also where what is in front of it comes in pieces, and it does not.
    for place in range(len(front) + len(deeper)):
      assert decode(cut(front + deepest, [place])) == (before, None)
      assert decode(cut(front + deeper, [place])) == error


@pytest.mark.parametrize("opening", [b"[", b'{"":'])
def test_message_deeper_than_any_parser_goes(opening):
  data = b'{"a":' + opening * 10000
  assert decode([SHUTDOWN + data]) == decode_slowly(SHUTDOWN + data)


def test_brackets_in_strings_have_no_depth():
  many = "[{" * 500
  text = json.dumps({"event": "A", "data": {many: many}}).encode()
  expected = [qmp.Event("A", {many: many})]
  assert decode([text]) == decode(bytewise(text)) == (expected, None)


def test_message_too_long_and_too_deep_is_one_error_however_it_arrives():
  long = b"x" * (2 * qmp.MAX_MESSAGE)
  data = b'{"a": "' + long + b'", "b": ' + b"[" * qmp.MAX_DEPTH
  assert decode([data]) == decode(chunks(data)) == decode(cut(data, [9, 999]))


@pytest.mark.parametrize(
  "text",
  [
    sized(qmp.MAX_MESSAGE),
    # As many brackets as may be, however deep.
    b'{"event": "A", "data": {"a": [%s"%s"]}}'
    % (b"[], " * (qmp.MAX_DEPTH - 3), b"x" * 300),
    b'{"event": "A", "data": {"a": [%s"%s"]}}'
    % (b"{}, " * (qmp.MAX_DEPTH - 3), b"x" * 300),
  ],
  ids=len,
)
def test_brackets_are_not_followed_where_they_cannot_be_too_many(text):
  with mock.patch.object(qmp, "_Partial", side_effect=AssertionError):
    messages, error = decode([text])
  assert error is None
  assert len(messages) == 1


@pytest.mark.parametrize("size", [60, 2 * qmp.MAX_DEPTH])
def test_brackets_are_not_counted_where_there_is_no_room_for_many(size):
  with mock.patch.object(qmp, "_check_bounds", side_effect=AssertionError):
    messages, error = decode([sized(size)])
  assert error is None
  assert len(messages) == 1


def test_brackets_that_were_followed_are_not_counted():
  with mock.patch.object(qmp, "_check_bounds", side_effect=AssertionError):
    messages, error = decode(halves(sized(9000)))
  assert error is None
  assert len(messages) == 1


def test_white_space_without_end_is_no_message():
  decoder = qmp.Decoder(WANTED)
  for _ in range(2 * qmp.MAX_MESSAGE // 4096):
    assert list(decoder.feed(b" \r\n\t" * 1024)) == []
  assert len(list(decoder.feed(SHUTDOWN))) == 1


def memory_kept(pieces):
  """Tells how many bytes a decoder keeps after what it was fed."""
  tracemalloc.start()
  try:
    decoder = qmp.Decoder(WANTED)
    before, _ = tracemalloc.get_traced_memory()
    for piece in pieces:
      collections.deque(decoder.feed(piece), maxlen=0)
    after, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  return after - before


def test_ten_thousand_decoders_are_small():
  qmp.Decoder(lifecycle.EVENTS)  # makes what all of them share
  tracemalloc.start()
  try:
    decoders = [qmp.Decoder(lifecycle.EVENTS) for _ in range(10000)]
    for decoder in decoders:
      collections.deque(decoder.feed(GREETING + SHUTDOWN), maxlen=0)
    taken, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The list has eight bytes of it for each.
  assert taken < 10000 * 100


@pytest.mark.parametrize(
  "text",
  [b"{}", b" ", CHATTER[0], CHATTER[3], b'{"event":"X"}', b'{"a":[[[]]]}'],
)
def test_run_of_messages_takes_little_memory(text):
  data = text * (4 * qmp.MAX_MESSAGE // len(text))
  decoder = qmp.Decoder(WANTED)
  tracemalloc.start()
  try:
    collections.deque(decoder.feed(data), maxlen=0)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The text itself, and what the regular expression needs to go back.
  assert peak < len(data) + 2 * 1024 * 1024


def test_decoder_keeps_no_memory():
  longest = sized(qmp.MAX_MESSAGE) + b"\r\n"
  list(qmp.Decoder(WANTED).feed(longest))  # fills Python's own caches
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
    for _ in range(qmp.MAX_MESSAGE // size):
      assert decode(pieces)[1] is None
    return time.process_time() - began

  # A machine that is busy with other things may spoil an attempt.
  assert any(
    seconds(qmp.MAX_MESSAGE) < 3 * seconds(qmp.MAX_MESSAGE // 64)
    for _ in range(4)
  )

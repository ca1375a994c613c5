# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what Ganeti was asked to do."""

from __future__ import annotations

import errno
import json
import os
import stat
from unittest import mock

import pytest
from ganeti.kvmd.node import reason_trail
from ganeti.kvmd.node.reason_trail import ReasonTrail
from hypothesis import given
from hypothesis import strategies as st

SECOND = 10**9

#: When the node daemon was asked
ASKED = 1_795_600_323

BEGAN = ASKED - 60.0
ENDED = ASKED + 0.5

USER = ["gnt:user", "for the audit", ASKED * SECOND - 3]
CLIENT = ["gnt:client:gnt-instance", "shutdown", ASKED * SECOND - 2]
OPCODE = ["gnt:opcode:instance_shutdown", "job=14;index=0", ASKED * SECOND - 1]
NODE_DAEMON = ["gnt:daemon:noded:shutdown", "", ASKED * SECOND]

WHOLE = [USER, CLIENT, OPCODE, NODE_DAEMON]

RIGHT = ReasonTrail(
  at=float(ASKED),
  action="shutdown",
  source="gnt:client:gnt-instance",
  command="gnt-instance shutdown",
  reason="for the audit",
  opcode="instance_shutdown",
  job=14,
)


@pytest.fixture
def directory(scratch):
  before = len(os.listdir("/proc/self/fd"))
  found = scratch / "instance-reason"
  found.mkdir()
  yield found
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(directory):
  return directory / "vm"


def write(path, trail):
  """Writes it as Ganeti does, or as it is."""
  content = trail if isinstance(trail, bytes) else json.dumps(trail).encode()
  path.write_bytes(content)
  path.chmod(0o600)


def read(directory, *, began=BEGAN, ended=ENDED):
  return reason_trail.read(str(directory), "vm", began=began, ended=ended)


@pytest.mark.parametrize(
  ("trail", "right"),
  [
    (WHOLE, RIGHT),
    ([CLIENT, OPCODE, NODE_DAEMON], RIGHT._replace(reason="")),
    (
      [["gnt:client:gnt-instance", "", 1], OPCODE, NODE_DAEMON],
      RIGHT._replace(reason="", command="gnt-instance "),
    ),
    (
      [
        ["gnt:library:rlib2:instances_name_shutdown", "", 1],
        OPCODE,
        NODE_DAEMON,
      ],
      RIGHT._replace(
        reason="",
        source="gnt:library:rlib2:instances_name_shutdown",
        command="",
      ),
    ),
    (
      [["gnt:watcher", "Cleaning up instance vm", 1], OPCODE, NODE_DAEMON],
      RIGHT._replace(
        reason="", source="gnt:watcher", command="Cleaning up instance vm"
      ),
    ),
    (
      [["gnt:user name", "text", 0], CLIENT, ["", "", 2**63 - 1], NODE_DAEMON],
      RIGHT._replace(
        reason="", source="gnt:user name", command="text", opcode="", job=None
      ),
    ),
    # Only Ganeti itself
    (
      [OPCODE, NODE_DAEMON],
      RIGHT._replace(reason="", source=OPCODE[0], command=OPCODE[1]),
    ),
    (
      [NODE_DAEMON],
      RIGHT._replace(reason="", source="", command="", opcode="", job=None),
    ),
    # Jobs that led to one another, and two reasons
    (
      [
        USER,
        ["gnt:user", "another", 1],
        ["gnt:client:gnt-node", "evacuate", 1],
        ["gnt:opcode:node_evacuate", "job=13;index=0", 1],
        ["gnt:opcode:instance_failover", "job=15;index=2", 1],
        NODE_DAEMON,
      ],
      RIGHT._replace(
        source="gnt:client:gnt-node",
        command="gnt-node evacuate",
        opcode="instance_failover",
        job=15,
      ),
    ),
    (
      [CLIENT, OPCODE, ["gnt:daemon:noded:reboot", "", ASKED * SECOND]],
      RIGHT._replace(reason="", action="reboot"),
    ),
  ],
)
def test_trail(directory, path, trail, right):
  write(path, trail)
  assert read(directory) == right


def test_trail_as_ganeti_writes_it(directory, path):
  """Ganeti 3.0.2, gnt-instance shutdown --reason="for the audit"."""
  write(
    path,
    b'[["gnt:user", "for the audit", 1795600323281267456],'
    b' ["gnt:client:gnt-instance", "shutdown", 1795600323281270272],'
    b' ["gnt:opcode:instance_shutdown", "job=14;index=0", 1795600323281889000],'
    b' ["gnt:daemon:noded:shutdown", "", 1795600323605140992]]\n',
  )
  found = read(directory, ended=ASKED + 0.646)
  assert found == RIGHT._replace(at=found.at)
  assert found.at == pytest.approx(1795600323.605141, abs=1e-6)


@pytest.mark.parametrize(
  ("text", "job"),
  [
    ("job=7;index=0", 7),
    ("job=123456789012345678;index=123456789012345678", 123456789012345678),
    ("job=1234567890123456789;index=0", None),
    ("job=1;index=1234567890123456789", None),
    ("job=;index=0", None),
    ("job=1;index=", None),
    ("job=1", None),
    ("job=-1;index=0", None),
    ("job=1;index=0\n", None),
    (" job=1;index=0", None),
    ("job=\u0661;index=0", None),
    ("", None),
  ],
)
def test_job(directory, path, text, job):
  write(path, [CLIENT, ["gnt:opcode:instance_shutdown", text, 1], NODE_DAEMON])
  found = read(directory)
  assert found.job == job
  assert found.opcode == "instance_shutdown"


@pytest.mark.parametrize(
  ("began", "ended", "fits"),
  [
    (ASKED, ASKED, True),
    (ASKED + 0.0001, ENDED, False),
    (ASKED + 60, ASKED + 120, False),
    (BEGAN, ASKED + 0.0001, True),
    (BEGAN, ASKED - 0.0009, True),
    (BEGAN, ASKED - 0.0011, False),
    (BEGAN, ASKED - 30, False),
    (0.0, float("inf"), True),
  ],
)
def test_which_life_it_tells_of(directory, path, began, ended, fits):
  write(path, WHOLE)
  assert read(directory, began=began, ended=ended) == (RIGHT if fits else None)


@pytest.mark.parametrize(
  "last",
  [
    "gnt:daemon:noded:start",
    "gnt:daemon:noded:",
    "gnt:daemon:noded",
    "gnt:daemon:noded:shutdowns",
    "gnt:daemon:noded:gnt:daemon:noded:shutdown",
    "gnt:daemon:masterd:shutdown",
    "shutdown",
    "reboot",
    "",
  ],
)
def test_what_ends_no_life(directory, path, last):
  write(path, [CLIENT, OPCODE, [last, "", ASKED * SECOND]])
  assert read(directory) is None


def test_node_daemon_has_the_last_word(directory, path):
  write(path, [NODE_DAEMON, OPCODE])
  assert read(directory) is None


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\n",
    b"[",
    b"{}",
    b"null",
    b"[]",
    b'"text"',
    b"17",
    b"[null]",
    b"[{}]",
    b"[[]]",
    b"\xff",
    b"\xef\xbb\xbf" + json.dumps(WHOLE).encode(),
    json.dumps(WHOLE).encode("utf-16"),
    json.dumps(WHOLE).encode()[:-3],
    json.dumps(WHOLE).encode() + b"]",
    b"[" * 15_000,
    b"[" * 8000 + b"]" * 8000,
    b'[["gnt:daemon:noded:shutdown", "", NaN]]',
    b'[["gnt:daemon:noded:shutdown", "", Infinity]]',
    b'[["gnt:daemon:noded:shutdown", "", 1795600323000000000.0]]',
    b'[["gnt:daemon:noded:shutdown", "", "1795600323000000000"]]',
    b'[["gnt:daemon:noded:shutdown", "", true]]',
    b'[["gnt:daemon:noded:shutdown", "", null]]',
    b'[["gnt:daemon:noded:shutdown", null, 1795600323000000000]]',
    b'[[null, "", 1795600323000000000]]',
    b'[["gnt:daemon:noded:shutdown", ""]]',
    b'[["gnt:daemon:noded:shutdown", "", 1795600323000000000, 1]]',
    b'[["x"], ["gnt:daemon:noded:shutdown", "", 1795600323000000000]]',
    b'[{"0": 1}, ["gnt:daemon:noded:shutdown", "", 1795600323000000000]]',
    b'[["gnt:daemon:noded:shutdown", "", -1795600323000000000]]',
    b'[["gnt:daemon:noded:shutdown", "", 1' + b"0" * 400 + b"]]",
    b'[["gnt:daemon:noded:shutdown", "", 1' + b"0" * 15_000 + b"]]",
    json.dumps([["", "", -1], NODE_DAEMON]).encode(),
    json.dumps([["", "", 2**63], NODE_DAEMON]).encode(),
  ],
)
def test_what_is_no_trail(directory, path, content):
  write(path, content)
  assert read(directory, began=1.0) is None


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 + 1])
def test_size(directory, path, size):
  content = json.dumps(WHOLE).encode()
  write(path, content + b" " * (size - len(content)))
  with mock.patch.object(os, "read", wraps=os.read) as reading:
    found = read(directory)
  assert found == (RIGHT if size == 16 * 1024 else None)
  assert [call.args[1] for call in reading.mock_calls] == [16 * 1024 + 1]


def test_text_is_escaped_and_cut(directory, path):
  hostile = "\x1b[2J\n\u202e\ud800" + "x" * 300
  shown = ("\\x1b[2J\\n\\u202e\\ud800" + "x" * 300)[:197] + "..."
  write(
    path,
    [
      ["gnt:user", hostile, 1],
      ["gnt:x" + hostile, hostile, 1],
      ["gnt:opcode:" + hostile, "", 1],
      NODE_DAEMON,
    ],
  )
  found = read(directory)
  assert found.reason == found.command == found.opcode == shown
  assert found.source == ("gnt:x" + shown)[:197] + "..."


def test_command_is_cut_as_a_whole(directory, path):
  write(path, [["gnt:client:" + "x" * 150, "y" * 150, 1], NODE_DAEMON])
  assert read(directory).command == "x" * 150 + " " + "y" * 46 + "..."


# What is no file of Ganeti's


def fifo(path, _):
  os.mkfifo(path, 0o600)


def link(path, other):
  path.symlink_to(other)


def two_names(path, other):
  os.link(other, path)


def a_directory(path, _):
  path.mkdir()


def a_socket(path, _):
  os.mknod(path, stat.S_IFSOCK | 0o600)


def writable(path, _):
  write(path, WHOLE)
  path.chmod(0o602)


def nothing(path, _):
  assert not path.exists()


@pytest.mark.parametrize(
  "make", [fifo, link, two_names, a_directory, a_socket, writable, nothing]
)
def test_what_is_no_file_of_ganeti_s(directory, path, scratch, make):
  other = scratch / "other"
  write(other, WHOLE)
  make(path, other)
  assert read(directory) is None


def test_no_directory(scratch):
  assert read(scratch / "missing") is None
  write(scratch / "file", WHOLE)
  assert read(scratch / "file") is None
  os.mkfifo(scratch / "fifo")
  assert read(scratch / "fifo") is None


def test_directory_is_a_link(directory, path, scratch):
  write(path, WHOLE)
  (scratch / "link").symlink_to(directory)
  assert read(scratch / "link") == RIGHT


@pytest.mark.parametrize("call", ["read", "open"])
def test_it_cannot_be_read(directory, path, monkeypatch, call):
  write(path, WHOLE)
  fault = OSError(errno.EIO, os.strerror(errno.EIO))
  monkeypatch.setattr(os, call, mock.Mock(side_effect=fault))
  found = read(directory)
  monkeypatch.undo()
  assert found is None


_PART = st.one_of(
  st.lists(
    st.one_of(st.text(max_size=9), st.integers(), st.none(), st.floats()),
    max_size=4,
  ),
  st.tuples(
    st.sampled_from(["gnt:user", "gnt:client:x", "gnt:opcode:y", ""]),
    st.text(max_size=9),
    st.integers(),
  ),
)


@given(st.lists(_PART, max_size=4))
def test_any_trail(parts):
  content = json.dumps([*parts, NODE_DAEMON]).encode()
  with mock.patch.object(reason_trail, "_read", return_value=content):
    found = read("nowhere")
  if found is not None:
    shown = [found.source, found.command, found.reason, found.opcode]
    assert all(each.isprintable() for each in shown)

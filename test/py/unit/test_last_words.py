# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what QEMU wrote last."""

from __future__ import annotations

import errno
import os
import resource
import stat
from unittest import mock

import pytest
from ganeti.kvmd.node import last_words
from ganeti.kvmd.node.last_words import Fate, LastWords
from hypothesis import given
from hypothesis import strategies as st

BEGAN = 1_795_599_700.0
ENDED = BEGAN + 60.0

TERMINATED = "terminating on signal 15 from pid 30777 (bash)"

#: What remains of an instance that wrote nothing
SILENT = LastWords(Fate.NONE, reason="QEMU wrote nothing to its log file")

OTHERS = LastWords(
  Fate.NONE,
  reason="its log file is of no use: vm.log is no regular file of our own",
)


@pytest.fixture
def directory(scratch):
  before = len(os.listdir("/proc/self/fd"))
  found = scratch / "kvm"
  found.mkdir()
  yield found
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(directory):
  return directory / "vm.log"


def write(path, content, written=ENDED):
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content)
  path.chmod(0o600)
  os.utime(path, (written, written))


def read(directory, *, is_reborn=False, began=BEGAN, ended=ENDED):
  return last_words.read(
    str(directory), "vm", began=began, ended=ended, is_reborn=is_reborn
  )


def test_words(directory, path):
  write(path, f"qemu-system-x86_64: {TERMINATED}\n")
  assert read(directory) == LastWords(
    Fate.THERE, f"qemu-system-x86_64: {TERMINATED}", TERMINATED
  )


def lines(first, last):
  return "".join(f"{number}\n" for number in range(first, last + 1))


@pytest.mark.parametrize(
  ("content", "text"),
  [
    ("no newline at its end", "no newline at its end"),
    ("\n\n  \n1\n\n\t\r\n2 \r\n\n", "1\n2"),
    (lines(1, 10), lines(1, 10).rstrip()),
    (lines(1, 11), lines(2, 11).rstrip()),
    ("  indented", "  indented"),
    # Only whole lines, as many as there is room for
    (f"{'1' * 499}\n{'2' * 500}", f"{'1' * 499}\n{'2' * 500}"),
    (f"{'1' * 500}\n{'2' * 500}", "2" * 500),
    (f"0\n{'1' * 500}\n{'2' * 500}", "2" * 500),
    ("1" * 1000, "1" * 1000),
    ("1" * 1001, "1" * 997 + "..."),
    (f"{'1' * 1001}\n2", "2"),
    # Whatever is in it
    (
      "a\x1b[2Jb\0\x85\u202e\u2028c\x0bd",
      "a\\x1b[2Jb\\x00\\x85\\u202e\\u2028c\\x0bd",
    ),
    ("Größe\n大", "Größe\n大"),
    (b"\xff\xfe\xc3\n\x80x", "\\xff\\xfe\\xc3\n\\x80x"),
    # Of more than is read, the first line may be a part of one
    ("lost" + "x" * 3000 + "\n" + "y" * 1200 + "\nend", "end"),
    ("a" * 10 + "\n" + "b" * 5000, "b" * 997 + "..."),
    ("first\n" + " " * 4088 + "\nlast", "last"),
    # All of it was read
    ("first\n" + " " * 4085 + "\nlast", "first\nlast"),
  ],
)
def test_text(directory, path, content, text):
  write(path, content)
  found = read(directory)
  assert (found.fate, found.text, found.reason) == (Fate.THERE, text, "")


@pytest.mark.parametrize("size", [0, 4095, 4096, 4097, 8192])
def test_only_the_end_is_read(directory, path, size):
  write(path, b"x" * size + b"\nlast\n")
  with mock.patch.object(os, "pread", wraps=os.pread) as reading:
    assert read(directory).text.rpartition("\n")[2] == "last"
  (call,) = reading.mock_calls
  assert call.args[1] == 4096
  assert call.args[2] == max(0, size + 6 - 4096)


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n", "\n" * 5000])
def test_silence(directory, path, content):
  write(path, content)
  assert read(directory) == SILENT


def test_hole(directory, path):
  """As long as it may be."""
  limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
  with path.open("wb") as file:
    file.truncate(2**40 if limit == resource.RLIM_INFINITY else limit)
  path.chmod(0o600)
  os.utime(path, (ENDED, ENDED))
  found = read(directory)
  assert found.fate == Fate.THERE
  assert found.text == "\\x00" * 249 + "..."
  assert found.short == "\\x00" * 39 + "..."


# Whose they are


@pytest.mark.parametrize(
  ("written", "content", "fate"),
  [
    (ENDED - 0.01, "words", Fate.THERE),
    (ENDED - 0.01, "", Fate.NONE),
    # Late words, or those of a start that was early
    (ENDED + 0.04, "words", Fate.THERE),
    (ENDED + 0.06, "words", Fate.OVERWRITTEN),
    (ENDED + 3600, "words", Fate.OVERWRITTEN),
    # QEMU empties it only at its start
    (ENDED, "", Fate.NONE),
    (ENDED + 0.01, "", Fate.OVERWRITTEN),
    (ENDED + 3600, "", Fate.OVERWRITTEN),
    # It is opened before the monitor, from which on a life counts
    (BEGAN, "words", Fate.THERE),
    (BEGAN - 0.012, "words", Fate.THERE),
    (BEGAN - 9.9, "words", Fate.THERE),
    (BEGAN - 10.1, "words", Fate.NONE),
    (0.0, "words", Fate.NONE),
  ],
)
def test_whose_they_are(directory, path, written, content, fate):
  write(path, content, written)
  found = read(directory)
  assert found.fate == fate
  assert found.text == ("words" if fate == Fate.THERE else "")
  assert bool(found.reason) == (fate != Fate.THERE)


def test_another_life_s(directory, path):
  write(path, "words", BEGAN - 100)
  assert read(directory).reason == "its log file is an earlier life's"
  write(path, "words", ENDED + 100)
  assert read(directory).reason == "its log file is a later life's"


def test_later_life_is_known(directory, path):
  """Whatever the file looks like."""
  write(path, "words", ENDED)
  right = LastWords(Fate.OVERWRITTEN, reason="a later life has begun")
  assert read(directory, is_reborn=True) == right
  path.unlink()
  assert read(directory, is_reborn=True) == right


def test_next_start_comes_while_it_is_read(directory, path, monkeypatch):
  """It empties the file, and writes to it, between any two steps of ours."""
  look = os.pread

  def start_before(*arguments):
    path.write_text("the next one's")
    return look(*arguments)

  def start_after(*arguments):
    found = look(*arguments)
    path.write_text("the next one's")
    return found

  for start in (start_before, start_after):
    write(path, "words")
    monkeypatch.setattr(os, "pread", start)
    assert read(directory).fate == Fate.OVERWRITTEN
    monkeypatch.undo()


def test_it_is_emptied_as_fopen_does(directory, path):
  """That dates an empty file, too, which all rests on."""
  write(path, "", BEGAN)
  path.open("w").close()
  assert path.stat().st_mtime > BEGAN
  assert read(directory).fate == (
    Fate.OVERWRITTEN if path.stat().st_mtime > ENDED else Fate.NONE
  )


# What is no log file


def fifo(path, _):
  os.mkfifo(path, 0o600)


def link(path, other):
  path.symlink_to(other)


def dangling(path, _):
  path.symlink_to("missing")


def two_names(path, other):
  os.link(other, path)


def a_directory(path, _):
  path.mkdir()


def a_socket(path, _):
  os.mknod(path, stat.S_IFSOCK | 0o600)


def writable(path, _):
  write(path, "words")
  path.chmod(0o620)


@pytest.mark.parametrize(
  ("make", "number"),
  [
    (fifo, 0),
    (link, errno.ELOOP),
    (dangling, errno.ELOOP),
    (two_names, 0),
    (a_directory, 0),
    (a_socket, errno.ENXIO),
    (writable, 0),
  ],
)
def test_what_is_no_log_file(directory, path, scratch, make, number):
  other = scratch / "other"
  write(other, "secret")
  make(path, other)
  if number:
    shown = f"cannot open vm.log: {os.strerror(number)}"
    right = OTHERS._replace(reason=f"its log file is of no use: {shown}")
  else:
    right = OTHERS
  assert read(directory) == right


def test_there_is_none(directory, scratch):
  right = LastWords(Fate.NONE, reason="there is no log file of QEMU's")
  assert read(directory) == right
  assert read(scratch / "missing") == right


@pytest.mark.parametrize("call", ["lseek", "pread", "open"])
def test_it_cannot_be_read(directory, path, monkeypatch, call):
  write(path, "words")
  fault = OSError(errno.EIO, os.strerror(errno.EIO), "vm\n.log")
  monkeypatch.setattr(os, call, mock.Mock(side_effect=fault))
  found = read(directory)
  monkeypatch.undo()
  assert found.fate == Fate.NONE
  assert found.reason == (
    "its log file is of no use: [Errno 5] Input/output error: 'vm\\n.log'"
  )


def test_directory_is_a_file(scratch):
  file = scratch / "file"
  file.touch()
  assert "Not a directory" in read(file).reason


def test_directory_is_a_fifo(scratch):
  """Nobody waits for it."""
  os.mkfifo(scratch / "fifo")
  assert "Not a directory" in read(scratch / "fifo").reason


def test_directory_is_a_link(directory, path, scratch):
  """The administrator may have his logs wherever he likes."""
  write(path, "words")
  (scratch / "link").symlink_to(directory)
  assert read(scratch / "link").text == "words"


# The line that tells most


@pytest.mark.parametrize(
  ("words", "short"),
  [
    ("", ""),
    (" \n\t\n", ""),
    ("whatever\nthe last\n\n", "the last"),
    (f"qemu-system-x86_64: {TERMINATED}", TERMINATED),
    (f"kvm: {TERMINATED}", TERMINATED),
    (f"qemu-kvm: {TERMINATED}\nkvm: could not flush", TERMINATED),
    (
      "qemu: fatal: Trying to execute code outside RAM\nEAX=0\nEBX=1",
      "fatal: Trying to execute code outside RAM",
    ),
    ("qemu: hardware error: xen\nRAX=0", "hardware error: xen"),
    (
      "qemu: Not a migration stream\nqemu: load of migration failed: x\nerror",
      "load of migration failed: x",
    ),
    ("kvm: Could not open '/dev/x'\nmore", "Could not open '/dev/x'"),
    ("kvm: cannot set up guest memory\nmore", "cannot set up guest memory"),
    ("can't do it\nmore", "can't do it"),
    ("Unable to map\nmore", "Unable to map"),
    ("vhost failed\nmore", "vhost failed"),
    ("disk failure\nmore", "disk failure"),
    ("an error\nmore", "an error"),
    ("could not this\ncould not that\nmore", "could not that"),
    (f"terminating on signal 1\n{TERMINATED}\nmore", TERMINATED),
    # Parts of words
    ("fatality\nmore", "more"),
    ("terrors\nmore", "more"),
    ("unfailed\nmore", "more"),
    # Only the program's name is left out, and once
    ("warning: host doesn't", "warning: host doesn't"),
    ("kvm: kvm: twice", "kvm: twice"),
    ("a kvm: twice", "a kvm: twice"),
    ("\x1b]0;kvm: \x07", "\\x1b]0;kvm: \\x07"),
    (f"{TERMINATED} {'x' * 200}", f"{TERMINATED} {'x' * 110}..."),
    ("1" * 160, "1" * 160),
  ],
)
def test_short(words, short):
  assert last_words.short(words) == short


@pytest.mark.parametrize(
  "line",
  [
    "KVM internal error. Suberror: 1",
    "error: kvm run failed Bad address",
    "ERROR:../a.c:5:f: assertion failed: (x)",
    "../a.c:5: f: Assertion `x' failed.",
    "*** stack smashing detected ***: terminated",
    "double free or corruption (out)",
    "malloc(): memory corrupted",
    "free(): invalid pointer",
  ],
)
def test_what_tells_more_than_a_failure(line):
  assert last_words.short(f"**\n{line}\ncould not flush\nRAX=0") == line


def test_short_is_of_all_that_was_read(directory, path):
  """A dump of registers follows what it is about."""
  write(path, "qemu: fatal: gone wrong\n" + lines(1, 30))
  found = read(directory)
  assert found.text == lines(21, 30).rstrip()
  assert found.short == "fatal: gone wrong"


@given(st.binary(max_size=300))
def test_any_words(content):
  found = last_words._Found(content, is_whole=True, written=ENDED)
  with mock.patch.object(last_words, "_read", return_value=found):
    words = read("nowhere")
  shown = words.text.split("\n")
  assert all(line.isprintable() for line in [*shown, words.short])
  assert len(shown) <= 10
  assert len(words.text) <= 1000
  assert len(words.short) <= 160
  assert bool(words.text) == (words.fate == Fate.THERE)

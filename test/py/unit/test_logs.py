# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the logs.

They change the whole process, and so have each a process of its own.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import sys
import syslog
import time
from unittest import mock

import forked
import pytest
from ganeti.kvmd.process.logs import Logs
from hypothesis import given
from hypothesis import strategies as st
from kvmd_log import LOG_LINE


def logged(message, *arguments, debug=False, level=logging.INFO):
  """Logs something to a terminal; returns the lines."""
  with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
    Logs("ganeti-kvmd", debug=debug).add_terminal()
    logging.log(level, message, *arguments)
  return terminal.getvalue()


@pytest.mark.parametrize("debug", [True, False])
def test_form(debug):
  def check():
    for level in logging.INFO, logging.WARNING, logging.ERROR:
      text = logged("a %s", "word", debug=debug, level=level)
      match = LOG_LINE.fullmatch(text.rstrip("\n"))
      assert match.groups() == (
        str(os.getpid()),
        logging.getLevelName(level),
        "a word",
      )
    assert bool(logged("x", debug=debug, level=logging.DEBUG)) is debug

  forked.run(check)


def test_any_text_is_one_line_that_a_terminal_can_bear():
  texts = st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode)

  def check():
    @given(texts)
    def inner(text):
      written = logged("instance %s: x", text)
      assert written.endswith("\n")
      assert written[:-1].isprintable()
      assert LOG_LINE.fullmatch(written[:-1])

    inner()

  forked.run(check)


def test_printable_text_is_left_as_it_is():
  def check():
    assert logged("über %s", 'C:\\ "x"').endswith(' über C:\\ "x"\n')

  forked.run(check)


def test_trace_of_a_fault_is_escaped():
  def check():
    with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
      Logs("ganeti-kvmd", debug=False).add_terminal()
      try:
        raise ValueError("a\x1b[2J\nb")
      except ValueError:
        logging.exception("fault")
    text = terminal.getvalue()
    assert "ValueError: a" in text
    assert text.replace("\n", "").isprintable()

  forked.run(check)


def test_file_is_opened_anew(scratch):
  def check():
    path = scratch / "log"
    logs = Logs("ganeti-kvmd", debug=False)
    logs.add_file(str(path))
    logging.info("one")
    path.rename(scratch / "old")
    logging.info("two")
    logs.reopen()
    logging.info("three")
    assert [line.split()[-1] for line in path.open()][-1:] == ["three"]
    assert "three" not in (scratch / "old").read_text()
    assert "two" in (scratch / "old").read_text()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
      logs.reopen()
    assert len(os.listdir("/proc/self/fd")) == before

  forked.run(check)


def test_device_is_full(scratch):
  def check():
    logs = Logs("ganeti-kvmd", debug=False)
    logs.add_file("/dev/full")
    with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
      logging.info("lost")
      logging.shutdown()
    assert terminal.getvalue() == ""

  forked.run(check)


@pytest.mark.parametrize("debug", [True, False])
def test_disk_is_full_for_a_while(scratch, debug):
  def check():
    page = resource.getpagesize()
    length = len(logged("number %03d", 0, debug=debug))
    forked.mount_short(str(scratch), 3)
    (scratch / "filler").write_bytes(bytes(2 * page))
    # There is room for five lines and about the half of one.
    before = "x" * (page - 5 * length - length // 2 - 1)
    (scratch / "log").write_text(before + "\n")
    Logs("ganeti-kvmd", debug=debug).add_file(str(scratch / "log"))
    for number in range(100):
      logging.info("number %03d", number)
    assert (scratch / "log").stat().st_size == page
    (scratch / "filler").unlink()
    for number in range(100, 103):
      logging.info("number %03d", number)
    first, *lines = (scratch / "log").read_text().splitlines()
    assert first == before
    assert 10 < len(lines.pop(5)) < length
    matches = [LOG_LINE.fullmatch(line) for line in lines]
    assert [match.group(3) for match in matches] == [
      *(f"number {number:03}" for number in range(5)),
      "95 lines could not be written here: No space left on device",
      *(f"number {number:03}" for number in range(100, 103)),
    ]
    assert matches[5].group(2) == "WARNING"

  forked.run(check, forked.Place.OWN_MOUNTS)


def test_one_line_is_missing(scratch):
  def check():
    logs = Logs("ganeti-kvmd", debug=False)
    logs.add_file(str(scratch / "log"))
    with mock.patch.object(os, "write", side_effect=OSError(errno.EIO, "")):
      logging.info("lost")
    logging.info("kept")
    first, second = (scratch / "log").read_text().splitlines()
    assert "1 line could not be written here: Input/output error" in first
    assert "kept" in second

  forked.run(check)


@pytest.mark.parametrize(
  ("left", "lines"),
  [("", 0), ("a whole line\n", 1), ("half a l", 1), ("a\nhalf a l", 2)],
)
def test_log_that_another_left_within_a_line(scratch, left, lines):
  def check():
    path = scratch / "log"
    path.write_text(left)
    logs = Logs("ganeti-kvmd", debug=False)
    logs.add_file(str(path))
    logging.info("one")
    path.rename(scratch / "old")
    path.write_text(left)
    logs.reopen()
    logging.info("two")
    for name, message in ("old", "one"), ("log", "two"):
      found = (scratch / name).read_text().split("\n")
      assert found[:lines] == left.split("\n")[:lines]
      assert LOG_LINE.fullmatch(found[lines]).group(3) == message

  forked.run(check)


@pytest.mark.parametrize("text", ["x", "\n", "\U0001f600", "\udcff", "é"])
@pytest.mark.parametrize("number", [100, 3000, 4096, 1_000_000])
def test_long_line_is_cut(text, number):
  def check():
    start = len(logged("")) - 1
    line = logged("%s", text * number).rstrip("\n")
    assert line.isprintable()
    assert LOG_LINE.fullmatch(line)
    end = text
    if not text.isprintable():
      end = text.encode("unicode_escape").decode()
    if start + number * len(end) > 4096:
      end = f"... (cut, of {start + number} characters)"
      assert len(line) == 4096
    assert line.endswith(end)

  forked.run(check)


@pytest.mark.parametrize("text", ["x", "\n"], ids=["printable", "escaped"])
def test_longest_line_is_not_cut(text):
  def check():
    room = 4096 - (len(logged("")) - 1) - len(repr(text)[1:-1])
    assert logged("%s%s", text, "y" * room).endswith("yyy\n")
    assert "... (cut, of " in logged("%s%s", text, "y" * (room + 1))

  forked.run(check)


def test_log_that_cannot_be_read_back(scratch):
  def check():
    path = scratch / "log"
    path.write_text("a half")
    fault = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with mock.patch("builtins.open", side_effect=fault):
      Logs("ganeti-kvmd", debug=False).add_file(str(path))
    logging.info("one")
    (line,) = path.read_text().splitlines()
    assert line.startswith("a half2")

  forked.run(check)


def test_long_trace_is_cut():
  def check():
    with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
      Logs("ganeti-kvmd", debug=False).add_terminal()
      try:
        raise ValueError("a" * 100_000)
      except ValueError:
        logging.exception("fault")
    assert max(map(len, terminal.getvalue().splitlines())) == 4096

  forked.run(check)


def test_file_that_cannot_be_opened(scratch):
  def check():
    with pytest.raises(IsADirectoryError):
      Logs("ganeti-kvmd", debug=False).add_file(str(scratch))

  forked.run(check)


def test_syslog():
  def check():
    with mock.patch.object(syslog, "openlog") as opened:
      with mock.patch.object(syslog, "syslog") as told:
        Logs("ganeti-kvmd", debug=False).add_syslog()
        logging.warning("a\n%s", "b")
        logging.debug("no")
    opened.assert_called_once_with(
      "ganeti-kvmd", syslog.LOG_PID, syslog.LOG_DAEMON
    )
    told.assert_called_once_with(syslog.LOG_WARNING, "WARNING a\\nb")

  forked.run(check)


@pytest.mark.parametrize("umask", [0, 0o022])
def test_file_is_nobody_elses(scratch, umask):
  def check():
    os.umask(umask)
    Logs("ganeti-kvmd", debug=False).add_file(str(scratch / "log"))
    assert (scratch / "log").stat().st_mode & 0o777 == 0o600

  forked.run(check)


def test_line_has_its_own_time_also_of_a_clock_that_is_set_back():
  def check():
    os.environ["TZ"] = "UTC"
    time.tzset()
    with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
      Logs("ganeti-kvmd", debug=False).add_terminal()
      for at in 1795438800.25, 1795438800.5, 1795438801.0, 1795438799.75:
        with mock.patch("time.time", return_value=at):
          logging.info("a word")
    times = [line.split(": ")[0] for line in terminal.getvalue().splitlines()]
    assert times == [
      "2026-11-23 13:00:00,250",
      "2026-11-23 13:00:00,500",
      "2026-11-23 13:00:01,000",
      "2026-11-23 12:59:59,750",
    ]

  forked.run(check)


def test_line_that_is_wrong_in_the_code_harms_nobody():
  def check():
    with mock.patch.object(sys, "stderr", io.StringIO()) as terminal:
      Logs("ganeti-kvmd", debug=False).add_terminal()
      wrong = "%s %s"
      logging.info(wrong, "only one")
      logging.info("the next")
    (line,) = terminal.getvalue().splitlines()
    assert line.endswith(" the next")

  forked.run(check)


def test_file_that_cannot_be_opened_anew(scratch):
  def check():
    path = scratch / "log"
    logs = Logs("ganeti-kvmd", debug=False)
    logs.add_file(str(path))
    path.rename(scratch / "old")
    path.mkdir()
    logs.reopen()
    logging.info("goes on")
    first, second = (scratch / "old").read_text().splitlines()
    assert first.endswith(
      f" ERROR cannot reopen the log file {path}: Is a directory; going on with"
      " the old one"
    )
    assert second.endswith(" INFO goes on")

  forked.run(check)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the program: command line, start and end."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import forked
import ganeti
import ganeti.kvmd.node
import kvmd_log
import kvmd_process
import pytest
from fake_monitor import SIGNAL, USER, FakeMonitor
from ganeti.kvmd import VERSION, main
from ganeti.kvmd.core import timing
from ganeti.kvmd.node import ctrldir
from ganeti.kvmd.process import pidfile
from guests import lifetime
from kvmd_process import Foreground, attach
from kvmd_process import run as run_program

PATIENCE = 20.0


@pytest.fixture
def start(scratch):
  """Starts daemons in the foreground, which end with the test."""
  started = []

  def make(*arguments, **options):
    log = scratch / f"log{len(started)}"
    started.append(Foreground(log, *arguments, **options))
    return started[-1]

  yield make
  for process in started:
    process.kill()


@pytest.fixture
def detached():
  with kvmd_process.detached() as place:
    (place.directory / "ctrl").mkdir()
    yield place


class Screen(io.StringIO):
  """A terminal on which somebody waits for words, and sends a signal then."""

  def __init__(self, words="", number=signal.SIGTERM):
    super().__init__()
    self._words = words
    self._number = number

  def write(self, text):
    if self._words and self._words in text:
      os.kill(os.getpid(), self._number)
    return super().write(text)


def run_here(*arguments, screen=None):
  """Runs the program in this process, which has to be a forked one.

  @return: its status, and what it wrote

  """
  sys.stdout = sys.stderr = screen or Screen()
  try:
    status = main.main(list(map(str, arguments)))
  finally:
    written = sys.stderr.getvalue()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
  return status, written


# --- Command line ---


@pytest.mark.parametrize(
  "arguments",
  [
    ["--unknown"],
    ["-x"],
    ["argument"],
    ["--fore"],
    ["--ctrl", "."],
    ["--foreground=1"],
    ["--ctrl-dir"],
    ["--ctrl-dir="],
    ["--syslog=maybe"],
    ["--syslog"],
    ["--rule=guess"],
    ["--rule="],
    ["--rescan-interval=0"],
    ["--rescan-interval=-1"],
    ["--rescan-interval=nan"],
    ["--rescan-interval=inf"],
    ["--rescan-interval=1e9"],
    ["--rescan-interval=soon"],
    ["--rescan-interval="],
    ["--monitor-suffix="],
    ["--monitor-suffix=/"],
    ["--monitor-suffix=a/b"],
    ["--monitor-suffix=.shutdown"],
    ["--monitor-suffix=x.shutdown"],
    ["--monitor-suffix=down"],
    ["--monitor-suffix=n"],
    ["--monitor-suffix=.powerdown"],
    ["--monitor-suffix=.rule"],
    ["--monitor-suffix=.ganeti-kvmd.lock"],
    ["--monitor-suffix=.lock"],
    ["--monitor-suffix=k"],
    ["--pid-file="],
    ["--pid-file"],
    ["--history="],
    ["--history"],
    ["-df", "-y"],
    ["--version=1"],
  ],
  ids=" ".join,
)
def test_wrong_command_line(arguments, ctrl_dir, capsys):
  """Nothing is started then, even where all else is right."""
  if not any(each.startswith("--ctrl") for each in arguments):
    arguments = ["-f", f"--ctrl-dir={ctrl_dir}", *arguments]
  with pytest.raises(SystemExit) as caught:
    main.main(arguments)
  assert caught.value.code == 2
  said = capsys.readouterr()
  assert said.out == ""
  assert said.err.startswith("usage: ganeti-kvmd ")
  assert "error: " in said.err


@pytest.mark.parametrize("option", ["--pid-file", "--history"])
def test_file_without_directory_is_wrong(capsys, option):
  with pytest.raises(SystemExit) as caught:
    main.main([f"{option}=/somewhere"])
  assert caught.value.code == 2
  assert f"{option} goes with --ctrl-dir" in capsys.readouterr().err


def test_wrong_command_line_of_the_program(ctrl_dir):
  result = run_program(f"--ctrl-dir={ctrl_dir}", "--rule=guess")
  assert result.status == 2
  assert result.output == ""
  assert "--rule" in result.errors


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option, capsys):
  with pytest.raises(SystemExit) as caught:
    main.main(["--ctrl-dir=/missing", option])
  assert caught.value.code == 0
  said = capsys.readouterr()
  assert said.err == ""
  for word in [
    "-f",
    "--foreground",
    "-d",
    "--debug",
    "--syslog",
    "no",
    "yes",
    "only",
    "--no-user-checks",
    "-V",
    "--version",
    "-h",
    "--help",
    "--ctrl-dir",
    "--monitor-suffix",
    "--rule",
    "cause",
    "sequence",
    "--rescan-interval",
    "--pid-file",
    "--history",
  ]:
    assert word in said.out


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option, capsys):
  with pytest.raises(SystemExit) as caught:
    main.main([option])
  assert caught.value.code == 0
  said = capsys.readouterr()
  assert said.err == ""
  assert re.fullmatch(rf"ganeti-kvmd \(.*\) version {VERSION}\n", said.out)


@pytest.fixture
def served(monkeypatch):
  """What the program was about to serve: its options, and the files."""
  found = []
  monkeypatch.setattr(
    main,
    "_serve",
    lambda options, files, on_ready: found.append((options, files)),
  )
  return found


@pytest.mark.parametrize(
  ("text", "seconds"),
  [(None, 60.0), ("86400", 86400.0), ("0.001", 0.001), ("1e3", 1000.0)],
)
def test_interval(served, text, seconds):
  arguments = [] if text is None else [f"--rescan-interval={text}"]
  assert main.main(["-f", "--ctrl-dir=/far/away", *arguments]) == 0
  ((options, files),) = served
  assert options.rescan_interval == seconds
  assert files == ("/far/away", None, None, None, (None, None))


@pytest.mark.parametrize("text", ["0", "86400.5", "-1", "soon", "nan"])
def test_interval_that_makes_no_sense(served, text, capsys):
  with pytest.raises(SystemExit):
    main.main(["-f", "--ctrl-dir=/far/away", f"--rescan-interval={text}"])
  assert served == []
  assert f"'{text}' is no number of seconds from above 0 to 86400\n" in (
    capsys.readouterr().err
  )


# --- On a node ---


@pytest.fixture
def node(monkeypatch):
  """A node that wants the daemon, and its answer, which can be changed."""
  cluster = mock.Mock(return_value=None)
  modules = {
    "constants": types.SimpleNamespace(
      KVMD="ganeti-kvmd",
      KVMD_USER="root",
      DAEMONS_LOGFILES={"ganeti-kvmd": "/log/kvm-daemon.log"},
    ),
    "pathutils": types.SimpleNamespace(
      RUN_DIR="/run/ganeti",
      LOG_DIR="/log",
      LOG_KVM_DIR="/log/kvm",
      INSTANCE_REASON_DIR="/run/reason",
    ),
  }
  for name, module in modules.items():
    monkeypatch.setattr(ganeti, name, module, raising=False)
  monkeypatch.setattr(
    ganeti.kvmd.node,
    "ssconf",
    types.SimpleNamespace(reason_not_to_run=cluster),
    raising=False,
  )
  return cluster


FILES = (
  "/run/ganeti/kvm-hypervisor/ctrl",
  "/run/ganeti/ganeti-kvmd.pid",
  "/log/kvm-daemon.log",
  "/log/kvmd-history/history.jsonl",
  ("/log/kvm", "/run/reason"),
)


@pytest.mark.parametrize(
  ("user", "options"),
  [(0, []), (0, ["--no-user-checks"]), (7, ["--no-user-checks"])],
)
def test_files_of_a_node(node, served, monkeypatch, user, options):
  monkeypatch.setattr(os, "geteuid", lambda: user)
  assert main.main(["-f", *options]) == 0
  assert [files for _, files in served] == [FILES]


@pytest.mark.parametrize("user", [1, 7])
def test_another_user_on_a_node(node, served, monkeypatch, capsys, user):
  monkeypatch.setattr(os, "geteuid", lambda: user)
  assert main.main(["-f"]) == 1
  assert served == []
  node.assert_not_called()
  assert f"must run as root, not as user {user} (--no-user-checks" in (
    capsys.readouterr().err
  )


def test_node_on_which_it_is_not_wanted(node, served, monkeypatch, capsys):
  """That is no failure."""
  monkeypatch.setattr(os, "geteuid", lambda: 0)
  node.return_value = "KVM is off"
  assert main.main([]) == 0
  assert served == []
  assert capsys.readouterr() == ("ganeti-kvmd: not started: KVM is off\n", "")


def test_node_of_no_cluster(node, served, monkeypatch, capsys):
  monkeypatch.setattr(os, "geteuid", lambda: 0)
  node.side_effect = FileNotFoundError(2, "none", "/data/ssconf")
  assert main.main(["-f"]) == 1
  assert served == []
  assert capsys.readouterr().err == (
    "ganeti-kvmd: this node is in no Ganeti cluster: cannot read /data/ssconf:"
    " none\n"
  )


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_no_ganeti(node, served, monkeypatch, capsys, error):
  """Or one that cannot be used."""

  class Finder:
    """Finds out that there is something wrong with it."""

    def find_spec(self, name, *_):
      if name == "ganeti.constants":
        raise error("it is broken")

  monkeypatch.delattr(ganeti, "constants")
  monkeypatch.delitem(sys.modules, "ganeti.constants", raising=False)
  monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
  assert main.main(["-f"]) == 1
  assert served == []
  assert capsys.readouterr().err == (
    "ganeti-kvmd: there is no Ganeti to serve (it is broken); without it, say"
    " which directory to watch with --ctrl-dir\n"
  )


# --- Logs ---


@pytest.fixture
def wanted(monkeypatch):
  """Where the program wants to log to."""
  found = mock.Mock()
  monkeypatch.setattr(main.logs, "Logs", found)
  return found


@pytest.mark.parametrize(
  ("foreground", "syslog", "log", "expected"),
  [
    (True, "no", None, ["add_terminal"]),
    (True, "yes", None, ["add_terminal", "add_syslog"]),
    (True, "only", None, ["add_terminal", "add_syslog"]),
    (True, "no", "/log", ["add_terminal", "add_file"]),
    (True, "yes", "/log", ["add_terminal", "add_syslog", "add_file"]),
    (True, "only", "/log", ["add_terminal", "add_syslog"]),
    # It would have nowhere else to speak.
    (False, "no", None, ["add_syslog"]),
    (False, "yes", None, ["add_syslog"]),
    (False, "only", None, ["add_syslog"]),
    (False, "no", "/log", ["add_file"]),
    (False, "yes", "/log", ["add_syslog", "add_file"]),
    (False, "only", "/log", ["add_syslog"]),
  ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_where_it_logs_to(wanted, *, foreground, syslog, log, debug, expected):
  options = types.SimpleNamespace(
    foreground=foreground, syslog=syslog, debug=debug
  )
  files = main.Files("/far/away", None, log, None)
  assert main._set_up_logs(options, files) is wanted.return_value
  wanted.assert_called_once_with("ganeti-kvmd", debug=debug)
  arguments = {"add_file": ("/log",)}
  assert wanted.return_value.mock_calls == [
    getattr(mock.call, name)(*arguments.get(name, ())) for name in expected
  ]


def test_log_that_cannot_be_written(wanted):
  wanted.return_value.add_file.side_effect = PermissionError(13, "no", "/log")
  options = types.SimpleNamespace(foreground=False, syslog="no", debug=False)
  with pytest.raises(main.StartError, match=r"^cannot log to /log: no$"):
    main._set_up_logs(options, main.Files("/far/away", None, "/log", None))


# --- What makes it fail ---


@pytest.mark.parametrize("foreground", [["-f"], []], ids=["-f", "detached"])
def test_directory_that_is_a_file(detached, foreground):
  path = detached.directory / "file"
  path.touch()
  result = run_program(
    *foreground, f"--ctrl-dir={path}", f"--pid-file={detached.pid_file}"
  )
  assert result.status == 1
  assert result.output == ""
  last = result.errors.splitlines()[-1]
  assert last == f"ganeti-kvmd: cannot watch {path}: Not a directory"
  assert "Traceback" not in result.errors
  assert not detached.pid_file.exists()


def test_path_through_a_file(scratch):
  (scratch / "file").touch()
  result = run_program("-f", f"--ctrl-dir={scratch}/file/ctrl")
  assert result.status == 1
  assert f"cannot watch {scratch}/file: Not a directory" in result.errors


def test_links_in_a_circle(scratch):
  (scratch / "link").symlink_to("link")
  result = run_program("-f", f"--ctrl-dir={scratch}/link")
  assert result.status == 1
  assert f"cannot watch {scratch}/link: Too many levels" in result.errors


@pytest.mark.parametrize(
  ("mode", "what"), [(0o555, "to write"), (0o333, ""), (0o000, "")]
)
def test_no_permission(ctrl_dir, mode, what):
  ctrl_dir.chmod(mode)

  def check():
    status, errors = run_here("-f", f"--ctrl-dir={ctrl_dir}")
    assert status == 1
    assert f"cannot watch {ctrl_dir}: Permission denied" in errors
    assert what in errors
    assert "Traceback" not in errors

  forked.run(check, forked.Place.UNPRIVILEGED)
  ctrl_dir.chmod(0o755)


def test_no_permission_to_enter_a_parent(scratch, ctrl_dir):
  scratch.chmod(0)

  def check():
    status, errors = run_here("-f", f"--ctrl-dir={ctrl_dir}")
    assert status == 1
    assert f"cannot watch {scratch}" in errors
    assert "Permission denied" in errors

  forked.run(check, forked.Place.UNPRIVILEGED)
  scratch.chmod(0o755)


def test_no_permission_for_the_pidfile(scratch, ctrl_dir):
  ctrl_dir.chmod(0o777)
  scratch.chmod(0o555)
  path = scratch / "pid"

  def check():
    status, errors = run_here(
      "-f", f"--ctrl-dir={ctrl_dir}", f"--pid-file={path}"
    )
    assert status == 1
    assert f"cannot write {path}: Permission denied" in errors

  forked.run(check, forked.Place.UNPRIVILEGED)
  scratch.chmod(0o755)


def test_no_root_is_needed(ctrl_dir, monkeypatch):
  timing_of = functools.partial(timing.Timing, greeting=0.01)
  monkeypatch.setattr(timing, "Timing", timing_of)
  ctrl_dir.chmod(0o777)
  monitor = FakeMonitor(ctrl_dir, "web1")
  monitor.path.chmod(0o777)

  def check():
    screen = Screen("web1: waiting for its monitor")
    status, errors = run_here("-f", f"--ctrl-dir={ctrl_dir}", screen=screen)
    assert status == 0
    assert f"watching {ctrl_dir}\n" in errors

  forked.run(check, forked.Place.UNPRIVILEGED)
  monitor.die()


def test_descriptors_are_out(ctrl_dir):
  """The error says so."""

  def check():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) - 1
    for room in range(6):
      limit = in_use + room
      resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
      try:
        status, errors = run_here(
          "-f", f"--ctrl-dir={ctrl_dir}", screen=Screen("watching")
        )
      except OSError as err:
        errors, status = str(err), 1
      if status == 0:
        assert room > 0
        return
      assert "Too many open files" in errors

  forked.run(check)


# --- Start and end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end(start, ctrl_dir, scratch, number):
  pid_file = scratch / "pid"
  process = start(f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}")
  process.says(f"watching {ctrl_dir}")
  assert pid_file.read_text() == f"{process.pid}\n"
  assert pid_file.stat().st_mode & 0o777 == 0o600
  began = time.monotonic()
  assert process.end(number) == 0
  assert time.monotonic() - began < 5
  assert not pid_file.exists()
  assert process.messages[-1] == f"ending, on {number.name}"
  assert "Traceback" not in process.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_at_the_moment_of_the_start(ctrl_dir, scratch, number):
  pid_file = scratch / "pid"

  def check():
    status, errors = run_here(
      "-f",
      f"--ctrl-dir={ctrl_dir}",
      f"--pid-file={pid_file}",
      screen=Screen("watching", number),
    )
    assert status == 0
    assert errors.endswith(f"ending, on {number.name}\n")
    assert not pid_file.exists()

  forked.run(check)


def test_hangup_at_the_moment_of_the_start(ctrl_dir):
  def check():
    screen = Screen("watching", signal.SIGHUP)
    signal.signal(
      signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    status, _ = run_here("-f", f"--ctrl-dir={ctrl_dir}", screen=screen)
    assert status == 0

  forked.run(check)


def test_every_line_looks_like_those_of_ganeti(start, ctrl_dir):
  process = start("-d", f"--ctrl-dir={ctrl_dir}")
  process.says("watching")
  monitor = FakeMonitor(ctrl_dir, "web1")
  connection = attach(monitor)
  connection.event("POWERDOWN")
  connection.event("SHUTDOWN", USER)
  monitor.quit()
  process.says("verdict administrator (guest-shutdown after powerdown)")
  process.end()
  lines = process.text.splitlines()
  assert len(lines) > 4
  for line in lines:
    found = kvmd_log.parse(line)
    assert found, line
    assert found.process == process.pid
  assert " DEBUG " in process.text


def test_debug_messages_are_left_out(start, ctrl_dir):
  process = start(f"--ctrl-dir={ctrl_dir}")
  process.says("watching")
  monitor = FakeMonitor(ctrl_dir, "web1")
  connection = attach(monitor)
  connection.event("STOP")
  monitor.quit()
  process.says("verdict")
  assert "DEBUG" not in process.text


def test_what_others_say_is_escaped(start, ctrl_dir):
  process = start(f"--ctrl-dir={ctrl_dir}")
  process.says("watching")
  names = ["a\nb", "\x1b[2Jc", "\x9bd", os.fsdecode(b"\xff")]
  for name in names:
    (ctrl_dir / f"{name}.kvmd").touch()
  monitor = FakeMonitor(ctrl_dir, "web1")
  connection = attach(monitor)
  connection.event("SHUTDOWN", {"reason": "\x1b]0;x\x07\n\u202e"})
  monitor.quit()
  process.says("verdict other")
  for _ in names:
    process.says("cannot reach")
  process.end()
  assert all(map(kvmd_log.parse, process.text.splitlines()))
  assert process.text.replace("\n", "").isprintable()
  assert process.text.count("cannot reach") == len(names)


def test_directory_may_come_later(start, scratch):
  path = scratch / "a" / "ctrl"
  process = start(f"--ctrl-dir={path}")
  process.says(f"watching {path}, which does not exist yet")
  path.mkdir(parents=True)
  process.says(f"{path} is there now")
  monitor = FakeMonitor(path, "web1")
  attach(monitor).event("SHUTDOWN", USER)
  lifetime.wait_until((path / "web1.shutdown").exists, "the shutdown file")
  monitor.quit()


def test_path_with_dots_behind_a_link(start, scratch):
  """It means what it means to the kernel."""
  (scratch / "far" / "away").mkdir(parents=True)
  (scratch / "far" / "ctrl").mkdir()
  (scratch / "link").symlink_to("far/away")
  process = start(f"--ctrl-dir={scratch}/link/../ctrl")
  process.says("watching")
  assert "not exist" not in process.text
  attach(FakeMonitor(scratch / "far" / "ctrl", "web1"))


def test_rule_and_suffix(start, ctrl_dir):
  process = start(
    f"--ctrl-dir={ctrl_dir}", "--rule=sequence", "--monitor-suffix=.qmp"
  )
  process.says("watching")
  monitor = FakeMonitor(ctrl_dir, "web1", suffix=".qmp")
  attach(monitor).event("SHUTDOWN", SIGNAL)
  monitor.quit()
  process.says("verdict user (shutdown)")


def test_fault_ends_it_with_a_status(ctrl_dir, scratch):
  """Not with a pidfile left over."""
  pid_file = scratch / "pid"

  def check():
    from unittest import mock

    from ganeti.kvmd import daemon

    with mock.patch.object(daemon.Daemon, "turn", side_effect=KeyError("x")):
      with pytest.raises(KeyError):
        run_here("-f", f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}")
    assert not pid_file.exists()

  forked.run(check)


# --- Only one ---


def test_second_one_is_refused(start, ctrl_dir, scratch):
  pid_file = scratch / "pid"
  options = [f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}"]
  first = start(*options)
  first.says("watching")
  for foreground in ["-f"], []:
    second = run_program(*foreground, *options)
    assert second.status == 1
    assert second.errors == (
      "ganeti-kvmd: another ganeti-kvmd runs already: process"
      f" {first.pid} holds {pid_file}\n"
    )
  assert pid_file.read_text() == f"{first.pid}\n"
  assert first.end() == 0


@pytest.mark.parametrize("foreground", [["-f"], []], ids=["-f", "detached"])
def test_second_one_for_the_directory_is_refused(
  start, ctrl_dir, scratch, foreground
):
  """Whatever pidfiles the two have."""
  first = start(f"--ctrl-dir={ctrl_dir}")
  first.says("watching")
  monitor = FakeMonitor(ctrl_dir, "web1")
  connection = attach(monitor)
  link = scratch / "link"
  link.symlink_to(ctrl_dir)
  pid_file = scratch / "pid"
  for options in (
    [f"--ctrl-dir={ctrl_dir}"],
    [f"--ctrl-dir={link}"],
    [f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}"],
  ):
    second = run_program(*foreground, *options)
    assert second.status == 1
    assert second.output == ""
    path = f"{options[0].partition('=')[2]}/{ctrldir.LOCK_FILE}"
    assert second.errors == (
      "ganeti-kvmd: another ganeti-kvmd runs already: process"
      f" {first.pid} holds {path}\n"
    )
    assert not pid_file.exists()
  connection.event("SHUTDOWN", USER)
  monitor.quit()
  first.says("instance web1: verdict user")
  assert first.end() == 0
  assert first.text.count("verdict") == 1
  third = start(f"--ctrl-dir={ctrl_dir}")
  third.says("watching")


def test_pidfile_that_was_deleted(start, ctrl_dir, scratch):
  """There is no second daemon, no second verdict, and soon a pidfile."""
  pid_file = scratch / "pid"
  options = [
    f"--ctrl-dir={ctrl_dir}",
    f"--pid-file={pid_file}",
    "--rescan-interval=1",
  ]
  first = start(*options)
  first.says("watching")
  monitor = FakeMonitor(ctrl_dir, "web1")
  connection = attach(monitor)
  for _ in range(2):
    pid_file.unlink()
    second = run_program("-f", *options)
    assert second.status == 1
    assert f"process {first.pid} holds " in second.errors
    lifetime.wait_until(pid_file.exists, "the pidfile")
    lifetime.wait_until(
      lambda: pid_file.read_text() == f"{first.pid}\n", "its content"
    )
  # It is locked again, too.
  third = run_program("-f", *options)
  assert f"process {first.pid} holds {pid_file}\n" in third.errors
  connection.event("SHUTDOWN", USER)
  monitor.quit()
  first.says("instance web1: verdict user")
  assert first.end() == 0
  assert not pid_file.exists()
  assert first.text.count("verdict") == 1
  assert first.text.count(f"the pidfile {pid_file} was gone") == 2


def test_pidfile_that_cannot_be_restored(start, ctrl_dir, scratch):
  pid_file = scratch / "pid"
  process = start(
    f"--ctrl-dir={ctrl_dir}",
    f"--pid-file={pid_file}",
    "--rescan-interval=0.02",
  )
  process.says("watching")
  pid_file.unlink()
  # It may have been quicker.
  while True:
    try:
      pid_file.mkdir()
    except FileExistsError:
      pid_file.unlink()
    else:
      break
  process.says(f"the pidfile {pid_file} is gone, and cannot be made anew")
  time.sleep(0.2)
  assert process.text.count("cannot be made anew") == 1
  pid_file.rmdir()
  lifetime.wait_until(pid_file.exists, "the pidfile")
  assert process.end() == 0


def test_pidfile_that_another_daemon_has_taken(start, ctrl_dir, scratch):
  """The stock daemon, say, which knows of no other lock."""
  pid_file = scratch / "pid"
  process = start(
    f"--ctrl-dir={ctrl_dir}",
    f"--pid-file={pid_file}",
    "--rescan-interval=0.2",
  )
  process.says("watching")
  other = scratch / "other"

  def take():
    pidfile.PidFile(str(other))

  with forked.living_on(take) as number:
    other.rename(pid_file)
    process.says(
      f"another KVM daemon has taken our pidfile (process {number} holds"
    )
    time.sleep(0.5)
    assert process.text.count("has taken our pidfile") == 1
    assert pid_file.read_text() == f"{number}\n"
    assert process.end() == 0
    assert pid_file.read_text() == f"{number}\n"


@pytest.mark.parametrize("kind", forked.READER_LOCKS)
def test_strangers_lock_what_they_can(start, ctrl_dir, scratch, kind):
  """Before a daemon starts, after it was killed, and as another starts."""
  pid_file = scratch / "pid"
  paths = [ctrl_dir, pid_file, ctrl_dir / ctrldir.LOCK_FILE]
  ctrl_dir.chmod(0o775)
  # As earlier versions left it
  pid_file.write_text("1\n")
  pid_file.chmod(0o644)
  options = [f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}"]

  def attack():
    for path in paths:
      if path.exists() and not ("read" in kind and path.is_dir()):
        with contextlib.suppress(PermissionError, BlockingIOError):
          forked.lock_as_stranger(path, kind)

  stranger = forked.Place.UNPRIVILEGED
  with forked.living_on(attack, stranger):
    first = start(*options)
    first.says("watching")
    with forked.living_on(attack, stranger):
      first.kill()
      second = start(*options)
      second.says("watching")
      refused = run_program("-f", *options)
      assert refused.status == 1
      assert f"process {second.pid} holds " in refused.errors
      assert second.end() == 0


def test_lock_file_that_cannot_be_used(ctrl_dir):
  path = ctrl_dir / ctrldir.LOCK_FILE
  path.mkdir()
  result = run_program("-f", f"--ctrl-dir={ctrl_dir}")
  assert result.status == 1
  assert f"cannot watch {path}: Is a directory" in result.errors
  assert "Traceback" not in result.errors


@pytest.mark.parametrize(
  "content",
  ["", "1\n", "garbage", "99999999\n", "4194304\n" * 9, "\0" * 9],
  ids=repr,
)
def test_stale_pidfile(start, ctrl_dir, scratch, content):
  pid_file = scratch / "pid"
  pid_file.write_text(content)
  process = start(f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}")
  process.says("watching")
  assert pid_file.read_text() == f"{process.pid}\n"
  process.end()
  assert not pid_file.exists()


def test_pidfile_of_one_that_was_killed(start, ctrl_dir, scratch):
  pid_file = scratch / "pid"
  options = [f"--ctrl-dir={ctrl_dir}", f"--pid-file={pid_file}"]
  first = start(*options)
  first.says("watching")
  first.kill()
  assert pid_file.exists()
  second = start(*options)
  second.says("watching")
  assert pid_file.read_text() == f"{second.pid}\n"


# --- Detached ---


def start_detached(place, *arguments, **options):
  return run_program(
    f"--ctrl-dir={place.directory}/ctrl",
    f"--pid-file={place.pid_file}",
    *arguments,
    **options,
  )


def test_detached_one_watches_when_its_starter_returns(detached):
  assert start_detached(detached) == (0, "", "")
  assert detached.is_alive
  # Whatever happens from now on is seen.
  monitor = FakeMonitor(detached.directory / "ctrl", "web1")
  attach(monitor).event("SHUTDOWN", USER)
  file = detached.directory / "ctrl" / "web1.shutdown"
  lifetime.wait_until(file.exists, "the shutdown file")
  monitor.quit()
  detached.end()
  assert not detached.pid_file.exists()


def test_detached_one_is_a_daemon(detached, scratch):
  with open(scratch / "lock", "wb") as inherited:
    os.set_inheritable(inherited.fileno(), True)
    start_detached(detached, pass_fds=[inherited.fileno()], cwd=scratch)
  process = pathlib.Path(f"/proc/{detached.pid}")
  assert (process / "comm").read_text() == "ganeti-kvmd\n"
  assert os.readlink(process / "cwd") == "/"
  fields = (process / "stat").read_text().rpartition(") ")[2].split()
  session, terminal = int(fields[3]), int(fields[4])
  assert session not in {detached.pid, os.getsid(0)}
  assert terminal == 0
  opened = {each.name: os.readlink(each) for each in (process / "fd").iterdir()}
  assert {opened[number] for number in "012"} == {"/dev/null"}
  for target in opened.values():
    assert not target.startswith(("pipe:", str(scratch)))
  status = (process / "status").read_text()
  assert re.search(r"^Umask:\s+0077$", status, re.MULTILINE)


def test_relative_paths_of_a_detached_one(detached):
  result = run_program(
    "--ctrl-dir=ctrl", "--pid-file=pid", cwd=detached.directory
  )
  assert result == (0, "", "")
  attach(FakeMonitor(detached.directory / "ctrl", "web1"))


def test_start_from_a_directory_that_is_gone(detached):
  gone = detached.directory / "gone"
  gone.mkdir()
  command = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
  program = [str(kvmd_process.executable())]
  options = [
    f"--ctrl-dir={detached.directory}/ctrl",
    f"--pid-file={detached.pid_file}",
  ]
  done = subprocess.run(
    ["/bin/sh", "-c", command, "sh", str(gone), *program, *options],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    check=False,
    timeout=PATIENCE,
  )
  assert (done.returncode, done.stderr) == (0, b"")
  assert detached.is_alive


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_start_with_closed_standard_descriptors(detached, closed):
  program = [
    str(kvmd_process.executable()),
    f"--ctrl-dir={detached.directory}/ctrl",
    f"--pid-file={detached.pid_file}",
  ]
  done = subprocess.run(
    ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *program],
    stdin=subprocess.DEVNULL,
    check=False,
    timeout=PATIENCE,
  )
  assert done.returncode == 0
  assert detached.is_alive
  for number in range(3):
    target = os.readlink(f"/proc/{detached.pid}/fd/{number}")
    assert target == "/dev/null"
  attach(FakeMonitor(detached.directory / "ctrl", "web1"))


def test_start_stop_daemon_knows_it(detached):
  """As Ganeti's daemon-util calls it."""
  program = shutil.which(
    "start-stop-daemon", path=os.defpath + ":/usr/sbin:/sbin"
  )
  assert program
  known = ["--pidfile", str(detached.pid_file), "--name", "ganeti-kvmd"]

  def ask(*arguments):
    return subprocess.run(
      [program, *arguments, *known],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      check=False,
      timeout=PATIENCE,
    ).returncode

  assert ask("--status") == 3
  start_detached(detached)
  assert ask("--status") == 0
  assert ask("--stop", "--test") == 0
  assert ask("--start", "--test", "--startas", "/bin/true") == 1
  assert detached.is_alive
  assert ask("--stop") == 0
  lifetime.wait_until(lambda: not detached.pid_file.exists(), "its end")


def test_several_started_at_once(detached):
  program = [
    str(kvmd_process.executable()),
    f"--ctrl-dir={detached.directory}/ctrl",
    f"--pid-file={detached.pid_file}",
  ]
  starters = [
    lifetime.start(program, stderr=subprocess.DEVNULL) for _ in range(4)
  ]
  statuses = sorted(starter.wait(PATIENCE) for starter in starters)
  assert statuses == [0, 1, 1, 1]
  assert detached.is_alive

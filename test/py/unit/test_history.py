# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how each end gets its line in the history, once."""

from __future__ import annotations

import errno
import json
import os
import types
from unittest import mock

import pytest
from fake_monitor import USER, event
from ganeti.kvmd.core.history_line import Ending
from ganeti.kvmd.core.lifecycle import UNANNOUNCED, Outcome, Verdict
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow import history
from ganeti.kvmd.follow.history import History
from ganeti.kvmd.node import journal_files
from ganeti.kvmd.node.evidence import Directories
from ganeti.kvmd.node.history_files import HistoryFiles
from scene import begin_journal

NOW = 5000.0
NEVER = float("inf")
USERS = Outcome(Verdict.USER, "guest-shutdown")


class Writing:
  """A history whose clock is ours."""

  def __init__(self, path, monkeypatch, caplog):
    self.path = path
    self.now = NOW
    self._log = caplog
    clock = types.SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1e9)
    monkeypatch.setattr(history, "time", clock)
    self.begin()

  def begin(self):
    """Begins anew, as another daemon."""
    self.history = History(
      HistoryFiles(str(self.path)), "node1", Timing(), Directories()
    )
    self.history.hears_exits = True

  def note(self, name="web1", number=1, **others):
    end = Ending(
      instance=name,
      life=f"7-{number}",
      began=1.0,
      ended=2.0,
      heard=None,
      seconds=1.0,
      outcome=USERS,
      said=(),
      source="monitor",
      qemu="",
      process=number,
      is_marked=False,
      is_new=True,
    )
    self.history.note(end._replace(**others))

  def run(self):
    self.history.run(self.now)

  @property
  def lines(self):
    try:
      text = self.path.read_text()
    except FileNotFoundError:
      return []
    return [json.loads(line) for line in text.splitlines()]

  @property
  def lives(self):
    return [each["life"] for each in self.lines]

  @property
  def said(self):
    return [each.getMessage() for each in self._log.records]


@pytest.fixture
def writing(scratch, monkeypatch, caplog):
  caplog.set_level("INFO")
  play = Writing(scratch / "history" / "lines", monkeypatch, caplog)
  yield play
  play.history.close()


@pytest.fixture
def broken(writing):
  """There is a directory in the place of the file."""
  writing.path.mkdir(parents=True)
  return writing


def test_end_is_written_when_it_is_due(writing):
  assert writing.history.due == NEVER
  writing.note()
  assert writing.lines == []
  assert writing.history.due <= NOW
  assert writing.history.is_pending("web1")
  writing.run()
  assert writing.lives == ["7-1"]
  assert writing.lines[0]["node"] == "node1"
  assert not writing.history.is_pending("web1")
  assert writing.history.due == NEVER


def test_no_history(monkeypatch):
  nothing = History(None, "node1", Timing(), Directories())
  nothing.note(mock.Mock(spec=Ending))
  nothing.note_more("web1", {"user": 1})
  nothing.tell_exit(7, "was killed by SIGKILL")
  assert nothing.due == NEVER
  assert not nothing.is_pending("web1")
  nothing.run(NEVER)
  nothing.close()


@pytest.mark.parametrize(
  ("outcome", "process", "hears", "waits"),
  [
    (UNANNOUNCED, 1, True, True),
    (USERS, 1, True, False),
    (UNANNOUNCED, 0, True, False),
    (UNANNOUNCED, 1, False, False),
  ],
)
def test_kernel_is_waited_for(writing, outcome, process, hears, waits):
  writing.history.hears_exits = hears
  writing.note(outcome=outcome, process=process)
  assert writing.history.due == (NOW + 0.5 if waits else 0.0)
  writing.run()
  assert writing.lines == [] or not waits
  assert writing.history.is_pending("web1") is waits
  writing.now += 0.5
  writing.run()
  (line,) = writing.lines
  assert "exit" not in line


@pytest.mark.parametrize("is_first", [True, False])
def test_how_the_process_ended(writing, is_first):
  """Which may be known before the life is over."""
  if is_first:
    writing.history.tell_exit(1, "was killed by SIGKILL")
  writing.note("db1", 2, outcome=UNANNOUNCED)
  writing.note(outcome=UNANNOUNCED)
  if not is_first:
    writing.history.tell_exit(1, "was killed by SIGKILL")
  assert writing.history.due <= NOW
  writing.run()
  (line,) = writing.lines
  assert (line["life"], line["exit"]) == ("7-1", "was killed by SIGKILL")
  # It is not that of the next one with its number.
  writing.note("web2", 1)
  writing.now += 0.5
  writing.run()
  assert [each.get("exit") for each in writing.lines[1:]] == [None, None]


def test_two_processes_of_one_number(writing):
  writing.note("web1", 1, outcome=UNANNOUNCED, life="7-1")
  writing.note("db1", 1, outcome=UNANNOUNCED, life="7-2")
  writing.history.tell_exit(1, "was killed by SIGKILL")
  writing.run()
  assert [each.get("exit") for each in writing.lines] == [
    None,
    "was killed by SIGKILL",
  ]
  assert not writing.history.is_pending("web1")


def test_many_are_killed_at_once(writing):
  """Each waits for its own, and none for others."""
  for life in range(1, 1001):
    writing.note(f"web{life}", life, outcome=UNANNOUNCED)
  for life in range(1000, 0, -1):
    writing.history.tell_exit(life, f"was killed by signal {life}")
    writing.run()
  assert [each["exit"] for each in writing.lines] == [
    f"was killed by signal {life}" for life in range(1000, 0, -1)
  ]


def test_ends_of_processes_without_end(writing):
  for number in range(1, history._MAX_EXITS + 2):
    writing.history.tell_exit(number, "ended with status 1")
  for number in (1, 2):
    writing.note(number=number)
  writing.run()
  assert [each.get("exit") for each in writing.lines] == [
    None,
    "ended with status 1",
  ]


def test_end_of_another_process_of_that_number(writing):
  writing.history.tell_exit(1, "was killed by SIGKILL")
  writing.now += 0.6
  writing.note()
  writing.run()
  assert "exit" not in writing.lines[0]


def test_others_have_their_turn(writing, monkeypatch):
  monkeypatch.setattr(history, "_MAX_LINES", 3)
  for number in range(1, 8):
    writing.note(f"web{number}", number)
    writing.history.note_more("web1", {"user": number})
  for written in 3, 6, 7:
    assert writing.history.due <= NOW
    writing.run()
    assert len([each for each in writing.lines if "life" in each]) == written
  assert len(writing.lines) == 14
  assert writing.history.due == NEVER


def test_all_is_written_at_the_end(writing, monkeypatch):
  monkeypatch.setattr(history, "_MAX_LINES", 3)
  for number in range(1, 8):
    writing.note(f"web{number}", number)
  writing.history.close()
  assert len(writing.lines) == 7


def test_it_ends_though_it_cannot_be_written(broken):
  broken.note()
  broken.history.close()


def test_history_is_asked_once_for_all(writing, monkeypatch):
  """However many lines are due, and however long it is."""
  monkeypatch.setattr(history, "_MAX_LINES", 3)
  for number in (1, 5):
    writing.note(f"web{number}", number)
  writing.run()
  writing.history.close()
  writing.begin()
  with mock.patch.object(
    HistoryFiles, "recorded", autospec=True, side_effect=HistoryFiles.recorded
  ) as recorded:
    for number in range(1, 8):
      writing.note(f"web{number}", number, is_new=False)
    for _ in range(3):
      writing.run()
  assert writing.lives == [f"7-{number}" for number in (1, 5, 2, 3, 4, 6, 7)]
  assert recorded.call_count == 1
  assert not writing.history.is_pending("web5")


def test_further_ends(writing):
  writing.history.note_more("web1", {"user": 3})
  writing.run()
  (line,) = writing.lines
  assert (line["more"], line["verdicts"]) == (3, {"user": 3})
  assert writing.history.due == NEVER


def test_end_that_another_daemon_has_written(writing):
  for life in (1, 2):
    writing.note(number=life)
  writing.run()
  writing.history.close()
  writing.begin()
  for life in (2, 3):
    writing.note(number=life, is_new=False)
  writing.run()
  assert writing.lives == ["7-1", "7-2", "7-3"]
  assert not writing.history.is_pending("web1")


def test_what_is_due_is_written_at_the_end(writing):
  writing.note(outcome=UNANNOUNCED)
  writing.history.close()
  assert writing.lives == ["7-1"]


def test_two_lives_of_one_instance(writing):
  """They stand there in their order."""
  writing.note("db1", 3, outcome=UNANNOUNCED)
  writing.note(number=1, outcome=UNANNOUNCED)
  writing.note(number=2, outcome=UNANNOUNCED)
  assert writing.history.due <= NOW
  writing.run()
  assert writing.lives == ["7-1"]
  assert writing.history.is_pending("web1")
  writing.now += 1.0
  writing.run()
  assert writing.lives == ["7-1", "7-3", "7-2"]
  assert not writing.history.is_pending("web1")


def test_it_cannot_be_written(broken):
  """That is said once, and tried again."""
  broken.note()
  broken.history.note_more("web1", {"user": 3})
  for _ in range(3):
    broken.run()
    assert broken.history.due == broken.now + 1.0
    assert broken.history.is_pending("web1")
    broken.now += 1.0
  (line,) = broken.said
  assert line == (
    f"cannot write the history {broken.path}: Is a directory; verdicts do not"
    " depend on it, and it is tried again (up to 20000 ends are kept for that)"
  )
  broken.path.rmdir()
  broken.run()
  assert [each.get("more") for each in broken.lines] == [None, 3]
  assert broken.said[1:] == [f"the history {broken.path} can be written again"]
  assert broken.history.due == NEVER


def test_disk_becomes_full_between_two_lines(writing):
  for life in (1, 2, 3):
    writing.note(number=life)
  write = os.write
  room = [write, write]

  def fill(descriptor, data):
    if not room:
      raise OSError(errno.ENOSPC, "No space left on device")
    return room.pop()(descriptor, data)

  with mock.patch.object(os, "write", fill):
    writing.run()
  assert writing.lives == ["7-1", "7-2"]
  writing.now += 1.0
  writing.run()
  assert writing.lives == ["7-1", "7-2", "7-3"]


def test_no_more_wait_than_so_many(broken, monkeypatch):
  monkeypatch.setattr(history, "_MAX_PENDING", 3)
  for life in range(1, 6):
    broken.note(f"web{life}", life)
    broken.history.note_more("web1", {"user": life})
  broken.run()
  assert [broken.history.is_pending(f"web{life}") for life in range(1, 6)] == [
    False,
    False,
    True,
    True,
    True,
  ]
  broken.path.rmdir()
  broken.now += 1.0
  broken.run()
  assert [each.get("life") for each in broken.lines] == [
    "7-3",
    "7-4",
    "7-5",
    None,
    None,
    None,
  ]
  assert broken.said[-1] == "2 ends are missing in the history"


# --- The daemon ---


@pytest.fixture
def path(scratch):
  return scratch / "history.jsonl"


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_end_by_the_monitor(scene, path):
  scene.start(history=str(path))
  qemu = scene.attach("web1")
  qemu.event("SHUTDOWN", USER)
  qemu.quit()
  assert scene.verdict("web1") == "user"
  scene.until(path.exists)
  (line,) = lines(path)
  assert line["instance"] == "web1"
  assert (line["verdict"], line["cause"]) == ("user", "guest-shutdown")
  assert (line["source"], line["qemu"]) == ("monitor", "9.8.7")
  assert line["process"] == os.getpid()
  assert line["began"] <= line["ended"] <= line["time"]


def test_end_by_the_journal(scene, path):
  scene.start(history=str(path))
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    file.write(event("SHUTDOWN", USER))
  assert scene.verdict("web1") == "user"
  scene.until(lambda: not (scene.ctrl_dir / "web1.journal.out").exists())
  (line,) = lines(path)
  assert (line["verdict"], line["source"]) == ("user", "journal")
  assert line["qemu"] == "9.8.7"
  assert line["began"] <= line["ended"] <= line["time"]


def test_end_while_no_daemon_ran_has_its_own_time(scene, path):
  scene.start(history=str(path))
  scene.stop()
  with begin_journal(scene.ctrl_dir, "web1") as file:
    file.write(event("SHUTDOWN", USER))
  with begin_journal(scene.ctrl_dir, "web2"):
    pass
  for name in "web1", "web2":
    journal = scene.ctrl_dir / f"{name}.journal.out"
    os.utime(journal, (2e9, 2e9))
  scene.start(history=str(path))
  scene.verdict("web1")
  scene.verdict("web2")
  scene.until(lambda: path.exists() and len(lines(path)) == 2)
  found = {each["instance"]: each for each in lines(path)}
  assert found["web1"]["ended"] == "2033-05-18T03:33:20.000Z"
  assert "heard" not in found["web1"]
  # That was no more than the last that it said.
  assert found["web2"]["heard"] == "2033-05-18T03:33:20.000Z"
  assert "ended" not in found["web2"]


@pytest.mark.parametrize("is_written", [True, False])
def test_daemon_is_killed_before_the_journal_is_removed(
  scene, path, is_written
):
  """Whether the line was written or not: there is one."""
  options = {"history": str(path)}
  scene.start(**options)
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    with mock.patch.object(journal_files, "remove_life", side_effect=OSError):
      with mock.patch.object(
        History, "run", autospec=True, side_effect=History.run
      ) as run:
        if not is_written:
          run.side_effect = None
        file.write(event("SHUTDOWN", USER))
        file.close()
        scene.verdict("web1")
        scene.turn()
        scene.turn()
        assert path.exists() is is_written
        # As if it was killed: nothing is written at the end.
        run.side_effect = None
        scene.stop()
  assert (scene.ctrl_dir / "web1.journal.out").exists()
  scene.start(**options)
  scene.verdict("web1", 2)
  scene.until(lambda: not (scene.ctrl_dir / "web1.journal.out").exists())
  assert len(lines(path)) == 1


def test_journal_stays_till_the_line_is_written(scene, path):
  path.mkdir()
  scene.start(timing={"delivery": 0.01}, history=str(path))
  with begin_journal(scene.ctrl_dir, "web1") as file:
    scene.says("instance web1: its QEMU keeps a journal")
    file.write(event("SHUTDOWN", USER))
  assert scene.verdict("web1") == "user"
  assert scene.has_file("web1")
  scene.fence()
  assert (scene.ctrl_dir / "web1.journal.out").exists()
  path.rmdir()
  scene.until(lambda: not (scene.ctrl_dir / "web1.journal.out").exists())
  assert [each["instance"] for each in lines(path)] == ["web1", "fence1"]
  assert scene.count("cannot write the history") == 1


def test_further_ends_become_one_line(scene, path):
  scene.start(history=str(path))
  for _ in range(22):
    scene.attach("web1").quit()
    scene.until(lambda: not scene.daemon._lookout.table._records)
  scene.stop()
  found = lines(path)
  assert len(found) == 21
  assert found[-1]["more"] == 2
  assert found[-1]["verdicts"] == {"killed or crashed": 2}

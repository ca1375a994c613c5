# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of how the setup runs commands, puts links and keeps others away."""

from __future__ import annotations

import fcntl
import os
import pathlib

import forked
import pytest
from ganeti.tools.kvmd_setup import system


@pytest.fixture(autouse=True)
def locks(monkeypatch, scratch: pathlib.Path) -> pathlib.Path:
  """The locks are in a directory of this test."""
  monkeypatch.setattr(system, "_LOCK", str(scratch / "lock"))
  monkeypatch.setattr(system, "_DPKG_LOCK", str(scratch / "dpkg"))
  return scratch


class TestCommands:
  """Other commands."""

  def test_what_it_printed(self) -> None:
    assert system.run("echo", "one", "two") == "one two\n"
    result = system.attempt("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.returncode) == (
      "out\n",
      "err\n",
      3,
    )
    assert system.run("printf", "\\377") == "\ufffd"

  def test_environment(self, monkeypatch) -> None:
    """It has the words of English, no input, and what else there was."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("KVMD_OTHER", "kept")
    assert system.run("sh", "-c", "echo $LC_ALL $KVMD_OTHER; cat") == (
      "C kept\n"
    )

  @pytest.mark.parametrize("path", [None, "", "/first:/second"])
  def test_path(self, monkeypatch, path) -> None:
    """Whoever calls it finds what is for root."""
    if path is None:
      monkeypatch.delenv("PATH")
    else:
      monkeypatch.setenv("PATH", path)
    found = system.run("/bin/sh", "-c", "echo $PATH").strip().split(":")
    assert found[-6:] == [
      "/usr/local/sbin",
      "/usr/local/bin",
      "/usr/sbin",
      "/usr/bin",
      "/sbin",
      "/bin",
    ]
    assert found[:-6] == (path.split(":") if path else [])

  def test_no_such_command(self, scratch: pathlib.Path) -> None:
    with pytest.raises(system.TroubleError) as caught:
      system.run(f"{scratch}/command", "one")
    assert str(caught.value) == (
      f"cannot run {scratch}/command: No such file or directory"
    )

  @pytest.mark.parametrize(
    ("script", "words"),
    [
      ("exit 1", "failed with status 1: without a word"),
      ("echo ' '; exit 1", "failed with status 1: without a word"),
      ("echo first; echo ' last '; echo; exit 2", "failed with status 2: last"),
      ("echo out; echo error >&2; exit 1", "failed with status 1: error"),
      ("kill -9 $$", "failed with status -9: without a word"),
    ],
  )
  def test_that_fails(self, script: str, words: str) -> None:
    with pytest.raises(system.TroubleError) as caught:
      system.run("sh", "-c", script, "more", "words")
    assert str(caught.value) == f"'sh -c {script}' {words}"


class TestFiles:
  """Links, and what is to go."""

  def test_link_target(self, scratch: pathlib.Path) -> None:
    (scratch / "file").touch()
    (scratch / "link").symlink_to("nowhere")
    found = [
      system.link_target(str(scratch / name))
      for name in ("file", "link", "missing")
    ]
    assert found == [None, "nowhere", None]

  def test_remove(self, scratch: pathlib.Path) -> None:
    (scratch / "file").touch()
    (scratch / "link").symlink_to("file")
    system.remove(str(scratch / "link"))
    assert os.listdir(scratch) == ["file"]
    for _ in range(2):
      system.remove(str(scratch / "file"))
    assert os.listdir(scratch) == []
    (scratch / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
      system.remove(str(scratch / "directory"))

  @pytest.mark.parametrize("before", ["nothing", "a file", "a link"])
  @pytest.mark.parametrize("is_left", [False, True])
  def test_put_link(self, scratch, monkeypatch, before, is_left) -> None:
    """There is no moment without the one or the other."""
    path = scratch / "file"
    if before == "a file":
      path.touch()
    elif before == "a link":
      path.symlink_to("other")
    if is_left:
      # By a run that was interrupted
      pathlib.Path(system.temporary_name(str(path))).symlink_to("old")
    unlinked = []
    unlink = os.unlink

    def note(name: str) -> None:
      unlink(name)
      unlinked.append(name)

    monkeypatch.setattr(os, "unlink", note)
    system.put_link(str(path), "target")
    assert os.readlink(path) == "target"
    assert os.listdir(scratch) == ["file"]
    left = [system.temporary_name(str(path))] if is_left else []
    assert unlinked == left


class TestExclusively:
  """Two runs at once, and dpkg."""

  def test_two_runs(self, locks: pathlib.Path) -> None:
    with forked.living_on(system.exclusively().__enter__) as other:
      with pytest.raises(system.TroubleError) as caught:
        with system.exclusively():
          pass
      assert str(caught.value) == (
        f"another ganeti-kvmd-setup is at work: process {other} holds"
        f" {locks}/lock"
      )
    with system.exclusively():
      pass

  @pytest.mark.parametrize("has_dpkg", [False, True])
  def test_nothing_is_left(self, locks: pathlib.Path, has_dpkg: bool) -> None:
    names = ["dpkg"] if has_dpkg else []
    for name in names:
      (locks / name).touch()
    with system.exclusively():
      assert (locks / "lock").stat().st_mode & 0o777 == 0o600
    assert os.listdir(locks) == names
    with pytest.raises(ValueError, match="a fault"), system.exclusively():
      raise ValueError("a fault")
    assert os.listdir(locks) == names

  def test_dpkg_is_at_work(self, locks: pathlib.Path) -> None:
    (locks / "dpkg").touch()

    def work() -> None:
      descriptor = os.open(locks / "dpkg", os.O_RDWR)
      fcntl.lockf(descriptor, fcntl.LOCK_EX)

    with forked.living_on(work):
      with pytest.raises(system.TroubleError, match="dpkg is at work"):
        with system.exclusively():
          pass
      assert os.listdir(locks) == ["dpkg"]
    with system.exclusively():
      pass

  def test_dpkg_is_kept_away(self, locks: pathlib.Path) -> None:
    (locks / "dpkg").touch()

    def work() -> None:
      descriptor = os.open(locks / "dpkg", os.O_RDWR)
      with pytest.raises(BlockingIOError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with system.exclusively():
      forked.run(work)

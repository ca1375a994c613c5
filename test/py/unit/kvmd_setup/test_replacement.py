# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of one file of Ganeti's giving way to ours, where there is no dpkg.

With dpkg they are in test/py/setup.
"""

from __future__ import annotations

import os
import pathlib
from unittest import mock

import pytest
from ganeti.tools.kvmd_setup import records, system
from ganeti.tools.kvmd_setup.replacement import Paths, Replacement, State

_OLD = "stock 1\n"
_NEW = "stock 2\n"

#: What changes files; opening the note for writing is followed by one of them
_CHANGES = ("rename", "link", "symlink", "unlink")


class KilledError(BaseException):
  """As if the process had been killed."""


@pytest.fixture(autouse=True)
def _no_dpkg(monkeypatch) -> None:
  monkeypatch.setattr(records.shutil, "which", lambda _: None)


@pytest.fixture
def paths(scratch: pathlib.Path) -> Paths:
  """Where the files are."""
  (scratch / "ours").write_text("ours\n")
  (scratch / "module.py").write_text(_OLD)
  (scratch / "module.py").chmod(0o640)
  return Paths(
    place=str(scratch / "module.py"),
    stock=str(scratch / "stock.py"),
    ours=str(scratch / "ours"),
  )


def _read(path: str) -> str:
  return pathlib.Path(path).read_text()


def _write(path: str, text: str) -> None:
  """Does as install(1): there is a new file in the place of the old one."""
  pathlib.Path(path).unlink()
  pathlib.Path(path).write_text(text)


def _names(paths: Paths) -> list[str]:
  return sorted(os.listdir(os.path.dirname(paths.place)))


def _enable(paths: Paths) -> None:
  Replacement(paths).enable()
  assert Replacement(paths).look() is State.OURS
  assert _read(paths.place) == "ours\n"


def _disable(paths: Paths, wanted: str = _OLD) -> None:
  Replacement(paths).disable()
  assert Replacement(paths).look() is State.STOCK
  assert _read(paths.place) == wanted
  assert _names(paths) == ["module.py", "ours"]


def _look_for_trouble(paths: Paths) -> str:
  """Sees that nothing can be done, and that nothing is.

  @return: what is said of it

  """
  directory = os.path.dirname(paths.place)

  def look() -> dict[str, os.stat_result]:
    return {
      name: os.lstat(os.path.join(directory, name)) for name in _names(paths)
    }

  before = look()
  said = set()
  for name in ("look", "enable", "disable"):
    with pytest.raises(system.TroubleError) as caught:
      getattr(Replacement(paths), name)()
    said.add(str(caught.value))
  assert look() == before
  assert len(said) == 1
  return said.pop()


class TestReplacement:
  """There and back."""

  def test_a_file(self, paths: Paths) -> None:
    before = os.lstat(paths.place)
    assert Replacement(paths).look() is State.STOCK
    _enable(paths)
    assert _read(paths.stock) == _OLD
    _enable(paths)
    _disable(paths)
    after = os.lstat(paths.place)
    assert after.st_mode == before.st_mode
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ino == before.st_ino
    _disable(paths)

  def test_a_link(self, paths: Paths) -> None:
    os.unlink(paths.place)
    os.symlink("nowhere", paths.place)
    _enable(paths)
    assert os.readlink(paths.stock) == "nowhere"
    Replacement(paths).disable()
    assert os.readlink(paths.place) == "nowhere"
    assert _names(paths) == ["module.py", "ours"]

  def test_byte_code_goes_with_its_source(self, paths: Paths) -> None:
    cache = pathlib.Path(paths.place).parent / "__pycache__"
    _enable(paths)
    cache.mkdir()
    for name in ("module", "stock", "stock_other"):
      (cache / f"{name}.cpython-39.pyc").touch()
    Replacement(paths).disable()
    left = ["module.cpython-39.pyc", "stock_other.cpython-39.pyc"]
    assert sorted(os.listdir(cache)) == left


class TestInstalledAgain:
  """Ganeti's own installation puts its file in the place of ours."""

  def test_enable(self, paths: Paths) -> None:
    _enable(paths)
    _write(paths.place, _NEW)
    assert Replacement(paths).look() is State.HALFWAY
    _enable(paths)
    assert _read(paths.stock) == _NEW
    _disable(paths, _NEW)

  def test_disable(self, paths: Paths) -> None:
    _enable(paths)
    _write(paths.place, _NEW)
    _disable(paths, _NEW)


class TestInterruption:
  """Killed just before each change in turn, and run again."""

  @staticmethod
  def _end_before(number: int):
    left = [number]

    def count(function):
      def counted(*args, **kwargs):
        if not left[0]:
          raise KilledError
        left[0] -= 1
        return function(*args, **kwargs)

      return counted

    return mock.patch.multiple(
      os, **{name: count(getattr(os, name)) for name in _CHANGES}
    )

  def _interrupt(self, paths: Paths, method: str, number: int) -> bool:
    """Runs a method.

    @return: whether it was interrupted

    """
    try:
      with self._end_before(number):
        getattr(Replacement(paths), method)()
    except KilledError:
      return True
    return False

  @pytest.mark.parametrize("following", [_enable, _disable])
  @pytest.mark.parametrize("method", ["enable", "disable"])
  def test_either_next_run_repairs(
    self, paths: Paths, method: str, following
  ) -> None:
    prepare = _disable if method == "enable" else _enable
    number = 0
    prepare(paths)
    while self._interrupt(paths, method, number):
      assert _read(paths.place) in {_OLD, "ours\n"}
      following(paths)
      _disable(paths)
      prepare(paths)
      number += 1
    assert number > 3

  @pytest.mark.parametrize("method", ["enable", "disable"])
  def test_after_ganeti_was_installed_again(
    self, paths: Paths, method: str
  ) -> None:
    number = 0
    interrupted = True
    while interrupted:
      _enable(paths)
      _write(paths.place, _NEW)
      interrupted = self._interrupt(paths, method, number)
      assert _read(paths.place) in {_NEW, "ours\n"}
      _disable(paths, _NEW)
      _write(paths.place, _OLD)
      number += 1
    assert number > 3

  def test_installed_again_after_the_interruption(self, paths: Paths) -> None:
    number = 0
    while self._interrupt(paths, "enable", number):
      _write(paths.place, _NEW)
      _enable(paths)
      _disable(paths, _NEW)
      _write(paths.place, _OLD)
      number += 1
    assert number > 3


class TestTrouble:
  """What somebody else did."""

  def test_in_the_way(self, paths: Paths) -> None:
    pathlib.Path(paths.stock).touch()
    assert f"{paths.stock} is in the way" in _look_for_trouble(paths)

  def test_edited(self, paths: Paths) -> None:
    _enable(paths)
    with open(paths.stock, "a") as stock:
      stock.write("edited\n")
    assert f"{paths.stock} was edited" in _look_for_trouble(paths)

  def test_lost(self, paths: Paths) -> None:
    _enable(paths)
    os.unlink(paths.stock)
    said = _look_for_trouble(paths)
    assert "install Ganeti again" in said
    _write(paths.place, _NEW)
    _disable(paths, _NEW)

  def test_not_there_at_all(self, paths: Paths) -> None:
    os.unlink(paths.place)
    assert f"there is no {paths.place}" in _look_for_trouble(paths)

  def test_the_note_is_lost(self, paths: Paths) -> None:
    _enable(paths)
    os.unlink(paths.stock + ".sha256")
    assert Replacement(paths).look() is State.HALFWAY
    _disable(paths)

  def test_ours_is_gone_from_the_place(self, paths: Paths) -> None:
    _enable(paths)
    os.unlink(paths.place)
    assert Replacement(paths).look() is State.HALFWAY
    _disable(paths)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of who has a file of Ganeti's on record.

dpkg is the real one, with an administrative directory of its own.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil

import pytest
from ganeti.tools.kvmd_setup import records, system


@pytest.fixture
def place(scratch: pathlib.Path) -> str:
  """A file of Ganeti's."""
  path = scratch / "module.py"
  path.write_text("Ganeti's own\n")
  return str(path)


@pytest.fixture
def stock(scratch: pathlib.Path) -> str:
  """What it is called when it has given way."""
  return str(scratch / "stock.py")


class TestNote:
  """A note beside the file."""

  @pytest.fixture
  def note(self, monkeypatch, place: str, stock: str) -> records.Record:
    monkeypatch.setattr(records.shutil, "which", lambda _: None)
    return records.find(place, stock)

  def test_what_it_is(self, note) -> None:
    assert isinstance(note, records.Note)
    assert (note.is_renewable, note.has_owner) == (True, True)
    assert note.remedy == "install Ganeti again"

  @pytest.mark.parametrize("is_moved", [False, True])
  @pytest.mark.parametrize("is_link", [False, True])
  def test_there_and_gone(self, note, place, stock, is_moved, is_link) -> None:
    """As sha256sum(1) writes it, of the file wherever it is."""
    content = b"Ganeti's own\n"
    if is_link:
      os.unlink(place)
      os.symlink("nowhere", place)
      content = b"nowhere"
    if is_moved:
      os.rename(place, stock)
      pathlib.Path(place).write_text("ours\n")
    assert note.exists() is False
    for _ in range(2):
      note.make()
    assert note.exists() is True
    path = pathlib.Path(f"{stock}.sha256")
    digest = hashlib.sha256(content).hexdigest()
    assert path.read_text() == f"{digest}  {stock}\n"
    assert len(os.listdir(path.parent)) == (3 if is_moved else 2)
    for _ in range(2):
      note.drop()
    assert note.exists() is False
    assert not path.exists()

  def test_left_by_an_interrupted_run(self, note, stock) -> None:
    temporary = pathlib.Path(system.temporary_name(f"{stock}.sha256"))
    temporary.touch()
    assert note.exists() is False
    note.drop()
    assert not temporary.exists()

  def test_edited(self, note, place: str, stock: str) -> None:
    note.make()
    os.rename(place, stock)
    assert note.is_edited(stock) is False
    # A newer one may have been installed there.
    pathlib.Path(place).write_text("another\n")
    assert note.is_edited(place) is False
    with open(stock, "a") as file:
      file.write("edited\n")
    assert note.is_edited(stock) is True
    note.drop()
    assert note.is_edited(stock) is False


if shutil.which("dpkg-divert"):

  class TestDiversion:
    """dpkg's record."""

    @pytest.fixture
    def info(
      self, monkeypatch, scratch: pathlib.Path, place: str
    ) -> pathlib.Path:
      """What dpkg knows of packages: two have the file."""
      admin = scratch / "dpkg"
      info = admin / "info"
      info.mkdir(parents=True)
      (admin / "updates").mkdir()
      (admin / "triggers").mkdir()
      (admin / "status").write_text(
        "Package: ganeti-test\nStatus: install ok installed\n"
        "Maintainer: nobody\nArchitecture: all\nVersion: 1\n"
        "Description: a test\n"
      )
      digest = hashlib.md5(b"Ganeti's own\n").hexdigest()
      (info / "ganeti-test.list").write_text(f"/.\n{place}\n")
      (info / "ganeti-test.md5sums").write_text(
        f"{'0' * 32}  {place[1:]}.other\n{digest}  {place[1:]}\n"
      )
      monkeypatch.setenv("DPKG_ADMINDIR", str(admin))
      return info

    @pytest.fixture
    def diversion(self, info, place: str, stock: str) -> records.Record:
      return records.find(place, stock)

    def test_what_it_is(self, diversion) -> None:
      assert isinstance(diversion, records.Diversion)
      assert (diversion.is_renewable, diversion.has_owner) == (False, True)
      assert diversion.remedy == (
        "install the package again: apt-get install --reinstall ganeti-test"
      )

    def test_there_and_gone(self, diversion, place: str, stock: str) -> None:
      """The files are left to us."""
      assert diversion.exists() is False
      for _ in range(2):
        diversion.make()
      assert diversion.exists() is True
      said = system.run("dpkg-divert", "--list")
      assert said == f"local diversion of {place} to {stock}\n"
      assert os.path.exists(place)
      assert not os.path.exists(stock)
      for _ in range(2):
        diversion.drop()
      assert diversion.exists() is False
      assert os.path.exists(place)

    @pytest.mark.parametrize("owner", ["--local", "--package=other"])
    def test_somebody_elses(self, diversion, place, stock, owner) -> None:
      elsewhere = f"{place}.other" if owner == "--local" else stock
      system.run(
        "dpkg-divert",
        owner,
        "--no-rename",
        "--divert",
        elsewhere,
        "--add",
        place,
      )
      whose = "LOCAL" if owner == "--local" else "other"
      with pytest.raises(system.TroubleError) as caught:
        diversion.exists()
      assert f"dpkg diverts {place} to {elsewhere} for somebody else" in str(
        caught.value
      )
      assert f"({whose})" in str(caught.value)

    def test_edited(self, diversion, scratch, place: str, stock: str) -> None:
      assert diversion.is_edited(place) is False
      os.rename(place, stock)
      assert diversion.is_edited(stock) is False
      with open(stock, "a") as file:
        file.write("edited\n")
      assert diversion.is_edited(stock) is True
      os.symlink("nowhere", place)
      assert diversion.is_edited(place) is False

    def test_of_which_there_is_no_checksum(self, diversion, info, place):
      (info / "ganeti-test.md5sums").write_text("")
      with open(place, "a") as file:
        file.write("edited\n")
      assert diversion.is_edited(place) is False

    def test_whose_package_is_removed(
      self, diversion, info, place: str, stock: str
    ) -> None:
      """It is dpkg's as long as there is the diversion."""
      diversion.make()
      (info / "ganeti-test.list").write_text("/.\n")
      found = records.find(place, stock)
      assert isinstance(found, records.Diversion)
      assert found.has_owner is False
      assert found.exists() is True
      assert found.is_edited(place) is False
      assert found.remedy.endswith("the package that it belonged to")
      found.drop()
      assert isinstance(records.find(place, stock), records.Note)

    def test_of_no_package(self, info, place: str, stock: str) -> None:
      (info / "ganeti-test.list").write_text(f"/.\n{place}.other\n")
      assert isinstance(records.find(place, stock), records.Note)

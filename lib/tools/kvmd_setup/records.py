# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Who knows which file of Ganeti's gave way, and how it looked.

A file is put on record before anything else is done about it, and taken off
when all is as it was. So whatever is found in between can be told from what
somebody else did.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Protocol

from ganeti.tools.kvmd_setup import system

if TYPE_CHECKING:
  from typing import Optional


class Record(Protocol):
  """Says that a file of Ganeti's is at another place."""

  #: What brings Ganeti's file back if it is lost or was edited.
  remedy: str

  #: Whether Ganeti's file may be a newer one than that which gave way.
  is_renewable: bool

  @property
  def has_owner(self) -> bool:
    """Whether Ganeti is still installed, as far as that is known."""

  def exists(self) -> bool:
    """Tells whether the file is on record.

    @raise system.TroubleError: if it is, for somebody else

    """

  def make(self) -> None:
    """Puts the file on record, if it is not yet."""

  def drop(self) -> None:
    """Takes it off, if it is there."""

  def is_edited(self, path: str) -> bool:
    """Tells whether Ganeti's file is not as Ganeti made it.

    @param path: where it is now

    """


class Diversion:
  """The record is dpkg's, for a file that belongs to a package.

  An upgrade of the package puts the new file where the old one is. All calls
  of C{dpkg-divert} leave the files to us: it would move a file away first, and
  for a moment there would be none.

  """

  is_renewable = False

  def __init__(self, place: str, stock: str, package: Optional[str]) -> None:
    self._place = place
    self._stock = stock
    self._package = package
    name = package or "the package that it belonged to"
    self.remedy = (
      f"install the package again: apt-get install --reinstall {name}"
    )

  @property
  def has_owner(self) -> bool:
    """Whether the package is still installed."""
    return self._package is not None

  def exists(self) -> bool:
    """Tells whether dpkg diverts the file."""
    where = _truename(self._place)
    if where == self._place:
      return False
    owner = system.run("dpkg-divert", "--listpackage", self._place).strip()
    if where != self._stock or owner != "LOCAL":
      raise system.TroubleError(
        f"dpkg diverts {self._place} to {where} for somebody else ({owner});"
        " see dpkg-divert(8) for how to end that"
      )
    return True

  def make(self) -> None:
    """Lets dpkg divert the file."""
    self._divert("--divert", self._stock, "--add")

  def drop(self) -> None:
    """Lets dpkg not divert the file any more."""
    self._divert("--remove")

  def is_edited(self, path: str) -> bool:
    """Compares the file with the checksum that came with its package."""
    if self._package is None or os.path.islink(path):
      return False
    # dpkg --verify passes over what is diverted.
    sums = system.run("dpkg-query", "--control-show", self._package, "md5sums")
    for line in sums.splitlines():
      wanted, _, name = line.partition("  ")
      if "/" + name == self._place:
        with open(path, "rb") as file:
          # It is a checksum here and no more.
          return hashlib.md5(file.read()).hexdigest() != wanted  # noqa: S324
    return False

  def _divert(self, *words: str) -> None:
    system.run("dpkg-divert", "--local", "--no-rename", *words, self._place)


class Note:
  """The record is a note beside a file that belongs to no package.

  The note is a line as from C{sha256sum}. Whoever installs Ganeti again puts
  a new file in the old place.

  """

  remedy = "install Ganeti again"
  is_renewable = True
  has_owner = True

  def __init__(self, place: str, stock: str) -> None:
    self._place = place
    self._stock = stock
    self._path = stock + ".sha256"

  def exists(self) -> bool:
    """Tells whether there is a note."""
    return os.path.exists(self._path)

  def make(self) -> None:
    """Writes the note, of the file that gives way."""
    path = self._stock if os.path.lexists(self._stock) else self._place
    temporary = system.temporary_name(self._path)
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(f"{_digest(path)}  {self._stock}\n")
    os.rename(temporary, self._path)

  def drop(self) -> None:
    """Removes the note."""
    system.remove(system.temporary_name(self._path))
    system.remove(self._path)

  def is_edited(self, path: str) -> bool:
    """Compares the file with the note; that is not about a newer one."""
    if path != self._stock or not self.exists():
      return False
    with open(self._path, encoding="utf-8") as file:
      return file.read().partition(" ")[0] != _digest(path)


def find(place: str, stock: str) -> Record:
  """Finds out whose record of a file counts.

  @param place: where Ganeti has the file
  @param stock: where it is when it has given way
  @raise system.TroubleError: if dpkg does not say

  """
  if shutil.which("dpkg-query") is None:
    return Note(place, stock)
  package = _owner(place)
  if package is None and _truename(place) == place:
    return Note(place, stock)
  return Diversion(place, stock, package)


def _owner(path: str) -> Optional[str]:
  """Returns the package that a file belongs to, if any."""
  for line in system.attempt(
    "dpkg-query", "--search", path
  ).stdout.splitlines():
    packages, _, name = line.rpartition(": ")
    # Other lines are about diversions.
    if name == path and "diversion" not in packages:
      return packages.partition(",")[0]
  return None


def _truename(path: str) -> str:
  """Returns where dpkg has a file that would belong at a path."""
  return system.run("dpkg-divert", "--truename", path).rstrip("\n")


def _digest(path: str) -> str:
  if os.path.islink(path):
    content = os.fsencode(os.readlink(path))
  else:
    with open(path, "rb") as file:
      content = file.read()
  return hashlib.sha256(content).hexdigest()

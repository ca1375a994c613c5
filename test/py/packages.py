# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Our modules beside Ganeti's own: none may hide another."""

from __future__ import annotations

import collections.abc
import hashlib
import pathlib
import shutil

_LIB = pathlib.Path(__file__).resolve().parents[2] / "lib"

_HV_KVM = "hypervisor/hv_kvm"
_KVMD = "kvmd"
_SETUP = "tools/kvmd_setup"

#: Where both have modules
_SHARED = ("hypervisor", _HV_KVM, "tools")

#: Imports modules, and says what is in the files that they were found in
_IMPORT = """
import hashlib, importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
  with open(importlib.import_module(name).__file__, "rb") as file:
    print(name, hashlib.sha256(file.read()).hexdigest())
"""


def _modules(
  place: pathlib.Path, directories: collections.abc.Iterable[str]
) -> dict[str, pathlib.Path]:
  return {
    f"ganeti.{directory.replace('/', '.')}.{path.stem}": path
    for directory in directories
    for path in (place / directory).glob("*.py")
    if path.stem not in {"__init__", "stock"}
  }


def daemon() -> dict[str, pathlib.Path]:
  """The modules of the daemon, and their files."""
  folders = sorted(path.parent for path in (_LIB / _KVMD).rglob("*.py"))
  return _modules(_LIB, {str(each.relative_to(_LIB)) for each in folders})


def hypervisor() -> dict[str, pathlib.Path]:
  """Those of the hypervisor's side that lie beside Ganeti's own."""
  return _modules(_LIB, [_HV_KVM])


def setup() -> dict[str, pathlib.Path]:
  """Those of ganeti-kvmd-setup."""
  return _modules(_LIB, [_SETUP])


def ganetis(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Ganeti's own, in the packages in which we have some as well.

  @param directory: the one that holds Ganeti's package

  """
  found = _modules(directory / "ganeti", _SHARED)
  return {name: found[name] for name in sorted(set(found) - set(hypervisor()))}


def copy_ganeti(directory: pathlib.Path, package: pathlib.Path) -> None:
  """Copies Ganeti's package as Ganeti has it, whatever of ours is in there.

  @param directory: the one that holds Ganeti's package
  @param package: what it is to be called

  """
  ours = {path.name for path in hypervisor().values()}
  shutil.copytree(
    directory / "ganeti",
    package,
    ignore=shutil.ignore_patterns(
      "__pycache__", "kvmd", "kvmd_setup", "*.sha256", *ours
    ),
  )
  stock = package / _HV_KVM / "stock.py"
  if stock.exists():
    # Ours is enabled on this machine.
    stock.replace(stock.with_name("__init__.py"))


def check(
  python: collections.abc.Callable[..., str],
  place: object,
  modules: dict[str, pathlib.Path],
) -> None:
  """Sees that modules can be imported in one process, and which they are.

  @param python: runs Python with arguments, and returns what it printed
  @param place: where the package ganeti is
  @param modules: the modules, and files that have the same content

  """
  said = python("-I", "-B", "-c", _IMPORT, str(place), *modules)
  assert dict(line.split() for line in said.splitlines()) == {
    name: hashlib.sha256(path.read_bytes()).hexdigest()
    for name, path in modules.items()
  }

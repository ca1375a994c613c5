# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests that doc/design.md is about this house, and who imports whom in it."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re

import pytest

_SOURCE = pathlib.Path(__file__).resolve().parents[3]
_LIB = _SOURCE / "lib"
_DESIGN = _SOURCE / "doc" / "design.md"
_DOCUMENTS = [_DESIGN, *sorted((_SOURCE / "doc" / "decisions").glob("*.md"))]

#: What each module imports of the others, for its types as well. The daemon's
#: go by their own names, the others' have the folder in front.
_IMPORTS = {
  "__init__": "",
  "ctrldir": "lockfile",
  "daemon": "ctrldir exits journals lifecycle lockfile monitors processes quota"
  " rule_file signals watch",
  "detach": "",
  "digest": "lifecycle",
  "directory_locks": "lockfile",
  "exits": "",
  "hv_kvm.__init__": "hv_kvm.user_shutdown",
  "hv_kvm.control": "ctrldir hv_kvm.inquiry journal_files lifecycle",
  "hv_kvm.inquiry": "ctrldir journal journal_files lifecycle",
  "hv_kvm.launch": "ctrldir lockfile pidfile processes ssconf",
  "hv_kvm.patience": "",
  "hv_kvm.user_shutdown": "ctrldir hv_kvm.control hv_kvm.inquiry hv_kvm.launch"
  " hv_kvm.patience",
  "instance": "ctrldir lifecycle qmp quota",
  "journal": "digest journal_files lifecycle qmp",
  "journal_files": "ctrldir digest qmp",
  "journals": "ctrldir instance journal journal_files lifecycle monitor"
  " processes quota",
  "kvmd_setup.__init__": "",
  "kvmd_setup.main": "__init__ kvmd_setup.node kvmd_setup.replacement"
  " kvmd_setup.system ssconf",
  "kvmd_setup.node": "__init__ ctrldir kvmd_setup.system lockfile pidfile",
  "kvmd_setup.records": "kvmd_setup.system",
  "kvmd_setup.replacement": "kvmd_setup.records kvmd_setup.system",
  "kvmd_setup.system": "lockfile",
  "lifecycle": "",
  "lockfile": "own_files",
  "logs": "",
  "main": "__init__ ctrldir daemon detach lifecycle lockfile logs pidfile"
  " signals ssconf",
  "monitor": "ctrldir instance lifecycle qmp",
  "monitors": "ctrldir instance lifecycle monitor processes quota",
  "own_files": "",
  "pidfile": "lockfile",
  "processes": "",
  "qmp": "",
  "quota": "",
  "server.kvmd": "main",
  "signals": "",
  "ssconf": "",
  "tools.__init__": "",
  "watch": "",
}

#: What they import of Ganeti's own modules. Where a daemon needs one, what it
#: brings along is the daemon's as well; hv_kvm runs in the node daemon.
_GANETI_IMPORTS = {
  "ctrldir": "pathutils",
  "hv_kvm.__init__": "hypervisor",
  "hv_kvm.launch": "constants errors pathutils utils",
  "hv_kvm.user_shutdown": "constants errors objects",
  "main": "constants pathutils",
  "ssconf": "constants pathutils vcluster",
}

#: Ganeti's own module in our package.
_STOCK = "ganeti.hypervisor.hv_kvm.stock"

#: What is quoted in a document, as `monitor._READ_SIZE`; no file.
_QUOTED = re.compile(r"`([a-z_]+)\.(?!py`)([A-Za-z_]+)`")
_TEST = re.compile(r"\b(test_[a-z_]+\.py)::(\w+)")
_PATH = re.compile(r"\b(?:lib|test|devel|doc)/[\w./-]*\w")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def _modules() -> dict[str, pathlib.Path]:
  """Returns all modules, by their names in the tables."""
  return {
    ".".join(path.with_suffix("").parts[-2:]).removeprefix("kvmd."): path
    for path in _LIB.rglob("*.py")
  }


_MODULES = _modules()


def _full_name(path: pathlib.Path) -> str:
  parts = path.relative_to(_LIB).with_suffix("").parts
  return ".".join(("ganeti", *parts)).removesuffix(".__init__")


def _imported(path: pathlib.Path) -> set[str]:
  """Returns the full names of what a module imports of the package ganeti."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: imports are absolute"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return {name for name in found if name.split(".")[0] == "ganeti"}


def _split(path: pathlib.Path) -> tuple[set[str], set[str]]:
  """Returns what a module imports of ours, and of Ganeti's."""
  names = {_full_name(each): name for name, each in _MODULES.items()}
  ours = set()
  others = set()
  for each in _imported(path):
    # The name may be that of something in a module.
    found = names.get(each) or names.get(each.rpartition(".")[0])
    if found is None or each == _STOCK:
      others.add(each.split(".")[1])
    else:
      ours.add(found)
  return ours, others


@pytest.mark.parametrize("module", sorted(_MODULES))
def test_who_imports_whom(module: str) -> None:
  ours, others = _split(_MODULES[module])
  assert ours == set(_IMPORTS[module].split())
  assert others == set(_GANETI_IMPORTS.get(module, "").split())


def test_siblings_know_the_daemon_only() -> None:
  """Neither what is for the hypervisor nor what is for the administrator."""
  for module, names in _IMPORTS.items():
    own = module.rpartition(".")[0]
    assert {name.rpartition(".")[0] for name in names.split()} <= {"", own}


def test_imports_run_one_way() -> None:
  assert set(_IMPORTS) == set(_MODULES)
  sorter = graphlib.TopologicalSorter(
    {module: names.split() for module, names in _IMPORTS.items()}
  )
  # It raises CycleError, which names the circle.
  assert set(sorter.static_order()) == set(_IMPORTS)


def test_every_module_is_named() -> None:
  text = _DESIGN.read_text()
  files = [*_LIB.rglob("*.py"), *_LIB.rglob("*.py.in")]
  names = {str(path.relative_to(_SOURCE)) for path in files}
  assert len(names) > len(_IMPORTS)
  assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_what_is_quoted_exists(document: pathlib.Path) -> None:
  text = document.read_text()
  missing = [
    path for path in _PATH.findall(text) if not (_SOURCE / path).exists()
  ]
  missing += [
    link
    for link in _LINK.findall(text)
    if not (document.parent / link).exists()
  ]
  # In a document a module goes by its own name, the daemon's first.
  sources = {
    name.rpartition(".")[2]: _MODULES[name].read_text()
    for name in sorted(_MODULES, key=lambda each: "." not in each)
  }
  for module, name in _QUOTED.findall(text):
    if module in sources and not re.search(
      rf"^(?:(?:def|class) )?{name}\b", sources[module], re.MULTILINE
    ):
      missing.append(f"{module}.{name}")
  for file_name, name in _TEST.findall(text):
    tests = (_SOURCE / "test" / "py" / "unit" / file_name).read_text()
    if not re.search(rf"^(?:def|class) {name}\b", tests, re.MULTILINE):
      missing.append(f"{file_name}::{name}")
  assert missing == []


def test_every_decision_is_dated() -> None:
  for document in _DOCUMENTS[1:]:
    text = document.read_text()
    assert re.match(r"# .+\n\n20\d\d-\d\d-\d\d", text), document
    assert "**What would change it.**" in text, document

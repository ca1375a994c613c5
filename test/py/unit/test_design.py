# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests that doc/design.md is about this house, and who imports whom in it."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pathlib
import re

import pytest

_SOURCE = pathlib.Path(__file__).resolve().parents[3]
_LIB = _SOURCE / "lib"
_DESIGN = _SOURCE / "doc" / "design.md"
_DOCUMENTS = [_DESIGN, *sorted((_SOURCE / "doc" / "decisions").glob("*.md"))]

#: What each module of the daemon imports of the others, for its types as well.
_IMPORTS = {
  "__init__": "",
  "ctrldir": "lockfile",
  "daemon": "ctrldir exits journals lifecycle lockfile monitors processes quota"
  " rule_file signals watch",
  "detach": "",
  "digest": "lifecycle",
  "directory_locks": "lockfile",
  "exits": "",
  "inquiry": "ctrldir journal journal_files lifecycle mark_files",
  "instance": "ctrldir lifecycle mark_files qmp quota",
  "journal": "digest journal_files lifecycle qmp",
  "journal_files": "ctrldir digest qmp",
  "journals": "ctrldir instance journal journal_files lifecycle monitor"
  " processes quota",
  "launch": "ctrldir lockfile pidfile ssconf",
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
  "rule_file": "ctrldir own_files",
  "setup.__init__": "",
  "setup.main": "__init__ setup.node setup.replacement setup.system ssconf",
  "setup.node": "__init__ ctrldir lockfile pidfile setup.system",
  "setup.records": "setup.system",
  "setup.replacement": "setup.records setup.system",
  "setup.system": "lockfile",
  "signals": "",
  "ssconf": "",
  "watch": "",
}

#: What they import of Ganeti's own modules. Where a daemon needs one, what it
#: brings along is the daemon's as well; launch runs in the node daemon.
_GANETI_IMPORTS = {
  "ctrldir": "pathutils",
  "launch": "constants errors pathutils utils",
  "main": "constants pathutils",
  "ssconf": "constants pathutils vcluster",
}

#: What is quoted in a document, as `monitor._READ_SIZE`; no file.
_QUOTED = re.compile(r"`([a-z_]+)\.(?!py`)([A-Za-z_]+)`")
_TEST = re.compile(r"\b(test_[a-z_]+\.py)::(\w+)")
_PATH = re.compile(r"\b(?:lib|test|devel|doc)/[\w./-]*\w")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def _modules() -> dict[str, pathlib.Path]:
  package = _LIB / "kvmd"
  return {
    ".".join(path.relative_to(package).with_suffix("").parts): path
    for path in package.rglob("*.py")
  }


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
  ours = set()
  others = set()
  for name in _imported(path):
    parts = name.split(".")[1:]
    if parts[0] != "kvmd":
      others.add(parts[0])
      continue
    # The name may be that of something in a module.
    found = [".".join(parts[1:end]) for end in (len(parts), len(parts) - 1)]
    ours.add(next((each for each in found if each in _IMPORTS), "__init__"))
  return ours, others


@pytest.mark.parametrize("module", sorted(_modules()))
def test_who_imports_whom(module: str) -> None:
  ours, others = _split(_modules()[module])
  assert ours == set(_IMPORTS[module].split())
  assert others == set(_GANETI_IMPORTS.get(module, "").split())


def test_imports_run_one_way() -> None:
  assert set(_IMPORTS) == set(_modules())
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
  for module, name in _QUOTED.findall(text):
    if module in _IMPORTS and not hasattr(
      importlib.import_module(f"ganeti.kvmd.{module}"), name
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

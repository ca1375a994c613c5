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
_DECISIONS = sorted((_SOURCE / "doc" / "decisions").glob("*.md"))
_DOCUMENTS = [
  _SOURCE / "CONTRIBUTING.md",
  _SOURCE / "README.md",
  _DESIGN,
  *_DECISIONS,
]

#: What each module imports of the others, for its types as well. The daemon's
#: go by their names under lib/kvmd, the others' have their folder in front.
_IMPORTS = {
  "__init__": "",
  "core.__init__": "",
  "core.chatter": "",
  "core.digest": "core.events core.lifecycle",
  "core.events": "",
  "core.following": "",
  "core.history_line": "core.lifecycle core.text",
  "core.lifecycle": "core.events",
  "core.marks": "core.lifecycle",
  "core.qmp": "core.chatter",
  "core.quota": "",
  "core.session": "core.lifecycle core.qmp",
  "core.text": "",
  "core.timers": "",
  "core.timing": "",
  "daemon": "core.lifecycle core.quota core.timing follow.history"
  " follow.lookout follow.shared follow.table follow.verdicts node.evidence"
  " node.exits node.history_files node.place node.processes process.signals",
  "follow.__init__": "",
  "follow.history": "core.history_line core.lifecycle core.timing"
  " node.evidence node.history_files",
  "follow.instance": "core.history_line core.lifecycle core.marks core.qmp"
  " core.quota follow.history node.ctrldir",
  "follow.journal_follower": "core.following core.timers follow.journal_keeper"
  " follow.journal_reader follow.journaled follow.record follow.shared"
  " node.ctrldir node.journal_files node.processes",
  "follow.journal_keeper": "core.following core.timers follow.record"
  " follow.shared node.journal_files node.journal_space",
  "follow.journal_reader": "core.following core.timers follow.journaled"
  " follow.record follow.shared node.ctrldir node.journal node.journal_files",
  "follow.journaled": "core.marks follow.instance follow.shared"
  " node.connection node.ctrldir node.journal node.journal_files"
  " node.journal_space node.mark_files",
  "follow.lookout": "core.timing follow.table node.ctrldir node.place"
  " node.watch",
  "follow.monitor_follower": "core.session core.timers follow.monitored"
  " follow.record follow.shared node.connection node.ctrldir",
  "follow.monitored": "core.qmp core.session follow.instance follow.shared"
  " node.connection",
  "follow.record": "core.following follow.journaled follow.monitored",
  "follow.shared": "core.lifecycle core.quota core.timing follow.history"
  " follow.verdicts node.place node.processes",
  "follow.table": "core.following follow.instance follow.journal_follower"
  " follow.monitor_follower follow.record follow.shared node.ctrldir"
  " node.processes",
  "follow.verdicts": "core.lifecycle core.marks follow.instance node.ctrldir"
  " node.mark_files node.place",
  "hv_kvm.__init__": "hv_kvm.user_shutdown",
  "hv_kvm.control": "core.lifecycle core.marks hv_kvm.inquiry node.ctrldir"
  " node.journal_files node.mark_files node.rule_file",
  "hv_kvm.inquiry": "core.lifecycle core.marks node.ctrldir node.journal"
  " node.journal_files node.mark_files",
  "hv_kvm.launch": "node.ctrldir node.directory_locks node.lockfile"
  " node.processes node.ssconf process.pidfile",
  "hv_kvm.patience": "",
  "hv_kvm.user_shutdown": "core.marks hv_kvm.control hv_kvm.inquiry"
  " hv_kvm.launch hv_kvm.patience",
  "kvmd_setup.__init__": "",
  "kvmd_setup.main": "__init__ kvmd_setup.node kvmd_setup.replacement"
  " kvmd_setup.system node.ssconf",
  "kvmd_setup.node": "__init__ kvmd_setup.system node.ctrldir"
  " node.directory_locks node.lockfile process.pidfile",
  "kvmd_setup.records": "kvmd_setup.system",
  "kvmd_setup.replacement": "kvmd_setup.records kvmd_setup.system",
  "kvmd_setup.system": "node.lockfile",
  "main": "__init__ core.lifecycle core.marks core.timing daemon node.ctrldir"
  " node.evidence node.lockfile node.ssconf process.detach process.logs"
  " process.pidfile process.signals",
  "node.__init__": "",
  "node.connection": "core.session node.ctrldir",
  "node.ctrldir": "core.marks node.directory_locks node.own_files",
  "node.directory_locks": "node.lockfile",
  "node.evidence": "core.history_line core.lifecycle node.last_words"
  " node.reason_trail",
  "node.exits": "",
  "node.history_files": "core.history_line node.own_files",
  "node.journal": "core.digest core.lifecycle core.qmp node.journal_files",
  "node.journal_files": "core.digest core.qmp node.ctrldir node.own_files"
  " node.space",
  "node.journal_space": "node.journal_files",
  "node.last_words": "core.text node.own_files",
  "node.lockfile": "node.own_files",
  "node.mark_files": "core.marks node.ctrldir node.own_files",
  "node.own_files": "",
  "node.place": "core.lifecycle core.timing node.ctrldir node.lockfile"
  " node.rule_file node.watch",
  "node.processes": "",
  "node.reason_trail": "core.text node.own_files",
  "node.rule_file": "node.ctrldir node.own_files",
  "node.space": "",
  "node.ssconf": "",
  "node.watch": "",
  "process.__init__": "",
  "process.detach": "",
  "process.logs": "",
  "process.pidfile": "node.lockfile",
  "process.signals": "",
  "server.kvmd": "main",
  "tools.__init__": "",
}

#: The floors of lib/kvmd and what stands beside it, and what is below each. The
#: top floor is lib/kvmd itself.
_BELOW = {
  "": "core follow node process",
  "core": "",
  "follow": "core node",
  "hv_kvm": "core node process",
  "kvmd_setup": "node process",
  "node": "core",
  "process": "node",
  "server": "",
  "tools": "",
}

#: What they import of Ganeti's own modules. Where a daemon needs one, what it
#: brings along is the daemon's as well; hv_kvm runs in the node daemon.
_GANETI_IMPORTS = {
  "hv_kvm.__init__": "hypervisor",
  "hv_kvm.launch": "constants errors pathutils utils",
  "hv_kvm.user_shutdown": "constants errors objects",
  "main": "constants pathutils",
  "node.ctrldir": "pathutils",
  "node.ssconf": "constants pathutils vcluster",
}

#: Ganeti's own module in our package.
_STOCK = "ganeti.hypervisor.hv_kvm.stock"

#: What is quoted in a document, as `monitor._READ_SIZE`; no file.
_QUOTED = re.compile(r"`([a-z_]+)\.(?!py`)([A-Za-z_]+)`")
_TEST = re.compile(r"\b(test_[a-z_]+\.py)::(\w+)")
_PATH = re.compile(
  r"(?<![\w/-])(?:lib|test|devel|doc|man|autotools)/[\w./-]*\w"
)
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def _modules() -> dict[str, pathlib.Path]:
  """Returns all modules, by their names in the tables."""
  return {
    re.sub(
      r"^(?:hypervisor|kvmd|tools(?=\.\w+\.))\.",
      "",
      ".".join(path.relative_to(_LIB).with_suffix("").parts),
    ): path
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


@pytest.mark.parametrize("module", sorted(_MODULES))
def test_floors(module: str) -> None:
  """A module knows its own floor, and those below."""
  floor = module.rpartition(".")[0]
  known = {name.rpartition(".")[0] for name in _IMPORTS[module].split()}
  top = {""} if floor in {"kvmd_setup", "server"} else set()
  assert known <= {floor, *_BELOW[floor].split(), *top}


@pytest.mark.parametrize("module", sorted(_MODULES))
def test_can_be_read_at_once(module: str) -> None:
  text = _MODULES[module].read_text()
  assert text.count("\n") <= 400
  for found in ast.walk(ast.parse(text)):
    if isinstance(found, ast.ClassDef):
      assert found.end_lineno is not None
      assert found.end_lineno - found.lineno < 250, found.name


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
  assert _DECISIONS
  for document in _DECISIONS:
    text = document.read_text()
    assert re.match(r"# .+\n\n20\d\d-\d\d-\d\d", text), document
    assert "**What would change it.**" in text, document

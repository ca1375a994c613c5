# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""devel/mutate: which changes of a module its own tests do not notice.

A mutant is the module with one small change, made by one of cosmic-ray's
operators. The tests of the module (test_MODULE.py) are run on each mutant; one
that passes them all has survived: its place is not tested, or means nothing.
Mutants that cannot differ from the module are left out, by kind; see L{KINDS}.

The modules are found in the tree: every one of lib/kvmd and of Ganeti's hv_kvm.
Nothing is written but in the copies of the tree that are named (--tree=DIR).
"""

from __future__ import annotations

import argparse
import ast
import collections
import difflib
import itertools
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Callable, Iterable, Iterator
  from typing import Any, Optional

#: Where modules are. Of the second all but its last part is Ganeti's.
_PACKAGES = ("lib/kvmd", "lib/hypervisor/hv_kvm")

#: What the names of the modules begin with that do no I/O, and the share of
#: their mutants that is noticed at least, in per cent; and that of all others.
_PURE = "core."
_PURE_TARGET = 95.0
_TARGET = 85.0

#: The modules whose tests see all processes of the machine, as the kernel tells
#: of them in no other process namespace. They end none that is not their own.
_OF_THE_MACHINE = {"node.exits"}

#: One more or less of so many is an eighth.
_MUCH = 8

#: What cosmic-ray has mutants catch, a name that is not there. It would make
#: itself felt also where another exception comes, so it becomes one that is
#: there and never comes.
_UNKNOWN_EXCEPTION = "CosmicRayTestingException"
_UNUSED_EXCEPTION = "StopAsyncIteration"


class Module(NamedTuple):
  """A module that can be mutated.

  @ivar name: how it is called here, with those of its folders
  @ivar path: of its file, in the tree
  @ivar tests: of the file of its own tests; None if there is none

  """

  name: str
  path: str
  tests: Optional[str]

  @property
  def target(self) -> float:
    """The least share of its mutants that is to be noticed, in per cent."""
    return _PURE_TARGET if self.name.startswith(_PURE) else _TARGET


class Mutant(NamedTuple):
  """A module with one change.

  @ivar operator: cosmic-ray's name of the kind of change
  @ivar start: where the change begins, line (from 1) and column (from 0)
  @ivar end: where it ends
  @ivar text: all of the module, changed

  """

  operator: str
  start: tuple[int, int]
  end: tuple[int, int]
  text: str


class Site(NamedTuple):
  """Where a mutant differs from its module.

  @ivar operator: cosmic-ray's name of the kind of change
  @ivar is_python: whether the mutant can be compiled at all
  @ivar parents: what the place is in, from the outside to the inside: each
    node of the syntax tree, and the name of its field that leads on

  """

  operator: str
  is_python: bool
  parents: list[tuple[ast.AST, str]]

  @property
  def node(self) -> ast.AST:
    """The innermost node that has all of it."""
    return self.parents[-1][0]


class Kind(NamedTuple):
  """A kind of mutants that are left out.

  @ivar name: in a few words
  @ivar reason: why no test could notice them
  @ivar applies: tells whether a mutant is of this kind

  """

  name: str
  reason: str
  applies: Callable[[Site], bool]


def _is_annotation(site: Site) -> bool:
  evaluated_late = any(
    isinstance(node, ast.ImportFrom) and node.module == "__future__"
    for node in getattr(site.parents[0][0], "body", [])
  )
  return evaluated_late and any(
    field in {"annotation", "returns"} for _, field in site.parents
  )


def _is_for_type_checker(site: Site) -> bool:
  return any(
    isinstance(node, ast.If)
    and ast.unparse(node.test) == "TYPE_CHECKING"
    and not node.orelse
    for node, _ in site.parents
  )


def _is_enum_member(node: ast.AST) -> bool:
  """Tells whether this is Class.MEMBER, perhaps in a module."""
  if not (isinstance(node, ast.Attribute) and node.attr.isupper()):
    return False
  owner = ast.unparse(node.value).split(".")[-1]
  return bool(re.fullmatch(r"_?[A-Z]+[a-z]\w*", owner))


def _is_identity_of_enum(site: Site) -> bool:
  return (
    site.operator.endswith(("_Is_Eq", "_Eq_Is", "_IsNot_NotEq", "_NotEq_IsNot"))
    and isinstance(site.node, ast.Compare)
    and any(map(_is_enum_member, [site.node.left, *site.node.comparators]))
  )


def _is_cache(site: Site) -> bool:
  return any(
    isinstance(node, ast.Call)
    and ast.unparse(node.func) == "functools.lru_cache"
    for node, _ in site.parents
  )


def _is_sum_of_flags(site: Site) -> bool:
  node = site.node
  return (
    site.operator.endswith(("_BitOr_Add", "_BitOr_BitXor"))
    and isinstance(node, ast.BinOp)
    and all(
      ast.unparse(part).split(".")[-1].isupper()
      for side in (node.left, node.right)
      for part in ast.walk(side)
      if isinstance(part, ast.expr)
      and not isinstance(part, ast.BinOp)
      # The module that a flag is of
      and not (isinstance(part, ast.Name) and part.id.islower())
    )
  )


def _is_keyword_only(site: Site) -> bool:
  return site.operator.endswith("Mul_Div") and isinstance(
    site.node, (ast.FunctionDef, ast.Lambda)
  )


def _is_limit(site: Site) -> bool:
  """Tells whether a limit, or a time in seconds, is an eighth off at most."""
  if len(site.parents) < 2 or not isinstance(site.node, ast.Constant):  # noqa: PLR2004
    return False
  statement = site.parents[1][0]
  if not isinstance(statement, ast.Assign) or site.operator != "NumberReplacer":
    return False
  is_product = all(
    isinstance(node, (ast.BinOp, ast.Mult, ast.Constant))
    for node in ast.walk(statement.value)
  )
  number = site.node.value
  return (
    is_product
    and number >= _MUCH
    and (
      isinstance(number, float)
      or bool(re.match("_?MAX_", ast.unparse(statement.targets[0])))
    )
  )


#: The mutants that are left out. A kind is here only if none of it changes what
#: the module does, or if just that is somebody's choice.
KINDS = (
  Kind(
    "no Python",
    "it cannot be compiled: every test notices it, so it says nothing of them",
    lambda site: not site.is_python,
  ),
  Kind(
    "annotation",
    "with annotations of __future__ it is never evaluated",
    _is_annotation,
  ),
  Kind(
    "for the type checker",
    "under TYPE_CHECKING are names for annotations, which nothing else reads",
    _is_for_type_checker,
  ),
  Kind(
    "identity of an enum's member",
    "it is equal to nothing but itself",
    _is_identity_of_enum,
  ),
  Kind(
    "sum of flags",
    "each has a bit of its own, so that to add them is to unite them",
    _is_sum_of_flags,
  ),
  Kind(
    "keyword-only",
    "the star only forbids to pass by place what all pass by name",
    _is_keyword_only,
  ),
  Kind(
    "a little of a limit",
    "how much a MAX_... or a time in seconds is was chosen, and tests take it"
    " by its name; a change by more than an eighth counts",
    _is_limit,
  ),
  Kind(
    "size of a cache",
    "it decides how much is computed again, not what comes out",
    _is_cache,
  ),
)


def modules(tree: pathlib.Path) -> Iterator[Module]:
  """Gives the modules of a tree."""
  tests = {
    path.stem: str(path.relative_to(tree))
    for path in sorted(tree.glob("test/py/unit/test_*.py"))
  }
  found = [
    (package, path)
    for package in _PACKAGES
    for path in sorted((tree / package).rglob("*.py"))
  ]
  names = [_name(tree / package, path) for package, path in found]
  for name, (_, path) in zip(names, found):
    parts = name.split(".")
    # The tests of a module in a folder, or else those of the folder.
    candidates = ["_".join(parts), parts[-1], parts[0]]
    own = [
      tests[f"test_{each}"]
      for each in candidates
      if f"test_{each}" in tests and (each == name or each not in names)
    ]
    if len(parts) > 1 and parts[0] in names and f"test_{parts[0]}" in tests:
      own.append(tests[f"test_{parts[0]}"])
    yield Module(name, str(path.relative_to(tree)), own[0] if own else None)


def _name(package: pathlib.Path, path: pathlib.Path) -> str:
  parts = [*path.relative_to(package).with_suffix("").parts]
  if package.name != "kvmd" or parts == ["__init__"]:
    parts.insert(0, package.name)
  if parts[-1] == "__init__":
    parts.pop()
  return ".".join(parts)


def choose(known: list[Module], wanted: list[str]) -> list[Module]:
  """Finds modules by their names or paths.

  @raise SystemExit: if there is none, or more than one

  """
  chosen = []
  for each in wanted:
    found = [module for module in known if each in {module.name, module.path}]
    found = found or [
      module for module in known if module.name.split(".")[-1] == each
    ]
    if len(found) != 1:
      names = ", ".join(module.name for module in found or known)
      raise SystemExit(f"mutate: {each} is not one of {names}")
    chosen += found
  return chosen or known


def mutants(source: str) -> Iterator[Mutant]:
  """Gives all mutants of a module.

  @param source: all of the module

  """
  # From the virtual environment that devel/mutate keeps; the tests of this
  # file do without.
  import parso
  from cosmic_ray.operators.provider import OperatorProvider

  def nodes(parent: Any) -> Iterator[tuple[Any, int, Any]]:
    for number, child in enumerate(getattr(parent, "children", [])):
      yield parent, number, child
      yield from nodes(child)

  provider = OperatorProvider()
  operators = {
    # The others replace a variable by a random number.
    name: provider[name]()
    for name in provider
    if not provider[name].arguments()
  }
  changes = [
    (name, place, index, start, end)
    for place, (_, _, node) in enumerate(nodes(parso.parse(source)))
    for name, operator in operators.items()
    for index, (start, end) in enumerate(operator.mutation_positions(node))
  ]
  for name, place, index, start, end in changes:
    module = parso.parse(source)
    parent, number, node = next(itertools.islice(nodes(module), place, None))
    try:
      changed = operators[name].mutate(node, index)
    except AttributeError:
      # An exception of another module, in a tuple: that it cannot replace.
      continue
    # One that is removed leaves nothing.
    parent.children[number : number + 1] = [] if changed is None else [changed]
    text = module.get_code()
    yield Mutant(
      name, start, end, text.replace(_UNKNOWN_EXCEPTION, _UNUSED_EXCEPTION)
    )


def site(source: str, mutant: Mutant) -> Site:
  """Finds the place of a mutant in the syntax tree of its module."""
  try:
    with warnings.catch_warnings():
      # Such as an identity with a literal.
      warnings.simplefilter("ignore")
      compile(mutant.text, "mutant", "exec", dont_inherit=True)
    is_python = True
  except (SyntaxError, ValueError):
    is_python = False
  parents: list[tuple[ast.AST, str]] = []
  node: Optional[ast.AST] = ast.parse(source)
  while node is not None:
    inside = _child(node, mutant)
    parents.append((node, inside[0] if inside else ""))
    node = inside[1] if inside else None
  return Site(mutant.operator, is_python, parents)


def _child(node: ast.AST, mutant: Mutant) -> Optional[tuple[str, ast.AST]]:
  """Finds the field of a node that has the whole place, and what is there."""
  for field, value in ast.iter_fields(node):
    for each in value if isinstance(value, list) else [value]:
      if not isinstance(each, ast.AST):
        continue
      if not hasattr(each, "lineno"):
        # Such as the arguments of a function, which have no place themselves.
        if found := _child(each, mutant):
          return found
        continue
      first = min(
        [each, *getattr(each, "decorator_list", [])],
        key=lambda part: (part.lineno, part.col_offset),
      )
      if (first.lineno, first.col_offset) <= mutant.start and mutant.end <= (
        each.end_lineno,
        each.end_col_offset,
      ):
        return field, each
  return None


def kind_of(source: str, mutant: Mutant) -> Optional[Kind]:
  """Says of which kind a mutant is that is left out; None if it is not."""
  place = site(source, mutant)
  return next((kind for kind in KINDS if kind.applies(place)), None)


def describe(path: str, source: str, mutant: Mutant) -> str:
  """Shows a mutant: where it is, and its lines before and after.

  @param path: of the module, in the tree
  @param source: all of the module

  """
  lines = [f"{path}:{mutant.start[0]}  {mutant.operator}"]
  changes = difflib.unified_diff(
    source.splitlines(), mutant.text.splitlines(), n=0
  )
  lines += [
    f"  {line[0]} {line[1:].strip()}"
    for line in itertools.islice(changes, 2, None)
    if line[0] in "-+" and line[1:].strip()
  ]
  return "\n".join(lines)


class Tree:
  """A copy of the tree, for one mutant at a time."""

  def __init__(self, path: pathlib.Path, python: str) -> None:
    """Gets a copy ready.

    @param path: of the copy, which is built
    @param python: the interpreter of the build

    """
    self.path = path
    self._python = python
    self._temporary = path.parent / f"t{path.name}"
    self._temporary.mkdir()
    self._temporary.chmod(0o1777)
    self._count = 0
    self._runner: Optional[subprocess.Popen[str]] = None

  def begin(self, module: Module) -> None:
    """Starts what runs the tests of a module."""
    build = self.path / "build"
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
      namespace += ["--user", "--map-current-user"]
    if module.name in _OF_THE_MACHINE:
      namespace = []
    self._runner = subprocess.Popen(
      [
        *["setpriv", "--pdeathsig", "KILL", *namespace, self._python],
        str(pathlib.Path(__file__).with_name("mutate_tests.py")),
        str(self._temporary / "output"),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=self.path,
      env={
        **os.environ,
        "GANETI_KVMD_BUILD": str(build),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(build / ".hypothesis"),
        # Two mutants of one size in one second would share their byte code.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(build),
        "TMPDIR": str(self._temporary),
      },
    )

  def run(
    self, tests: str, limit: float, *options: str
  ) -> tuple[Optional[int], float, str]:
    """Runs tests.

    @param tests: the file of the tests, in the tree
    @param limit: how long they may take, in seconds
    @param options: for pytest
    @return: their status, None if they took too long; how long they took, in
      seconds; what pytest said at the end

    """
    assert self._runner is not None
    assert self._runner.stdin is not None
    assert self._runner.stdout is not None
    request = [limit, ["-x", "-q", "-p", "no:cacheprovider", *options, tests]]
    self._runner.stdin.write(json.dumps(request) + "\n")
    self._runner.stdin.flush()
    status, seconds, said = json.loads(self._runner.stdout.readline())
    return status, seconds, said

  def write(self, path: str, text: str) -> None:
    """Replaces a module."""
    file = self.path / path
    file.write_text(text)
    self._count += 1
    os.utime(file, (self._count, self._count))

  def end(self) -> None:
    """Ends what runs the tests."""
    assert self._runner is not None
    self._runner.communicate()


class Result(NamedTuple):
  """What became of the mutants of a module.

  @ivar module: the module
  @ivar noticed: how many were noticed
  @ivar late: how many of them at the time limit
  @ivar survivors: those that were not
  @ivar left_out: how many were left out, by kind
  @ivar seconds: how long it took

  """

  module: Module
  noticed: int
  late: int
  survivors: list[Mutant]
  left_out: collections.Counter[str]
  seconds: float

  @property
  def share(self) -> float:
    """How many were noticed of those that could be, in per cent."""
    return 100 * self.noticed / max(1, self.noticed + len(self.survivors))

  @property
  def holds(self) -> bool:
    """Whether that is enough."""
    return not self.survivors or self.share >= self.module.target

  @property
  def text(self) -> str:
    """The same in one line, and one for what was left out."""
    total = self.noticed + len(self.survivors) + self.left_out.total()
    late = f" ({self.late} by the time limit)" if self.late else ""
    line = (
      f"{self.module.name}: {total} mutants: {self.noticed} noticed{late},"
      f" {len(self.survivors)} survived, {self.left_out.total()} equivalent;"
      f" {self.share:.1f} % noticed, target {self.module.target:.0f} %"
      f" {'holds' if self.holds else 'MISSED'} ({self.seconds:.0f} s)"
    )
    kinds = [f"{number} {name}" for name, number in self.left_out.items()]
    return "\n  equivalent: ".join([line, *filter(None, [", ".join(kinds)])])


def examine(module: Module, trees: list[Tree]) -> Result:
  """Tests all mutants of a module.

  @raise SystemExit: if its tests fail without any

  """
  began = time.monotonic()
  assert module.tests is not None
  source = (trees[0].path / module.path).read_text()
  left_out: collections.Counter[str] = collections.Counter()
  todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
  for mutant in mutants(source):
    kind = kind_of(source, mutant)
    if kind is None:
      todo.put(mutant)
    else:
      left_out[kind.name] += 1
  survivors: list[Mutant] = []
  times = []
  for tree in trees:
    tree.begin(module)
    status, seconds, said = tree.run(module.tests, 600.0, "--tb=short")
    if status != 0:
      raise SystemExit(f"{said}mutate: {module.tests} fails without a mutant")
    times.append(seconds)
  # Much longer than on the same machine just now, whatever else it has to do.
  limit = 3 * max(times) + 5
  # Of those that were noticed; None is the time limit.
  statuses: list[Optional[int]] = []
  print(
    f"{module.name}: {todo.qsize()} mutants of"
    f" {todo.qsize() + left_out.total()} to be tested, at most"
    f" {limit:.0f} s each",
    flush=True,
  )

  def work(tree: Tree) -> None:
    assert module.tests is not None
    while True:
      try:
        mutant = todo.get_nowait()
      except queue.Empty:
        break
      tree.write(module.path, mutant.text)
      status, _, _ = tree.run(module.tests, limit, "--tb=no")
      if status == 0:
        survivors.append(mutant)
        print(describe(module.path, source, mutant), flush=True)
      else:
        statuses.append(status)
    tree.write(module.path, source)
    tree.end()

  workers = [threading.Thread(target=work, args=[tree]) for tree in trees]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  survivors.sort(key=lambda mutant: mutant.start)
  return Result(
    module,
    len(statuses),
    statuses.count(None),
    survivors,
    left_out,
    time.monotonic() - began,
  )


def main(arguments: Iterable[str]) -> int:
  """Tests the mutants of some modules; returns the status of the command."""
  parser = argparse.ArgumentParser(prog="devel/mutate")
  parser.add_argument("--python", required=True)
  parser.add_argument("--tree", action="append", required=True)
  parser.add_argument("modules", nargs="*")
  options = parser.parse_args(list(arguments))
  paths = [pathlib.Path(tree) for tree in options.tree]
  chosen = choose(list(modules(paths[0])), options.modules)
  trees = [Tree(path, options.python) for path in paths]
  results = []
  without = []
  for module in chosen:
    if module.tests is None:
      without.append(module.name)
      continue
    results.append(examine(module, trees))
    print(results[-1].text, flush=True)
  if len(results) > 1:
    print("\n".join(["", *(result.text for result in results)]))
  if without:
    print(f"without tests of their own: {', '.join(without)}")
  return 0 if not without and all(result.holds for result in results) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what devel/mutate finds, leaves out and says.

Here mutants are made by hand: of a text, and what stands in its place.
"""

from __future__ import annotations

import collections
import importlib.util
import pathlib

import pytest

_TOP = pathlib.Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location(
  "mutate", _TOP / "devel" / "mutate.py"
)
mutate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutate)

SOURCE = '''\
"""A module."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from typing import Union

  Number = Union[int, 7]

MAX_SIZE = 64 * 1024
_MAX_TRIES = 3
_PATIENCE = 60.0
_PAUSE = 0.5
_FLAG = 16
_MAX_BOTH = 16 * MAX_SIZE
_OPEN = os.O_RDWR | os.O_CREAT | _FLAG
_MIXED = os.O_RDWR | 2
_MASKED = os.O_RDWR | mask(_FLAG)


class Point(NamedTuple):
  x: int | None = 1


class Place:
  @property
  def point(self) -> str | None:
    return self.kind is Kind.POINT or self.other == module.Kind.LINE


@functools.lru_cache(maxsize=16)
def far(a: float | int, b, *rest) -> bool:
  if a is None:
    return b == 2
  try:
    return a < b < 3
  except (KeyError, TypeError):
    return far(*rest)


def near(a, *, b):
  return far(a, b)
'''


def mutant(before, after, operator="NumberReplacer"):
  """Makes a mutant of a text; what changes in it is between bars."""
  left, old, right = before.split("¦")
  assert SOURCE.count(left + old + right) == 1
  head, tail = SOURCE.split(left + old + right)
  head += left
  tail = right + tail
  line = head.count("\n") + 1
  column = len(head) - head.rfind("\n") - 1
  return mutate.Mutant(
    operator, (line, column), (line, column + len(old)), head + after + tail
  )


@pytest.mark.parametrize(
  ("before", "after", "operator", "kind"),
  [
    ("def far(a: float ¦|¦ int", "+", "BitOr_Add", "annotation"),
    ("-> str ¦|¦ None", "-", "BitOr_Sub", "annotation"),
    ("x: int ¦|¦ None", "-", "BitOr_Sub", "annotation"),
    ("Union[int, ¦7¦]", "8", "NumberReplacer", "for the type checker"),
    ("if ¦TYPE_CHECKING¦:", "not TYPE_CHECKING", "AddNot", "for the type"),
    ("kind ¦is¦ Kind.POINT", "==", "Comparison_Is_Eq", "identity"),
    ("other ¦==¦ module.Kind", "is", "Comparison_Eq_Is", "identity"),
    ("maxsize=¦16¦", "17", "NumberReplacer", "size of a cache"),
    ("MAX_SIZE = ¦64¦", "65", "NumberReplacer", "a little of a limit"),
    ("_PATIENCE = ¦60.0¦", "59.0", "NumberReplacer", "a little of a limit"),
    ("os.O_RDWR ¦|¦ os.O_CREAT", "+", "_BitOr_Add", "sum of flags"),
    ("os.O_CREAT ¦|¦ _FLAG", "^", "_BitOr_BitXor", "sum of flags"),
    ("def near(a, ¦*¦", "/", "Mul_Div", "keyword-only"),
    ("¦*¦rest)\n", "/", "Mul_Div", "no Python"),
  ],
)
def test_what_nothing_could_notice_is_left_out(before, after, operator, kind):
  found = mutate.kind_of(SOURCE, mutant(before, after, operator))
  assert found.name.startswith(kind)


@pytest.mark.parametrize(
  ("before", "after", "operator"),
  [
    ("x: int | None = ¦1¦", "2", "NumberReplacer"),
    ("64 ¦*¦ 1024", "+", "Mul_Add"),
    ("os.O_RDWR ¦|¦ os.O_CREAT", "&", "_BitOr_BitAnd"),
    ("os.O_RDWR ¦|¦ 2", "+", "_BitOr_Add"),
    ("os.O_RDWR ¦|¦ mask", "+", "_BitOr_Add"),
    ("_MAX_TRIES = ¦3¦", "4", "NumberReplacer"),
    ("_PAUSE = ¦0.5¦", "1.5", "NumberReplacer"),
    ("_FLAG = ¦16¦", "17", "NumberReplacer"),
    ("_MAX_BOTH = ¦16¦", "17", "NumberReplacer"),
    ("b, ¦*¦rest", "**", "Mul_Pow"),
    ("return far(¦*¦rest)", "**", "Mul_Pow"),
    ("kind ¦is¦ Kind.POINT", "is not", "Comparison_Is_IsNot"),
    ("kind ¦is¦ Kind.POINT", "<=", "Comparison_Is_LtE"),
    ("a ¦is¦ None", "==", "Comparison_Is_Eq"),
    ("b ¦==¦ 2", "is", "Comparison_Eq_Is"),
    ("a ¦<¦ b", "<=", "Comparison_Lt_LtE"),
    ("¦  @property\n¦", "", "RemoveDecorator"),
    ("¦@functools.lru_cache(maxsize=16)\n¦", "", "RemoveDecorator"),
    ("¦KeyError¦, ", "StopAsyncIteration", "ExceptionReplacer"),
  ],
)
def test_what_a_test_can_notice_counts(before, after, operator):
  assert mutate.kind_of(SOURCE, mutant(before, after, operator)) is None


def test_annotations_that_are_evaluated_count():
  source = SOURCE.replace("from __future__", "from elsewhere")
  changed = mutant("-> str ¦|¦ None", "-", "BitOr_Sub")
  changed = changed._replace(
    text=changed.text.replace("__future__", "elsewhere")
  )
  assert mutate.kind_of(source, changed) is None


def test_every_kind_says_why():
  names = [kind.name for kind in mutate.KINDS]
  assert len(set(names)) == len(names)
  assert all(len(kind.reason) > 20 for kind in mutate.KINDS)


def test_survivor_is_shown_by_what_differs():
  survivor = mutant("a ¦<¦ b", "<=", "ReplaceComparisonOperator_Lt_LtE")
  assert mutate.describe("lib/kvmd/node/place.py", SOURCE, survivor) == (
    "lib/kvmd/node/place.py:39  ReplaceComparisonOperator_Lt_LtE\n"
    "  - return a < b < 3\n"
    "  + return a <= b < 3"
  )


def test_removed_line_is_shown_alone():
  survivor = mutant("¦  @property\n¦", "", "RemoveDecorator")
  assert mutate.describe("m.py", SOURCE, survivor) == (
    "m.py:29  RemoveDecorator\n  - @property"
  )


def _result(noticed, survived, name="watch"):
  changed = mutant("a ¦<¦ b", "<=")
  return mutate.Result(
    mutate.Module(name, f"lib/kvmd/{name}.py", f"test_{name}.py"),
    noticed,
    2,
    [changed] * survived,
    collections.Counter({"annotation": 3, "no Python": 1}),
    12.3,
  )


@pytest.mark.parametrize(
  ("noticed", "survived", "name", "holds"),
  [
    (85, 15, "watch", True),
    (84, 16, "watch", False),
    (95, 5, "core.qmp", True),
    (94, 6, "core.qmp", False),
    (0, 0, "core.qmp", True),
  ],
)
def test_share_is_of_those_that_could_be_noticed(
  noticed, survived, name, holds
):
  assert _result(noticed, survived, name).holds is holds


def test_result_says_all_the_numbers():
  assert _result(84, 16).text == (
    "watch: 104 mutants: 84 noticed (2 by the time limit), 16 survived,"
    " 4 equivalent; 84.0 % noticed, target 85 % MISSED (12 s)\n"
    "  equivalent: 3 annotation, 1 no Python"
  )


@pytest.fixture
def tree(tmp_path):
  for name in (
    "lib/kvmd/__init__.py",
    "lib/kvmd/main.py",
    "lib/kvmd/core/qmp.py",
    "lib/kvmd/untested.py",
    "lib/kvmd/files/__init__.py",
    "lib/kvmd/files/lock.py",
    "lib/kvmd/files/marks.py",
    "lib/kvmd/setup/main.py",
    "lib/hypervisor/hv_kvm/__init__.py",
    "lib/hypervisor/hv_kvm/launch.py",
    "lib/hypervisor/hv_kvm/shutdown.py",
    # What is tried on a whole cluster is no test of a module.
    "test/py/cluster/test_shutdown.py",
    "test/py/unit/test_files.py",
    "test/py/unit/test_hv_kvm.py",
    "test/py/unit/test_launch.py",
    "test/py/unit/test_lock.py",
    "test/py/unit/test_main.py",
    "test/py/unit/test_qmp.py",
    "test/py/unit/test_setup.py",
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path


def test_modules_and_their_tests_are_found_wherever_they_are(tree):
  found = {module.name: module.tests for module in mutate.modules(tree)}
  unit = "test/py/unit"
  assert found == {
    "kvmd": None,
    "main": f"{unit}/test_main.py",
    "core.qmp": f"{unit}/test_qmp.py",
    "untested": None,
    "files": f"{unit}/test_files.py",
    "files.lock": f"{unit}/test_lock.py",
    "files.marks": f"{unit}/test_files.py",
    # It is not the module that test_main.py is about.
    "setup.main": f"{unit}/test_setup.py",
    "hv_kvm": f"{unit}/test_hv_kvm.py",
    "hv_kvm.launch": f"{unit}/test_launch.py",
    "hv_kvm.shutdown": f"{unit}/test_hv_kvm.py",
  }


def test_module_is_chosen_by_name_or_path(tree):
  known = list(mutate.modules(tree))
  assert mutate.choose(known, []) == known
  chosen = mutate.choose(
    known, ["lock", "main", "setup.main", "lib/hypervisor/hv_kvm/launch.py"]
  )
  assert [module.name for module in chosen] == [
    "files.lock",
    "main",
    "setup.main",
    "hv_kvm.launch",
  ]


def test_unknown_module_is_refused(tree):
  with pytest.raises(SystemExit, match=r"mutate: qmb is not one of .*qmp"):
    mutate.choose(list(mutate.modules(tree)), ["qmb"])


def test_every_module_of_this_tree_is_found():
  found = {module.name for module in mutate.modules(_TOP)}
  assert {"core.lifecycle", "core.qmp", "hv_kvm", "node.watch"} <= found

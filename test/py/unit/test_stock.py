# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What we use of Ganeti is there, in the Ganeti that is installed.

Names of its modules are found in our sources by themselves; the rest is written
down here. A release of Ganeti that drops or changes something fails here first.
"""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys
import typing

import packages
import pytest
import stock_calls
from ganeti import constants, hypervisor, utils
from ganeti.hypervisor import hv_base, hv_kvm
from ganeti.hypervisor.hv_kvm import launch, stock, user_shutdown
from ganeti.kvmd.node import ctrldir
from ganeti.tools.kvmd_setup import node
from stock_calls import OVERRIDDEN

_LIB = pathlib.Path(__file__).resolve().parents[3] / "lib"
_GANETI = pathlib.Path(inspect.getsourcefile(constants)).parents[1]
_STOCK = stock.KVMHypervisor
_OURS = user_shutdown.UserShutdown

#: What Ganeti's methods have to call, so that ours are reached.
CALLS = {
  "StartInstance": {"_ExecuteKVMRuntime"},
  "RebootInstance": {"_ExecuteKVMRuntime", "StopInstance"},
  "AcceptInstance": {"_ExecuteKVMRuntime"},
  "_ExecuteKVMRuntime": {
    "_ClearUserShutdown",
    "_InstanceKvmdMonitor",
    "_RunKVMCmd",
    "_StartKvmd",
  },
  "CleanupInstance": {"_ClearUserShutdown"},
  "FinalizeMigrationDst": {"StopInstance"},
  "FinalizeMigrationSource": {"_ClearUserShutdown", "CleanupInstance"},
  "GetAllInstancesInfo": {"GetInstanceInfo"},
  "GetInstanceInfo": {"_InstancePidAlive", "_IsUserShutdown"},
}

#: What we ask Ganeti's daemon-util for.
TOOL_COMMANDS = {
  "check",
  "daemon_executable",
  "daemon_pidfile",
  "start",
  "stop",
}


def _sources() -> list[pathlib.Path]:
  return sorted(_LIB.rglob("*.py"))


def _uses(source: pathlib.Path) -> set[tuple[str, str]]:
  """Finds the names that a module of ours uses of Ganeti's modules."""
  tree = ast.parse(source.read_text())
  modules = {}
  for each in ast.walk(tree):
    if isinstance(each, ast.ImportFrom) and each.module in {
      "ganeti",
      "ganeti.hypervisor",
    }:
      for alias in each.names:
        modules[alias.asname or alias.name] = f"{each.module}.{alias.name}"
  return {
    (modules[each.value.id], each.attr)
    for each in ast.walk(tree)
    if isinstance(each, ast.Attribute)
    and isinstance(each.value, ast.Name)
    and each.value.id in modules
  }


def _definition(method: str) -> ast.FunctionDef:
  """Finds the source of a method of Ganeti's; decorators hide it otherwise."""
  (found,) = (
    each
    for each in ast.walk(ast.parse(inspect.getsource(_STOCK)))
    if isinstance(each, ast.FunctionDef) and each.name == method
  )
  return found


def _called(method: str) -> set[str]:
  """Finds the methods of its own that a method of Ganeti's calls."""
  return {
    each.attr
    for each in ast.walk(_definition(method))
    if isinstance(each, ast.Attribute)
  }


def _static(method: str) -> typing.Any:
  """Returns a method of ours as a plain function."""
  found = inspect.getattr_static(_OURS, method)
  return getattr(found, "__func__", found)


@pytest.mark.parametrize(
  "source", _sources(), ids=lambda path: str(path.relative_to(_LIB))
)
def test_names_of_modules(source: pathlib.Path) -> None:
  for module, name in _uses(source):
    found = __import__(module, fromlist=[name])
    assert hasattr(found, name), f"{module}.{name}"


def test_names_are_found_in_sources() -> None:
  used = {use for source in _sources() for use in _uses(source)}
  assert ("ganeti.pathutils", "DAEMON_UTIL") in used
  assert ("ganeti.constants", "HV_KVM_USER_SHUTDOWN") in used
  assert ("ganeti.utils", "RunCmd") in used
  assert ("ganeti.hypervisor.hv_kvm", "stock") not in used


class TestMethods:
  """The methods of Ganeti's class for KVM."""

  def test_overridden(self) -> None:
    both = {name for name in vars(_OURS) if hasattr(_STOCK, name)}
    assert {name for name in both if not name.startswith("__")} == OVERRIDDEN

  @pytest.mark.parametrize("method", sorted(OVERRIDDEN))
  def test_parameters(self, method: str) -> None:
    arguments = _definition(method).args
    assert not arguments.posonlyargs
    assert not arguments.kwonlyargs
    theirs = [each.arg for each in arguments.args]
    defaults = [ast.literal_eval(each) for each in arguments.defaults]

    parameters = list(inspect.signature(_static(method)).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
      # Whatever there is more of it is passed on
      parameters = parameters[:-2]
      theirs = theirs[: len(parameters)]
      defaults = []
    ours = [each.name for each in parameters]
    assert [
      each.default for each in parameters if each.default is not each.empty
    ] == defaults
    assert [
      their if their != "_" else our for our, their in zip(ours, theirs)
    ] == ours
    assert len(ours) == len(theirs)

  @pytest.mark.parametrize(
    "method", ["_ClearUserShutdown", "_IsUserShutdown", "_StartKvmd"]
  )
  def test_are_called_without_an_object(self, method: str) -> None:
    assert inspect.getattr_static(_STOCK, method).__class__ in {
      classmethod,
      staticmethod,
    }

  @pytest.mark.parametrize("method", sorted(CALLS))
  def test_calls(self, method: str) -> None:
    assert _called(method) >= CALLS[method]

  def test_everything_is_called(self) -> None:
    assert {call.method for call in stock_calls.find()} == OVERRIDDEN

  @pytest.mark.parametrize("call", stock_calls.find(), ids=str)
  def test_arguments(self, call: stock_calls.Call) -> None:
    """They fit ours; C{test_hv_kvm} makes these calls."""
    found = inspect.getattr_static(_OURS, call.method)
    hidden = [] if isinstance(found, staticmethod) else [None]
    signature = inspect.signature(_static(call.method))
    signature.bind(*hidden, *call.positional, **call.named)

  def test_what_ours_call(self) -> None:
    _, process, alive = _STOCK._InstancePidAlive("no-such-instance")
    assert (process, alive) == (0, False)
    assert _STOCK._CheckDown("no-such-instance") is None
    runtime = _STOCK._InstanceKVMRuntime("web1")
    assert runtime == os.path.join(_STOCK._CONF_DIR, "web1.runtime")
    inspect.signature(utils.RunCmd).bind(["command"], timeout=1)
    result = utils.RunCmd(["false"], timeout=10)
    assert result.failed
    assert (result.cmd, result.output) == ("false", "")
    assert result.fail_reason


class TestPaths:
  """Paths and file names, which Ganeti writes down as well."""

  def test_control_directory(self) -> None:
    assert ctrldir.ganeti_path() == _STOCK._CTRL_DIR

  @pytest.mark.parametrize(
    ("method", "suffix"),
    [
      ("_InstanceKvmdMonitor", ctrldir.MONITOR_SUFFIX),
      ("_InstanceShutdownMonitor", ctrldir.Mark.SHUTDOWN.value),
    ],
  )
  def test_instance_files(self, method: str, suffix: str) -> None:
    path = getattr(_STOCK, method)("web1")
    assert path == os.path.join(_STOCK._CTRL_DIR, "web1" + suffix)

  def test_marks_are_no_files_of_ganetis(self) -> None:
    theirs = {
      getattr(_STOCK, name)("web1")
      for name in dir(_STOCK)
      if re.fullmatch("_Instance(Monitor|Serial|QmpMonitor|Qga.*)", name)
    }
    assert len(theirs) > 1
    for suffix in (ctrldir.Mark.POWERDOWN.value, ctrldir.JOURNAL_EVENTS):
      assert os.path.join(_STOCK._CTRL_DIR, "web1" + suffix) not in theirs


class TestTool:
  """Ganeti's daemon-util."""

  @pytest.fixture
  def ganeti(self) -> node.Ganeti:
    """The installed Ganeti, as ganeti-kvmd-setup finds it."""
    return node.Ganeti(str(_GANETI))

  def test_is_found(self, ganeti: node.Ganeti) -> None:
    ganeti.check()
    assert ganeti.version == constants.RELEASE_VERSION
    assert ganeti.daemon_util == launch.pathutils.DAEMON_UTIL

  def test_commands(self, ganeti: node.Ganeti) -> None:
    text = pathlib.Path(ganeti.daemon_util).read_text()
    functions = set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE))
    assert functions >= TOOL_COMMANDS

  def test_pid_file(self, ganeti: node.Ganeti) -> None:
    command = [ganeti.daemon_util, "daemon-pidfile", constants.KVMD]
    said = subprocess.run(
      command, stdout=subprocess.PIPE, text=True, check=True
    )
    assert said.stdout.strip() == launch.pid_file()


class TestPackages:
  """The packages of Ganeti's that modules of ours are in."""

  def test_build_tree(self) -> None:
    both = {
      **packages.daemon(),
      **packages.hypervisor(),
      **packages.setup(),
      **packages.ganetis(_GANETI),
    }
    assert "ganeti.tools.burnin" in both
    assert "ganeti.hypervisor.hv_xen" in both
    assert "ganeti.hypervisor.hv_kvm.monitor" in both

    def python(*words: str) -> str:
      return subprocess.run(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True
      ).stdout

    packages.check(python, os.environ["GANETI_KVMD_BUILD"], both)

  @pytest.mark.parametrize("name", ["__init__.py", "tools/__init__.py"])
  def test_import_nothing(self, name: str) -> None:
    """So ganeti-kvmd-setup runs whatever of Ganeti is broken."""
    tree = ast.parse((_GANETI / "ganeti" / name).read_text())
    imported = {
      ast.unparse(each)
      for each in ast.walk(tree)
      if isinstance(each, (ast.Import, ast.ImportFrom))
    }
    # Ganeti makes sure that there is no such module.
    assert imported <= {"from ganeti import ganeti"}


class TestFront:
  """Our module in front of Ganeti's."""

  def test_class(self) -> None:
    used = hypervisor.GetHypervisorClass(constants.HT_KVM)
    assert used is hv_kvm.KVMHypervisor
    assert used.__mro__[1:3] == (_OURS, _STOCK)

  def test_every_name_is_found(self) -> None:
    assert len(vars(stock)) > 50
    for name, value in vars(stock).items():
      if name != "KVMHypervisor" and not name.startswith("__"):
        assert getattr(hv_kvm, name) is value

  def test_no_other_name_is(self) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
      _ = hv_kvm.no_such_name

  def test_state_of_what_its_user_shut_down(self) -> None:
    assert hv_base.HvInstanceState.SHUTDOWN

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What Ganeti calls of the KVM hypervisor's methods, and with which arguments.

The calls are found in the source of the Ganeti that is installed.
"""

from __future__ import annotations

import ast
import functools
import inspect
import pathlib
import typing

from ganeti import constants
from ganeti.hypervisor.hv_kvm import stock

_GANETI = pathlib.Path(inspect.getsourcefile(constants)).parent

#: Methods of Ganeti's that ours take the place of.
OVERRIDDEN = {
  "CleanupInstance",
  "FinalizeMigrationDst",
  "FinalizeMigrationSource",
  "GetInstanceInfo",
  "StopInstance",
  "_ClearUserShutdown",
  "_ExecuteKVMRuntime",
  "_IsUserShutdown",
  "_RunKVMCmd",
  "_StartKvmd",
}

#: Its other hypervisors, which call methods of their own.
_OTHERS = {f"hv_{name}" for name in ("chroot", "fake", "lxc", "xen")}

#: What has a method of the same name and is no hypervisor: the configuration,
#: and the module that calls the hypervisor.
_NO_HYPERVISOR = ("cfg", "backend")


class Call(typing.NamedTuple):
  """A call of a method.

  @ivar place: the module and the line
  @ivar method: the method's name
  @ivar positional: the arguments without a name, as they are written
  @ivar named: the arguments with a name

  """

  place: str
  method: str
  positional: list[str]
  named: dict[str, str]

  def __str__(self) -> str:
    return f"{self.place}-{self.method}"


@functools.cache
def find() -> list[Call]:
  """Finds all calls of these methods."""
  sources = {
    f"{path.relative_to(_GANETI)}": path
    for path in _GANETI.rglob("*.py")
    if path.stem not in _OTHERS and path.parent.name != "hv_kvm"
  }
  # It is elsewhere where ours has taken its place.
  sources["hv_kvm"] = pathlib.Path(inspect.getsourcefile(stock))
  return [
    Call(
      f"{name}:{each.lineno}",
      each.func.attr,
      [ast.unparse(argument) for argument in each.args],
      {keyword.arg: ast.unparse(keyword.value) for keyword in each.keywords},
    )
    for name, path in sorted(sources.items())
    for each in ast.walk(ast.parse(path.read_text()))
    if isinstance(each, ast.Call)
    and isinstance(each.func, ast.Attribute)
    and each.func.attr in OVERRIDDEN
    and not ast.unparse(each.func.value).endswith(_NO_HYPERVISOR)
  ]

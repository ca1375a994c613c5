# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""devel/graft: the module in Ganeti's own source tree.

What the tree is to be like follows from what is found there and from our files.
It is the same for a tree that was grafted before, so doing it again changes
nothing, and brings what has changed here since.

  - lib/kvmd/ is ours; the daemon is made by Ganeti's rule for Python daemons
    and installed instead of the one in Haskell, which is still compiled.
  - lib/hypervisor/hv_kvm/__init__.py becomes stock.py beside it, and ours takes
    its place.
  - Our unit tests are run as one test by Ganeti's test runner. Ganeti's own of
    that code patch two names inside the module, which are in stock.py then.
  - Files of ours get the notice that Ganeti's check-header wants.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys

_OURS = pathlib.Path(__file__).resolve().parents[1]
_OUR_NOTICE = (
  "# Copyright (C) 2026 the ganeti-kvmd developers\n"
  "# SPDX-License-Identifier: BSD-2-Clause\n\n"
)

_MAKEFILE = "Makefile.am"
_HV_KVM = "lib/hypervisor/hv_kvm"
_STOCK = f"{_HV_KVM}/stock.py"
_FRONT = f"{_HV_KVM}/__init__.py"
_TESTS = "test/py/kvmd"
_STOCK_TESTS = "/ganeti.hypervisor.hv_kvm_unittest.py"

#: Our tests of what is not in Ganeti's tree: our build, our documents, our
#: developer's commands and what we use of an installed Ganeti
_OTHER_TESTS = {
  "packages.py",
  "test_build.py",
  "test_design.py",
  "test_mutate.py",
  "test_stock.py",
}

#: What Ganeti's own unit tests patch, and what has moved with the code
_PATCHED = re.compile(r"(?<='ganeti\.hypervisor\.hv_kvm)(?=\.(?:QmpC|OpenT))")

#: Runs our tests; they need pytest and hypothesis
_RUNNER = '''\
"""Script for unittesting the KVM daemon; its tests are in {tests}."""

import os
import sys

import pytest

# The directory that has the packages ganeti and daemons
os.environ["GANETI_KVMD_BUILD"] = os.environ["PYTHONPATH"] = os.getcwd()

if __name__ == "__main__":
  sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "{tests}"]))
'''


class GraftError(Exception):
  """The tree is not one that is known here; the text says why."""


class Makefile:
  """Ganeti's Makefile.am, and the changes that are made to it."""

  def __init__(self, text: str) -> None:
    self.text = text

  def entries(self, name: str) -> list[str]:
    """Returns the values of a variable.

    @raise GraftError: if there is no such variable

    """
    return self._find(name)[1].replace("\\", " ").split()

  def has(self, name: str) -> bool:
    """Tells whether there is a variable."""
    return f"\n{name} = " in self.text

  def add(self, name: str, value: str) -> None:
    """Adds a value to a variable that is a list over several lines."""
    if value not in self.entries(name):
      match = self._find(name)
      self._insert(match.start(1), f"\t{value} \\\n")

  def remove(self, name: str, value: str) -> None:
    """Removes a value of a list, which must not be the last."""
    match = self._find(name)
    lines = match[1].replace(f"\t{value} \\\n", "")
    self.text = self.text[: match.start(1)] + lines + self.text[match.end(1) :]

  def define(self, name: str, values: list[str], before: str) -> None:
    """Defines a variable of ours as a list.

    @param before: the variable in front of which it is put

    """
    lines = " \\\n".join(f"\t{value}" for value in sorted(values))
    definition = f"{name} = \\\n{lines}\n\n"
    pattern = re.compile(rf"^{name} = \\\n(?:\t.*\n)+\n", re.MULTILINE)
    if pattern.search(self.text):
      self.text = pattern.sub(lambda _: definition, self.text)
    else:
      self._insert(self._find(before).start(), definition)

  def add_line(self, line: str, after: str) -> None:
    """Adds a line after another.

    @raise GraftError: if that is not there

    """
    if f"\n{line}\n" not in self.text:
      place = self.text.find(f"\n{after}")
      if place < 0:
        raise GraftError(f"{_MAKEFILE} has no line '{after}'")
      self._insert(self.text.index("\n", place + 1) + 1, f"{line}\n")

  def _find(self, name: str) -> re.Match[str]:
    match = re.search(
      rf"^{name} ?= ?\\\n((?:\t.*\\\n)*\t.*[^\\]\n)", self.text, re.MULTILINE
    )
    if match is None:
      raise GraftError(f"{_MAKEFILE} has no list '{name}'")
    return match

  def _insert(self, place: int, text: str) -> None:
    self.text = self.text[:place] + text + self.text[place:]


class Graft:
  """What a Ganeti source tree is to be like.

  @ivar files: the texts of the files that are changed or added
  @ivar superfluous: files that an earlier graft added

  """

  def __init__(self, tree: pathlib.Path) -> None:
    """Works it out.

    @raise GraftError: if it is no tree that is known here

    """
    self._tree = tree
    self.files: dict[str, str] = {}
    if not (tree / _FRONT).is_file() or not (tree / _MAKEFILE).is_file():
      raise GraftError(
        "it has no Makefile.am or no lib/hypervisor/hv_kvm; graft into the"
        " unpacked source of Ganeti 3.0 or 3.1"
      )
    self._notice = self._read_notice()
    self._graft_sources()
    self._graft_tests()
    self._graft_makefile()
    self.superfluous = [
      str(path.relative_to(tree))
      for directory in ("lib/kvmd", _TESTS)
      for path in (tree / directory).rglob("*.py")
      if str(path.relative_to(tree)) not in self.files
    ]

  def differences(self) -> list[str]:
    """Says which files are not as they are to be."""
    return self.superfluous + [
      name for name, text in self.files.items() if self._read(name) != text
    ]

  def write(self) -> None:
    """Makes the tree what it is to be like."""
    for name in self.superfluous:
      (self._tree / name).unlink()
    # Ganeti's own file is at its new place before ours takes the old one
    for name in [_STOCK, *self.files]:
      if self._read(name) != self.files[name]:
        path = self._tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.files[name], encoding="utf-8")

  def _read(self, name: str) -> str | None:
    path = self._tree / name
    return path.read_text(encoding="utf-8") if path.is_file() else None

  def _read_notice(self) -> str:
    """Finds the notice that Ganeti's files begin with."""
    lines = (self._read("lib/hypervisor/hv_base.py") or "").splitlines()
    try:
      begin = lines.index("# All rights reserved.")
      end = lines.index("", begin)
    except ValueError as err:
      raise GraftError("lib/hypervisor/hv_base.py has no notice") from err
    notice = ["#", "#", "", "# Copyright (C) 2026 the Ganeti project"]
    return "\n".join([*notice, *lines[begin:end], "", ""])

  def _add(self, source: pathlib.Path, name: str) -> None:
    """Adds a file of ours."""
    text = source.read_text(encoding="utf-8")
    if not text.startswith(_OUR_NOTICE):
      raise GraftError(f"our own {source} has no notice")
    self.files[name] = self._notice + text[len(_OUR_NOTICE) :]

  def _graft_sources(self) -> None:
    lib = _OURS / "lib"
    for source in [
      *lib.glob("kvmd/**/*.py"),
      *lib.glob("server/*.py"),
      *lib.glob("hypervisor/hv_kvm/*.py"),
    ]:
      self._add(source, f"lib/{source.relative_to(lib)}")
    stock = self._read(_STOCK) or self._read(_FRONT) or ""
    if "\nclass KVMHypervisor(hv_base.BaseHypervisor):" not in stock:
      raise GraftError(f"{_FRONT} has no class KVMHypervisor as we know it")
    self.files[_STOCK] = stock

  def _graft_tests(self) -> None:
    tests = _OURS / "test" / "py"
    for source in [
      *tests.glob("*.py"),
      *tests.glob("guests/*.py"),
      *tests.glob("unit/*.py"),
    ]:
      if source.name not in _OTHER_TESTS:
        self._add(source, f"{_TESTS}/{source.relative_to(tests)}")

  def _graft_makefile(self) -> None:
    makefile = Makefile(self._read(_MAKEFILE) or "")
    names = list(self.files)
    sources = [name for name in names if name.startswith("lib/kvmd/")]
    tests = [name for name in names if name.startswith(f"{_TESTS}/")]

    for folder in sorted({os.path.dirname(name) for name in sources}):
      place = folder.removeprefix("lib/")
      kind = place.replace("/", "_")
      makefile.add_line(
        f"{kind}dir = $(pkgpythondir)/{place}", "hypervisor_hv_kvmdir = "
      )
      makefile.define(
        f"{kind}_PYTHON",
        [name for name in sources if os.path.dirname(name) == folder],
        "hypervisor_hv_kvm_PYTHON",
      )
      makefile.add("all_python_code", f"$({kind}_PYTHON)")
    for name in names:
      if name.startswith(f"{_HV_KVM}/") and name != _FRONT:
        makefile.add("hypervisor_hv_kvm_PYTHON", name)

    makefile.add("server_PYTHON", "lib/server/kvmd.py")
    makefile.add("PYTHON_BOOTSTRAP_SBIN", "daemons/ganeti-kvmd")
    for program in ("src/ganeti-kvmd", "exe/ganeti-kvmd"):
      makefile.remove("nodist_sbin_SCRIPTS", program)

    # Ganeti 3.1 has more than one kind of tests
    kind = "python_tests"
    if makefile.has("python_tests_legacy"):
      kind = "python_tests_legacy"
    theirs = next(
      (name for name in makefile.entries(kind) if name.endswith(_STOCK_TESTS)),
      None,
    )
    if theirs is None:
      raise GraftError(f"{_MAKEFILE} has no unit tests of hv_kvm")
    self.files[theirs] = _PATCHED.sub(".stock", self._read(theirs) or "")
    runner = theirs.replace("hypervisor.hv_kvm", "kvmd")
    self.files[runner] = self._notice + _RUNNER.format(tests=_TESTS)
    makefile.add(kind, runner)
    makefile.add_line(
      f"{runner}: daemons/ganeti-kvmd",
      "test/py/daemon-util_unittest.bash: ",
    )
    makefile.define("python_test_kvmd", tests, "python_test_support")
    makefile.add("python_test_support", "$(python_test_kvmd)")

    directories = {str(pathlib.Path(name).parent) for name in sources + tests}
    for name in sorted(directories, reverse=True):
      makefile.add("DIRS", name)
    self.files[_MAKEFILE] = makefile.text


def main(arguments: list[str]) -> int:
  """Does what the command line says.

  @return: the exit status

  """
  parser = argparse.ArgumentParser(
    prog="devel/graft",
    description="Adds the module to a Ganeti source tree.",
  )
  parser.add_argument(
    "--check", action="store_true", help="only say whether it is current"
  )
  parser.add_argument("tree", type=pathlib.Path, metavar="DIR")
  options = parser.parse_args(arguments)
  try:
    graft = Graft(options.tree)
    differences = graft.differences()
    if options.check:
      for name in sorted(differences):
        print(f"differs: {name}")
      print("not current" if differences else "current")
      return 1 if differences else 0
    graft.write()
  except (GraftError, OSError) as err:
    print(f"devel/graft: {options.tree}: {err}", file=sys.stderr)
    return 1
  print(f"{len(differences)} files changed" if differences else "was current")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The module in a Ganeti source tree.

The tree is made here, of the installed Ganeti's modules and of as much of a
build system as the module has to do with. Its lists have the names and the
places of those in Ganeti's own.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import subprocess

import packages
import pytest
from machine import GANETI_DIR, PYTHON

_SOURCE = pathlib.Path(__file__).resolve().parents[3]

_CONFIGURE = """\
AC_INIT([ganeti], [3.0])
AC_CONFIG_AUX_DIR([autotools])
AM_INIT_AUTOMAKE([1.16 foreign -Wall -Wno-portability])
AM_PATH_PYTHON([3.6])
AC_PROG_LN_S
AC_CONFIG_FILES([Makefile])
AC_OUTPUT
"""

_MAKEFILE = """\
versionedsharedir = $(prefix)/share/ganeti/3.0
pkgpythondir = $(versionedsharedir)/ganeti
gnt_python_sbindir = $(versionedsharedir)
hypervisor_hv_kvmdir = $(pkgpythondir)/hypervisor/hv_kvm
serverdir = $(pkgpythondir)/server

DIRS = \\
	lib \\
	test/py

pkgpython_PYTHON = \\
	lib/__init__.py

hypervisor_hv_kvm_PYTHON = \\
	lib/hypervisor/hv_kvm/__init__.py \\
	lib/hypervisor/hv_kvm/monitor.py

server_PYTHON = \\
	lib/server/__init__.py \\
	lib/server/noded.py

gnt_python_sbin_SCRIPTS = \\
	$(PYTHON_BOOTSTRAP_SBIN)

PYTHON_BOOTSTRAP_SBIN = \\
	daemons/ganeti-noded \\
	daemons/ganeti-watcher

nodist_sbin_SCRIPTS = \\
	daemons/ganeti-cleaner \\
	src/ganeti-kvmd \\
	src/ganeti-confd

src/ganeti-%:
	mkdir -p src
	echo '#!/bin/false' >$@

daemons/ganeti-cleaner:
	mkdir -p daemons
	echo '#!/bin/false' >$@

python_tests = \\
	test/py/ganeti.hypervisor.hv_kvm_unittest.py \\
	test/py/ganeti.other_unittest.py

python_test_support = \\
	test/py/__init__.py \\
	test/py/mocks.py

all_python_code = \\
	$(pkgpython_PYTHON) \\
	$(hypervisor_hv_kvm_PYTHON) \\
	$(server_PYTHON)

EXTRA_DIST = $(python_tests) $(python_test_support) $(all_python_code)

test/py/daemon-util_unittest.bash: daemons/daemon-util

daemons/ganeti-%: MODULE = ganeti.server.$(patsubst ganeti-%,%,$(notdir $@))

$(PYTHON_BOOTSTRAP_SBIN): Makefile
	mkdir -p daemons
	echo '#!${PYTHON}' >$@
	echo 'import sys, $(MODULE) as main' >>$@
	echo 'sys.exit(main.Main())' >>$@
	chmod u+x $@

ganeti:
	$(LN_S) lib ganeti

py-tests: $(python_tests) ganeti
	set -e; for file in $(python_tests); do \\
	PYTHONPATH=.:./test/py $(PYTHON) $$file; \\
	done
"""

_STOCK_TEST = """\
print('ganeti.hypervisor.hv_kvm.QmpConnection')
print('ganeti.hypervisor.hv_kvm.KVMHypervisor.OpenTap')
"""


def _graft(*words: object) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [str(_SOURCE / "devel" / "graft"), *map(str, words)],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )


def _picture(tree: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in tree.rglob("*")
    if path.is_file()
  }


@pytest.fixture
def tree(scratch: pathlib.Path) -> pathlib.Path:
  """A source tree."""
  found = scratch / "ganeti"
  packages.copy_ganeti(pathlib.Path(GANETI_DIR), found / "lib")
  tests = found / "test" / "py"
  tests.mkdir(parents=True)
  (tests / "ganeti.hypervisor.hv_kvm_unittest.py").write_text(_STOCK_TEST)
  for name in ("ganeti.other_unittest.py", "__init__.py", "mocks.py"):
    (tests / name).touch()
  (found / "autotools").mkdir()
  (found / "configure.ac").write_text(_CONFIGURE)
  (found / "Makefile.am").write_text(_MAKEFILE)
  return found


class TestGraft:
  """The files of the tree."""

  def test_is_done_once(self, tree: pathlib.Path) -> None:
    before = _picture(tree)
    check = _graft("--check", tree)
    assert check.returncode == 1
    assert "differs: Makefile.am" in check.stdout
    assert _picture(tree) == before

    first = _graft(tree)
    assert first.returncode == 0, first.stdout
    after = _picture(tree)
    front = "lib/hypervisor/hv_kvm/__init__.py"
    assert after["lib/hypervisor/hv_kvm/stock.py"] == before[front]
    assert after[front] != before[front]
    assert _graft("--check", tree).stdout == "current\n"

    again = _graft(tree)
    assert again.stdout == "was current\n"
    assert _picture(tree) == after

  def test_follows_what_has_changed(self, tree: pathlib.Path) -> None:
    _graft(tree)
    after = _picture(tree)
    (tree / "lib/kvmd/core/qmp.py").write_text("old\n")
    (tree / "lib/kvmd/given_up.py").touch()
    makefile = tree / "Makefile.am"
    text = makefile.read_text()
    makefile.write_text(
      text.replace("\tlib/kvmd/core/qmp.py \\\n", "\tlib/kvmd/given_up.py \\\n")
    )
    check = _graft("--check", tree)
    assert check.returncode == 1
    assert check.stdout == (
      "differs: Makefile.am\n"
      "differs: lib/kvmd/core/qmp.py\n"
      "differs: lib/kvmd/given_up.py\n"
      "not current\n"
    )
    _graft(tree)
    assert _picture(tree) == after

  def test_files_have_the_notice_that_ganeti_checks(
    self, tree: pathlib.Path
  ) -> None:
    _graft(tree)
    ours = [*(tree / "lib/kvmd").rglob("*.py"), *tree.rglob("test_*.py")]
    assert len(ours) > 20
    for path in ours:
      text = path.read_text()
      assert text.startswith(
        "#\n#\n\n# Copyright (C) 2026 the Ganeti project\n"
        "# All rights reserved.\n#\n"
      )
      assert "ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.\n\n" in text
      assert "SPDX" not in text

  def test_ganetis_own_tests_find_what_has_moved(
    self, tree: pathlib.Path
  ) -> None:
    _graft(tree)
    test = tree / "test/py/ganeti.hypervisor.hv_kvm_unittest.py"
    assert test.read_text() == _STOCK_TEST.replace(
      "hv_kvm.QmpConnection", "hv_kvm.stock.QmpConnection"
    )

  @pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
      ("Makefile.am", "", None, "no Makefile.am"),
      ("Makefile.am", "DIRS =", "PLACES =", "no list 'DIRS'"),
      ("Makefile.am", "hv_kvm_unittest", "kvm", "no unit tests of hv_kvm"),
      ("Makefile.am", "daemon-util_", "", "no line 'test/py/daemon-util"),
      (
        "lib/hypervisor/hv_kvm/__init__.py",
        "class KVMHypervisor",
        "class Kvm",
        "no class KVMHypervisor",
      ),
      (
        "lib/hypervisor/hv_base.py",
        "# All rights reserved.",
        "",
        "has no notice",
      ),
    ],
  )
  def test_no_tree_that_is_known(
    self, tree: pathlib.Path, name: str, old: str, new: str, words: str
  ) -> None:
    path = tree / name
    if new is None:
      path.unlink()
    else:
      path.write_text(path.read_text().replace(old, new))
    before = _picture(tree)
    result = _graft(tree)
    assert result.returncode == 1
    assert re.fullmatch(f"devel/graft: {tree}: .*\n", result.stdout)
    assert words in result.stdout
    assert _picture(tree) == before


class TestBuild:
  """What Ganeti's build system does with it."""

  def test_installs_and_tests_it(self, tree: pathlib.Path) -> None:
    stock = (tree / "lib/hypervisor/hv_kvm/__init__.py").read_bytes()
    _graft(tree)
    environment = {
      "PATH": os.environ["PATH"],
      "LC_ALL": "C.UTF-8",
      # A few of the tests will do
      "PYTEST_ADDOPTS": "-k 'test_hv_kvm or test_qmp or test_version'",
    }

    def run(*command: object) -> str:
      result = subprocess.run(
        list(map(str, command)),
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
      )
      assert result.returncode == 0, result.stdout
      return result.stdout

    run("autoreconf", "--install")
    run("./configure", f"PYTHON={PYTHON}", "--prefix=/usr")

    destination = tree.parent / "installed"
    run("make", "install", f"DESTDIR={destination}")
    place = destination / "usr/share/ganeti/3.0"
    installed = {path.name for path in (place / "ganeti/kvmd").glob("*.py")}
    ours = {path.name for path in (_SOURCE / "lib/kvmd").glob("*.py")}
    assert installed == ours
    hypervisor = place / "ganeti/hypervisor/hv_kvm"
    assert (hypervisor / "stock.py").read_bytes() == stock
    beside = {path.name for path in packages.hypervisor().values()}
    assert {path.name for path in hypervisor.glob("*.py")} > beside
    assert "(in Python)" in run(place / "ganeti-kvmd", "--version")
    assert {path.name for path in destination.glob("usr/sbin/*")} == {
      "ganeti-cleaner",
      "ganeti-confd",
    }

    # As Ganeti's tests find all of it
    both = {
      name: tree / "lib" / path.relative_to(_SOURCE / "lib")
      for name, path in {
        **packages.daemon(),
        **packages.hypervisor(),
      }.items()
    }
    both |= packages.ganetis(pathlib.Path(GANETI_DIR))
    run("make", "ganeti")
    packages.check(lambda *words: run(PYTHON, *words), tree, both)

    said = run("make", "py-tests")
    assert re.search(r"^\d{2,} passed", said, re.MULTILINE)

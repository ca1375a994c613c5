# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the build itself: what it finds, refuses, installs and packs."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import packages
import pytest

_SOURCE = pathlib.Path(__file__).resolve().parents[3]
_BUILD = pathlib.Path(os.environ.get("GANETI_KVMD_BUILD", _SOURCE / "build"))
_DAEMON = _BUILD / "daemons" / "ganeti-kvmd"
_GANETI = re.search(
  "^GANETI_DIR = (.*)$", (_BUILD / "Makefile").read_text(), re.MULTILINE
)[1]
_MISSING = re.compile(r"^configure: missing: (.*)$", re.MULTILINE)


def _run(*command: object, cwd: pathlib.Path = _BUILD) -> str:
  """Runs a command that must succeed.

  @return: what it printed

  """
  result = _try(*command, cwd=cwd)
  assert result.returncode == 0, result.stdout
  return result.stdout


def _try(
  *command: object, cwd: pathlib.Path
) -> subprocess.CompletedProcess[str]:
  # A make above must not lend its flags to those below.
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
  }
  return subprocess.run(
    [str(word) for word in command],
    cwd=cwd,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    timeout=60,
  )


def _script(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


def _files(directory: pathlib.Path) -> set[str]:
  return {
    str(path.relative_to(directory))
    for path in directory.rglob("*")
    if not path.is_dir()
  }


class TestTarball:
  """What make dist packs."""

  def test_has_every_source_file(self) -> None:
    packed = {
      os.path.relpath(_BUILD / name, _SOURCE)
      if name.startswith(("/", "../"))
      else os.path.normpath(name)
      for name in _run("make", "-s", "list-dist-files").split()
    }
    wanted = {
      f"{directory}/{name}"
      for directory in (".ci", "devel", "doc", "lib", "man", "test", "tools")
      for name in _files(_SOURCE / directory)
      if "__pycache__" not in name and not name.endswith(("~", ".swp"))
    }
    wanted |= {
      "CONTRIBUTING.md",
      "COPYING",
      "NEWS",
      "README.md",
      "autogen.sh",
      "configure.ac",
      "daemons/ganeti-kvmd.in",
      "pyproject.toml",
    }
    in_no_list_of_makefile_am = sorted(wanted - packed)
    assert in_no_list_of_makefile_am == []


class TestInstallation:
  """What make install installs."""

  def test_installs_everything_and_uninstall_leaves_nothing(
    self, scratch: pathlib.Path
  ) -> None:
    destination = f"DESTDIR={scratch}"
    _run("make", "install", destination)

    (package,) = scratch.rglob("ganeti/kvmd")
    lib = _SOURCE / "lib" / "kvmd"
    modules = {path.relative_to(package) for path in package.rglob("*.py")}
    assert modules == {path.relative_to(lib) for path in lib.rglob("*.py")}
    (manual,) = scratch.rglob("ganeti-kvmd.8")
    assert manual.parent.name == "man8"
    (completion,) = scratch.rglob("completions/ganeti-kvmd")
    assert completion.parent.parent.name == "bash-completion"
    (daemon,) = (
      path
      for path in scratch.rglob("ganeti-kvmd")
      if path.is_file() and path != completion
    )
    assert os.access(daemon, os.X_OK)
    assert str(_BUILD) not in daemon.read_text()
    place = re.search(r'sys\.path\.insert\(0, "(.*)"\)', daemon.read_text())
    assert place is not None
    assert package == scratch / place[1][1:] / "ganeti" / "kvmd"
    byte_code = list(package.glob("__pycache__/main.*.pyc"))
    assert byte_code
    assert str(scratch).encode() not in byte_code[0].read_bytes()

    _run("make", "uninstall", destination)
    assert not _files(scratch)
    assert not package.exists()
    assert daemon.parent.name == "sbin" or not daemon.parent.exists()
    _run("make", "uninstall", destination)


class TestForms:
  """The three forms of an installation, each from a build of its own.

  Our modules and Ganeti's own are found in each, as far as they are for it.
  """

  @pytest.fixture
  def source(self, scratch: pathlib.Path) -> pathlib.Path:
    """The source tree, in which nothing was ever built."""
    source = scratch / "source"
    for name in (
      "Makefile.am",
      "Makefile.in",
      "aclocal.m4",
      "autotools",
      "configure",
      "configure.ac",
      "daemons/ganeti-kvmd.in",
      "doc",
      "lib",
      "man",
      "tools/ganeti-kvmd-setup.in",
    ):
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).symlink_to(_SOURCE / name)
    return source

  @staticmethod
  def _check(
    scratch: pathlib.Path,
    place: str,
    modules: dict[str, pathlib.Path],
    *options: str,
  ) -> set[str]:
    """Builds, installs, imports, and uninstalls.

    @param place: where the package ganeti is then
    @param modules: those that are to be found there
    @return: what was installed

    """
    build = scratch / "build"
    build.mkdir()
    python = re.search(
      "^PYTHON = (.*)$", (_BUILD / "Makefile").read_text(), re.MULTILINE
    )[1]
    _run(
      scratch / "source" / "configure",
      f"PYTHON={python}",
      "--prefix=/usr",
      *options,
      cwd=build,
    )
    packed = _run("make", "-s", "list-dist-files", cwd=build)
    for path in (*_SOURCE.glob("man/*"), *_SOURCE.glob("lib/**/*.py")):
      assert str(path.relative_to(_SOURCE)) in packed
    root = scratch / "root"
    root.mkdir(exist_ok=True)
    before = _files(root)
    install = ("make", f"DESTDIR={root}")
    _run(*install, "install", cwd=build)
    installed = _files(root) - before

    def run_python(*words: str) -> str:
      return _run(python, *words, cwd=scratch)

    packages.check(run_python, root / place[1:], modules)
    for name in modules:
      package, _, file = name.replace(".", "/").rpartition("/")
      directory = f"{place[1:]}/{package}"
      if f"{directory}/{file}.py" in installed:
        assert list(root.glob(f"{directory}/__pycache__/{file}.*.pyc"))
    _run(*install, "uninstall", cwd=build)
    assert _files(root) == before
    return installed

  def test_alone(self, scratch: pathlib.Path, source) -> None:
    place = "/usr/share/ganeti-kvmd"
    modules = packages.daemon()
    # It is about a node of Ganeti's.
    del modules["ganeti.kvmd.node.ssconf"]
    installed = self._check(scratch, place, modules, "--without-ganeti")
    assert not [name for name in installed if "hv_kvm" in name]
    assert not [name for name in installed if "setup" in name]
    assert "usr/sbin/ganeti-kvmd" in installed
    assert not list((scratch / "root" / place[1:]).glob("*"))

  if _GANETI:

    def test_in_ganetis_tree(self, scratch: pathlib.Path, source) -> None:
      ganeti = scratch / "root" / _GANETI[1:]
      packages.copy_ganeti(pathlib.Path(_GANETI), ganeti / "ganeti")
      both = {
        **packages.daemon(),
        **packages.hypervisor(),
        **packages.setup(),
        **packages.ganetis(pathlib.Path(_GANETI)),
      }
      installed = self._check(
        scratch, _GANETI, both, f"--with-ganeti={_GANETI}"
      )
      assert "usr/sbin/ganeti-kvmd-setup" in installed
      assert f"{_GANETI[1:]}/ganeti/tools/__init__.py" not in installed
      for name in ("kvmd", "tools/kvmd_setup"):
        assert not (ganeti / "ganeti" / name).exists()

    def test_overlay(self, scratch: pathlib.Path, source) -> None:
      both = {
        **packages.daemon(),
        **packages.setup(),
        **packages.ganetis(pathlib.Path(_GANETI)),
      }
      installed = self._check(
        scratch,
        "/opt/kvmd",
        both,
        f"--with-ganeti={_GANETI}",
        "--with-ganeti-install-dir=/opt/kvmd",
      )
      assert "usr/sbin/ganeti-kvmd-setup" in installed
      assert not [name for name in installed if "hv_kvm" in name]
      assert not (scratch / "root/opt/kvmd").exists()


class TestInPlace:
  """The daemon in the build tree."""

  def test_runs_under_a_real_interpreter(self) -> None:
    first_line = _DAEMON.read_text().splitlines()[0]
    interpreter = pathlib.Path(first_line[len("#!") :])
    assert interpreter.is_absolute()
    assert interpreter.read_bytes().startswith(b"\x7fELF")

  def test_says_the_version_of_the_package(self, scratch: pathlib.Path) -> None:
    text = (_SOURCE / "lib" / "kvmd" / "__init__.py").read_text()
    (version,) = re.findall(r'^VERSION = "(.*)"$', text, re.MULTILINE)
    assert version in _run(_DAEMON, "--version", cwd=scratch)

  @pytest.mark.parametrize(
    "document", ["man/ganeti-kvmd.8", "doc/bash-completion/ganeti-kvmd"]
  )
  def test_every_option_is_documented(self, document: str) -> None:
    options = set(re.findall(r"(?<!\S)--?[\w-]+", _run(_DAEMON, "--help")))
    assert len(options) > 8
    text = (_SOURCE / document).read_text()
    text = re.sub(r"\\f.", "", text).replace("\\-", "-")
    assert not options - set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


class TestCompletion:
  """What bash offers."""

  @pytest.mark.parametrize(
    ("words", "offered"),
    [
      (["--sys"], ["--syslog="]),
      (["--syslog", "=", ""], ["no", "yes", "only"]),
      (["--syslog", "="], ["no", "yes", "only"]),
      (["--syslog", "o"], ["only"]),
      (["-f", "--rule", "=", "c"], ["cause"]),
      (["--rescan-interval", "=", ""], []),
      (["--ctrl-dir", "=", "/et"], ["/etc"]),
      (["--no"], ["--no-user-checks"]),
    ],
  )
  def test_offers(self, words: list[str], offered: list[str]) -> None:
    script = (
      'source $0; COMP_WORDS=(ganeti-kvmd "$@"); COMP_CWORD=$#;'
      "_ganeti_kvmd; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    completion = _SOURCE / "doc" / "bash-completion" / "ganeti-kvmd"
    assert _run("bash", "-c", script, completion, *words).split() == offered


class TestFindGaneti:
  """How an installed Ganeti is found."""

  @pytest.fixture
  def share(self, scratch: pathlib.Path) -> pathlib.Path:
    """A directory with Ganeti 3.0, 3.9 and 3.10, and what is left of 4.0."""
    for version in ("3.0", "3.9", "3.10"):
      package = scratch / "ganeti" / version / "ganeti"
      package.mkdir(parents=True)
      for module in ("__init__", "constants", "pathutils"):
        (package / f"{module}.py").touch()
    (scratch / "ganeti" / "4.0" / "ganeti" / "utils").mkdir(parents=True)
    return scratch / "ganeti"

  @staticmethod
  def _find(directory: pathlib.Path) -> tuple[int, str]:
    result = _try(
      _SOURCE / "autotools" / "find-ganeti", directory, cwd=directory
    )
    return result.returncode, result.stdout.strip()

  @pytest.mark.parametrize("named", ["3.9", "3.9/ganeti", "3.9/ganeti/"])
  def test_the_named_one(self, share: pathlib.Path, named: str) -> None:
    assert self._find(share / named) == (0, str(share / "3.9"))

  def test_the_newest(self, share: pathlib.Path) -> None:
    assert self._find(share) == (0, str(share / "3.10"))

  def test_the_default_before_the_newest(self, share: pathlib.Path) -> None:
    (share / "default").symlink_to("3.0")
    assert self._find(share) == (0, str(share / "3.0"))

  def test_a_dangling_default(self, share: pathlib.Path) -> None:
    (share / "default").symlink_to("nowhere")
    assert self._find(share) == (0, str(share / "3.10"))

  def test_remains_of_an_old_one(self, share: pathlib.Path) -> None:
    assert self._find(share / "4.0") == (1, "")


class TestFindPython:
  """Which interpreter Ganeti's scripts name."""

  @pytest.mark.parametrize(
    ("first_line", "interpreter"),
    [
      ("#!/opt/bin/python3", "/opt/bin/python3"),
      ("#! /opt/bin/python3 -Es", "/opt/bin/python3"),
      ("#!/usr/bin/env python3.9", "python3.9"),
      ("#! /usr/bin/env python3.9 -E", "python3.9"),
    ],
  )
  def test_named(
    self, scratch: pathlib.Path, first_line: str, interpreter: str
  ) -> None:
    _script(scratch / "ganeti-noded", f"{first_line}\nimport sys\n")
    find = _SOURCE / "autotools" / "find-python"
    assert _run(find, scratch) == f"{interpreter}\n"

  def test_named_beside_the_share_directory(
    self, scratch: pathlib.Path
  ) -> None:
    _script(scratch / "sbin" / "ganeti-noded", "#!/opt/bin/python3\n")
    find = _SOURCE / "autotools" / "find-python"
    assert _run(find, scratch / "share/ganeti/3.0") == "/opt/bin/python3\n"


class TestConfigure:
  """What configure refuses; each miss is one line with the packages."""

  @pytest.fixture
  def configure(self, scratch: pathlib.Path) -> pathlib.Path:
    """A configure whose source directory nobody has configured."""
    source = scratch / "source"
    shutil.copytree(_SOURCE / "autotools", source / "autotools")
    for name in ("configure", "Makefile.in", "lib/kvmd/__init__.py"):
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(_SOURCE / name, source / name)
    return source / "configure"

  @staticmethod
  def _refusal(configure: pathlib.Path, *arguments: str) -> str:
    build = configure.parent.parent / "build"
    build.mkdir()
    result = _try(configure, *arguments, cwd=build)
    assert result.returncode == 1, result.stdout
    assert not (build / "Makefile").exists()
    return result.stdout

  def test_every_miss_at_once(self, configure: pathlib.Path) -> None:
    environment = configure.parent.parent / "environment"
    venv.create(environment, symlinks=True)
    output = self._refusal(
      configure,
      f"PYTHON={environment}/bin/python",
      f"--with-ganeti={environment}",
    )
    # Only a new Python misses asyncore.
    lines = [line for line in _MISSING.findall(output) if "async" not in line]
    assert [
      "Ganeti" in line
      or re.fullmatch(
        r"Python module (\S+): Debian package python3-\1, PyPI package \1", line
      )
      is not None
      for line in lines[:3]
    ] == [True, True, True]
    assert f"--with-ganeti={environment}" in output
    assert re.search(
      r"WARNING: missing: Python module pytest .*python3-pytest", output
    )

  def test_an_interpreter_that_does_not_run(
    self, configure: pathlib.Path
  ) -> None:
    output = self._refusal(configure, "PYTHON=/no/such", "--without-ganeti")
    (line,) = _MISSING.findall(output)
    assert line.startswith("Python 3.9 or later: /no/such does not run")

  def test_an_old_interpreter(self, configure: pathlib.Path) -> None:
    old = _script(
      configure.parent.parent / "old",
      '#!/bin/sh\ncase $2 in *version*) echo 3.8.20 ;; *) echo "$0" ;; esac\n',
    )
    output = self._refusal(configure, f"PYTHON={old}", "--without-ganeti")
    (line,) = _MISSING.findall(output)
    assert line.startswith(f"Python 3.9 or later: {old} is 3.8.20; ")

  def test_no_asyncore(self, configure: pathlib.Path) -> None:
    new = _script(
      configure.parent.parent / "new",
      f"""#!/bin/sh
case $2 in
  *sys.executable*) echo "$0" ;;
  *asyncore*) exit 1 ;;
  *) exec {sys.executable} "$@" ;;
esac
""",
    )
    output = self._refusal(configure, f"PYTHON={new}", "--without-ganeti")
    (line,) = _MISSING.findall(output)
    assert line.startswith("Python module asyncore (")
    assert line.endswith(
      "Debian package python3-pyasyncore, PyPI package pyasyncore"
    )

  def test_an_old_ganeti(self, configure: pathlib.Path) -> None:
    package = configure.parent.parent / "old" / "ganeti"
    package.mkdir(parents=True)
    for name in ("__init__.py", "constants.py", "pathutils.py"):
      (package / name).touch()
    (package / "_constants.py").write_text('RELEASE_VERSION = "2.16.1"\n')
    output = self._refusal(configure, f"--with-ganeti={package.parent}")
    (line,) = _MISSING.findall(output)
    assert line == f"Ganeti 3.0 or later: the one in {package.parent} is 2.16.1"

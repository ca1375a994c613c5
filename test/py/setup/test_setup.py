# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Switching between Ganeti's files and ours, on a machine of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import stat
import subprocess
import typing

import packages
import pytest

if os.geteuid() != 0:
  pytest.skip(
    "only root can make a machine in namespaces", allow_module_level=True
  )

from ganeti.kvmd.node.ctrldir import LOCK_FILE
from guests import lifetime
from machine import (
  BUILD,
  DAEMON,
  GANETI_DIR,
  HYPERVISOR,
  LIBDIR,
  PYTHON,
  STOCK_HYPERVISOR,
  TOOL,
  Machine,
)

_HERE = pathlib.Path(__file__).resolve().parent

_AS_NOBODY = ("setpriv", "--reuid=65534", "--clear-groups", "--")

#: Whose class Ganeti uses for KVM, and the bases that it has
_CLASS = """
from ganeti import hypervisor
used = hypervisor.GetHypervisorClass("kvm")
print(*(each.__module__.rpartition(".")[2] for each in used.__mro__))
"""
_STOCK_CLASS = "hv_kvm hv_base builtins"

#: Which process the hypervisor side takes for the daemon
_RUNNING = (
  "from ganeti.hypervisor.hv_kvm import launch; print(launch.running())"
)

#: Where the program keeps others of its kind away
_LOCK = "/run/ganeti-kvmd-setup.lock"

#: Locks files until its input ends, as far as anybody can
_STRANGER = """
import fcntl, os, sys
for path in sys.argv[1:]:
  try:
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
  except (FileNotFoundError, PermissionError):
    pass
print("ready", flush=True)
sys.stdin.read()
"""
_OUR_CLASS = "hv_kvm user_shutdown stock hv_base builtins"


#: Another run of the program, until its input ends
_OTHER_RUN = f"""
import sys
sys.path.insert(0, {GANETI_DIR!r})
from ganeti.tools.kvmd_setup import system
with system.exclusively():
  print("ready", flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def _living_on(machine: Machine, *command: str) -> typing.Iterator[None]:
  """Runs a command that says that it is ready, and ends with its input."""
  process = subprocess.Popen(
    machine.node.command(*command),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
  finally:
    process.communicate()


class TestEnable:
  """Ours in front of Ganeti's."""

  def test_enable_and_disable(self, machine: Machine) -> None:
    before = machine.picture()
    assert machine.python(_CLASS) == _STOCK_CLASS
    status, text = machine.status()
    assert status == 1
    assert re.search("^daemon: +Ganeti's own", text, re.MULTILINE)

    assert "is ours now" in machine.setup("enable")
    assert machine.python(_CLASS) == _OUR_CLASS
    assert "(in Python)" in machine.run(DAEMON, "--version")
    after = machine.picture()
    assert after != before
    status, text = machine.status()
    assert status == 0
    for name in ("daemon", "hypervisor", "manual"):
      assert re.search(f"^{name}: +ours", text, re.MULTILINE)
    assert re.search(r"^ganeti-kvmd \S+, Ganeti 3\.\S+ in ", text)

    assert "enabled already" in machine.setup("enable")
    assert machine.picture() == after

    assert "is Ganeti's own now" in machine.setup("disable")
    assert machine.picture() == before
    assert machine.python(_CLASS) == _STOCK_CLASS
    assert "disabled already" in machine.setup("disable")
    packages = {
      machine.package(path)
      for path in (DAEMON, HYPERVISOR, machine.real(DAEMON))
    }
    assert len(packages) == 3
    assert machine.run("dpkg", "--verify", *packages) == ""
    assert "kvm" not in machine.run("dpkg-divert", "--list")
    byte_code = f"{os.path.dirname(HYPERVISOR)}/__pycache__"
    assert "stock" not in machine.run("ls", byte_code)

  def test_daemon_only(self, machine: Machine) -> None:
    machine.setup("enable", "--daemon-only")
    assert "(in Python)" in machine.run(DAEMON, "--version")
    assert machine.python(_CLASS) == _STOCK_CLASS
    assert machine.status()[0] == 0
    machine.setup("enable")
    machine.setup("enable", "--daemon-only")
    assert machine.python(_CLASS) == _OUR_CLASS
    machine.setup("disable")

  def test_uninstall_disables(self, machine: Machine) -> None:
    machine.setup("enable")
    make = ("make", "--silent", f"--directory={BUILD}")
    machine.run(*make, "uninstall")
    assert machine.python(_CLASS) == _STOCK_CLASS
    machine.run("test", "!", "-e", LIBDIR)
    machine.run(*make, "install")


class TestPackages:
  """Ours are in packages of Ganeti's."""

  def test_ours_and_ganetis_can_be_imported(self, machine: Machine) -> None:
    both = {
      **packages.daemon(),
      **packages.hypervisor(),
      **packages.setup(),
      **packages.ganetis(pathlib.Path(GANETI_DIR)),
    }

    def python(*words: str) -> str:
      return machine.run(PYTHON, *words)

    packages.check(python, GANETI_DIR, both)
    machine.setup("enable")
    packages.check(python, GANETI_DIR, both)
    machine.setup("disable")

  def test_ganetis_are_broken(self, machine: Machine) -> None:
    """Those that do more than to be there; then ours can be taken away."""
    before = machine.picture()
    machine.setup("enable", "--daemon-only")
    broken = " ".join(
      f"{GANETI_DIR}/ganeti/{name}.py"
      for name in (
        "constants",
        "pathutils",
        "vcluster",
        "utils/__init__",
        "hypervisor/__init__",
        "tools/common",
      )
    )
    machine.shell(
      f"for each in {broken}; do"
      " cp -p $each $each.saved; echo 'raise ImportError(1)' >$each; done"
    )
    try:
      status, text = machine.status()
      assert status == 0
      assert re.search("^daemon: +ours", text, re.MULTILINE)
      assert "cluster:    unknown without Ganeti" in text
      said = machine.refusal("disable")
      assert "ImportError: 1" in said
      assert machine.picture() == before
      said = machine.refusal("enable")
      assert "ImportError: 1; everything is as it was before" in said
      assert machine.picture() == before
    finally:
      machine.shell(f"for each in {broken}; do mv $each.saved $each; done")


class TestLock:
  """Two runs at once, and strangers who would keep all away."""

  def test_strangers_lock_what_they_can(self, machine: Machine) -> None:
    files = (LIBDIR, _LOCK, "/run", "/usr/sbin", os.path.dirname(HYPERVISOR))
    stranger = (*_AS_NOBODY, PYTHON, "-c", _STRANGER, *files)
    with _living_on(machine, *stranger):
      assert "is ours now" in machine.setup("enable", "--daemon-only")
      assert "is Ganeti's own now" in machine.setup("disable")

  def test_two_at_once(self, machine: Machine) -> None:
    with _living_on(machine, PYTHON, "-I", "-c", _OTHER_RUN):
      number = machine.run("cat", _LOCK).strip()
      assert machine.refusal("enable") == (
        "ganeti-kvmd-setup: another ganeti-kvmd-setup is at work: process"
        f" {number} holds {_LOCK}\n"
      )
      found = machine.node.path(_LOCK).stat()
      assert stat.S_IMODE(found.st_mode) == 0o600
    machine.setup("disable")
    machine.run("test", "!", "-e", _LOCK)


class TestUsage:
  """The command line."""

  @pytest.mark.parametrize(
    "document",
    ["man/ganeti-kvmd-setup.8", "doc/bash-completion/ganeti-kvmd-setup"],
  )
  def test_every_word_is_documented(
    self, machine: Machine, document: str
  ) -> None:
    said = machine.setup("--help")
    for command in ("enable", "disable", "status"):
      assert command in said
      said += machine.setup(command, "--help")
    words = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", said))
    assert words >= {"--daemon-only", "--restart", "--help", "-V"}
    text = (_HERE.parents[2] / document).read_text()
    text = re.sub(r"\\f.", "", text).replace("\\-", "-")
    assert not {word for word in words if word not in text}

  @pytest.mark.parametrize(
    "words", [(), ("start",), ("disable", "--daemon-only"), ("status", "-x")]
  )
  def test_wrong(self, machine: Machine, words: tuple[str, ...]) -> None:
    result = machine.node.run(TOOL, *words, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ganeti-kvmd-setup")


class TestDaemon:
  """A daemon that runs while it is replaced."""

  @pytest.fixture
  def machine(self, machine: Machine) -> typing.Iterator[Machine]:
    """A node on which the KVM daemon has a reason to run."""
    facts = {
      "hypervisor_list": "kvm",
      "enabled_user_shutdown": "True",
      "node_vm_capable": f"{machine.node.name}=True",
    }
    for name, value in facts.items():
      path = machine.node.path(f"/var/lib/ganeti/ssconf_{name}")
      path.write_text(f"{value}\n")
    # The stock daemon asks for its own address
    machine.shell('echo "192.0.2.11 $(hostname)" >>/etc/hosts')
    assert machine.node.daemon_util("start")
    yield machine
    assert machine.node.daemon_util("stop")
    machine.shell("rm -f /run/ganeti/ganeti-kvmd.pid /var/lib/ganeti/ssconf_*")

  @staticmethod
  def _process(machine: Machine) -> tuple[str, bool]:
    """The running daemon, and whether it is ours."""
    process = machine.node.path("/run/ganeti/ganeti-kvmd.pid").read_text()
    program = machine.run("readlink", f"/proc/{process.strip()}/exe")
    assert machine.node.daemon_util("check")
    return process, "python" in program

  def test_is_restarted(self, machine: Machine) -> None:
    stock, is_ours = self._process(machine)
    assert not is_ours
    assert "ganeti-kvmd was restarted" in machine.setup("enable")
    ours, is_ours = self._process(machine)
    assert is_ours
    status, text = machine.status()
    assert status == 0
    assert re.search(f"^ganeti-kvmd: process {ours}", text, re.MULTILINE)
    result = machine.node.run(*_AS_NOBODY, TOOL, "status", check=False)
    assert result.returncode == 0
    assert "ganeti-kvmd: only root can tell" in result.stdout

    machine.setup("enable")
    assert self._process(machine)[0] == ours
    machine.setup("enable", "--restart")
    assert self._process(machine)[0] not in {ours, stock}

    assert "ganeti-kvmd was restarted" in machine.setup("disable")
    assert not self._process(machine)[1]

  def test_that_is_left_from_an_interrupted_run(self, machine: Machine) -> None:
    machine.setup("enable", "--daemon-only")
    assert machine.node.daemon_util("stop")
    machine.run("ln", "-s", machine.real(f"{DAEMON}.stock"), "/tmp/ganeti-kvmd")
    machine.run("/tmp/ganeti-kvmd")
    assert "still runs as before" in machine.status()[1]
    assert "was restarted" in machine.setup("enable", "--daemon-only")
    assert self._process(machine)[1]
    assert machine.node.daemon_util("stop")
    status, text = machine.status()
    assert status == 1
    assert "to do:      the daemon does not run; start it with" in text
    machine.setup("disable")
    assert machine.node.daemon_util("start")

  def test_whose_pidfile_was_deleted(self, machine: Machine) -> None:
    """It is known by its control directory, and is not left behind."""
    machine.setup("enable", "--daemon-only")
    control = machine.node.path("/run/ganeti/kvm-hypervisor/ctrl")
    control.mkdir(parents=True, exist_ok=True)
    lock = control / LOCK_FILE
    lifetime.wait_until(lock.exists, "the lock file")
    pid_file = machine.node.path("/run/ganeti/ganeti-kvmd.pid")
    process = int(pid_file.read_text())
    pid_file.unlink()
    status, text = machine.status()
    assert status == 0
    assert re.search(f"^ganeti-kvmd: process {process}$", text, re.MULTILINE)
    said = machine.node.run("/usr/sbin/ganeti-kvmd", check=False)
    assert said.returncode == 1
    assert f"process {process} holds " in said.stderr
    assert "was restarted" in machine.setup("enable", "--restart")
    assert self._process(machine)[0] != f"{process}\n"
    pid_file.unlink()
    assert "was restarted" in machine.setup("disable")
    assert not self._process(machine)[1]
    daemons = machine.run("pgrep", "--count", "--full", "bin/ganeti-kvmd")
    assert daemons == "1\n"

  def test_stock_and_ours_exclude_each_other(self, machine: Machine) -> None:
    """Also where strangers lock what they can, and whoever was first."""
    stock, is_ours = self._process(machine)
    assert not is_ours
    ours = f"{LIBDIR}/ganeti-kvmd"
    control = machine.node.path("/run/ganeti/kvm-hypervisor/ctrl")
    control.mkdir(parents=True, exist_ok=True)
    control.chmod(0o775)
    said = machine.node.run(ours, check=False)
    assert said.returncode == 1
    assert f"process {stock.strip()} holds " in said.stderr
    assert machine.python(_RUNNING) == stock.strip()
    assert machine.node.daemon_util("stop")
    machine.run(ours)
    process, is_ours = self._process(machine)
    assert is_ours
    said = machine.node.run(machine.real(DAEMON), check=False)
    assert said.returncode != 0
    assert self._process(machine)[0] == process
    assert machine.python(_RUNNING) == process.strip()
    machine.node.path("/run/ganeti/ganeti-kvmd.pid").unlink()
    assert machine.python(_RUNNING) == process.strip()
    machine.run("kill", process.strip())
    lifetime.wait_until(lambda: machine.python(_RUNNING) == "None", "its end")
    assert machine.node.daemon_util("start")

  def test_that_does_not_start(self, machine: Machine) -> None:
    before = machine.picture()
    ours = machine.node.path(f"{LIBDIR}/ganeti-kvmd")
    text = ours.read_text()
    ours.write_text(text.replace("main.main()", "sys.argv[1:] and main.main()"))
    said = machine.refusal("enable")
    ours.write_text(text)
    assert "ganeti-kvmd does not run" in said or "start" in said
    assert "everything is as it was before" in said
    assert machine.picture() == before
    assert not self._process(machine)[1]

  def test_the_node_daemon(self, machine: Machine) -> None:
    """It is not restarted unasked, but it is said that it has to be."""
    machine.shell("""
      cd /run/ganeti
      ln -s "$(command -v sleep)" /tmp/ganeti-noded
      setsid /tmp/ganeti-noded 1000 >/dev/null 2>&1 &
      echo $! >ganeti-noded.pid
    """)
    assert "node daemon" not in machine.status()[1]
    said = machine.setup("enable")
    assert "the node daemon uses the hypervisor code from before" in said
    assert "stop ganeti-noded &&" in machine.status()[1]
    machine.node.daemon_util("stop", "ganeti-noded")
    machine.setup("disable")


class TestUpgrade:
  """Packages of Ganeti's are installed while ours is in front."""

  def test_neither_breaks_nor_undoes_it(self, machine: Machine) -> None:
    package = machine.package(HYPERVISOR)
    stock = machine.node.path(HYPERVISOR).read_text()
    name = HYPERVISOR[1:]
    newer = machine.repack(
      package,
      f"""
        echo 'NEWER = True' >>{name}
        sed -i '\\, {name}$,d' DEBIAN/md5sums
        md5sum {name} >>DEBIAN/md5sums
      """,
    )
    same = machine.repack(package)
    links = machine.repack(machine.package(DAEMON))
    machine.setup("enable")
    ours = machine.picture()

    machine.install(newer, links)
    assert machine.python(_CLASS) == _OUR_CLASS
    code = "from ganeti.hypervisor import hv_kvm; print(hv_kvm.NEWER)"
    assert machine.python(code) == "True"
    assert machine.status()[0] == 0
    assert "enabled already" in machine.setup("enable")
    machine.setup("disable")
    text = machine.node.path(HYPERVISOR).read_text()
    assert text == stock + "NEWER = True\n"
    assert machine.run("dpkg", "--verify", package) == ""

    machine.setup("enable")
    machine.install(same, links)
    assert machine.picture() == ours
    machine.setup("disable")

  def test_after_the_first_step_of_an_interrupted_run(
    self, machine: Machine
  ) -> None:
    """The diversion is there, and the file has not moved yet."""
    machine.run(
      *("dpkg-divert", "--local", "--no-rename"),
      *("--divert", STOCK_HYPERVISOR, "--add", HYPERVISOR),
    )
    assert "interrupted" in machine.status()[1]
    machine.shell(
      f"cp -a {HYPERVISOR} {STOCK_HYPERVISOR}; echo old >>{HYPERVISOR}"
    )
    said = machine.refusal("enable")
    assert f"{HYPERVISOR} is neither ours nor Ganeti's own" in said
    assert "then remove it" in said
    machine.run("rm", HYPERVISOR)
    machine.setup("enable")
    assert machine.python(_CLASS) == _OUR_CLASS
    machine.setup("disable")


class Bad(typing.NamedTuple):
  """Something that is not as it should be.

  @ivar prepare: brings it about, in shell
  @ivar words: what is said of it
  @ivar mend: takes it back, in shell
  @ivar command: what is tried

  """

  prepare: str
  words: str
  mend: str
  command: tuple[str, ...] = (TOOL, "enable")


_SAVE = "mkdir /tmp/saved; cp -a {} /tmp/saved"
_RESTORE = "mv -f /tmp/saved/{} {}; rmdir /tmp/saved"
_CONSTANTS = f"{GANETI_DIR}/ganeti/_constants.py"
_LOCKED = (
  "import fcntl, subprocess, sys;"
  'lock = open("/var/lib/dpkg/lock", "r+b"); fcntl.lockf(lock, fcntl.LOCK_EX);'
  f"sys.exit(subprocess.call([{TOOL!r}, 'enable']))"
)


def _replacing(path: str, change: str, words: str, **more: typing.Any) -> Bad:
  """A file is changed, and put back afterwards."""
  name = os.path.basename(path)
  return Bad(
    f"{_SAVE.format(path)}; {change}",
    words,
    _RESTORE.format(name, path),
    **more,
  )


#: Before it is enabled
_BAD = {
  "not root": Bad(
    "",
    "must be run by root",
    "",
    (*_AS_NOBODY, TOOL, "enable"),
  ),
  "no Ganeti": _replacing(
    _CONSTANTS, f"rm {_CONSTANTS}", f"there is no Ganeti in {GANETI_DIR}"
  ),
  "an unknown version": _replacing(
    _CONSTANTS,
    f"""sed -i 's/^RELEASE_VERSION = .*/RELEASE_VERSION = "3.2.0"/' """
    f"{_CONSTANTS}",
    "Ganeti 3.2.0 in",
  ),
  "an unknown layout": _replacing(
    HYPERVISOR, f"echo pass >{HYPERVISOR}", "another layout"
  ),
  "edited": _replacing(
    HYPERVISOR,
    f"echo edited >>{HYPERVISOR}",
    f"{HYPERVISOR} was edited",
  ),
  "something in the way": Bad(
    f"touch {STOCK_HYPERVISOR}",
    f"{STOCK_HYPERVISOR} is in the way",
    f"rm {STOCK_HYPERVISOR}",
  ),
  "somebody else's diversion": Bad(
    "dpkg-divert --package other --no-rename"
    f" --divert {DAEMON}.other --add {DAEMON}",
    f"dpkg diverts {DAEMON} to {DAEMON}.other for somebody else (other)",
    f"dpkg-divert --package other --no-rename --remove {DAEMON}",
  ),
  "a link to ours by hand": _replacing(
    DAEMON,
    f"ln -sf {LIBDIR}/ganeti-kvmd {DAEMON}",
    f"Ganeti's own {DAEMON} is nowhere",
  ),
  "no file of ours": _replacing(
    f"{LIBDIR}/hv_kvm/__init__.py",
    f"rm {LIBDIR}/hv_kvm/__init__.py",
    "(make install)",
  ),
  "dpkg at work": Bad("", "dpkg is at work", "", (PYTHON, "-c", _LOCKED)),
  "hypervisor code that does not load": _replacing(
    f"{os.path.dirname(HYPERVISOR)}/user_shutdown.py",
    f"echo 'import nothing_like_that' >>{os.path.dirname(HYPERVISOR)}"
    "/user_shutdown.py",
    "No module named 'nothing_like_that'; everything is as it was before",
  ),
  "names that are lost": _replacing(
    f"{LIBDIR}/hv_kvm/__init__.py",
    f"sed -i 's/^def __getattr__/def other/' {LIBDIR}/hv_kvm/__init__.py",
    "names are missing: ",
  ),
  "a daemon that does not run": _replacing(
    f"{LIBDIR}/ganeti-kvmd",
    f"echo 'import nothing_like_that' >{LIBDIR}/ganeti-kvmd",
    "everything is as it was before",
  ),
}

#: While it is enabled
_WORSE = {
  "edited": _replacing(
    STOCK_HYPERVISOR,
    f"echo edited >>{STOCK_HYPERVISOR}",
    f"{STOCK_HYPERVISOR} was edited",
  ),
  "lost": _replacing(
    STOCK_HYPERVISOR,
    f"rm {STOCK_HYPERVISOR}",
    "apt-get install --reinstall",
  ),
  "replaced": _replacing(
    HYPERVISOR,
    f"rm {HYPERVISOR}; touch {HYPERVISOR}",
    f"{HYPERVISOR} is neither ours nor Ganeti's own",
  ),
}


def _check_refused(machine: Machine, bad: Bad) -> None:
  machine.shell(bad.prepare)
  before = machine.picture()
  result = machine.node.run(*bad.command, check=False)
  after = machine.picture()
  machine.shell(bad.mend)
  assert result.returncode == 1, result.stdout
  assert bad.words in result.stderr
  assert re.fullmatch("ganeti-kvmd-setup: .*\n", result.stderr)
  assert after == before


class TestBadInput:
  """What is refused; nothing is changed then."""

  @pytest.mark.parametrize("what", _BAD)
  def test_before_it_is_enabled(self, machine: Machine, what: str) -> None:
    _check_refused(machine, _BAD[what])

  @pytest.mark.parametrize("what", _WORSE)
  def test_while_it_is_enabled(self, machine: Machine, what: str) -> None:
    machine.setup("enable")
    for command in ("enable", "disable"):
      _check_refused(machine, _WORSE[what]._replace(command=(TOOL, command)))
    machine.setup("disable")


class TestInterruption:
  """Killed at any point."""

  def test_ganeti_works_and_the_next_run_repairs(
    self, machine: Machine
  ) -> None:
    before = machine.picture()
    points = machine.run(
      PYTHON, "-B", str(_HERE / "interrupt.py"), TOOL
    ).splitlines()
    assert machine.picture() == before
    # Two files; each is recorded, kept and replaced, or restored and forgotten
    for command, least in (("enable", 6), ("disable", 4)):
      assert (
        sum(point.startswith(f"{command},") for point in points) > 2 * least
      )


class TestRemoval:
  """Ganeti is removed while ours is in front."""

  def test_disabling_takes_ours_away(self, machine: Machine) -> None:
    packages = {machine.package(path) for path in (DAEMON, HYPERVISOR)}
    debs = [machine.repack(package) for package in packages]
    machine.setup("enable")
    machine.run(
      "dpkg", "--no-triggers", "--purge", "--force-depends", *packages
    )
    assert "not installed any more" in machine.status()[1]
    assert "there is no Ganeti" in machine.refusal("enable")
    machine.setup("disable")
    left = machine.picture().keys()
    assert not left & {DAEMON[1:], HYPERVISOR[1:], STOCK_HYPERVISOR[1:]}
    assert "kvm" not in machine.run("dpkg-divert", "--list")
    machine.install(*debs)

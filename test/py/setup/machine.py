# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A node of no cluster, with Ganeti and ganeti-kvmd installed.

It is this machine once more, in namespaces of its own (L{cluster.node}): what
is installed or changed there does not change this machine.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import stat
import subprocess

from cluster.node import Node

BUILD = pathlib.Path(os.environ["GANETI_KVMD_BUILD"])

#: The interpreter of the build, which is the one that Ganeti uses
PYTHON = re.search(
  r"^PYTHON = (.*)$", (BUILD / "Makefile").read_text(), re.MULTILINE
)[1]


def _configured(name: str) -> str:
  """A variable of the Makefile."""
  show = f"show: ; @echo $({name})"
  return subprocess.check_output(
    ["make", "--silent", f"--directory={BUILD}", f"--eval={show}", "show"],
    env={"PATH": os.environ["PATH"]},
    text=True,
  ).splitlines()[-1]


GANETI_DIR = _configured("GANETI_DIR")
HYPERVISOR = f"{GANETI_DIR}/ganeti/hypervisor/hv_kvm/__init__.py"
STOCK_HYPERVISOR = f"{GANETI_DIR}/ganeti/hypervisor/hv_kvm/stock.py"
DAEMON = "/usr/sbin/ganeti-kvmd"
LIBDIR = _configured("pkglibdir")
TOOL = f"{_configured('sbindir')}/ganeti-kvmd-setup"

#: What files are as they came from Ganeti
_WATCHED = (
  ("usr/sbin", "ganeti-kvmd*"),
  ("usr/share/man/man8", "ganeti-kvmd*"),
  (os.path.dirname(HYPERVISOR)[1:], "*.py*"),
  ("var/lib/dpkg", "diversions"),
)


#: Makes a package from what of one is installed, which must not be diverted;
#: without its scripts, which take long
_REPACK = """
mkdir -p {deb}.tree/DEBIAN
cd {deb}.tree
dpkg-query --listfiles {package} | while read -r each; do
  test -d $each -a ! -L $each || echo $each
done | tar --create --files-from=- --absolute-names | tar --extract
dpkg-query --control-show {package} md5sums >DEBIAN/md5sums
dpkg-query --status {package} |
  sed -e '/^Status:/d' -e '/^Conffiles:/d' -e '/^ \\//d' >DEBIAN/control
{change}
dpkg-deb -Znone --build . {deb}
"""


class Machine:
  """The node."""

  def __init__(self, node: Node) -> None:
    """Install ganeti-kvmd there.

    @param node: sees the build directory

    """
    self.node = node
    self.run("make", "--silent", f"--directory={BUILD}", "install")

  def run(self, *command: str) -> str:
    """Run a command that must succeed.

    @return: what it printed

    """
    return self.node.run(*command).stdout

  def shell(self, script: str) -> str:
    """Run a piece of shell that must succeed.

    @return: what it printed

    """
    return self.run("sh", "-e", "-c", script)

  def setup(self, *words: str) -> str:
    """Run ganeti-kvmd-setup, which must succeed.

    @return: what it printed

    """
    return self.run(TOOL, *words)

  def refusal(self, *words: str) -> str:
    """Run ganeti-kvmd-setup, which must fail with its own words.

    @return: what it said

    """
    result = self.node.run(TOOL, *words, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.fullmatch("(ganeti-kvmd-setup: .*\n)+", result.stderr)
    return result.stderr

  def status(self) -> tuple[int, str]:
    """Ask ganeti-kvmd-setup for the status.

    @return: its exit status and what it printed

    """
    result = self.node.run(TOOL, "status", check=False)
    assert not result.stderr
    return result.returncode, result.stdout

  def python(self, code: str) -> str:
    """Run Python code as Ganeti's daemons would.

    @return: what it printed

    """
    place = f"import sys; sys.path.insert(0, {GANETI_DIR!r})\n"
    return self.run(PYTHON, "-I", "-c", place + code).strip()

  def real(self, path: str) -> str:
    """What a link leads to, in the end."""
    return self.run("realpath", path).strip()

  def package(self, path: str) -> str:
    """The package that a file belongs to."""
    lines = self.run("dpkg-query", "--search", path).splitlines()
    return lines[-1].partition(":")[0]

  def repack(self, package: str, change: str = "") -> str:
    """Make a package from the files of one that is installed.

    @param change: what is done to the files before, in shell
    @return: where it is

    """
    deb = f"/tmp/{package}-{hashlib.sha256(change.encode()).hexdigest()}.deb"
    self.shell(_REPACK.format(package=package, change=change, deb=deb))
    return deb

  def install(self, *debs: str) -> None:
    """Install packages."""
    # Triggers would bring the index of all manual pages up to date
    self.run("dpkg", "--no-triggers", "--force-confold", "--install", *debs)

  def picture(self) -> dict[str, tuple[object, ...]]:
    """All that enabling may change, to be compared."""
    root = self.node.path("/")
    return {
      str(path.relative_to(root)): _look(path)
      for directory, pattern in _WATCHED
      for path in sorted((root / directory).glob(pattern))
    }


def _look(path: pathlib.Path) -> tuple[object, ...]:
  found = path.lstat()
  if stat.S_ISLNK(found.st_mode):
    return ("link", os.readlink(path))
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return (stat.filemode(found.st_mode), found.st_uid, found.st_gid, digest)

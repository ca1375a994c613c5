# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A Ganeti of a few files, with daemons that do nothing, in a directory."""

from __future__ import annotations

import collections.abc
import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import sys
import textwrap

import pytest
from ganeti import kvmd
from ganeti.kvmd.node import ctrldir
from ganeti.tools.kvmd_setup import main, node, records, system

_FRONT = (
  pathlib.Path(__file__).resolve().parents[4]
  / "lib/hypervisor/hv_kvm/__init__.py"
)

#: Ganeti's daemon-util, as far as it is asked
_TOOL = """#!/bin/bash
cd {root}
echo "$*" >>calls
pidfile={root}/run/$2.pid
alive() {{ grep -qs {root} /proc/$(cat $pidfile 2>/dev/null)/cmdline; }}
case $1 in
  check) alive ;;
  daemon-executable) echo {root}/sbin/$2 ;;
  daemon-pidfile) echo $pidfile ;;
  start)
    alive && exit
    {root}/sbin/$2 1000 </dev/null >/dev/null 2>&1 &
    # It has begun when it sleeps.
    until grep -q '^State:.[SZ]' /proc/$!/status; do sleep 0.01; done
    echo $! | tee -a started >$pidfile
    ;;
  stop)
    alive || exit 0
    kill $(cat $pidfile)
    while alive; do sleep 0.01; done
    ;;
esac
"""

_OURS = f"""\
#!{sys.executable}
import sys, time
if sys.argv[1:] == ["--version"]:
  print("ganeti-kvmd version {kvmd.VERSION}")
else:
  time.sleep(1000)
"""

_HYPERVISOR = """\
from ganeti.hypervisor import hv_kvm
def GetHypervisorClass(kind):
  return {"kvm": hv_kvm.KVMHypervisor}[kind]
"""

_STOCK = """\
NAME = "a name"

class KVMHypervisor(object):
  pass
"""


class FakeGaneti:
  """An installation of Ganeti's and of ours.

  @ivar installation: as the build would have it
  @ivar user: whom the setup takes this user for

  """

  def __init__(self, root: pathlib.Path) -> None:
    self.root = root
    self.user = 0
    self.package = root / "share" / "ganeti"
    self.hypervisor = self.package / "hypervisor" / "hv_kvm"
    self.daemon = root / "sbin" / "ganeti-kvmd"
    self.tool = root / "lib" / "daemon-util"
    self.ours = root / "ours"
    self.installation = main.Installation(
      ganeti=str(root / "share"),
      libdir=str(self.ours),
      sbindir=str(root / "sbin"),
      mandir=str(root / "man"),
    )
    self.say("3.0.2")
    self.write("share/ganeti/__init__.py", "")
    self.write("share/ganeti/hypervisor/__init__.py", _HYPERVISOR)
    self.write("share/ganeti/hypervisor/hv_kvm/__init__.py", _STOCK)
    self.write("lib/daemon-util", _TOOL.format(root=root))
    (root / "run").mkdir()
    (root / "sbin").mkdir()
    for name in (node.KVMD, node.NODED):
      shutil.copy("/bin/sleep", root / "sbin" / name)
    self.write("man/man8/ganeti-kvmd.8", "Ganeti's own\n")
    # Ours
    (self.package / "kvmd").mkdir()
    self.write(
      "share/ganeti/hypervisor/hv_kvm/user_shutdown.py",
      "class UserShutdown:\n  pass\n",
    )
    self.write("ours/ganeti-kvmd", _OURS)
    self.write("ours/hv_kvm/__init__.py", _FRONT.read_text())
    self.write("ours/man/man8/ganeti-kvmd.8", "ours\n")

  def say(self, version: str) -> None:
    """Says which version it is of, and where its things are."""
    self.write(
      "share/ganeti/_constants.py",
      textwrap.dedent(f"""\
        # Generated
        RELEASE_VERSION = "{version}"
        PKGLIBDIR = "{self.root}/lib"
        SHAREDIR = "{self.root}/versions"
        NUMBER = 7
        """),
    )

  def write(self, name: str, text: str) -> pathlib.Path:
    """Writes a file, which is executable as well."""
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path

  def picture(self) -> dict[str, str]:
    """Says what is where that enabling may change."""
    return {
      str(path): os.readlink(path)
      if path.is_symlink()
      else hashlib.sha256(path.read_bytes()).hexdigest()
      for directory in (self.daemon.parent, self.hypervisor, self.root / "man")
      for path in sorted(directory.rglob("*"))
      if path.is_file() and path.suffix != ".pyc"
    }

  def run(self, *words: str) -> int:
    """Runs ganeti-kvmd-setup; returns its exit status."""
    return main.main(self.installation, words)

  def util(self, *words: str) -> None:
    """Runs its daemon-util."""
    system.run(str(self.tool), *words)

  def process(self, name: str = node.KVMD) -> int:
    """Says which process a daemon is."""
    return int((self.root / "run" / f"{name}.pid").read_text())

  def stop_all(self) -> None:
    """Ends what was started."""
    started = self.root / "started"
    for number in started.read_text().split() if started.exists() else []:
      with contextlib.suppress(OSError):
        command = pathlib.Path(f"/proc/{number}/cmdline").read_bytes()
        if os.fsencode(self.root) in command:
          os.kill(int(number), signal.SIGKILL)


class _Os:
  """The module os, in which another user runs the setup."""

  def __init__(self, ganeti: FakeGaneti) -> None:
    self._ganeti = ganeti

  def geteuid(self) -> int:
    return self._ganeti.user

  def __getattr__(self, name: str) -> object:
    return getattr(os, name)


@pytest.fixture
def ganeti(
  monkeypatch, scratch: pathlib.Path
) -> collections.abc.Iterator[FakeGaneti]:
  """A node, seen by root, on which no dpkg has installed anything."""
  monkeypatch.setattr(records.shutil, "which", lambda _: None)
  monkeypatch.setattr(ctrldir, "ganeti_path", lambda: str(scratch / "ctrl"))
  monkeypatch.setattr(system, "_LOCK", str(scratch / "lock"))
  monkeypatch.setattr(system, "_DPKG_LOCK", str(scratch / "no-dpkg"))
  found = FakeGaneti(scratch)
  for module in (main, node):
    monkeypatch.setattr(module, "os", _Os(found))
  yield found
  found.stop_all()

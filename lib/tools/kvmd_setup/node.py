# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The Ganeti that is installed on this node, and its daemons."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING

from ganeti import kvmd
from ganeti.kvmd.node import ctrldir, directory_locks, lockfile
from ganeti.kvmd.process import pidfile
from ganeti.tools.kvmd_setup import system

if TYPE_CHECKING:
  from typing import Optional

#: Whose hypervisor code is known.
SUPPORTED = ("3.0", "3.1")

KVMD = "ganeti-kvmd"
NODED = "ganeti-noded"

#: How long a daemon may take until it is seen to run, or to end, in seconds.
_PATIENCE = 10.0

_POLL_INTERVAL = 0.05

#: Looks at Ganeti's hypervisor code, as its node daemon finds it.
_LOOK = """
import sys
sys.path.insert(0, sys.argv[1])
from ganeti import hypervisor
from ganeti.hypervisor import hv_kvm
used = hypervisor.GetHypervisorClass("kvm")
if used is not hv_kvm.KVMHypervisor:
  sys.exit("Ganeti uses another class: %r" % used)
if sys.argv[2] == "ours":
  from ganeti.hypervisor.hv_kvm import stock, user_shutdown
  for each in user_shutdown.UserShutdown, stock.KVMHypervisor:
    if not issubclass(used, each):
      sys.exit("Ganeti's class is no %r" % each)
  missing = [name for name in vars(stock) if not hasattr(hv_kvm, name)]
  if missing:
    sys.exit("names are missing: %s" % ", ".join(missing))
elif hasattr(hv_kvm, "stock"):
  sys.exit("it is still ours")
"""


class Ganeti:
  """An installed Ganeti.

  @ivar directory: the one that holds its Python package

  """

  def __init__(self, directory: str) -> None:
    self.directory = directory
    self._constants = _read_constants(directory)

  @property
  def version(self) -> Optional[str]:
    """Its version; None if there is no Ganeti."""
    return self._constants.get("RELEASE_VERSION")

  @property
  def is_supported(self) -> bool:
    """Whether its version is one whose hypervisor code is known."""
    return ".".join((self.version or "").split(".")[:2]) in SUPPORTED

  @property
  def daemon_util(self) -> str:
    """The path of its tool that starts and stops daemons."""
    return os.path.join(self._constants.get("PKGLIBDIR", ""), "daemon-util")

  @property
  def hypervisor(self) -> str:
    """The directory of its code for KVM."""
    return os.path.join(self.directory, "ganeti", "hypervisor", "hv_kvm")

  def default(self) -> Optional[str]:
    """Where its active version is, if there may be several."""
    path = os.path.join(self._constants.get("SHAREDIR", ""), "default")
    return os.path.realpath(path) if os.path.exists(path) else None

  def check(self) -> None:
    """Makes sure that it is a Ganeti as we know it.

    @raise system.TroubleError: if not

    """
    if self.version is None:
      raise system.TroubleError(
        f"there is no Ganeti in {self.directory}, for which ganeti-kvmd was"
        " built; install it, or build ganeti-kvmd again for the one you have"
      )
    if not self.is_supported:
      raise system.TroubleError(
        f"Ganeti {self.version} in {self.directory} is of a version that is not"
        f" known here, which are {' and '.join(SUPPORTED)}; look for a newer"
        " ganeti-kvmd"
      )
    source = ""
    for name in ("stock.py", "__init__.py"):
      path = os.path.join(self.hypervisor, name)
      if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as file:
          source += file.read()
    if "\nclass KVMHypervisor(" not in source:
      raise system.TroubleError(
        f"Ganeti {self.version} has another layout than is known here:"
        f" no class KVMHypervisor in {self.hypervisor}"
      )
    if not os.access(self.daemon_util, os.X_OK):
      raise system.TroubleError(
        f"Ganeti {self.version} has another layout than is known here:"
        f" no program {self.daemon_util}"
      )

  def daemon_path(self) -> str:
    """Returns the program that it starts as the KVM daemon.

    @raise system.TroubleError: if it does not say

    """
    return system.run(self.daemon_util, "daemon-executable", KVMD).strip()

  def check_hypervisor(self, *, is_ours: bool) -> None:
    """Makes sure that its node daemon could load its code for KVM.

    @param is_ours: whether ours is to be in front of it
    @raise system.TroubleError: if it could not

    """
    whose = "ours" if is_ours else "stock"
    # As root it leaves the byte code, which other users of it cannot write.
    system.run(sys.executable, "-I", "-c", _LOOK, self.directory, whose)


class Daemon:
  """One of Ganeti's daemons on this node."""

  def __init__(self, ganeti: Ganeti, name: str) -> None:
    self.name = name
    self._util = ganeti.daemon_util

  def process(self) -> Optional[int]:
    """Returns the process of the daemon; None if it does not run.

    @raise system.TroubleError: if this user may not know

    """
    if os.geteuid() != 0:
      raise system.TroubleError("only root can tell")
    if system.attempt(self._util, "check", self.name).returncode:
      return self._process_by_lock()
    try:
      with open(self._pid_file(), encoding="ascii", errors="replace") as file:
        return int(file.read())
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as err:
      raise system.TroubleError(
        f"cannot tell the process of {self.name}: {err}"
      ) from err

  def restart(self) -> None:
    """Stops the daemon if it runs, and starts it.

    @raise system.TroubleError: if it does not run afterwards

    """
    self._stop()
    said = system.run(self._util, "start", self.name)
    end = time.monotonic() + _PATIENCE
    while self.process() is None:
      if time.monotonic() > end:
        words = " ".join(said.split()) or "its log file may say why"
        raise system.TroubleError(f"{self.name} does not run: {words}")
      time.sleep(_POLL_INTERVAL)

  def _stop(self) -> None:
    system.run(self._util, "stop", self.name)
    process = self._process_by_lock()
    if process is not None:
      # Without a pidfile start-stop-daemon has found nothing to stop.
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    end = time.monotonic() + _PATIENCE
    while self._process_by_lock() is not None and time.monotonic() < end:
      time.sleep(_POLL_INTERVAL)
    try:
      # The stock daemon leaves one that start-stop-daemon trusts nobody with.
      pidfile.remove_stale(self._pid_file())
    except lockfile.LockedError as err:
      raise system.TroubleError(f"{self.name} does not stop: {err}") from err

  def _process_by_lock(self) -> Optional[int]:
    """Returns the process of our KVM daemon, also if its pidfile is gone."""
    if self.name != KVMD:
      return None
    try:
      process = directory_locks.daemon_of(ctrldir.ganeti_path())
      with open(f"/proc/{process}/comm", encoding="ascii") as file:
        return process if file.read().strip() == KVMD else None
    except (ImportError, RuntimeError, OSError, ValueError):
      # Without Ganeti, or in an environment that Ganeti refuses.
      return None

  def _pid_file(self) -> str:
    return system.run(self._util, "daemon-pidfile", self.name).strip()


def is_stock_daemon(process: int) -> bool:
  """Tells whether a KVM daemon is Ganeti's own, which is no script.

  @raise OSError: if it has just ended, or this user may not know

  """
  program = os.readlink(f"/proc/{process}/exe")
  return os.path.basename(program).partition(" ")[0] == KVMD


def check_daemon(program: str) -> None:
  """Makes sure that a program is our daemon, and that it runs.

  @raise system.TroubleError: if not

  """
  said = system.run(program, "--version").strip()
  if not said.endswith(f" {kvmd.VERSION}"):
    raise system.TroubleError(
      f"'{program} --version' says '{said}', not {kvmd.VERSION}"
    )


def started(process: int) -> float:
  """Returns when a process was started, in seconds since the epoch.

  @raise OSError: if it has just ended

  """
  with open(
    f"/proc/{process}/stat", encoding="ascii", errors="replace"
  ) as file:
    fields = file.read().rpartition(")")[2].split()
  since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
  age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
  return time.time() - age


def _read_constants(directory: str) -> dict[str, str]:
  """Reads Ganeti's constants that are text, without importing Ganeti."""
  path = os.path.join(directory, "ganeti", "_constants.py")
  try:
    with open(path, encoding="utf-8", errors="replace") as file:
      found = re.findall(r'^([A-Z_]+) = "(.*)"$', file.read(), re.MULTILINE)
  except OSError:
    return {}
  return dict(found)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The program ganeti-kvmd-setup; see ganeti-kvmd-setup(8)."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from ganeti import kvmd
from ganeti.tools.kvmd_setup import node, system
from ganeti.tools.kvmd_setup.replacement import Paths, Replacement, State

if TYPE_CHECKING:
  from collections.abc import Sequence
  from typing import Optional

PROGRAM = "ganeti-kvmd-setup"


class Installation(NamedTuple):
  """Where the build has put things.

  @ivar ganeti: the directory that holds Ganeti's Python package
  @ivar libdir: our own files that take the place of Ganeti's
  @ivar sbindir: where Ganeti's daemons are if it does not say
  @ivar mandir: where Ganeti's manual pages are

  """

  ganeti: str
  libdir: str
  sbindir: str
  mandir: str


class Setup:
  """Switches between Ganeti's files and ours."""

  def __init__(self, installation: Installation) -> None:
    self._libdir = installation.libdir
    self._ganeti = node.Ganeti(installation.ganeti)
    self._has_tool = os.access(self._ganeti.daemon_util, os.X_OK)
    self._kvmd = node.Daemon(self._ganeti, node.KVMD)
    self._noded = node.Daemon(self._ganeti, node.NODED)
    self._daemon = self._replace_daemon(installation.sbindir)
    self._manual = self._replace_manual(installation.mandir)
    self._hypervisor = self._replace_hypervisor()

  def enable(self, *, daemon_only: bool, restart: bool) -> None:
    """Puts ours in front.

    @param daemon_only: whether the hypervisor side is left as it is
    @param restart: whether running daemons are restarted in any case, the node
      daemon among them
    @raise system.TroubleError: if that is not possible; then all is as before

    """
    self._ganeti.check()
    self._check_installed(daemon_only=daemon_only)
    wanted = [self._daemon, *self._manual]
    if not daemon_only:
      wanted.append(self._hypervisor)
    changing = [each for each in wanted if each.look() is not State.OURS]
    ran_noded = restart and self._noded.process() is not None
    ran_kvmd = self._kvmd.process() is not None
    try:
      for each in changing:
        each.enable()
      node.check_daemon(self._daemon.paths.place)
      if not daemon_only:
        self._ganeti.check_hypervisor(is_ours=True)
      for each in changing:
        _say(f"{each.paths.place} is ours now")
      if ran_kvmd and (restart or self._runs_stock()):
        self._restart(self._kvmd)
      if ran_noded:
        self._restart(self._noded)
    except BaseException as err:
      if not changing:
        raise system.TroubleError(
          f"{_words(err)}; '{PROGRAM} disable' brings Ganeti's own back"
        ) from err
      self._undo(changing, ran_kvmd=ran_kvmd, ran_noded=ran_noded)
      raise system.TroubleError(
        f"{_words(err)}; everything is as it was before"
      ) from err
    if not changing:
      _say("enabled already")

  def disable(self, *, restart: bool) -> None:
    """Puts Ganeti's own files back.

    @param restart: whether running daemons are restarted in any case, the node
      daemon among them
    @raise system.TroubleError: if that is not possible

    """
    changing = [
      each
      for each in (self._hypervisor, *self._manual, self._daemon)
      if each.look() is not State.STOCK
    ]
    for each in changing:
      each.disable()
      _say(f"{each.paths.place} is Ganeti's own now")
    if not changing:
      _say("disabled already")
    if not self._has_tool:
      return
    self._ganeti.check_hypervisor(is_ours=False)
    if self._kvmd.process() is not None and (restart or not self._runs_stock()):
      self._restart(self._kvmd)
    if restart and self._noded.process() is not None:
      self._restart(self._noded)

  def advise(self) -> None:
    """Says what is left to do, if anything is."""
    for advice in self._advice():
      _say(advice)

  def status(self) -> bool:
    """Says what is active.

    @return: whether our daemon is, and there is nothing left to do

    """
    version = self._ganeti.version
    supported = "" if self._ganeti.is_supported else ", which is not supported"
    if version is None:
      where = f"no Ganeti in {self._ganeti.directory}"
    else:
      where = f"Ganeti {version} in {self._ganeti.directory}{supported}"
    print(f"ganeti-kvmd {kvmd.VERSION}, {where}")
    troubles = []
    states = []
    for name, replacement in (
      ("daemon", self._daemon),
      ("hypervisor", self._hypervisor),
      *(("manual", each) for each in self._manual),
    ):
      try:
        states.append(replacement.look())
        text = states[-1].value
      except system.TroubleError as err:
        states.append(State.HALFWAY)
        text = "trouble, see below"
        troubles.append(str(err))
      print(f"{name + ':':12}{text} ({replacement.paths.place})")
    if self._has_tool:
      for daemon in (self._kvmd, self._noded):
        print(f"{daemon.name + ':':12} {self._describe(daemon)}")
    print(f"{'cluster:':12}{_cluster()}")
    if State.HALFWAY in states and not troubles:
      troubles.append(
        f"an earlier run was interrupted, or Ganeti was installed again:"
        f" run '{PROGRAM} enable' or '{PROGRAM} disable'"
      )
    troubles += self._advice()
    for trouble in troubles:
      print(f"to do:      {trouble}")
    return states[0] is State.OURS and not troubles

  def _replace_daemon(self, sbindir: str) -> Replacement:
    place = os.path.join(sbindir, node.KVMD)
    if self._has_tool:
      place = self._ganeti.daemon_path()
    ours = os.path.join(self._libdir, node.KVMD)
    return Replacement(Paths(place, place + ".stock", ours))

  def _replace_manual(self, mandir: str) -> list[Replacement]:
    """The daemon's manual page goes with it, where Ganeti has one."""
    ours = os.path.join(self._libdir, "man", "man8", f"{node.KVMD}.8")
    found = []
    for suffix in (".8", ".8.gz"):
      path = os.path.join(mandir, "man8", node.KVMD)
      paths = Paths(path + suffix, f"{path}.stock{suffix}", ours)
      if os.path.lexists(paths.place) or os.path.lexists(paths.stock):
        found.append(Replacement(paths))
    return found

  def _replace_hypervisor(self) -> Replacement:
    return Replacement(
      Paths(
        os.path.join(self._ganeti.hypervisor, "__init__.py"),
        os.path.join(self._ganeti.hypervisor, "stock.py"),
        os.path.join(self._libdir, "hv_kvm", "__init__.py"),
      )
    )

  def _check_installed(self, *, daemon_only: bool) -> None:
    wanted = [self._daemon.paths.ours]
    if not daemon_only:
      package = os.path.join(self._ganeti.directory, "ganeti")
      if not os.path.isdir(os.path.join(package, "kvmd")):
        raise system.TroubleError(
          f"our modules are not in Ganeti's package {package}, where its node"
          " daemon would look for them; only --daemon-only works here"
        )
      wanted.append(self._hypervisor.paths.ours)
      wanted.append(os.path.join(self._ganeti.hypervisor, "user_shutdown.py"))
    for path in wanted:
      if not os.path.exists(path):
        raise system.TroubleError(
          f"{path} is missing; install ganeti-kvmd again (make install)"
        )

  def _undo(
    self, changed: list[Replacement], *, ran_kvmd: bool, ran_noded: bool
  ) -> None:
    try:
      for each in reversed(changed):
        each.disable()
      if ran_kvmd and (self._kvmd.process() is None or not self._runs_stock()):
        self._kvmd.restart()
      if ran_noded:
        self._noded.restart()
    except (system.TroubleError, OSError) as err:
      _say(
        f"not everything could be undone: {_words(err)}; see '{PROGRAM} status'"
      )

  def _runs_stock(self) -> bool:
    """Tells whether the running KVM daemon is Ganeti's own."""
    process = self._kvmd.process()
    try:
      return process is not None and node.is_stock_daemon(process)
    except FileNotFoundError:
      return False

  def _restart(self, daemon: node.Daemon) -> None:
    daemon.restart()
    _say(f"{daemon.name} was restarted: process {daemon.process()}")

  def _describe(self, daemon: node.Daemon) -> str:
    try:
      process = daemon.process()
    except system.TroubleError as err:
      return str(err)
    return "does not run" if process is None else f"process {process}"

  def _advice(self) -> list[str]:
    """Lists what an administrator had better do."""
    advice = []
    default = self._ganeti.default()
    if default not in (None, self._ganeti.directory):
      advice.append(
        f"the active Ganeti is that in {default}: build ganeti-kvmd for it"
      )
    if not self._has_tool:
      return advice
    is_ours = system.link_target(self._daemon.paths.place) == (
      self._daemon.paths.ours
    )
    util = self._ganeti.daemon_util
    try:
      if self._kvmd.process() is None:
        if is_ours and _cluster() == _ON:
          advice.append(
            f"the daemon does not run; start it with '{util} start {node.KVMD}'"
          )
      elif self._runs_stock() is is_ours:
        command = "enable" if is_ours else "disable"
        advice.append(
          f"the daemon still runs as before; '{PROGRAM} {command}' restarts it"
        )
      noded = self._noded.process()
      switched = os.lstat(self._hypervisor.paths.place).st_ctime
      if noded is not None and node.started(noded) < switched:
        advice.append(
          "the node daemon uses the hypervisor code from before until it is"
          f" restarted, when no job runs: '{util} stop {node.NODED} && {util}"
          f" start {node.NODED}', or --restart with the next {PROGRAM}"
        )
    except (system.TroubleError, OSError):
      # Only root may know, and status says that much.
      pass
    return advice


#: What is said of a cluster that has the feature on.
_ON = "user shutdown is on"


def _cluster() -> str:
  """Tells whether the cluster has the feature on."""
  try:
    from ganeti.kvmd.node import ssconf

    return ssconf.reason_not_to_run() or _ON
  except (ImportError, RuntimeError):
    return "unknown without Ganeti"
  except OSError:
    return "this node is in none"


def _say(text: str) -> None:
  print(f"{PROGRAM}: {text}", flush=True)


def _words(err: BaseException) -> str:
  if isinstance(err, OSError):
    return f"{err.filename}: {err.strerror}"
  return str(err) or type(err).__name__


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog=PROGRAM,
    allow_abbrev=False,
    description="Puts ganeti-kvmd in the place of Ganeti's own KVM daemon, and"
    " takes it out again. Running it again does no harm, and repairs what an"
    " interrupted run has left.",
  )
  parser.add_argument(
    "-V",
    "--version",
    action="version",
    version=f"{PROGRAM} version {kvmd.VERSION}",
  )
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="COMMAND"
  )
  for name, text in (
    ("enable", "put our daemon and our hypervisor code in front of Ganeti's"),
    ("disable", "put Ganeti's own files back"),
  ):
    command = commands.add_parser(
      name, allow_abbrev=False, help=text, description=text
    )
    command.add_argument(
      "--restart",
      action="store_true",
      help="restart the node daemon, so that it takes effect at once",
    )
    if name == "enable":
      command.add_argument(
        "--daemon-only",
        action="store_true",
        help="leave Ganeti's hypervisor code as it is",
      )
  text = (
    "say what is active; the exit status is 0 if our daemon is and all is well"
  )
  commands.add_parser("status", help=text, description=text)
  return parser.parse_args(arguments)


def main(
  installation: Installation, arguments: Optional[Sequence[str]] = None
) -> int:
  """Runs the program.

  @param arguments: the command line without the program's name; None for this
    process's own
  @return: the exit status
  @raise SystemExit: for C{--help}, C{--version} and a wrong command line

  """
  options = _parse(arguments)
  try:
    if options.command == "status":
      return 0 if Setup(installation).status() else 1
    if os.geteuid() != 0:
      raise system.TroubleError(
        f"must be run by root; '{PROGRAM} status' is for everybody"
      )
    with system.exclusively():
      setup = Setup(installation)
      if options.command == "enable":
        setup.enable(daemon_only=options.daemon_only, restart=options.restart)
      else:
        setup.disable(restart=options.restart)
      setup.advise()
  except (system.TroubleError, OSError) as err:
    print(f"{PROGRAM}: {_words(err)}", file=sys.stderr)
    return 1
  return 0

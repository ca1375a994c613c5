# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The program: command line, start and end.

It serves two masters. Without C{--ctrl-dir} it is a daemon of a Ganeti node,
with Ganeti's paths, checks and files. With it, it needs no Ganeti and no root,
and watches the monitors of any QEMU in one directory.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from ganeti import kvmd
from ganeti.kvmd import daemon
from ganeti.kvmd.core import lifecycle, marks, timing
from ganeti.kvmd.node import ctrldir, lockfile
from ganeti.kvmd.node.evidence import Directories
from ganeti.kvmd.process import detach, logs, pidfile, signals

if TYPE_CHECKING:
  from collections.abc import Callable, Sequence
  from typing import Optional

PROGRAM = "ganeti-kvmd"

#: So many more objects than before make it worth looking for garbage.
_GARBAGE = 20_000

#: Where the history is, beside Ganeti's logs, in a directory of its own.
_HISTORY = ("kvmd-history", "history.jsonl")

#: The longest interval that makes sense for a look at everything: a day.
_MAX_INTERVAL = 86400.0


class StartError(Exception):
  """The daemon cannot run; the text is for the administrator."""


class NotWantedError(Exception):
  """The daemon has nothing to do here; the text says why."""


class Files(NamedTuple):
  """The files of the daemon.

  @ivar control_directory: what to watch
  @ivar pid: the pidfile; None for none
  @ivar log: the log file; None for none
  @ivar history: the file of the history; None for none
  @ivar evidence: where more may be known of how an instance ended

  """

  control_directory: str
  pid: Optional[str]
  log: Optional[str]
  history: Optional[str]
  evidence: Directories = Directories()


def _suffix(text: str) -> str:
  taken = [mark.value for mark in marks.Mark]
  taken += [ctrldir.LOCK_FILE, ctrldir.RULE]
  if (
    not text
    or "/" in text
    or any(text.endswith(own) or own.endswith(text) for own in taken)
  ):
    raise argparse.ArgumentTypeError(f"{text!r} can be no monitor's suffix")
  return text


def _interval(text: str) -> float:
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.0
  if not 0.0 < seconds <= _MAX_INTERVAL:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no number of seconds from above 0 to {_MAX_INTERVAL:.0f}"
    )
  return seconds


def _path(text: str) -> str:
  if not text or "\0" in text:
    raise argparse.ArgumentTypeError("a path must not be empty")
  # Detaching changes the working directory. Apart from that a path is left as
  # it is: what ".." means depends on links.
  return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog=PROGRAM,
    allow_abbrev=False,
    description="Tells a user's shutdown of a KVM instance from any other end,"
    " and leaves a file INSTANCE.shutdown for it.",
  )
  parser.add_argument(
    "-f",
    "--foreground",
    action="store_true",
    help="do not detach from the terminal; log to it",
  )
  parser.add_argument(
    "-d", "--debug", action="store_true", help="log debug messages, too"
  )
  parser.add_argument(
    "--syslog",
    choices=("no", "yes", "only"),
    default="no",
    help="log to syslog as well, or only there [%(default)s]",
  )
  parser.add_argument(
    "--no-user-checks",
    action="store_true",
    help="run as any user; by default a node's daemon must be root",
  )
  parser.add_argument(
    "-V",
    "--version",
    action="version",
    version=f"{PROGRAM} (in Python) version {kvmd.VERSION}",
  )
  parser.add_argument(
    "--ctrl-dir",
    type=_path,
    metavar="DIR",
    help="watch this directory instead of Ganeti's; needs neither Ganeti, nor"
    " a cluster, nor root",
  )
  parser.add_argument(
    "--monitor-suffix",
    type=_suffix,
    default=ctrldir.MONITOR_SUFFIX,
    metavar="SUFFIX",
    help="what the names of monitor sockets end in [%(default)s]",
  )
  parser.add_argument(
    "--rule",
    choices=[rule.value for rule in lifecycle.Rule],
    default=lifecycle.Rule.CAUSE.value,
    help="judge a shutdown by the cause that QEMU gives, or by the sequence of"
    " events alone, as Ganeti's first daemon did [%(default)s]",
  )
  parser.add_argument(
    "--rescan-interval",
    type=_interval,
    default=60.0,
    metavar="SECONDS",
    help="look at everything again after that time [60]",
  )
  parser.add_argument(
    "--pid-file",
    type=_path,
    metavar="FILE",
    help="with --ctrl-dir: keep a pidfile there",
  )
  parser.add_argument(
    "--history",
    type=_path,
    metavar="FILE",
    help="with --ctrl-dir: write each instance's end into that file",
  )
  options = parser.parse_args(arguments)
  for option in "pid_file", "history":
    if getattr(options, option) and not options.ctrl_dir:
      name = option.replace("_", "-")
      parser.error(f"--{name} goes with --ctrl-dir; Ganeti's is elsewhere")
  return options


def _find_files(options: argparse.Namespace) -> Files:
  """Says which files are used, and checks that they are to be.

  @raise StartError: if the daemon cannot run here
  @raise NotWantedError: if the cluster does not want it to

  """
  if options.ctrl_dir:
    return Files(options.ctrl_dir, options.pid_file, None, options.history)
  try:
    from ganeti import constants, pathutils
    from ganeti.kvmd.node import ssconf
  except (ImportError, RuntimeError) as err:
    raise StartError(
      f"there is no Ganeti to serve ({err}); without it, say which directory"
      " to watch with --ctrl-dir"
    ) from err
  if os.geteuid() != 0 and not options.no_user_checks:
    raise StartError(
      f"must run as {constants.KVMD_USER}, not as user {os.geteuid()}"
      " (--no-user-checks lets it try)"
    )
  try:
    reason = ssconf.reason_not_to_run()
  except OSError as err:
    raise StartError(
      f"this node is in no Ganeti cluster: cannot read {err.filename}:"
      f" {err.strerror}"
    ) from err
  if reason is not None:
    raise NotWantedError(reason)
  return Files(
    ctrldir.ganeti_path(),
    os.path.join(pathutils.RUN_DIR, constants.KVMD + ".pid"),
    constants.DAEMONS_LOGFILES[constants.KVMD],
    os.path.join(pathutils.LOG_DIR, *_HISTORY),
    Directories(pathutils.LOG_KVM_DIR, pathutils.INSTANCE_REASON_DIR),
  )


def _set_up_logs(options: argparse.Namespace, files: Files) -> logs.Logs:
  """Logs to where it was asked to.

  @raise StartError: if the log file cannot be written

  """
  wanted = logs.Logs(PROGRAM, debug=options.debug)
  if options.foreground:
    wanted.add_terminal()
  # A detached daemon without a log file would have nowhere else to speak.
  has_only_syslog = not options.foreground and files.log is None
  if options.syslog != "no" or has_only_syslog:
    wanted.add_syslog()
  if files.log is not None and options.syslog != "only":
    try:
      wanted.add_file(files.log)
    except OSError as err:
      raise StartError(f"cannot log to {files.log}: {err.strerror}") from err
  return wanted


class _PidFile:
  """The pidfile, if there is to be one, and what there was to say of it."""

  def __init__(self, path: Optional[str]) -> None:
    """Takes the pidfile.

    @raise StartError: if that is not possible

    """
    self._path = path
    self._said = ""
    try:
      self._held = None if path is None else pidfile.PidFile(path)
    except lockfile.LockedError as err:
      raise _refused(err) from err
    except OSError as err:
      raise StartError(f"cannot write {path}: {err.strerror}") from err

  def restore(self) -> None:
    """Makes it anew if it is gone, since it is what Ganeti looks for."""
    said = ""
    try:
      if self._held is not None and self._held.restore():
        logging.warning(
          "the pidfile %s was gone, or not ours any more; it is there again",
          self._path,
        )
    except lockfile.LockedError as err:
      said = (
        f"another KVM daemon has taken our pidfile ({err}), and may say"
        " something else of the same instances: end one of the two"
      )
    except OSError as err:
      said = (
        f"the pidfile {self._path} is gone, and cannot be made anew"
        f" ({err.strerror}): Ganeti takes this daemon for dead, and cannot"
        " end it"
      )
    if said and said != self._said:
      logging.warning("%s", said)
    self._said = said

  def remove(self) -> None:
    """Removes it."""
    if self._held is not None:
      self._held.remove()


def _start(options: argparse.Namespace, files: Files) -> daemon.Daemon:
  """Begins to watch the control directory.

  @raise StartError: if that is not possible

  """
  try:
    # The other one shall not even notice.
    process = None if files.pid is None else pidfile.holder(files.pid)
    if files.pid is not None and process is not None:
      raise lockfile.LockedError(files.pid, process)
    return daemon.Daemon(
      daemon.Settings(
        path=files.control_directory,
        monitor_suffix=options.monitor_suffix,
        rule=lifecycle.Rule(options.rule),
        timing=timing.Timing(rescan=options.rescan_interval),
        history=files.history,
        directories=files.evidence,
      )
    )
  except lockfile.LockedError as err:
    raise _refused(err) from err
  except OSError as err:
    raise StartError(
      f"cannot watch {err.filename or files.control_directory}:"
      f" {err.strerror or err}"
    ) from err


def _refused(err: lockfile.LockedError) -> StartError:
  return StartError(f"another ganeti-kvmd runs already: {err}")


def _serve(
  options: argparse.Namespace, files: Files, on_ready: Callable[[], None]
) -> None:
  """Runs the daemon until it is told to end.

  @param on_ready: called as soon as it watches
  @raise StartError: if it cannot

  """
  # What an instance takes is no garbage: to look for some after every 700 of
  # such objects takes a twentieth of the time in which a thousand are attached
  # to.
  gc.freeze()
  gc.set_threshold(_GARBAGE)
  taken = signals.Signals()
  wanted = _set_up_logs(options, files)
  with contextlib.ExitStack() as stack:
    server = _start(options, files)
    stack.callback(server.close)
    pid_file = _PidFile(files.pid)
    stack.callback(pid_file.remove)
    logging.info("%s (in Python) version %s", PROGRAM, kvmd.VERSION)
    logging.info(
      "watching %s%s",
      files.control_directory,
      "" if server.has_directory else ", which does not exist yet",
    )
    on_ready()
    server.run(taken, on_hangup=wanted.reopen, on_rescan=pid_file.restore)


def main(arguments: Optional[Sequence[str]] = None) -> int:
  """Runs the program.

  @param arguments: the command line without the program's name; None for this
    process's own
  @return: the exit status: 0 after it did its work, or has none to do; 1 if it
    cannot
  @raise SystemExit: for C{--help}, C{--version} and a wrong command line

  """
  options = _parse(arguments)
  try:
    files = _find_files(options)
    if options.foreground:
      _serve(options, files, on_ready=lambda: None)
    else:
      detach.run(lambda on_ready: _serve(options, files, on_ready))
  except NotWantedError as err:
    sys.stdout.write(f"{PROGRAM}: not started: {err}\n")
  except (StartError, detach.FailedError) as err:
    sys.stderr.write(f"{PROGRAM}: {err}\n")
    return 1
  return 0

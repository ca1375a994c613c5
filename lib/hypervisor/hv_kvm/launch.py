# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Makes sure that a daemon runs on this node, with Ganeti's own means."""

from __future__ import annotations

import functools
import logging
import os
import time
from typing import TYPE_CHECKING

from ganeti import constants, errors, pathutils, utils
from ganeti.kvmd.node import (
  ctrldir,
  directory_locks,
  lockfile,
  processes,
  ssconf,
)
from ganeti.kvmd.process import pidfile

if TYPE_CHECKING:
  from typing import Optional

#: Longest that Ganeti's daemon-util may take, in seconds.
_TIMEOUT = 60

#: How long a daemon that was started may take until it can be seen to run, in
#: seconds. Ours can at once, but where systemd starts it.
_GRACE = 1.0

_POLL_INTERVAL = 0.02


def pid_file() -> str:
  """Returns the path of the daemon's pidfile."""
  return str(os.path.join(pathutils.RUN_DIR, constants.KVMD + ".pid"))


def running() -> Optional[int]:
  """Returns the process of the daemon that runs on this node, if any.

  Ours is the one that has claimed the control directory; the stock daemon
  knows of its pidfile only, and ours has it as well while there is no control
  directory.

  @return: 0 if it is not known which process it is
  @raise OSError: if that cannot be found out

  """
  process = directory_locks.daemon_of(ctrldir.ganeti_path())
  return pidfile.holder(pid_file()) if process is None else process


def at_work() -> Optional[float]:
  """Tells whether the daemon has yet to see to something.

  @return: how long it has worked so far, in seconds; None if it rests, or does
    not run
  @raise OSError: if that cannot be found out

  """
  daemon = running()
  return None if daemon is None else processes.at_work(daemon)


def reason_not_to_run() -> Optional[str]:
  """Tells why a daemon would end at once.

  @return: None if it would not, or if only the daemon itself can say it: the
    node is in no cluster, or not yet

  """
  try:
    return ssconf.reason_not_to_run()
  except OSError:
    return None


def ensure() -> None:
  """Starts the daemon if it does not run.

  It is not worth an instance: whatever goes wrong is logged, with what can be
  done about it, and nothing is raised. Any number of calls at once do no harm.

  """
  try:
    _ensure()
  except OSError as err:
    _warn(f"cannot use {err.filename}: {err.strerror}")
  except errors.GenericError as err:
    _warn(f"cannot run {pathutils.DAEMON_UTIL}: {err}")


def _ensure() -> None:
  if running() is not None:
    return
  reason = reason_not_to_run()
  if reason is not None:
    _log_reason(reason)
    return
  _remove_stale_pid_file()
  result = utils.RunCmd(
    [pathutils.DAEMON_UTIL, "start", constants.KVMD], timeout=_TIMEOUT
  )
  output = " ".join(result.output.split())
  if result.failed:
    # Somebody else may have been faster.
    if running() is None:
      _warn(f"{result.cmd} failed ({result.fail_reason}): {output}")
  elif not _await_running():
    logging.info("The KVM daemon does not run: %s", output)


@functools.lru_cache
def _log_reason(reason: str) -> None:
  """Logs why there is no daemon; once, as instances are started all day."""
  logging.info("The KVM daemon is not started: %s", reason)


def _remove_stale_pid_file() -> None:
  """Removes what an earlier daemon left.

  start-stop-daemon starts nothing while the number in it is that of a process,
  whichever, or while its owner is not root, as the stock daemon's is not.

  """
  try:
    pidfile.remove_stale(pid_file())
  except lockfile.LockedError:
    logging.debug("The KVM daemon is being started by somebody else")


def _await_running() -> bool:
  """Waits until a daemon runs, whoever started it."""
  end = time.monotonic() + _GRACE
  while running() is None:
    if time.monotonic() >= end:
      return False
    time.sleep(_POLL_INTERVAL)
  return True


def _warn(what: str) -> None:
  logging.warning(
    "The KVM daemon does not run: %s. Instances work without it, but one that"
    " its user shuts down is taken for crashed and started again. See %s, and"
    " start it with '%s start %s'",
    what,
    constants.DAEMONS_LOGFILES[constants.KVMD],
    pathutils.DAEMON_UTIL,
    constants.KVMD,
  )

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The user-shutdown side of the KVM hypervisor, as a mixin.

The daemon marks an instance that its user turned off, and the hypervisor reads
the mark. The hypervisor in turn marks an instance that an administrator stops,
before it does anything about it. So, if both turn it off in the same moment,
the daemon knows whose word counts, however late it comes to judge.

An answer is not worth an instance: whatever goes wrong here is logged, and what
Ganeti does itself is done all the same.

C{test/py/unit/test_stock.py} lists all that is used of Ganeti here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from ganeti import constants, errors, objects
from ganeti.kvmd import (
  ctrldir,
  inquiry,
  journal_files,
  launch,
  lifecycle,
  mark_files,
  processes,
  rule_file,
  ssconf,
)
from ganeti.kvmd.marks import Mark

if TYPE_CHECKING:
  from collections.abc import Callable, Iterable, Iterator
  from typing import Any, Optional

#: Longest to wait for the daemon, in seconds, for all instances that are asked
#: about: it knows of an end in a millisecond, unless the node is very busy.
_PATIENCE = 1.0

#: Longest that the daemon may work meanwhile, in seconds: in that time it sees
#: to a thousand ends. If it takes more, what it has to do has no end.
_EFFORT = 0.1

_POLL_INTERVAL = 0.01

#: What is done when Ganeti asks, and what it means if it fails.
_FINDING_OUT = (
  "find out whether its user shut it down",
  "it is taken for crashed",
)


class UserShutdown:
  """Makes a KVM hypervisor tell a user's shutdown from a crash.

  To be put in front of Ganeti's C{KVMHypervisor}. The marks are looked at and
  changed relative to the open control directory; where that is missing, there
  are none.

  """

  _CTRL_DIR: str
  _CheckDown: Callable[[str], Any]
  _InstanceKVMRuntime: Callable[[str], str]
  _InstancePidAlive: Callable[[str], Any]

  #: Whether the QEMU that is being started is to keep a journal.
  _keeps_journal = False

  #: What is left of the patience, in seconds, and how long the daemon will have
  #: worked when it is over; None before it began.
  _patience = _PATIENCE
  _enough: Optional[float] = None

  #: How long journals may be read.
  _budget = inquiry.Budget()

  def _ExecuteKVMRuntime(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
    """Starts QEMU, for a start, a reboot or a migration to this node."""
    # Ganeti does so as well: what is said of one that runs is not to be lost.
    self._CheckDown(instance.name)
    self._ClearMarks(instance.name)
    self._keeps_journal = (
      _wants_user_shutdown(instance.hvparams) and _is_daemon_wanted()
    )
    return super()._ExecuteKVMRuntime(instance, *args, **kwargs)

  def _RunKVMCmd(
    self, name: str, kvm_cmd: list[str], tap_fds: Optional[list[int]] = None
  ) -> Any:
    """Runs QEMU, and lets it keep a journal.

    That is none of the saved runtime: an instance may migrate to a node that
    knows nothing of journals.

    """
    if self._keeps_journal:
      kvm_cmd = kvm_cmd + self._PrepareJournal(name)
    return super()._RunKVMCmd(name, kvm_cmd, tap_fds)

  @classmethod
  def _PrepareJournal(cls, name: str) -> list[str]:
    """Makes the files of a journal and returns QEMU's options for it."""
    with cls._Attempt(
      name,
      "make its journal",
      "it is started without one; if its user shuts it down while the KVM"
      " daemon does not run, it is taken for crashed",
    ) as directory:
      if directory is not None:
        return journal_files.prepare(directory, name)
    return []

  @staticmethod
  def _StartKvmd(hvparams: Optional[dict[str, Any]]) -> None:
    """Makes sure that the daemon runs, for an instance that wants it.

    @param hvparams: the instance's hypervisor parameters

    """
    if _wants_user_shutdown(hvparams):
      launch.ensure()

  def StopInstance(
    self,
    instance: Any,
    force: bool = False,
    retry: bool = False,
    name: Optional[str] = None,
    timeout: Optional[int] = None,
  ) -> Any:
    """Stops an instance; Ganeti calls it until the instance is down.

    The shutdown file is removed at each call, also when the call fails.

    Ganeti's node maintenance has only the name, and stops all instances of a
    node that counts as offline one after the other, up to the first exception.
    The disks of those after that may be in use on another node by then: what
    goes wrong with one is logged there, and the others are stopped.

    @param instance: None if there is only the name
    @param name: None if there is the instance
    @raise errors.HypervisorError: if it cannot be stopped

    """
    is_by_name = instance is None and name is not None
    if is_by_name:
      instance = objects.Instance(name=name)
    stopped = instance.name if name is None else name
    is_refused = name is not None and not force
    if not is_refused:
      self._MarkPowerdown(stopped)
    try:
      return super().StopInstance(
        instance, force=force, retry=retry, name=name, timeout=timeout
      )
    except Exception:
      if is_refused or not is_by_name:
        raise
      logging.exception(
        "Instance %s cannot be stopped, and may still use its disks", name
      )
      return None
    finally:
      if not is_refused:
        self._ClearUserShutdown(stopped)

  def CleanupInstance(self, instance_name: str) -> Any:
    """Cleans up after a stopped instance."""
    result = super().CleanupInstance(instance_name)
    self._ClearMarks(instance_name)
    return result

  def FinalizeMigrationSource(
    self, instance: Any, success: bool, live: bool
  ) -> Any:
    """Ends a migration on the node that the instance leaves."""
    try:
      return super().FinalizeMigrationSource(instance, success, live)
    finally:
      if success:
        self._ClearMarks(instance.name)

  def FinalizeMigrationDst(
    self, instance: Any, info: Any, success: bool
  ) -> Any:
    """Ends a migration on the node that the instance moves to."""
    try:
      return super().FinalizeMigrationDst(instance, info, success)
    finally:
      if not success:
        self._ClearMarks(instance.name)

  def GetInstanceInfo(
    self, instance_name: str, hvparams: Optional[dict[str, Any]] = None
  ) -> Any:
    """Returns what Ganeti wants to know of an instance.

    @return: None if it is down, a state of C{SHUTDOWN} if its user did that

    """
    try:
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    except (FileNotFoundError, TypeError, errors.HypervisorError):
      # What Ganeti trips over where QEMU ends while it is asked.
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    if info is None and self._AwaitUserShutdown(instance_name):
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    return info

  @classmethod
  def _IsUserShutdown(cls, instance_name: str) -> bool:
    """Tells whether an instance that is down was turned off by its user."""
    with cls._Attempt(instance_name, *_FINDING_OUT) as directory:
      if directory is None:
        return False
      # The daemon marks an instance before it removes the journal: in this
      # order one of the two is found.
      by_journal = inquiry.is_user_shutdown(
        directory, instance_name, _rule(directory), cls._budget
      )
      if by_journal is not None:
        return by_journal
      return mark_files.is_marked(directory, Mark.SHUTDOWN, instance_name)
    return False

  @classmethod
  def _ClearUserShutdown(cls, instance_name: str) -> None:
    """Makes sure that an instance does not pass for turned off by its user."""
    cls._ClearMarks(instance_name, [Mark.SHUTDOWN])

  @classmethod
  def _ClearMarks(
    cls, instance_name: str, marks: Iterable[Mark] = tuple(Mark)
  ) -> None:
    """Removes what was said of an earlier life of an instance.

    A journal is removed with the marks, unless the instance lives.

    """
    for mark in marks:
      with cls._Removal(instance_name) as directory:
        if directory is not None:
          mark_files.remove(directory, mark, instance_name)
    with cls._Removal(instance_name) as directory:
      if directory is not None and not journal_files.is_being_written(
        directory, instance_name
      ):
        journal_files.remove(directory, instance_name)

  @classmethod
  def _Removal(
    cls, name: str
  ) -> contextlib.AbstractContextManager[Optional[ctrldir.ControlDirectory]]:
    return cls._Attempt(
      name,
      "remove what is known of its last life",
      "it may pass for shut down by its user when it is not; remove that by"
      " hand",
    )

  @classmethod
  def _MarkPowerdown(cls, instance_name: str) -> None:
    """Marks an instance that an administrator stops, if it runs.

    If that fails, the daemon has only QEMU's word for it, which is right but
    for the case that the instance's user does the same at once.

    """
    with cls._Attempt(
      instance_name,
      "mark it as stopped by an administrator",
      "should its user shut it down in the same moment, that is what counts",
    ) as directory:
      if directory is not None and cls._InstancePidAlive(instance_name)[2]:
        mark_files.write(
          directory,
          Mark.POWERDOWN,
          instance_name,
          directory.life(instance_name),
        )

  def _AwaitUserShutdown(self, instance_name: str) -> bool:
    """Waits for the daemon, as long as it may be about to mark an instance.

    @return: whether the instance turned out to be turned off by its user

    """
    with self._Tolerate(instance_name, *_FINDING_OUT):
      while self._MayBeMarked(instance_name):
        # In this order nothing is missed that the daemon does in between.
        worked = _daemon_at_work()
        if self._IsUserShutdown(instance_name):
          return True
        if worked is None or self._patience <= 0.0:
          break
        if self._enough is None:
          self._enough = worked + _EFFORT
        if worked >= self._enough:
          break
        began = time.monotonic()
        time.sleep(_POLL_INTERVAL)
        self._patience -= time.monotonic() - began
    return False

  @classmethod
  def _MayBeMarked(cls, instance_name: str) -> bool:
    """Tells whether an instance that is down may be marked just now.

    The daemon knows nothing that we do not know of an instance that was never
    started here, that left a journal, or that was killed and so left its
    monitor. And if no QEMU has removed its sockets a moment ago, none has ended
    by itself.

    """
    if not os.path.exists(cls._InstanceKVMRuntime(instance_name)):
      return False
    with cls._OpenDirectory() as directory:
      if directory is None:
        return False
      changed = os.fstat(directory.descriptor).st_mtime
      return (
        0 <= time.time() - changed < _PATIENCE
        and not directory.has_monitor(instance_name)
        and not directory.has_journal(instance_name)
      )

  @classmethod
  @contextlib.contextmanager
  def _Attempt(
    cls, name: str, what: str, meaning: str
  ) -> Iterator[Optional[ctrldir.ControlDirectory]]:
    """Does something in the control directory that Ganeti can do without.

    The parameters are those of L{_Tolerate}. There is no directory, either,
    where it cannot be opened.

    """
    directory = None
    with contextlib.ExitStack() as stack:
      with cls._Tolerate(name, what, meaning):
        directory = stack.enter_context(cls._OpenDirectory())
      with cls._Tolerate(name, what, meaning):
        yield directory

  @classmethod
  @contextlib.contextmanager
  def _Tolerate(cls, name: str, what: str, meaning: str) -> Iterator[None]:
    """Logs what fails for an instance, and goes on.

    @param name: the instance's
    @param what: what is done
    @param meaning: what it means if it fails

    """
    try:
      yield
    except OSError as err:
      path = os.path.join(cls._CTRL_DIR, str(err.filename or ""))
      logging.warning(
        "Instance %s: cannot %s (%s: %s): %s",
        name,
        what,
        path,
        err.strerror,
        meaning,
      )
    except Exception:
      logging.exception(
        "Instance %s: cannot %s, by a fault of ganeti-kvmd, please report it:"
        " %s",
        name,
        what,
        meaning,
      )

  @classmethod
  @contextlib.contextmanager
  def _OpenDirectory(cls) -> Iterator[Optional[ctrldir.ControlDirectory]]:
    """Opens the control directory; None if there is none."""
    try:
      descriptor = os.open(cls._CTRL_DIR, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
      yield None
      return
    try:
      yield ctrldir.ControlDirectory(
        cls._CTRL_DIR, descriptor, ctrldir.MONITOR_SUFFIX
      )
    finally:
      os.close(descriptor)


def _wants_user_shutdown(hvparams: Optional[dict[str, Any]]) -> bool:
  """Tells whether it is of interest if an instance's user shuts it down.

  @param hvparams: the instance's hypervisor parameters

  """
  return bool(hvparams and hvparams.get(constants.HV_KVM_USER_SHUTDOWN))


def _is_daemon_wanted() -> bool:
  """Tells whether the cluster wants a daemon, which keeps journals short."""
  try:
    return ssconf.reason_not_to_run() is None
  except OSError:
    # The node is in no cluster, or not yet.
    return True


def _daemon_at_work() -> Optional[float]:
  """Tells whether the daemon has yet to see to something.

  @return: how long it has worked so far, in seconds; None if it rests, or does
    not run

  """
  daemon = launch.running()
  return None if daemon is None else processes.at_work(daemon)


def _rule(directory: ctrldir.ControlDirectory) -> lifecycle.Rule:
  """Returns the rule that the daemon judges by, or did while it ran."""
  try:
    return lifecycle.Rule(rule_file.read(directory))
  except ValueError:
    return lifecycle.Rule.CAUSE

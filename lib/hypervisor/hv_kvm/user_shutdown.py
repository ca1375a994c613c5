# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The user-shutdown side of the KVM hypervisor, as a mixin.

The daemon marks an instance that its user turned off, and the hypervisor reads
the mark. The hypervisor in turn marks an instance that an administrator stops,
before it does anything about it. So, if both turn it off in the same moment,
the daemon knows whose word counts, however late it comes to judge.

C{test/py/unit/test_stock.py} lists all that is used of Ganeti here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from ganeti import constants
from ganeti.kvmd import ctrldir, inquiry, journal_files, launch, lifecycle
from ganeti.kvmd.ctrldir import Mark

if TYPE_CHECKING:
  from collections.abc import Callable, Iterable, Iterator
  from typing import Any, Optional

#: How long the daemon may take to judge an instance that has just ended, in
#: seconds. It does so in a millisecond, unless the node is very busy.
_PATIENCE = 1.0

_POLL_INTERVAL = 0.01


class UserShutdown:
  """Makes a KVM hypervisor tell a user's shutdown from a crash.

  To be put in front of Ganeti's C{KVMHypervisor}. The marks are looked at and
  changed relative to the open control directory; where that is missing, there
  are none.

  """

  _CTRL_DIR: str
  _InstancePidAlive: Callable[[str], Any]

  #: Whether the QEMU that is being started is to keep a journal.
  _keeps_journal = False

  #: When waiting for the daemon ends, for all instances that are asked about,
  #: by the monotonic clock; None before it began.
  _patience_ends: Optional[float] = None

  #: How long journals may be read.
  _budget = inquiry.Budget()

  def _ExecuteKVMRuntime(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
    """Starts QEMU, for a start, a reboot or a migration to this node."""
    self._ClearMarks(instance.name)
    self._keeps_journal = instance.hvparams[constants.HV_KVM_USER_SHUTDOWN]
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
    with cls._OpenDirectory() as directory:
      try:
        return journal_files.prepare(directory, name) if directory else []
      except OSError as err:
        logging.warning(
          "Instance %s is started without a journal (%s: %s): if its user shuts"
          " it down while the KVM daemon does not run, it is taken for crashed",
          name,
          err.filename,
          err.strerror,
        )
        return []

  @staticmethod
  def _StartKvmd(hvparams: Optional[dict[str, Any]]) -> None:
    """Makes sure that the daemon runs, for an instance that wants it.

    @param hvparams: the instance's hypervisor parameters

    """
    if hvparams is not None and hvparams[constants.HV_KVM_USER_SHUTDOWN]:
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

    """
    if self._InstancePidAlive(instance.name)[2]:
      self._MarkPowerdown(instance.name)
    try:
      return super().StopInstance(
        instance, force=force, retry=retry, name=name, timeout=timeout
      )
    finally:
      self._ClearUserShutdown(instance.name)

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
    except FileNotFoundError:
      # QEMU's socket went away while it was asked: it is down by now.
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    if info is None and self._AwaitUserShutdown(instance_name):
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    return info

  @classmethod
  def _IsUserShutdown(cls, instance_name: str) -> bool:
    """Tells whether an instance that is down was turned off by its user."""
    with cls._OpenDirectory() as directory:
      if directory is None:
        return False
      # The daemon marks an instance before it removes the journal: in this
      # order one of the two is found.
      by_journal = inquiry.is_user_shutdown(
        directory, instance_name, lifecycle.Rule.CAUSE, cls._budget
      )
      if by_journal is not None:
        return by_journal
      return directory.is_marked(Mark.SHUTDOWN, instance_name)

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
    with cls._OpenDirectory() as directory:
      if directory is None:
        return
      for mark in marks:
        directory.remove(mark, instance_name)
      if not journal_files.is_being_written(directory, instance_name):
        journal_files.remove(directory, instance_name)

  @classmethod
  def _MarkPowerdown(cls, instance_name: str) -> None:
    """Marks an instance that an administrator stops.

    If that fails, the daemon has only QEMU's word for it, which is right but
    for the case that the instance's user does the same at once.

    """
    with cls._OpenDirectory() as directory:
      if directory is None:
        return
      try:
        directory.write(
          Mark.POWERDOWN, instance_name, directory.life(instance_name)
        )
      except OSError as err:
        logging.warning(
          "Cannot mark instance %s as stopped by an administrator (%s: %s)",
          instance_name,
          err.filename,
          err.strerror,
        )

  def _AwaitUserShutdown(self, instance_name: str) -> bool:
    """Waits for the daemon, if the instance may have ended just now.

    QEMU removes its sockets when it ends. So only where the control directory
    was changed a moment ago there is something to wait for.

    @return: whether the instance turned out to be turned off by its user

    """
    now = time.monotonic()
    if self._patience_ends is None:
      self._patience_ends = now + _PATIENCE
    while now < self._patience_ends and self._HasJustChanged():
      time.sleep(_POLL_INTERVAL)
      if self._IsUserShutdown(instance_name):
        return True
      now = time.monotonic()
    return False

  @classmethod
  def _HasJustChanged(cls) -> bool:
    """Tells whether a running daemon may be about to mark an instance."""
    try:
      age = time.time() - os.stat(cls._CTRL_DIR).st_mtime
      return 0 <= age < _PATIENCE and launch.running() is not None
    except OSError:
      return False

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

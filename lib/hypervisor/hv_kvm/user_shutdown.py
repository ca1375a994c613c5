# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The user-shutdown side of the KVM hypervisor, as a mixin.

The daemon marks an instance that its user turned off, and the hypervisor reads
the mark. The hypervisor in turn marks an instance that an administrator stops,
before it does anything about it. So, if both turn it off in the same moment,
the daemon knows whose word counts, however late it comes to judge. And it marks
one that was migrated away, before it ends what is left of it here.

An answer is not worth an instance: whatever goes wrong here is logged, and what
Ganeti does itself is done all the same.

C{test/py/unit/test_stock.py} lists all that is used of Ganeti here.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from ganeti import constants, errors, objects
from ganeti.hypervisor.hv_kvm import control, inquiry, launch, patience
from ganeti.kvmd.core.marks import Mark

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Any, Optional


class UserShutdown:
  """Makes a KVM hypervisor tell a user's shutdown from a crash.

  To be put in front of Ganeti's C{KVMHypervisor}.

  """

  _CTRL_DIR: str
  _CheckDown: Callable[[str], Any]
  _InstanceKVMRuntime: Callable[[str], str]
  _InstancePidAlive: Callable[[str], Any]

  #: Whether the QEMU that is being started is to keep a journal.
  _keeps_journal = False

  #: How long journals may be read.
  _budget = inquiry.Budget()

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    """Takes what Ganeti's class takes; there is an object for each request."""
    super().__init__(*args, **kwargs)
    self._patience = patience.Patience(launch.at_work)

  def _ExecuteKVMRuntime(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
    """Starts QEMU, for a start, a reboot or a migration to this node."""
    # Ganeti does so as well: what is said of one that runs is not to be lost.
    self._CheckDown(instance.name)
    self._control().clear(instance.name)
    # Only the daemon keeps it short.
    self._keeps_journal = (
      _wants_user_shutdown(instance.hvparams)
      and launch.reason_not_to_run() is None
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
      kvm_cmd = kvm_cmd + self._control().prepare_journal(name)
    return super()._RunKVMCmd(name, kvm_cmd, tap_fds)

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
      self._mark(stopped, Mark.POWERDOWN)
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
    self._control().clear(instance_name)
    return result

  def FinalizeMigrationSource(
    self, instance: Any, success: bool, live: bool
  ) -> Any:
    """Ends a migration on the node that the instance leaves.

    If it went well, Ganeti ends this QEMU by a signal, as an administrator may.
    What it was is marked before, for the daemon, which finds its journal too.

    """
    self._control().unmark(instance.name, [Mark.MIGRATED])
    # Only the daemon removes it.
    if success and launch.reason_not_to_run() is None:
      self._mark(instance.name, Mark.MIGRATED)
    try:
      return super().FinalizeMigrationSource(instance, success, live)
    finally:
      if success:
        self._control().clear(instance.name, [Mark.SHUTDOWN, Mark.POWERDOWN])

  def FinalizeMigrationDst(
    self, instance: Any, info: Any, success: bool
  ) -> Any:
    """Ends a migration on the node that the instance moves to."""
    try:
      return super().FinalizeMigrationDst(instance, info, success)
    finally:
      if not success:
        self._control().clear(instance.name)

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
    if info is None and self._await_user_shutdown(instance_name):
      info = super().GetInstanceInfo(instance_name, hvparams=hvparams)
    return info

  @classmethod
  def _IsUserShutdown(cls, instance_name: str) -> bool:
    """Tells whether an instance that is down was turned off by its user."""
    return cls._control().is_user_shutdown(instance_name, cls._budget)

  @classmethod
  def _ClearUserShutdown(cls, instance_name: str) -> None:
    """Makes sure that an instance does not pass for turned off by its user."""
    cls._control().clear(instance_name, [Mark.SHUTDOWN])

  @classmethod
  def _control(cls) -> control.Control:
    return control.Control(cls._CTRL_DIR)

  @classmethod
  def _mark(cls, instance_name: str, mark: Mark) -> None:
    """Marks an instance that is about to be stopped, if it runs."""
    directory = cls._control()
    with directory.tolerating(instance_name, control.MADE[mark]):
      if cls._InstancePidAlive(instance_name)[2]:
        directory.mark(instance_name, mark)

  def _await_user_shutdown(self, instance_name: str) -> bool:
    """Waits for the daemon, as long as it may be about to mark an instance.

    @return: whether the instance turned out to be turned off by its user

    """
    directory = self._control()

    def may_be_marked() -> bool:
      # The daemon knows nothing of one that was never started here.
      return os.path.exists(
        self._InstanceKVMRuntime(instance_name)
      ) and directory.may_be_marked(instance_name, patience.LONGEST)

    with directory.tolerating(instance_name, control.FIND_OUT):
      return self._patience.wait(
        may_be_marked, lambda: self._IsUserShutdown(instance_name)
      )
    return False


def _wants_user_shutdown(hvparams: Optional[dict[str, Any]]) -> bool:
  """Tells whether it is of interest if an instance's user shuts it down.

  @param hvparams: the instance's hypervisor parameters

  """
  return bool(hvparams and hvparams.get(constants.HV_KVM_USER_SHUTDOWN))

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Where the control directory is, and whether it is ours to follow.

The path to it may lead elsewhere at any time, or nowhere; and the directory may
have another daemon. To those who work in it there is always a directory: one
that is missing, or left to another daemon, says so by an error.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from typing import TYPE_CHECKING

from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.node import ctrldir, lockfile, rule_file, watch

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.core.timing import Timing


class Change(enum.Enum):
  """What following the path anew has led to.

  @cvar NONE: the directory is the same as before
  @cvar ELSEWHERE: it is another, or missing
  @cvar LEFT: it belongs to another daemon now

  """

  NONE = enum.auto()
  ELSEWHERE = enum.auto()
  LEFT = enum.auto()


class Place:
  """The control directory, wherever it is.

  @ivar watch: what watches it, and the path to it
  @ivar directory: the directory; a missing one if there is none that we may
    follow
  @ivar patience: seconds after which the path is to be followed again, as far
    as that is known; infinite if all is well

  """

  def __init__(
    self, path: str, suffix: str, rule: lifecycle.Rule, timing: Timing
  ) -> None:
    """Begins to watch; nothing that happens from now on is lost.

    @param path: absolute
    @param suffix: what the names of monitor sockets end in
    @param rule: the rule that the daemon judges by
    @raise lockfile.LockedError: if the directory has a daemon
    @raise OSError: if it cannot be used

    """
    self._suffix = suffix
    self._rule = rule
    self._timing = timing
    self._missing = ctrldir.ControlDirectory(path, None, suffix)
    # The directory that was found, be it ours or another daemon's.
    self._found: Optional[ctrldir.ControlDirectory] = None
    self.directory = self._missing
    self.patience = float("inf")
    self.watch = watch.Watch(path)
    self._trouble = ""
    # Why the directory cannot be watched, as far as that was logged.
    self._blindness = ""
    self._is_rule_said = True
    self._kept_out_since: Optional[float] = None
    try:
      self.watch.follow()
      self._found = self._find()
      if self._found is not None:
        self._found.check_access()
        # If it is removed at this moment the watch will tell.
        with contextlib.suppress(FileNotFoundError):
          self._found.locks.claim()
        self.directory = self._found
    except BaseException:
      self.watch.close()
      raise
    self._say_blindness()
    self.say_rule()

  def close(self) -> None:
    """Lets go of the directory."""
    if self._found is not None:
      self._found.locks.release()
    self.watch.close()

  @property
  def has_directory(self) -> bool:
    """Whether there is a directory, be it ours or another daemon's."""
    return self._found is not None

  @property
  def is_left_to_others(self) -> bool:
    """Whether there is a directory, and we may not follow it."""
    return self._found is not None and self.directory is self._missing

  def follow(self) -> Change:
    """Follows the path anew."""
    self.patience = float("inf")
    was_left = self.is_left_to_others
    before = self.directory
    self._follow_path()
    self.directory = self._claim()
    if self.is_left_to_others and not was_left:
      # The other daemon cannot listen to whom we are connected to.
      return Change.LEFT
    if self.directory is before:
      return Change.NONE
    if was_left and self.directory is not self._missing:
      self.report(f"{self.watch.path} is followed from now on", logging.INFO)
    return Change.ELSEWHERE

  def say_rule(self) -> None:
    """Lets the hypervisor know by which rule the daemon judges."""
    said = None if self._rule is lifecycle.Rule.CAUSE else self._rule.value
    try:
      rule_file.write(self.directory, said)
      self._is_rule_said = True
    except ctrldir.MissingDirectoryError:
      pass
    except OSError as err:
      if self._is_rule_said:
        logging.warning(
          "cannot say in %s that the rule is %s (%s: %s): while no daemon runs,"
          " Ganeti may judge by another; trying again in %.0f s",
          self.watch.path,
          self._rule.value,
          err.filename,
          err.strerror,
          self._timing.rescan,
        )
      self._is_rule_said = False

  def report(self, text: str, level: int = logging.WARNING) -> None:
    """Logs the state of the directory, when it is another than before."""
    if text != self._trouble:
      self._trouble = text
      logging.log(level, "%s", text)

  def complain_of_lock(self) -> None:
    """Logs once that somebody keeps us from changing journals for long."""
    if self.directory is self._missing:
      return
    kept_out = self.directory.locks.kept_out
    if (
      kept_out is not None
      and kept_out.last - kept_out.first > self._timing.lock
      and kept_out.first != self._kept_out_since
    ):
      self._kept_out_since = kept_out.first
      logging.warning(
        "for %.0f s no journal could be made shorter, or be removed after it"
        " was read: %s; verdicts are right, but journals grow until that ends:"
        " see what it waits for (is it stopped?), or end it",
        kept_out.last - kept_out.first,
        kept_out.reason,
      )

  def _find(self) -> Optional[ctrldir.ControlDirectory]:
    if self.watch.directory is None:
      return None
    return ctrldir.ControlDirectory(
      self.watch.path, self.watch.directory, self._suffix
    )

  def _follow_path(self) -> None:
    """Looks where the path leads."""
    before = self._found
    gone = f"{self.watch.path} is gone; waiting for it to come back"
    loss = "" if before is None else gone
    try:
      moved = self.watch.follow()
    except OSError as err:
      loss = f"cannot use {err.filename}: {err.strerror}"
      self.patience = self._timing.trouble
      moved = True
    self._say_blindness()
    if not moved:
      return
    if before is not None:
      before.locks.release()
    self._found = self._find()
    if self._found is not None:
      self.report(f"{self.watch.path} is there now", logging.INFO)
    elif loss:
      self.report(loss)

  def _claim(self) -> ctrldir.ControlDirectory:
    """Sees to it that no other daemon follows the directory.

    @return: the directory, if we may follow it

    """
    if self._found is None:
      return self._missing
    try:
      self._found.locks.claim()
    except lockfile.LockedError as err:
      self.report(
        f"{self.watch.path} belongs to another ganeti-kvmd ({err}), which"
        " gives the verdicts; this one waits until that ends: see which of the"
        " two is to stay, and end the other"
      )
      return self._missing
    except OSError as err:
      # It may have been removed with its directory just now.
      if not isinstance(err, FileNotFoundError):
        self.report(
          f"cannot use {err.filename}: {err.strerror}; without that lock there"
          f" might be two daemons, and {self.watch.path} is not followed anew"
        )
      # Another user's file may mean another daemon. Else, whom we follow
      # already would only be lost.
      is_strange = isinstance(err, PermissionError)
      if self.directory is self._found and not is_strange:
        return self._found
      self.patience = self._timing.trouble
      return self._missing
    return self._found

  def _say_blindness(self) -> None:
    """Logs that the directory cannot be watched, or can be again."""
    blindness = self.watch.blindness
    if blindness:
      self.patience = min(self.patience, self._timing.trouble)
    if blindness == self._blindness:
      return
    self._blindness = blindness
    if blindness:
      logging.warning(
        "cannot watch %s: %s. Looking at it every second instead: what is"
        " started or ends is noticed up to a second later. Raise that limit;"
        " nothing has to be restarted",
        self.watch.path,
        blindness,
      )
    else:
      logging.info("watching %s again", self.watch.path)

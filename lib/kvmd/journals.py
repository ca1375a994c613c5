# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""All journals of the node: when to read them, and what to do about it.

As long as a QEMU writes its journal there is nothing to do but to keep it
short. It is read when it is closed; and those that were closed while no daemon
ran are read at the start.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd import instance, journal, lifecycle, monitor, processes

if TYPE_CHECKING:
  from collections.abc import Callable, Iterable
  from typing import Optional

  from ganeti.kvmd.ctrldir import ControlDirectory, Life

#: Seconds that a QEMU may take from making its sockets to opening its journal.
_PATIENCE = 1.0

#: Seconds after which a journal that was closed is looked at again if it still
#: counts as open; doubled for each further look, for as long as L{_PATIENCE}.
#: The kernel tells of the closing just before it counts: six times in 20,000
#: the daemon was faster.
_FIRST_DELAY = 0.01

#: Seconds after which it is tried again to mark an instance.
_SETTLING_INTERVAL = 1.0


class _Given(NamedTuple):
  """A verdict.

  @ivar instance: the instance, which knows it
  @ivar life: the life that it is on

  """

  instance: instance.Instance
  life: Life


class _Doubt(NamedTuple):
  """A journal that was closed by somebody, and is open to somebody.

  @ivar deadline: when to look again, by the monotonic clock
  @ivar delay: how long it is till then, in seconds

  """

  deadline: float
  delay: float


class Journals:
  """Follows instances by their journals.

  @ivar directory: the control directory; None while it is missing

  """

  def __init__(
    self,
    rule: lifecycle.Rule,
    on_served: Callable[[str], None],
    on_absent: Callable[[str], None],
    names: dict[int, str],
  ) -> None:
    """Follows nothing yet.

    @param rule: how a shutdown is judged
    @param on_served: called with the name of an instance if its QEMU keeps a
      journal
    @param on_absent: called with the name of an instance if no QEMU came to
      write its journal after all
    @param names: where to note the names of the instances by the processes
      of their QEMUs

    """
    self.directory: Optional[ControlDirectory] = None
    self._rule = rule
    self._on_served = on_served
    self._on_absent = on_absent
    self._names = names
    self._served: dict[str, instance.Instance] = {}
    # Instances whose journal is there and not open yet, and how long that is
    # no wonder, by the monotonic clock.
    self._expected: dict[str, float] = {}
    self._doubts: dict[str, _Doubt] = {}
    # Instances whose journal is of no use.
    self._distrusted: set[str] = set()
    # Verdicts that were given, and could not be delivered yet.
    self._given: dict[str, _Given] = {}
    self._next_settling = 0.0

  @property
  def due(self) -> float:
    """When L{run_timers} is to be called, by the monotonic clock."""
    due = min(self._expected.values(), default=float("inf"))
    for doubt in self._doubts.values():
      due = min(due, doubt.deadline)
    return min(due, self._next_settling) if self._given else due

  def serves(self, name: str) -> bool:
    """Tells whether an instance's QEMU keeps a journal."""
    return name in self._served

  def expects(self, name: str) -> bool:
    """Tells whether an instance's QEMU is about to keep a journal."""
    return name in self._expected

  def appear(self, name: str) -> None:
    """Takes note that an instance has a new journal."""
    self._distrusted.discard(name)
    self._guard(self._look, name)

  def look(self, name: str) -> None:
    """Takes note that something has become of an instance."""
    self._guard(self._look, name)

  def closed(self, name: str) -> None:
    """Takes note that an instance's journal was closed after writing."""
    self._look_after_closing(name, _FIRST_DELAY)

  def rescan(self, names: Iterable[str], *, thoroughly: bool) -> None:
    """Looks at all journals.

    @param names: the names of the instances that have one, or a rest of one
    @param thoroughly: whether also at those that show no sign of a change:
      the number of a process may be that of another by now

    """
    found = set(names)
    for gone in self._served.keys() - found:
      del self._served[gone]
    for gone in self._expected.keys() - found:
      del self._expected[gone]
    self._distrusted &= found
    for name in found:
      known = self._served.get(name)
      if thoroughly or known is None or not processes.is_alive(known.process):
        self._guard(self._look, name)
      if name in self._served:
        self._guard(self._condense, name)
      elif name not in self._expected:
        self._guard(self._tidy, name)

  def run_timers(self, now: float) -> None:
    """Does what is due.

    @param now: seconds of the monotonic clock

    """
    for name, deadline in list(self._expected.items()):
      if deadline <= now:
        self._guard(self._look, name)
        if self._expected.pop(name, None) is not None:
          self._on_absent(name)
    for name, doubt in list(self._doubts.items()):
      if doubt.deadline <= now:
        del self._doubts[name]
        if name in self._served:
          self._look_after_closing(name, 2 * doubt.delay)
    if self._given and now >= self._next_settling:
      self._next_settling = now + _SETTLING_INTERVAL
      for name in list(self._given):
        self._guard(self._settle, name)

  def _look_after_closing(self, name: str, delay: float) -> None:
    """Looks, and looks again later if the journal counts as open."""
    self._guard(self._look, name)
    if name in self._served and delay < _PATIENCE:
      self._doubts[name] = _Doubt(time.monotonic() + delay, delay)

  def _look(self, name: str) -> None:
    """Finds out about an instance's journal, and reads it if it is closed."""
    if self.directory is None or name in self._distrusted:
      return
    try:
      with journal.opened(self.directory, name) as found:
        record = found.conclude(self._rule)
        if record is None:
          self._serve(name, self.directory)
        elif record.version:
          self._judge(name, found.life, record)
        else:
          self._expected.setdefault(name, time.monotonic() + _PATIENCE)
    except FileNotFoundError:
      self._served.pop(name, None)
      deadline = self._expected.pop(name, None)
      if deadline is not None and deadline <= time.monotonic():
        self._on_absent(name)
    except journal.JournalError as err:
      self._distrust(name, err)
    except OSError as err:
      # Out of descriptors, say: nothing is known, and nothing is judged.
      instance.Instance(name, self._rule).complain(
        "cannot look at its journal %s: %s; trying again",
        err.filename,
        err.strerror,
      )
      self._expected.setdefault(name, time.monotonic() + _PATIENCE)

  def _serve(self, name: str, directory: ControlDirectory) -> None:
    self._expected.pop(name, None)
    known = self._served.get(name)
    if known is None:
      known = self._served[name] = instance.Instance(name, self._rule)
      known.log("its QEMU keeps a journal, and is not connected to")
      self._on_served(name)
    if not known.process:
      known.process = monitor.find_process(directory, name)
      self._names[known.process] = name

  def _judge(self, name: str, life: Life, record: journal.Record) -> None:
    """Gives the verdict on an instance whose QEMU has ended."""
    self._expected.pop(name, None)
    given = self._given.get(name)
    if given is not None and given.life == life:
      return
    known = self._served.pop(name, None)
    if known is None:
      known = instance.Instance(name, self._rule)
    # A process that was killed says nothing at its end, which was later then.
    is_announced = record.lifecycle.announced is not None
    ended = record.ended if is_announced else time.time()
    known.begin(life)
    known.conclude(record.lifecycle, ended - life.born / 1e9, self.directory)
    self._given[name] = _Given(known, life)
    # Where many end at once, all are judged before the first is tidied up.
    self._next_settling = 0.0

  def _settle(self, name: str) -> None:
    """Delivers a verdict; after that the journal is of no use any more."""
    given = self._given[name]
    given.instance.settle(self.directory)
    if given.instance.is_settled:
      if self.directory is not None:
        try:
          journal.remove_life(self.directory, name, given.life)
        except BlockingIOError:
          return
      del self._given[name]

  def _distrust(self, name: str, err: journal.JournalError) -> None:
    """Does without a journal that something is wrong with."""
    self._distrusted.add(name)
    self._expected.pop(name, None)
    self._served.pop(name, None)
    instance.Instance(name, self._rule).complain(
      "its journal is of no use: %s; listening to its monitor instead", err
    )
    self._on_absent(name)

  def _condense(self, name: str) -> None:
    """Keeps a journal short."""
    if self.directory is None or not journal.is_long(self.directory, name):
      return
    try:
      with journal.opened(self.directory, name) as found:
        found.condense(self._rule)
    except (FileNotFoundError, BlockingIOError):
      return
    except journal.JournalError as err:
      self._distrust(name, err)
    except OSError as err:
      self._served[name].complain(
        "cannot keep its journal short (%s): it grows as long as it runs",
        err.strerror,
      )

  def _tidy(self, name: str) -> None:
    """Removes what is left of a journal."""
    if self.directory is not None:
      with contextlib.suppress(OSError):
        journal.remove_rest(self.directory, name)

  def _guard(self, act: Callable[[str], None], name: str) -> None:
    """Does something for an instance, so that a fault harms no other."""
    try:
      act(name)
    except Exception as fault:  # noqa: BLE001
      instance.log_fault(name, fault)
      for known in (self._served, self._expected, self._given):
        known.pop(name, None)
      self._distrusted.add(name)

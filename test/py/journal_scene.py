# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A table of instances that follows journals, and what writes them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
import types
from unittest import mock

import kvmd_log
import means
import pytest
from fake_monitor import open_journal
from ganeti.kvmd.core import lifecycle
from ganeti.kvmd.core.following import Monitor
from ganeti.kvmd.core.quota import Quota
from ganeti.kvmd.core.timing import Timing
from ganeti.kvmd.follow.shared import Shared
from ganeti.kvmd.follow.table import Table
from ganeti.kvmd.follow.verdicts import Verdicts
from ganeti.kvmd.node import ctrldir, journal_files
from ganeti.kvmd.node.processes import Processes

PAGE = os.sysconf("SC_PAGESIZE")


def shared_by_all(directory: ctrldir.ControlDirectory, **others) -> Shared:
  """Returns what all share who follow instances, in a directory.

  @param others: what is not as usual; verdicts are asked for, and not given

  """
  verdicts = mock.create_autospec(Verdicts, instance=True)
  verdicts.is_late.return_value = False
  return Shared(
    **{
      "place": types.SimpleNamespace(directory=directory),
      "verdicts": verdicts,
      "history": means.no_history(),
      "processes": Processes(),
      "quota": Quota(),
      "rule": lifecycle.Rule.CAUSE,
      "timing": Timing(),
      **others,
    }
  )


class Qemu:
  """What writes a journal."""

  def __init__(self, control, name):
    self.name = name
    self._path = os.path.join(control.path, name + ctrldir.JOURNAL_EVENTS)
    self._descriptor = open_journal(self._path)

  def write(self, data):
    assert os.write(self._descriptor, data) == len(data)

  def close(self):
    if self._descriptor is not None:
      os.close(self._descriptor)
      self._descriptor = None


class Node:
  """A control directory, its journals, and who follows them."""

  def __init__(self, path, log):
    self._log = log
    self._descriptor = os.open(path, os.O_RDONLY)
    self._qemus = []
    self.control = ctrldir.ControlDirectory(
      str(path), self._descriptor, ".kvmd"
    )
    self.path = path
    self.found = []
    self.absent = []
    self.processes = Processes()
    self.begin()

  def begin(self):
    """Begins to follow, as a daemon does that was just started."""
    shared = shared_by_all(self.control, processes=self.processes)
    self.table = Table(
      mock.create_autospec(select.epoll, instance=True),
      shared._replace(verdicts=Verdicts(shared.place, Timing().delivery)),
    )
    self.journals = self.table._journals
    # Nobody listens to monitors here.
    self.table._acts = {
      Monitor.LEAVE: lambda record: self.found.append(record.name),
      Monitor.LISTEN: lambda record: self.absent.append(record.name),
    }

  def record(self, name="web1"):
    """Returns what is known of an instance; None if nothing is."""
    return self.table._records.get(name)

  def follows(self, name="web1"):
    """Tells whether an instance is followed by its journal."""
    record = self.record(name)
    return record is not None and record.is_journaled

  def due(self, name="web1"):
    """Returns when an instance is looked at next; infinite if at no time."""
    return self.journals._timers._deadlines.get(name, float("inf"))

  def start(self, name="web1"):
    """Lets an instance begin another life."""
    before = self.control.journaled_life(name)
    journal_files.prepare(self.control, name)
    while self.control.journaled_life(name) == before:
      journal_files.prepare(self.control, name)
    qemu = Qemu(self.control, name)
    self._qemus.append(qemu)
    return qemu

  def attach(self, name="web1"):
    qemu = self.start(name)
    self.table.journal_appeared(name)
    return qemu

  def end(self, qemu):
    qemu.close()
    self.table.journal_closed(qemu.name)

  def turn(self):
    self.table.run(time.monotonic())

  def rescan(self, **options):
    self.table.rescan(
      self.control.instances()._replace(monitored=set()),
      **{"thoroughly": True, "elsewhere": False, **options},
    )

  def work(self):
    """Lets all be done that is to be done at once."""
    while self.table.due == 0.0:
      self.turn()

  def close(self):
    for qemu in self._qemus:
      qemu.close()
    os.close(self._descriptor)

  @property
  def lines(self):
    return [record.getMessage() for record in self._log.records]

  def count(self, words):
    return sum(words in line for line in self.lines)

  def verdicts(self, name="web1"):
    return [each.verdict for each in kvmd_log.verdicts(self.lines, name)]

  def allocated(self, name="web1"):
    return journal_files.extent(self.control, name).allocated

  def files(self, name="web1"):
    return sorted(each for each in os.listdir(self.path) if name in each)


@pytest.fixture
def node(ctrl_dir, caplog):
  caplog.set_level(logging.INFO)
  with contextlib.closing(Node(ctrl_dir, caplog)) as made:
    yield made


def fill(path):
  """Takes all that is free of a file system."""
  with open(path, "wb", buffering=0) as file:
    with pytest.raises(OSError, match="No space"):
      while True:
        file.write(b"x" * PAGE)

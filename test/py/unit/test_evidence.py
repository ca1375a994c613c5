# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of what is found out about an end, beyond what QEMU said."""

from __future__ import annotations

import json
import os

import pytest
from ganeti.kvmd.core.history_line import Ending
from ganeti.kvmd.core.lifecycle import Outcome, Verdict
from ganeti.kvmd.node import evidence
from ganeti.kvmd.node.evidence import Directories

BEGAN = 1795000000.0
ENDED = 1795000100.0

END = Ending(
  instance="web1",
  life="7-1",
  began=BEGAN,
  ended=ENDED,
  heard=None,
  seconds=100.0,
  outcome=Outcome(Verdict.ADMINISTRATOR, "host-signal"),
  said=(),
  source="journal",
  qemu="9.8.7",
  process=4711,
  is_marked=False,
  is_new=True,
)

WORDS = "qemu-system-x86_64: terminating on signal 15 from pid 7 (bash)"


@pytest.fixture
def directories(scratch):
  """Both of them, with something in each."""
  logs, reasons = scratch / "kvm", scratch / "reason"
  for each in logs, reasons:
    each.mkdir()
  log = logs / "web1.log"
  log.write_text(WORDS + "\n")
  os.utime(log, (ENDED, ENDED))
  asked = int(ENDED - 1.0) * 10**9
  trail = [
    ["gnt:client:gnt-instance", "shutdown", asked - 2],
    ["gnt:opcode:instance_shutdown", "job=12;index=0", asked - 1],
    ["gnt:daemon:noded:shutdown", "", asked],
  ]
  path = reasons / "web1"
  path.write_text(json.dumps(trail))
  for each in log, path:
    each.chmod(0o600)
  return Directories(str(logs), str(reasons))


def test_both(directories):
  found = evidence.add(END, directories)
  assert found.words == WORDS
  assert found.telling == "terminating on signal 15 from pid 7 (bash)"
  assert not found.is_overwritten
  assert found.asked["action"] == "shutdown"
  assert found.asked["at"] == "2026-11-18T11:08:19.000Z"
  assert found.asked["job"] == 12
  assert "" not in found.asked.values()


@pytest.mark.parametrize(
  "end",
  [
    # There is nothing to be found out.
    END._replace(outcome=Outcome(Verdict.USER, "guest-shutdown")),
    # What is there cannot be told to be of that life.
    END._replace(began=None),
    END._replace(ended=None),
  ],
)
def test_nothing_is_looked_for(directories, end):
  assert evidence.add(end, directories) == end


def test_when_nobody_knows_when_it_ended(directories):
  """Then the last counts that was heard of it."""
  end = END._replace(ended=None, heard=ENDED)
  assert evidence.add(end, directories).words == WORDS


def test_later_life(directories):
  end = END._replace(ended=ENDED - 50.0)
  found = evidence.add(end, directories)
  assert found == end._replace(is_overwritten=True)


@pytest.mark.parametrize("verdict", Verdict)
def test_no_directories(verdict):
  end = END._replace(outcome=Outcome(verdict, "so"))
  assert evidence.add(end, Directories()) == end


def test_nothing_is_there(scratch):
  nothing = Directories(str(scratch / "kvm"), str(scratch / "reason"))
  assert evidence.add(END, nothing) == END

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What an administrator did to an instance: Ganeti's reason trail.

Ganeti's node daemon keeps C{INSTANCE_REASON_DIR/INSTANCE}: a file of root's,
0600, in instance-reason under Ganeti's run directory, 0755. It is replaced in
one step and never removed (backend, C{_StoreInstReasonTrail}), and is a list in
JSON of who led to what, of sources, texts and nanoseconds since the epoch::

  ["gnt:user", "for the audit", 1795600294262000000]      only with --reason
  ["gnt:client:gnt-instance", "shutdown", ...]            or gnt:library:rlib2,
                                                          or gnt:watcher
  ["gnt:opcode:instance_shutdown", "job=4;index=0", ...]
  ["gnt:daemon:noded:shutdown", "", ...]

The last part says when and for what the node daemon was called (server/noded,
C{_extendReasonTrail}): before it does anything, and so before the end that it
leads to. When the file is written, relative to QEMU's end, on a real node:

  - shutdown of a guest that obeys: 20 to 57 ms before its end (some 15 ms after
    the call, when the power button was pressed), the same again 5 s later
  - shutdown by force (C{--timeout=0}): 5 to 11 ms before
  - shutdown without ACPI: 1 to 9 ms after the end, which Ganeti waits for
  - hard reboot: after the next life has begun, 1.2 to 5.2 s after
  - full reboot, failover, removal: as a shutdown; the reboot's start overwrites
    it 5 s later
  - soft reboot, migration, a shutdown of what is not there: never
  - shutdown of what its user has turned off: after the end, and so is its time
  - start: then it tells of the life to come, and no more of the one before

So what is found at an end may be an older one, which its time tells, and what
belongs to it may come later, or be gone.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import text
from ganeti.kvmd.node import own_files

if TYPE_CHECKING:
  from collections.abc import Iterable
  from typing import Optional

#: Bytes; of a trail that is longer nothing is known.
_MAX_SIZE = 16 * 1024

#: Characters of each text that is returned.
_MAX_TEXT = 200

#: Nanoseconds; what is longer may be no floating-point number.
_MAX_TIME = 2**63

#: Seconds after a life's end at which Ganeti may have been asked to end it. It
#: is asked before, on the same node; the end may have been rounded.
_MARGIN = 0.001

_USER = "gnt:user"
_CLIENT = "gnt:client:"
_OPCODE = "gnt:opcode:"

#: What Ganeti's node daemon does that ends a life, by how it says that.
_ACTIONS = {
  "gnt:daemon:noded:shutdown": "shutdown",
  "gnt:daemon:noded:reboot": "reboot",
}

#: The types of a part of a trail.
_ENTRY = (str, str, int)

_JOB = re.compile(r"job=([0-9]{1,18});index=[0-9]{1,18}")


class ReasonTrail(NamedTuple):
  """Why a life was ended; all text is escaped, and empty where none is given.

  @ivar at: when the node daemon was asked, in seconds since the epoch
  @ivar action: what it was asked: C{shutdown} or C{reboot}
  @ivar source: who began it, as C{gnt:client:gnt-instance} or C{gnt:watcher}
  @ivar command: with which words: those of a command line, as C{gnt-instance
    shutdown}, or the watcher's own
  @ivar reason: what the administrator gave as the reason
  @ivar opcode: what it became in Ganeti, as C{instance_shutdown}
  @ivar job: the number of the job; None if it is not told

  """

  at: float
  action: str
  source: str
  command: str
  reason: str
  opcode: str
  job: Optional[int]


class _Entry(NamedTuple):
  """A part of a trail.

  @ivar source: whose it is
  @ivar text: what he says
  @ivar at: when, in nanoseconds since the epoch

  """

  source: str
  text: str
  at: int


_NOTHING = _Entry("", "", 0)


def read(
  directory: str, instance: str, *, began: float, ended: float
) -> Optional[ReasonTrail]:
  """Returns what Ganeti was asked to do that ended one life of an instance.

  @param directory: the path of the trails' directory: C{INSTANCE_REASON_DIR}
  @param instance: its name, as it is in names of files
  @param began: when the life began, in seconds since the epoch
  @param ended: when it ended, or QEMU said that it would, in seconds since the
    epoch
  @return: None if nothing is known

  """
  try:
    entries = _parse(_read(directory, instance))
  except (own_files.UnusableError, OSError, ValueError, RecursionError):
    return None
  action = _ACTIONS.get(entries[-1].source)
  at = entries[-1].at / 1e9
  if action is None or not began <= at <= ended + _MARGIN:
    return None
  return _describe(entries[:-1], action, at)


def _read(directory: str, name: str) -> bytes:
  """Reads a file, or more of it than a trail has.

  @raise own_files.UnusableError: if it is not our own, or cannot be opened
  @raise OSError: if there is none, or it cannot be read

  """
  opened = os.open(directory, os.O_PATH)
  try:
    return own_files.read(opened, name, _MAX_SIZE + 1)
  finally:
    os.close(opened)


def _parse(content: bytes) -> list[_Entry]:
  """Returns the parts of a trail, one at least.

  @raise ValueError: if it is none
  @raise RecursionError: if it is none, and deep

  """
  if len(content) > _MAX_SIZE:
    raise ValueError("too long")
  found = json.loads(content.decode("utf-8"))
  if not isinstance(found, list) or not found:
    raise ValueError("no list, or an empty one")
  return [_parse_entry(each) for each in found]


def _parse_entry(found: object) -> _Entry:
  if not isinstance(found, list) or tuple(map(type, found)) != _ENTRY:
    raise ValueError("no part of a trail")
  entry = _Entry(*found)
  if not 0 <= entry.at < _MAX_TIME:
    raise ValueError("no time")
  return entry


def _describe(entries: list[_Entry], action: str, at: float) -> ReasonTrail:
  """Says what is in a trail before the node daemon's own part."""
  reason = _first(each for each in entries if each.source == _USER)
  begin = _first(each for each in entries if each.source != _USER)
  command = begin.text
  if begin.source.startswith(_CLIENT):
    command = f"{begin.source.removeprefix(_CLIENT)} {command}"
  # Of jobs that a job led to, the last is the one that did it.
  opcode = _first(
    each for each in reversed(entries) if each.source.startswith(_OPCODE)
  )
  job = _JOB.fullmatch(opcode.text)
  return ReasonTrail(
    at=at,
    action=action,
    source=text.escape(begin.source, _MAX_TEXT),
    command=text.escape(command, _MAX_TEXT),
    reason=text.escape(reason.text, _MAX_TEXT),
    opcode=text.escape(opcode.source.removeprefix(_OPCODE), _MAX_TEXT),
    job=int(job[1]) if job else None,
  )


def _first(entries: Iterable[_Entry]) -> _Entry:
  """Returns the first part of some, or an empty one."""
  return next(iter(entries), _NOTHING)

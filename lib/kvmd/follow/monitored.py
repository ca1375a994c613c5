# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What is known of one instance by its monitor.

A connection that ends says little: QEMU may listen on. Only when nobody
listens any more, or somebody else, is the life of the instance over;
L{MEANINGS} says what each attempt to connect tells.
"""

from __future__ import annotations

import enum
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.core import qmp, session
from ganeti.kvmd.follow.instance import Instance
from ganeti.kvmd.node.connection import Result

if TYPE_CHECKING:
  from collections.abc import Mapping
  from typing import Optional

  from ganeti.kvmd.follow.shared import Shared
  from ganeti.kvmd.node.connection import Attempt, Connection

#: How often a connection that was superseded is read, to learn what is left
#: in it; the kernel keeps less than that.
_LAST_READS = 64

#: Longest part of QEMU's own words that is logged, in characters.
_MAX_QUOTE = 80


class Meaning(NamedTuple):
  """What an attempt to connect means for the life of the instance.

  @ivar is_over: whether no QEMU listens that did before
  @ivar is_met: whether there is a QEMU
  @ivar is_tried_again: whether it may be otherwise soon
  @ivar complaint: what to log, with a place for the trouble; empty for nothing

  """

  is_over: bool = False
  is_met: bool = False
  is_tried_again: bool = True
  complaint: str = ""


#: Where the socket is that of another life, the one before is over in any case.
MEANINGS: Mapping[Result, Meaning] = {
  Result.CONNECTED: Meaning(is_met=True, is_tried_again=False),
  Result.REFUSED: Meaning(is_over=True),
  Result.BUSY: Meaning(
    is_met=True, complaint="more clients wait for its monitor than it takes"
  ),
  Result.FAILED: Meaning(complaint="cannot connect to its monitor: {}"),
  Result.NO_SOCKET: Meaning(is_over=True, is_tried_again=False),
  Result.NOT_A_SOCKET: Meaning(
    is_over=True, complaint="cannot reach its monitor {}"
  ),
  Result.UNREACHABLE: Meaning(complaint="cannot reach its monitor {}"),
  Result.NO_DIRECTORY: Meaning(is_over=True, is_tried_again=False),
}

#: The same of one that never spoke: nobody can tell whether it has ended.
_NO_DIRECTORY_AND_NO_WORD = Meaning()

#: What is said of a session in which nothing is heard.
_WAITING: Mapping[session.State, str] = {
  session.State.CONNECTED: "waiting for its monitor: another client holds it,"
  " or QEMU hangs; its end cannot be judged before that client has gone",
  session.State.GREETED: "waiting for QEMU: it has greeted, and hangs",
}


class Reading(enum.Enum):
  """What came of reading from a connection."""

  DATA = enum.auto()
  NOTHING = enum.auto()
  END = enum.auto()
  GARBAGE = enum.auto()


class Monitored:
  """An instance and its monitor.

  @ivar instance: the instance
  @ivar connection: the connection; None if there is none
  @ivar attempts: how often connecting was tried since it last went well

  """

  __slots__ = ("_shared", "attempts", "connection", "instance")

  def __init__(self, name: str, shared: Shared) -> None:
    self.instance = Instance(name, shared.rule, shared.quota, shared.history)
    self.connection: Optional[Connection] = None
    self.attempts = 0
    self._shared = shared

  def judge(self, attempt: Attempt) -> Meaning:
    """Gives the verdict on a life if an attempt shows that it is over.

    @return: what the attempt means otherwise

    """
    instance = self.instance
    process = instance.process
    meaning = MEANINGS[attempt.result]
    if attempt.result is Result.NO_DIRECTORY and not instance.is_attached:
      meaning = _NO_DIRECTORY_AND_NO_WORD
    if attempt.life is not None and attempt.life != instance.life:
      self._shared.verdicts.end(instance)
      instance.begin(attempt.life)
    if meaning.is_over:
      self._shared.verdicts.end(instance)
    if meaning.is_met:
      instance.meet()
    if meaning.complaint:
      instance.complain("%s", meaning.complaint.format(attempt.trouble))
    if instance.is_over or instance.process != process:
      self._shared.processes.end(process, instance.name, time.monotonic())
    return meaning

  def read(self) -> Reading:
    """Reads once from the connection, and acts on what was said."""
    made = self.connection
    assert made is not None
    data = made.read()
    if not data:
      return Reading.NOTHING if data is None else Reading.END
    instance = self.instance
    has_news = False
    try:
      for fact in made.session.receive(data):
        if isinstance(fact, qmp.Event):
          self._shared.verdicts.recall(instance)
          instance.receive(fact)
          has_news = True
        elif isinstance(fact, session.Attached):
          self._attach(made, fact)
        elif instance.is_remembered:
          instance.lifecycle.announced = None
          has_news = True
    except qmp.ProtocolError as err:
      instance.complain("its monitor sent %s; hung up on it", err)
      return Reading.GARBAGE
    finally:
      # What was said and taken back within one piece touches no file.
      if has_news:
        self._shared.verdicts.settle(instance)
    return Reading.DATA

  def read_out(self) -> None:
    """Reads what is left in the connection."""
    for _ in range(_LAST_READS):
      if self.read() is not Reading.DATA:
        return

  def complain_of_waiting(self) -> None:
    """Logs, once, that the monitor lets us wait, if it does."""
    if self.connection is not None:
      complaint = _WAITING.get(self.connection.session.state)
      if complaint is not None:
        self.instance.complain(complaint)

  def is_superseded(self) -> bool:
    """Tells whether somebody else took the name of the monitor.

    A socket that was only touched is known by its new date from then on.

    """
    assert self.connection is not None
    instance = self.instance
    directory = self._shared.place.directory
    try:
      # Most have not changed at all.
      if directory.life(instance.name) == instance.life:
        return False
      opened = directory.open_monitor(instance.name)
    except OSError:
      return False
    os.close(opened.descriptor)
    if (
      instance.life is not None
      and opened.life.inode == instance.life.inode
      and not self.connection.has_hung_up
    ):
      # As long as QEMU holds its end, the inode's number is not given out
      # again.
      instance.life = opened.life
    return opened.life != instance.life

  def _attach(self, made: Connection, attached: session.Attached) -> None:
    """Takes note that events arrive from now on."""
    instance = self.instance
    verdicts = self._shared.verdicts
    if attached.error:
      instance.complain(
        "QEMU may send no events: %s", attached.error[:_MAX_QUOTE]
      )
    is_first = instance.attach(attached.version, made.process)
    self._shared.processes.begin(instance.process, instance.name)
    if is_first and instance.may_be_marked:
      verdicts.find(instance)
      verdicts.settle(instance)
    if instance.is_remembered:
      # The guest may have been reset or resumed since then: QEMU knows.
      made.session.ask_status()
      made.send()

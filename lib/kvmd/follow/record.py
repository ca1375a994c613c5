# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What is known of one name, by whichever way it is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ganeti.kvmd.core.following import JOURNALED, State

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

  from ganeti.kvmd.follow.journaled import Journaled
  from ganeti.kvmd.follow.monitored import Monitored


class Record:
  """What is known of one name.

  @ivar name: the instance's
  @ivar state: how it is followed
  @ivar monitor: what is known by its monitor; None if that is not listened to
  @ivar journal: what is known by its journal; None if it has none

  """

  __slots__ = ("journal", "monitor", "name", "state")

  def __init__(self, name: str) -> None:
    self.name = name
    self.state = State.MONITOR
    self.monitor: Optional[Monitored] = None
    self.journal: Optional[Journaled] = None

  @property
  def is_journaled(self) -> bool:
    """Whether the instance is followed by its journal."""
    return self.state in JOURNALED


if TYPE_CHECKING:
  #: Does something with what is known of a name, so that a fault over one
  #: harms no other.
  Do = Callable[[Callable[[Record], None], str], None]

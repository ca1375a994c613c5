# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""How long the daemon is waited for that may be about to mark an instance.

It knows of an end in a millisecond, unless the node is very busy.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Optional

#: Longest to wait, in seconds, for all instances that are asked about.
LONGEST = 1.0

#: Longest that the daemon may work meanwhile, in seconds: in that time it sees
#: to a thousand ends. If it takes more, what it has to do has no end.
_EFFORT = 0.1

_POLL_INTERVAL = 0.01


class Patience:
  """What one request of Ganeti's has of it, for all of its instances."""

  def __init__(self, at_work: Callable[[], Optional[float]]) -> None:
    """Begins with all of it.

    @param at_work: tells how long the daemon has worked so far, in seconds;
      None if it has nothing to do

    """
    self._at_work = at_work
    self._left = LONGEST
    # How long the daemon will have worked when it was enough.
    self._enough: Optional[float] = None

  def wait(
    self, is_possible: Callable[[], bool], is_done: Callable[[], bool]
  ) -> bool:
    """Waits until the daemon has done something.

    @param is_possible: tells whether it may be about to do it
    @param is_done: tells whether it has
    @return: whether it has

    """
    while is_possible():
      # In this order nothing is missed that the daemon does in between.
      worked = self._at_work()
      if is_done():
        return True
      if worked is None or self._left <= 0.0:
        break
      if self._enough is None:
        self._enough = worked + _EFFORT
      if worked >= self._enough:
        break
      began = time.monotonic()
      time.sleep(_POLL_INTERVAL)
      self._left -= time.monotonic() - began
    return False

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What a journal needs of the file system. No I/O.

How much it takes, its QEMU decides. So a long one is condensed, and what is
reserved for its last words is topped up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ganeti.kvmd.node.journal_files import RESERVED

if TYPE_CHECKING:
  from ganeti.kvmd.node.journal_files import Extent

#: A journal that takes more than so many bytes is condensed.
LONG = 2 * RESERVED

#: So much of what is reserved for its last words a QEMU may use up, in bytes,
#: before more is reserved.
_USED_UP = RESERVED // 4

#: A journal is written faster than it can be read if so many bytes, and more
#: than were read, came while it was read.
_OUTPACED = 1024 * 1024


class Need(NamedTuple):
  """What a journal needs.

  @ivar is_long: whether it is to be condensed
  @ivar is_short_of_room: whether room is to be reserved for last words
  @ivar is_behind: whether it is more than a nearly full file system can bear
  @ivar is_fast: whether it grows so much that it may fill the file system
  @ivar lasts: how long the room lasts at this pace, in seconds; infinite if
    the journal does not grow

  """

  is_long: bool
  is_short_of_room: bool
  is_behind: bool
  is_fast: bool
  lasts: float


def need(covered: int, before: Extent, now: Extent, seconds: float) -> Need:
  """Tells what a journal needs.

  @param covered: how many bytes its digest covers
  @param before: how much there was of it at the last look
  @param now: how much there is
  @param seconds: how long ago the last look was

  """
  unread = now.size - covered
  grown = now.size - before.size
  return Need(
    is_long=max(now.allocated, unread) > LONG,
    is_short_of_room=now.allocated - unread < RESERVED - _USED_UP,
    is_behind=unread > _OUTPACED,
    is_fast=grown > _OUTPACED,
    lasts=RESERVED / 2 * seconds / grown if grown > 0 else float("inf"),
  )


def is_outpaced(covered: int, position: int, size: int) -> bool:
  """Tells whether a journal is written faster than it is read.

  @param covered: how many bytes the digest covered before it was read
  @param position: how many are read now
  @param size: how many there are by now

  """
  return size - position > max(_OUTPACED, position - covered)

# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Text of strangers, made fit to be shown."""

from __future__ import annotations

import itertools

_CUT = "..."


def escape(text: str, limit: int) -> str:
  """Makes any text one line of characters that can be seen.

  What is too long is cut, between two characters, and ends in three dots.

  @param limit: most characters that are returned, from three on

  """
  # None becomes shorter, so that no more of them can matter.
  pieces = [_escape(character) for character in text[: limit + 1]]
  if sum(map(len, pieces)) <= limit:
    return "".join(pieces)
  room = limit - len(_CUT)
  ends = itertools.accumulate(map(len, pieces))
  kept = [piece for piece, end in zip(pieces, ends) if end <= room]
  return "".join(kept) + _CUT


def _escape(character: str) -> str:
  if character.isprintable():
    return character
  return character.encode("unicode_escape").decode("ascii")

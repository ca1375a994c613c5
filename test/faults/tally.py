# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What was played, in numbers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Tally:
  """What was played."""

  schedules: int = 0
  kills: int = 0
  #: Kills while a real QEMU ran or had just ended
  kills_beside_qemu: int = 0
  journal_lives: int = 0
  socket_lives: int = 0
  real_lives: int = 0
  user_shutdowns: int = 0
  #: User shutdowns without a journal that nobody was there to hear
  unheard: int = 0

  def add(self, other: Tally) -> None:
    for field in dataclasses.fields(self):
      total = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, total)

  def __str__(self) -> str:
    lives = self.journal_lives + self.socket_lives
    return (
      f"{self.schedules} schedules, {self.kills} daemon kills"
      f" ({self.kills_beside_qemu} beside real QEMU), {lives} lives"
      f" ({self.journal_lives} with a journal, {self.real_lives} in real QEMU),"
      f" {self.user_shutdowns} user shutdowns: 0 wrong, 0 lost with a journal,"
      f" {self.unheard} without one that nobody was there to hear"
    )

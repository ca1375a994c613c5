# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Schedules come from their seeds, and nothing else."""

from __future__ import annotations

import pathlib

from faults import chance, steps


def test_same_seed_same_schedule(scratch: pathlib.Path) -> None:
  for profile in chance.PROFILES.values():
    made = [chance.make(seed, 3, profile) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    made[0].save(scratch / "saved")
    assert steps.load(scratch / "saved") == made[0]

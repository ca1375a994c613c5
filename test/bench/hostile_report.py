# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What was measured beside a hostile QEMU, in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import limits


class _Column(NamedTuple):
  """A column of the table.

  @ivar key: of the measurements
  @ivar meaning: for the reader who wants to know exactly

  """

  key: str
  title: str
  unit: str
  digits: int
  width: int
  meaning: str


_COLUMNS = (
  _Column(
    "median_ms",
    "median",
    "ms",
    1,
    8,
    "From an instance's end to its shutdown file, at a hundred instances that"
    " end one by one, half of them with a journal. A file that is missing"
    " counts as the three seconds that it was waited for.",
  ),
  _Column("worst_ms", "worst", "ms", 1, 8, ""),
  _Column(
    "sigterm_s",
    "SIGTERM",
    "s",
    2,
    9,
    "From the signal to the daemon's end; it is killed after three seconds.",
  ),
  _Column(
    "users_s",
    "users",
    "s",
    2,
    7,
    "What the hypervisor's side takes to find out which of all the instances"
    " were turned off by their users; five seconds are the most.",
  ),
  _Column(
    "overview_s",
    "info",
    "s",
    2,
    7,
    "GetAllInstancesInfo, in which the hostile instance counts as down.",
  ),
  _Column("stock_s", "stock", "s", 2, 7, "The same with stock's own code."),
  _Column("cpu_percent", "CPU", "%", 0, 6, "Of one core, by the daemon."),
  _Column(
    "grown_mb", "RSS", "+MB", 1, 6, "What the daemon's memory grew by at most."
  ),
  _Column(
    "log_lines",
    "log",
    "lines",
    0,
    7,
    "Lines of the log that are about no honest instance.",
  ),
  _Column(
    "used_mb", "/run", "MB", 0, 6, "What was used of a file system of 1 GB."
  ),
)

_TITLE_WIDTH = 36

HEADING = "\n".join(
  first.ljust(_TITLE_WIDTH) + "".join(texts)
  for first, texts in (
    ("", [x.title.rjust(x.width) for x in _COLUMNS]),
    ("attack", [x.unit.rjust(x.width) for x in _COLUMNS]),
  )
)


def _cell(row: dict[str, Any], column: _Column) -> str:
  value = row[column.key]
  return "-" if value is None else f"{value:,.{column.digits}f}"


def _over(row: dict[str, Any]) -> str:
  """Says which limits do not hold, if any."""
  words = [x.word for x in limits.beside(row) if not x.limit.holds]
  return ", ".join(words)


def as_line(row: dict[str, Any]) -> str:
  """Writes a row for a terminal, under L{HEADING}.

  @param row: as JSON has it

  """
  title = row["title"].ljust(_TITLE_WIDTH)
  if row["failure"]:
    return f"{title}  {row['failure']}"
  cells = "".join(_cell(row, x).rjust(x.width) for x in _COLUMNS)
  over = _over(row)
  return f"{title}{cells}  {'over: ' + over if over else 'OK'}"


def as_text(rows: list[dict[str, Any]]) -> list[str]:
  """Writes all rows for a terminal, in lines."""
  if not rows:
    return []
  return [HEADING, *(as_line(x) for x in rows), ""]


def table_of(
  rows: list[dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
  """Makes the table for a document: its heading and its lines."""
  heading = ["beside a hostile one"]
  heading += [f"{x.title}, {x.unit}" for x in _COLUMNS]
  lines = []
  for row in rows:
    cells = [_cell(row, x) for x in _COLUMNS]
    lines.append([row["failure"] or row["title"], *cells])
  return heading, lines


def meanings() -> list[tuple[str, str]]:
  """Gives what the columns mean, with their titles."""
  return [(x.title, x.meaning) for x in _COLUMNS if x.meaning]

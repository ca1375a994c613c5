# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What a full run has measured, in words: for a terminal, and for readers."""

from __future__ import annotations

import json
import os
import textwrap
from typing import Any, NamedTuple, Optional

import chart
import hostile_report
import limits


class Row(NamedTuple):
  """A line of the tables.

  @ivar key: of the measurements
  @ivar statistic: which of their statistics
  @ivar meaning: for the reader who wants to know exactly

  """

  key: str
  statistic: str
  title: str
  unit: str
  meaning: str


ROWS = (
  Row(
    "attach_ms",
    "median",
    "attach to all",
    "ms",
    "All monitors exist when the program starts. The time from the first"
    " connection that a monitor takes to the last answer to qmp_capabilities;"
    " start-up is not part of it. By journal: to the last connection, as that"
    " is made only to learn which process it is.",
  ),
  Row(
    "attach_cpu_ms",
    "median",
    "attach to all, CPU",
    "ms",
    "CPU time of the program for that, without what it needs to start where"
    " there are no monitors. With one instance it drowns in that.",
  ),
  Row(
    "event_cpu_us",
    "median",
    "CPU per event",
    "µs",
    "Each monitor sends 20 events (more where there are few monitors) that"
    " mean nothing here, such as RTC_CHANGE; the next one when all have been"
    " taken in. CPU time of the program, divided by the events. A journal's"
    " are read when it ends, and so are part of the rows below.",
  ),
  Row(
    "memory_mb",
    "median",
    "memory, attached",
    "MB",
    "Resident memory when it is attached to all monitors and at rest.",
  ),
  Row(
    "memory_after_mb",
    "median",
    "memory after 20 events each",
    "MB",
    "The same after these events.",
  ),
  Row(
    "idle_percent",
    "median",
    "CPU while idle",
    "%",
    "CPU time over one minute in which nothing happens, in percent of one"
    " core. A re-check of all instances falls into it.",
  ),
  Row(
    "recheck_cpu_ms",
    "median",
    "CPU of a re-check",
    "ms",
    "CPU time to look again at everything, as ganeti-kvmd does once a minute"
    " and the listener on qemu.qmp every second; the others never do.",
  ),
  Row(
    "one_ms",
    "median",
    "end of one to its file, median",
    "ms",
    "One instance says SHUTDOWN, guest-shutdown, and closes its connection,"
    " while the others are silent. The time from there until inotify reports"
    " its shutdown file to the benchmark. By journal: from when that is"
    " closed, as the kernel does at the end of a process.",
  ),
  Row("one_ms", "p99", "... 99th percentile", "ms", ""),
  Row(
    "all_ms",
    "median",
    "end of all to the last file",
    "ms",
    "All instances say so at once, after they have sent these events. The"
    " time from the first SHUTDOWN to the last shutdown file. By journal all"
    " the events are read in it; a single instance has 2,000 of them.",
  ),
  Row(
    "all_one_ms",
    "median",
    "... each from its own end, median",
    "ms",
    "In that storm, the time from each instance's end to its own file.",
  ),
  Row("all_one_ms", "p99", "... 99th percentile", "ms", ""),
  Row(
    "all_cpu_ms",
    "median",
    "... CPU",
    "ms",
    "CPU time of the program for the storm, logging and tidying up included.",
  ),
)

_START_ROWS = (
  ("ready_ms", "start to ready", "ms"),
  ("cpu_ms", "CPU to start", "ms"),
  ("resident_mb", "memory, none attached", "MB"),
)

_FILE = "performance"


def _number(value: float) -> str:
  """Writes a number with three digits that count."""
  if value >= 100:
    return f"{value:,.0f}"
  if value >= 10:
    return f"{value:.1f}"
  return f"{value:.2f}"


def _compared(value: Optional[float], ours: Optional[float]) -> str:
  """Writes a number, and how many times ours it is."""
  if value is None:
    return "-"
  if not ours or value is ours:
    return _number(value)
  times = value / ours
  digits = 0 if times >= 10 else 1 if times >= 1 else 2
  return f"{_number(value)} ({times:.{digits}f}x)"


def _table_of(
  results: dict[str, Any], size: int
) -> tuple[list[str], list[list[str]]]:
  """Makes the table of one size: a heading and its lines."""
  heading = [f"{size:,} instance{'s' if size > 1 else ''}"]
  heading += results["peers"].values()
  lines = []
  for row in ROWS:
    values = {}
    for peer in results["peers"]:
      summary = results["cells"][peer][str(size)]["rows"].get(row.key)
      values[peer] = summary[row.statistic] if summary else None
    if any(x is not None for x in values.values()):
      lines.append(
        [f"{row.title}, {row.unit}"]
        + [_compared(x, values.get("ours")) for x in values.values()]
      )
  return heading, lines


def _start_table(
  results: dict[str, Any],
) -> tuple[list[str], list[list[str]]]:
  heading = ["start, no instances", *results["peers"].values()]
  lines = []
  for key, title, unit in _START_ROWS:
    ours = results["start"].get("ours", {}).get(key)
    lines.append(
      [f"{title}, {unit}"]
      + [_compared(x[key], ours) for x in results["start"].values()]
    )
  return heading, lines


def _failures(results: dict[str, Any]) -> list[str]:
  """Says how those ended that did not get through."""
  lines = []
  for peer, title in results["peers"].items():
    for size in results["sizes"]:
      failure = results["cells"][peer][str(size)]["failure"]
      if failure:
        lines.append(f"{title} at {size:,}: {failure}")
  return lines + [f"not measured: {x}" for x in results["not_measured"]]


def _tables(
  results: dict[str, Any],
) -> list[tuple[list[str], list[list[str]]]]:
  return [
    _start_table(results),
    *(_table_of(results, size) for size in results["sizes"]),
  ]


def as_text(results: dict[str, Any]) -> str:
  """Writes the results for a terminal."""
  text = []
  for heading, lines in _tables(results):
    widths = [37] + [14] * (len(heading) - 1)
    # Titles of peers are longer than their columns.
    wrapped = [textwrap.wrap(x, y - 2) for x, y in zip(heading, widths)]
    height = max(map(len, wrapped))
    for number in range(height):
      parts = [([""] * (height - len(x)) + x)[number] for x in wrapped]
      text.append(_line(parts, widths))
    text += [_line(x, widths) for x in lines]
    text.append("")
  text.append("(2.0x: twice what it is for ganeti-kvmd)")
  text += ["", *hostile_report.as_text(results.get("hostile", []))]
  text += _failures(results)
  found = limits.limits_of(results)
  if found:
    text += ["", "Limits:"] + [x.as_line() for x in found]
  return "\n".join(text)


def _line(parts: list[str], widths: list[int]) -> str:
  first, *others = parts
  cells = [x.rjust(y) for x, y in zip(others, widths[1:])]
  return (first.ljust(widths[0]) + "".join(cells)).rstrip()


def _markdown_table(heading: list[str], lines: list[list[str]]) -> list[str]:
  return [
    "| " + " | ".join(heading) + " |",
    "|---|" + "---:|" * (len(heading) - 1),
    *("| " + " | ".join(x) + " |" for x in lines),
    "",
  ]


def as_markdown(results: dict[str, Any]) -> str:
  """Writes the results as a document."""
  machine = results["machine"]
  said = [
    (
      f"This is the run of {results['date']}; it took"
      f" {results['seconds'] // 60 + 1} minutes. The machine:"
      f" {machine['processor']}, {machine['memory']} of memory,"
      f" {machine['system']}, Linux {machine['kernel']}, Python"
      f" {machine['python']}."
    ),
    results["note"],
    (
      f"Numbers are medians over {results['repeat']} runs unless the row says"
      " otherwise; idle CPU and that of a re-check were measured once. In"
      " brackets, how many times that of ganeti-kvmd on monitors it is."
    ),
  ]
  text = [
    "# Performance",
    "",
    *textwrap.wrap(
      "ganeti-kvmd, listening to monitors and by journal, beside Ganeti's"
      " stock daemon, beside what one would write instead (a listener of"
      " thirty lines on the official qemu.qmp library), and beside the least"
      " that a loop over epoll does at all, in Python and in C. All of them"
      " watch the same pretended QEMUs, one after the other in the same run.",
      80,
    ),
    "",
    f"![Chart of the measurements]({_FILE}.svg)",
    "",
    *textwrap.wrap(" ".join(filter(None, said)), 80),
    "",
  ]
  found = limits.limits_of(results)
  if found:
    text += ["## What must hold", ""]
    text += _markdown_table(
      ["", "measured", "allowed", ""],
      [
        [
          x.what,
          f"{_number(x.measured or 0)} {x.unit}",
          x.allowed,
          "holds" if x.holds else "**broken**",
        ]
        for x in found
      ],
    )
    broken = [x.what for x in found if not x.holds]
    if broken:
      sentence = "Broken in this run: " + "; ".join(broken) + "."
      text += textwrap.wrap(sentence, 80)
      text += [""]
  text += ["## Measurements", ""]
  for heading, lines in _tables(results):
    text += _markdown_table(heading, lines)
  hostile = results.get("hostile", [])
  if hostile:
    text += _markdown_table(*hostile_report.table_of(hostile))
  failures = _failures(results)
  if failures:
    text += ["Who did not get through, and how:", ""]
    text += [f"- {x}" for x in failures] + [""]
  text += ["## What the rows mean", ""]
  text += [
    textwrap.fill(
      "- **start to ready**: from just before the program is started until"
      " it writes that it watches the control directory.",
      80,
      subsequent_indent="  ",
    ),
    textwrap.fill(
      "- **CPU to start**: of the process that then watches. One that detaches"
      " leaves most of the work to the process that was started.",
      80,
      subsequent_indent="  ",
    ),
  ]
  meanings = [(x.title.lstrip(". "), x.meaning) for x in ROWS if x.meaning]
  if hostile:
    meanings += [
      (f"beside a hostile one, {x}", y) for x, y in hostile_report.meanings()
    ]
  for title, meaning in meanings:
    text.append(
      textwrap.fill(f"- **{title}**: {meaning}", 80, subsequent_indent="  ")
    )
  text += ["", *_HOW_TO_REPEAT]
  return "\n".join(text) + "\n"


_HOW_TO_REPEAT = (
  "## How it is measured, and how to repeat it",
  "",
  "    sudo devel/bench                     # a new run, into build/bench",
  "    sudo devel/bench --output=doc        # a new run, into this document",
  "    sudo devel/bench --sizes=1000 --peers=ours,stock --repeat=3",
  "    sudo devel/bench --hostile           # only beside hostile instances",
  "    sudo devel/bench --hostile --minutes=10  # whether anything grows there",
  "    sudo test/bench/quick.py             # ours alone, in half a minute",
  "    test/bench/decoder.py                # what it takes to read QMP alone",
  "",
  *textwrap.wrap(
    "The monitors are pretended, but real sockets in processes of their own"
    " (test/bench/fleet.py), so that what they cost is not counted. In the"
    " times they are: with a loop in C the monitors are busy for about as long"
    " as their client, so that a time of less than 20 µs for each monitor"
    " cannot be seen here. CPU times have no such floor. Journals are real"
    " files on a tmpfs, as /run is one, and written as QEMU writes them. CPU"
    " time is that of all threads, from the kernel's clock of the process.",
    80,
  ),
  "",
  *textwrap.wrap(
    "This daemon and the stock one run detached, as Ganeti runs them, with"
    " their logs in files. The stock one is measured in the foreground as well:"
    " with -f it writes each character of its log to standard error by itself."
    " That is how it took the second from which the first limits were derived;"
    " the chart leaves it out. Everybody starts with the soft limit of open"
    " files raised to the hard one. The bare loops know neither errors nor new"
    " monitors, and look for words instead of parsing.",
    80,
  ),
)


def write(results: dict[str, Any], directory: int) -> None:
  """Writes all files.

  @param directory: an open descriptor of where they go

  """
  for suffix, text in (
    ("json", json.dumps(results, indent=1) + "\n"),
    ("svg", chart.as_svg(results)),
    ("md", as_markdown(results)),
  ):
    fd = os.open(
      f"{_FILE}.{suffix}",
      os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
      0o644,
      dir_fd=directory,
    )
    with open(fd, "w", encoding="utf-8") as file:
      file.write(text)

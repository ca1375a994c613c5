# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A chart of a full run: one panel a measurement, one line a peer."""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple
from xml.sax.saxutils import escape


class _Panel(NamedTuple):
  """One small chart."""

  row: str
  title: str
  unit: str


#: Who is too much like another to be told from it.
_LEFT_OUT = ("stock-foreground",)


class _End(enum.Enum):
  """Why a line ends."""

  MEASURED = enum.auto()
  FAILED = enum.auto()


class _Style(NamedTuple):
  """How a peer is drawn."""

  colour: str
  width: float
  dashes: str


class _Label(NamedTuple):
  """The last value of a line, and where its point is."""

  x: float
  y: float
  value: float
  style: _Style
  weight: str
  is_at_edge: bool


class _Area(NamedTuple):
  """Where a panel's lines are, and which values its edges stand for."""

  left: float
  top: float
  sizes: list[int]
  lowest: int
  highest: int

  def x(self, size: int) -> float:
    """Places a number of instances."""
    if len(self.sizes) == 1:
      return self.left + _WIDTH / 2
    first, last = math.log10(self.sizes[0]), math.log10(self.sizes[-1])
    return self.left + _WIDTH * (math.log10(size) - first) / (last - first)

  def y(self, value: float) -> float:
    """Places a measured value."""
    share = (math.log10(value) - self.lowest) / (self.highest - self.lowest)
    return self.top + _HEIGHT * (1 - share)


_PANELS = (
  _Panel("attach_ms", "Attach to all monitors", "ms"),
  _Panel("all_ms", "All end at once: to the last file", "ms"),
  _Panel("one_ms", "One ends: to its file", "ms"),
  _Panel("attach_cpu_ms", "CPU to attach to all", "ms"),
  _Panel("event_cpu_us", "CPU per uninteresting event", "µs"),
  _Panel("memory_after_mb", "Memory after 20 events each", "MB"),
)
_STYLES = {
  "ours": _Style("#0a7d4f", 3, ""),
  "journal": _Style("#0a7d4f", 2, "7 4"),
  "stock": _Style("#c8334a", 1.8, ""),
  "qemu.qmp": _Style("#2b62c4", 1.8, ""),
  "bare-python": _Style("#6b6b6b", 1.3, "5 3"),
  "bare-c": _Style("#a0a0a0", 1.3, "2 3"),
}
_OTHER_STYLE = _Style("#8a4fbf", 1.8, "")

_COLUMNS = 3
_WIDTH, _HEIGHT = 200, 170
_PANEL_WIDTH, _PANEL_HEIGHT = 310, 260
_LEFT, _TOP = 52, 108
_TEXT, _FAINT, _GRID = "#222222", "#666666", "#e4e4e4"
_LABEL_DISTANCE = 12


def as_svg(results: dict[str, Any]) -> str:
  """Draws the chart."""
  drawn = {
    peer: title
    for peer, title in results["peers"].items()
    if peer not in _LEFT_OUT
  }
  results = {**results, "peers": drawn}
  rows = math.ceil(len(_PANELS) / _COLUMNS)
  width = _COLUMNS * _PANEL_WIDTH + 10
  height = _TOP + rows * _PANEL_HEIGHT - 15
  parts = [
    (
      f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}"'
      f' height="{height}" viewBox="0 0 {width} {height}" role="img"'
      ' font-family="system-ui, sans-serif" font-size="11">'
    ),
    "<title>ganeti-kvmd and its peers, by the number of instances</title>",
    f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
    _text(20, 28, "ganeti-kvmd and its peers", size=16, weight="bold"),
    _text(
      20,
      46,
      "by the number of instances; both axes logarithmic, less is better;"
      " a cross: fails at the next size",
      colour=_FAINT,
    ),
    *_legend(results, width),
  ]
  for number, panel in enumerate(_PANELS):
    line, column = divmod(number, _COLUMNS)
    parts += _draw_panel(
      results,
      panel,
      _LEFT + column * _PANEL_WIDTH,
      _TOP + 22 + line * _PANEL_HEIGHT,
    )
  return "\n".join([*parts, "</svg>", ""])


def _text(
  x: float,
  y: float,
  text: str,
  *,
  colour: str = _TEXT,
  size: int = 11,
  weight: str = "normal",
  anchor: str = "start",
) -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}"'
    f' font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
  )


def _legend(results: dict[str, Any], width: float) -> list[str]:
  parts = []
  x, y = 20.0, 68.0
  for peer, title in results["peers"].items():
    style = _STYLES.get(peer, _OTHER_STYLE)
    length = 52 + 6.6 * len(title)
    if x + length > width:
      x, y = 20.0, y + 18
    parts.append(_path([(x, y), (x + 24, y)], style))
    parts.append(_text(x + 30, y + 4, title, size=12, weight=_weight(peer)))
    x += length
  return parts


def _weight(peer: str) -> str:
  return "bold" if peer == "ours" else "normal"


def _path(points: list[tuple[float, float]], style: _Style) -> str:
  line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
  return (
    f'<polyline points="{line}" fill="none" stroke="{style.colour}"'
    f' stroke-width="{style.width}" stroke-dasharray="{style.dashes}"'
    ' stroke-linejoin="round" stroke-linecap="round"/>'
  )


def _draw_panel(
  results: dict[str, Any], panel: _Panel, left: float, top: float
) -> list[str]:
  lines = _lines_of(results, panel)
  values = [y for line in lines.values() for y in line.values()]
  title = f"{panel.title}, {panel.unit}"
  parts = [_text(left - 32, top - 14, title, size=13, weight="bold")]
  if not values:
    return [*parts, _text(left, top + 20, "not measured", colour=_FAINT)]
  area = _Area(
    left,
    top,
    results["sizes"],
    math.floor(math.log10(min(values))),
    max(
      math.ceil(math.log10(max(values))),
      math.floor(math.log10(min(values))) + 1,
    ),
  )
  parts += _draw_grid(area)
  parts += _draw_zeros(results, panel, area)
  labels = []
  # Ours last, on top of the others.
  for peer in sorted(lines, key=lambda x: x == "ours"):
    style = _STYLES.get(peer, _OTHER_STYLE)
    points = [(area.x(x), area.y(y)) for x, y in lines[peer].items()]
    parts.append(_path(points, style))
    parts += [_draw_end(x, y, _End.MEASURED, style) for x, y in points[:-1]]
    parts.append(_draw_end(*points[-1], _end_of(results, peer), style))
    size, value = list(lines[peer].items())[-1]
    labels.append(
      _Label(*points[-1], value, style, _weight(peer), size == area.sizes[-1])
    )
  return parts + _draw_labels(labels)


def _lines_of(
  results: dict[str, Any], panel: _Panel
) -> dict[str, dict[int, float]]:
  """Gives each peer's medians by size."""
  lines = {}
  for peer in results["peers"]:
    line = {}
    for size in results["sizes"]:
      cell = results["cells"][peer][str(size)]
      summary = cell["rows"].get(panel.row)
      if summary and summary["median"] > 0 and not cell["failure"]:
        line[size] = summary["median"]
    if line:
      lines[peer] = line
  return lines


def _draw_zeros(
  results: dict[str, Any], panel: _Panel, area: _Area
) -> list[str]:
  """Names those for whom a logarithmic axis has no place."""
  parts = []
  y = area.top + _HEIGHT - 6
  for peer, title in results["peers"].items():
    rows = [x["rows"].get(panel.row) for x in results["cells"][peer].values()]
    if any(rows) and not any(x["median"] for x in rows if x):
      colour = _STYLES.get(peer, _OTHER_STYLE).colour
      parts.append(_text(area.left + 4, y, f"{title}: 0", colour=colour))
      y -= _LABEL_DISTANCE
  return parts


def _draw_grid(area: _Area) -> list[str]:
  parts = []
  right, bottom = area.left + _WIDTH, area.top + _HEIGHT
  for exponent in range(area.lowest, area.highest + 1):
    y = area.y(10.0**exponent)
    label = f"{10.0**exponent:,.{max(0, -exponent)}f}"
    parts.append(_rule(area.left, y, right, y))
    parts.append(
      _text(area.left - 6, y + 4, label, colour=_FAINT, anchor="end")
    )
  for size in area.sizes:
    x = area.x(size)
    parts.append(_rule(x, area.top, x, bottom))
    parts.append(
      _text(x, bottom + 16, f"{size:,}", colour=_FAINT, anchor="middle")
    )
  return parts


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
  return (
    f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    f' stroke="{_GRID}"/>'
  )


def _draw_end(x: float, y: float, end: _End, style: _Style) -> str:
  """Marks the last point of a line."""
  if end is _End.MEASURED:
    return (
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{style.width + 0.6:.1f}"'
      f' fill="{style.colour}"/>'
    )
  return (
    f'<path d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8"'
    f' stroke="{style.colour}" stroke-width="2.2"/>'
  )


def _end_of(results: dict[str, Any], peer: str) -> _End:
  cells = results["cells"][peer].values()
  return _End.FAILED if any(x["failure"] for x in cells) else _End.MEASURED


def _draw_labels(labels: list[_Label]) -> list[str]:
  """Writes the last values beside their points, none over another."""
  parts = []
  lowest = 0.0
  for label in sorted(labels, key=lambda x: x.y):
    digits = 0 if label.value >= 100 else 1 if label.value >= 10 else 2
    text = f"{label.value:,.{digits}f}"
    if label.is_at_edge:
      lowest = max(label.y + 4, lowest + _LABEL_DISTANCE)
      x, y, anchor = label.x + 8, lowest, "start"
    else:
      x, y, anchor = label.x - 8, label.y, "end"
    parts.append(
      _text(
        x,
        y,
        text,
        colour=label.style.colour,
        weight=label.weight,
        anchor=anchor,
      )
    )
  return parts

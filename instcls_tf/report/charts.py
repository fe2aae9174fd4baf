"""Line charts as SVG within a page of HTML, each with a table that says the same. No TensorFlow, no JavaScript."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

# Pixels: the whole, and what axes and legend take at the left, right, top and bottom.
_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 12, 40
# Points of a line, and rows of a table; longer ones are given by means.
_POINTS, _ROWS = 500, 20
# Okabe and Ito's, told apart by the colour-blind, and lines told apart without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    xs: list[float]
    ys: list[float]


class Mark(NamedTuple):
    """A value that a chart's lines are held against."""

    name: str
    value: float


def chart(
    title: str, x_name: str, y_name: str, lines: list[Line], marks: list[Mark] | None = None, note: str = ""
) -> str:
    """A chart as HTML: a heading, an SVG with a description, and its numbers as a table.

    Args:
      title: the heading.
      x_name, y_name: what is on the axes, with units.
      lines: those without a point are left out.
      marks: horizontal lines.
      note: a sentence below the heading.

    Returns:
      The figure; a sentence instead if no line has a point.
    """
    lines, marks = [_thinned(line, _POINTS) for line in lines if line.xs], marks or []
    heading = f"<h3>{escape(title)}</h3>" + (f"<p>{escape(note)}</p>" if note else "")
    if not lines:
        return f"{heading}<p>Nothing of it has been logged.</p>"
    return f"<figure>{heading}{_svg(title, x_name, y_name, lines, marks)}{_table(title, x_name, lines, marks)}</figure>"


def _svg(title: str, x_name: str, y_name: str, lines: list[Line], marks: list[Mark]) -> str:
    x_low, x_high = _span([x for line in lines for x in line.xs])
    y_low, y_high = _span([y for line in lines for y in line.ys] + [mark.value for mark in marks])

    def x_at(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y_at(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in _ticks(y_low, y_high):
        y = y_at(value)
        parts.append(f'<line class="grid" {_across(y)}/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in _ticks(x_low, x_high):
        parts.append(
            f'<text x="{x_at(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:.6g}</text>'
        )
    for number, mark in enumerate(marks):
        y, dash = y_at(mark.value), _DASHES[1 + number % 3]
        parts.append(f'<line class="mark" stroke-dasharray="{dash}" {_across(y)}/>')
        parts.append(
            f'<text class="mark" x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(mark.name)}</text>'
        )
    for number, line in enumerate(lines):
        look = f'stroke="{_COLOURS[number % 4]}" stroke-dasharray="{_DASHES[number % 4]}"'
        points = [(x_at(x), y_at(y)) for x, y in zip(line.xs, line.ys)]
        parts.append(f'<polyline {look} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if len(points) <= 30:
            parts += [f'<circle fill="{_COLOURS[number % 4]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
    )
    turned = f"translate(14 {_HEIGHT / 2 - 10:.0f}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_name)}</text>')
    described = f"{title}: {_described(lines, marks)}"
    legend = "".join(_legend(number, line) for number, line in enumerate(lines)) if len(lines) > 1 else ""
    svg = f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(described)}">{"".join(parts)}</svg>'
    return svg + (f'<p class="legend">{legend}</p>' if legend else "")


def _legend(number: int, line: Line) -> str:
    look = f'stroke="{_COLOURS[number % 4]}" stroke-dasharray="{_DASHES[number % 4]}"'
    sample = f'<line {look} stroke-width="3" x1="0" x2="34" y1="5" y2="5"/>'
    svg = f'<svg aria-hidden="true" viewBox="0 0 34 10" width="34" height="10">{sample}</svg>'
    return f"<span>{svg} {escape(line.name)}</span> "


def _across(y: float) -> str:
    """Where a horizontal line lies, as attributes."""
    return f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'


def _described(lines: list[Line], marks: list[Mark]) -> str:
    """What a chart shows, in words."""
    of_lines = [f"{line.name} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines]
    return "; ".join([*of_lines, *(f"{mark.name} {mark.value:.4g}" for mark in marks)])


def _table(title: str, x_name: str, lines: list[Line], marks: list[Mark]) -> str:
    xs = sorted({x for line in lines for x in line.xs})
    if len(xs) > _ROWS:  # the last one is in it
        xs = [xs[round(place * (len(xs) - 1) / (_ROWS - 1))] for place in range(_ROWS)]
    values = [dict(zip(line.xs, line.ys)) for line in lines]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (x_name, *(line.name for line in lines)))
    rows = [[f"{x:.6g}", *(f"{of[x]:.4g}" if x in of else "" for of in values)] for x in xs]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    below = "".join(f"<p>{escape(mark.name)}: {mark.value:.4g}</p>" for mark in marks)
    return (
        f"<details><summary>{escape(title)} as a table</summary><table><tr>{head}</tr>{body}</table>{below}</details>"
    )


def _thinned(line: Line, most: int) -> Line:
    """Means of parts of equal length, where there are more points than can be seen; the last point stays itself."""
    count = len(line.xs)
    if count <= most:
        return line
    edges = [round(part * (count - 1) / (most - 1)) for part in range(most)]
    parts = [slice(first, last) for first, last in zip(edges, edges[1:])]
    ys = [sum(line.ys[part]) / len(line.ys[part]) for part in parts]
    return Line(line.name, [*(line.xs[part.stop - 1] for part in parts), line.xs[-1]], [*ys, line.ys[-1]])


def _span(values: list[float]) -> tuple[float, float]:
    """Lowest and highest value, apart from each other, with a little room."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.5
    return low - (room if low < 0 or low - room > 0 else low), high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round values."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    return [round(step * number, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

"""Draws line charts, stacked bars and heat maps as inline SVG, so that a page needs no other file.

Colours are CSS variables of the page, so that charts follow its light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 380, 236  # in units of the drawing, which scales with the page
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 17, 46  # margins for tick labels, axis names and the texts of marks
COLOURS = 5  # number of series colours in style.css, --s1 to --s5

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart. `pieces` are not connected to each other; `hollow` has the numbers of points drawn as rings."""

    name: str
    pieces: list[list[Point]]
    colour: int = 1
    dots: bool = False
    hollow: frozenset[int] = frozenset()
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its name with the unit, labels that replace numbers at some places, and whether it begins at zero."""

    name: str
    labels: dict[float, str] = field(default_factory=dict)
    zero: bool = False


@dataclass(frozen=True)
class Marks:
    """Thin vertical lines with a text each, such as the starts of rounds."""

    places: list[tuple[float, str]] = field(default_factory=list)


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], marks: Marks | None = None, note: str = ""
) -> str:
    """Returns a figure with a legend, or "" if no series has a point."""
    drawn = [s for s in series if any(s.pieces)]
    points = [point for s in drawn for piece in s.pieces for point in piece]
    if not points:
        return ""
    frame = _Frame([p[0] for p in points], [p[1] for p in points], x, y)
    body = [_marks(marks or Marks(), frame), *(_line(s, frame, x, y) for s in drawn)]
    return _figure(title, drawn, _axes(frame, x, y) + "".join(body), f"{title}: {y.name} over {x.name}", note)


def stacked_bars(
    title: str, x: Axis, y: Axis, names: Sequence[str], bars: Mapping[float, Sequence[float]], note: str = ""
) -> str:
    """Returns a figure with a bar at each place, stacked from one part per name, or "" if all parts are 0."""
    if not any(sum(parts) for parts in bars.values()):
        return ""
    # the bars begin at 0, and the outer ones need half a place more
    places = sorted(bars)
    frame = _Frame([places[0] - 0.5, places[-1] + 0.5], [0, *(sum(parts) for parts in bars.values())], x, y)
    width = min(28.0, 0.7 * (frame.x(1) - frame.x(0)))
    body = []
    for place in places:
        base = 0.0
        for i, (name, value) in enumerate(zip(names, bars[place], strict=True)):
            top, bottom = frame.y(base + value), frame.y(base)
            words = escape(f"{x.name} {x.labels.get(place, f'{place:g}')}, {name}: {value:.1f}")
            body.append(
                f'<rect class="f{i % COLOURS + 1}" x="{frame.x(place) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(bottom - top, 0):.1f}"><title>{words}</title></rect>'
            )
            base += value
    legend = [Series(name, [[(0, 0), (1, 0)]], i % COLOURS + 1) for i, name in enumerate(names)]
    return _figure(title, legend, _axes(frame, x, y) + "".join(body), f"{title}: {y.name} by {x.name}", note)


def heat_map(title: str, counts: Sequence[Sequence[float]], note: str = "") -> str:
    """Returns a figure of cells that are darker for higher counts, or "" if all counts are 0."""
    most = max((max(row) for row in counts), default=0)
    if not most:
        return ""
    # square cells, as large as fit, in the centre
    height, width = len(counts), len(counts[0])
    side = min((WIDTH - 2 * RIGHT) / width, (HEIGHT - 2 * RIGHT) / height)
    left, top = (WIDTH - side * width) / 2, (HEIGHT - side * height) / 2
    cells = "".join(
        f'<rect class="f1" x="{left + j * side:.1f}" y="{top + i * side:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{value / most:.3f}"><title>{value:g}</title></rect>'
        for i, row in enumerate(counts)
        for j, value in enumerate(row)
    )
    frame = (
        f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{side * width:.1f}" height="{side * height:.1f}"/>'
    )
    return _figure(title, [], cells + frame, f"{title}: {height} x {width} cells", note)


class _Frame:
    """Maps values to places in the drawing."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> None:
        low, high = min(xs), max(xs)
        self.x_ticks = [v for v in sorted(x.labels) if low <= v <= high] or ticks(low, high, 5)
        self.x_range = _widened(low, high)
        ys = [0.0, *ys] if y.zero else ys
        self.y_ticks = ticks(*_widened(min(ys), max(ys)), 5)
        self.y_range = min(self.y_ticks[0], min(ys)), max(self.y_ticks[-1], max(ys))

    def x(self, value: float) -> float:
        return LEFT + _share(value, self.x_range) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, self.y_range) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers that enclose the range, in steps of 1, 2 or 5 times a power of ten."""
    low, high = _widened(low, high)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """Formats a number for an axis: 1200000 is 1.2M, 40000 is 40k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """Returns the range, widened if it is empty."""
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 0.5
    return low - pad, high + pad


def _share(value: float, limits: tuple[float, float]) -> float:
    """Returns the relative place of a value between two limits."""
    return (value - limits[0]) / (limits[1] - limits[0])


def _axes(frame: _Frame, x: Axis, y: Axis) -> str:
    """Returns grid lines, tick labels, and the names of the axes."""
    parts = []
    # horizontal grid lines
    for value in frame.y_ticks:
        place = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(short(value))}</text>')
    # ticks of the x axis, some of two lines
    for value in frame.x_ticks:
        place = frame.x(value)
        if not LEFT - 1 <= place <= WIDTH - RIGHT + 1:
            continue
        words = x.labels.get(value, short(value)).split("\n")
        lines = "".join(
            f'<tspan x="{place:.1f}" dy="{12 * (i > 0)}">{escape(word)}</tspan>' for i, word in enumerate(words)
        )
        parts.append(f'<text y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{lines}</text>')
    # the names of the axes
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x.name)}</text>')
    parts.append(
        f'<text class="name" transform="translate(11 {centre:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.name)}</text>"
    )
    base = HEIGHT - BOTTOM
    return "".join(parts) + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'


def _marks(marks: Marks, frame: _Frame) -> str:
    """Returns the vertical lines that are inside the frame, with their texts."""
    parts = []
    for value, word in marks.places:
        place = frame.x(value)
        if not LEFT - 1 <= place <= WIDTH - RIGHT:
            continue
        parts.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="small" x="{place:.1f}" y="{TOP - 4}" text-anchor="middle">{escape(word)}</text>')
    return "".join(parts)


def _line(series: Series, frame: _Frame, x: Axis, y: Axis) -> str:
    """Returns the pieces as paths, and dots with their values as tooltips."""
    parts, number = [], 0
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    for piece in series.pieces:
        places = [(frame.x(px), frame.y(py)) for px, py in piece]
        if len(places) > 1:
            path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
            parts.append(f'<path class="l{series.colour}" d="{path}"{dash}/>')
        for (px, py), (value_x, value_y) in zip(places, piece, strict=True):
            if series.dots or len(places) == 1:
                ring = " ring" if number in series.hollow else ""
                where = x.labels.get(value_x, f"{value_x:g}").replace("\n", " ")
                words = escape(f"{series.name}, {x.name} {where}: {value_y:.3g}")
                circle = f'<circle class="d{series.colour}{ring}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
                parts.append(f"{circle}<title>{words}</title></circle>")
            number += 1
    return "".join(parts)


def _figure(title: str, legend: Sequence[Series], body: str, description: str, note: str) -> str:
    """Returns the figure: title, legend, drawing and note."""
    keys = "".join(f'<span><i class="key k{s.colour} {_key(s)}"></i>{escape(s.name)}</span>' for s in legend)
    names = f'<div class="legend">{keys}</div>' if len(legend) > 1 else ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{names}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{body}</svg>'
        f"{below}</figure>"
    )


def _key(series: Series) -> str:
    """Returns the legend's symbol: a line, a dashed line, or a dot if no two points are connected."""
    if all(len(piece) < 2 for piece in series.pieces):
        return "dot"
    return "dashed" if series.dashed else "line"

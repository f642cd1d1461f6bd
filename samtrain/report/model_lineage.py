"""Draws which model made which masks: the rounds of the data engine from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from samtrain.report.tables import STAGE_NAMES

LEFT, RIGHT = 116, 4  # room for the names of the rows, and after the last column
PAGE_WIDTH = 1106  # pixels of a desktop page, which the columns fill
COLUMN = (82, 108)  # narrowest and widest column; with more columns the drawing scrolls
RADIUS = 12  # of the circle of a model
TOP, MAIN, DROP = 8, 56, 56  # top of the bands; height of promoted models; how much lower the other models are
BAR, BAR_WIDTH, ROW = 44, 26, 17  # height of the longest bar; its width; height of a row of numbers
TITLE = "Which model made which masks"
NOTE = """An arrow leads from a model to the one that was trained from it. The masks of a round were made with the model
at the start of its arrow."""
RINGS = " A ring is a model that was not better than the model in use, so nothing was made or trained with it."

Line = dict[str, Any]


def lineage_chart(lines: Sequence[Line]) -> str:
    """Returns a figure of the ledger, including the first model, or "" if no round has ended."""
    if len(lines) < 2:
        return ""
    layout = _Layout(lines)
    drawing = _bands(layout) + _row_names(layout) + _arrows(layout) + _models(layout) + _masks(layout) + _numbers(layout)
    size = f'viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" style="width:{layout.width:.0f}px"'
    words = f"{len(lines) - 1} rounds: which model was trained from which, and which masks were made with it"
    svg = f'<svg {size} role="img" aria-label="{words}">{drawing}</svg>'
    return (
        f'<figure class="chart wide"><figcaption>{TITLE}</figcaption><div class="legend">{_legend(layout)}</div>'
        f'<div class="scroll">{svg}</div><p class="note">{NOTE}{RINGS * layout.has_rings}</p></figure>'
    )


class _Layout:
    """Computes the places of all elements. Models are identified by their digests, rounds by their numbers."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines, self.rounds = lines, lines[1:]
        self.column = min(max((PAGE_WIDTH - LEFT - RIGHT) / len(lines), COLUMN[0]), COLUMN[1])
        self.width = LEFT + len(lines) * self.column + RIGHT
        self.has_rings = any(not line["promoted"] for line in lines)
        self.has_automatic = any(line.get("masks_automatic") for line in lines)
        self.base = MAIN + DROP * self.has_rings + 40 + BAR  # the base line of the bars
        self.rows = ["drawn", *(["automatic"] if self.has_automatic else []), "made with model"]
        self.height = self.base + ROW * len(self.rows) + 12
        self.made = {line["digest"]: line for line in lines if line["promoted"]}

    def x(self, line: Line) -> float:
        """Returns the centre of the round's column."""
        return LEFT + (line["round"] - self.lines[0]["round"] + 0.5) * self.column

    def y(self, line: Line) -> float:
        """Returns the height of the round's model."""
        return MAIN if line["promoted"] else MAIN + DROP

    def parent(self, line: Line) -> Line | None:
        """Returns the line of the model from which this one was trained, or None if the ledger lacks it."""
        return self.made.get(line["parent"])


def _bands(layout: _Layout) -> str:
    """Returns a background for each stage with its name on top; the first model is to the left of them."""
    parts = [_text(layout.x(layout.lines[0]), TOP + 15, "first model")]
    for stage, group in groupby(layout.rounds, key=lambda line: str(line["stage"])):
        inside = list(group)
        left, width = layout.x(inside[0]) - layout.column / 2 + 2, len(inside) * layout.column - 4
        name = STAGE_NAMES.get(stage, stage.replace("_", "-"))
        name = name if width > 190 else name.split(": ")[-1]
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{layout.height - TOP:.0f}" rx="8"/>'
            + _text(left + width / 2, TOP + 15, name)
        )
    return "".join(parts)


def _row_names(layout: _Layout) -> str:
    """Returns the names of the rows on the left."""
    places = [(MAIN, "model of round", "name"), (layout.base - BAR / 2, "masks added", "name")]
    places += [(MAIN + DROP, "not better", "")] * layout.has_rings
    places += [(layout.base + ROW * (i + 1) - 4, name, "") for i, name in enumerate(layout.rows)]
    return "".join(_text(LEFT - 12, y + 4, name, kind, "end") for y, name, kind in places)


def _arrows(layout: _Layout) -> str:
    """Returns an arrow from each parent to its child, which bends down if the child was not promoted."""
    parts = []
    for line in layout.rounds:
        parent = layout.parent(line)
        if parent is None:
            continue
        x, begin, gap = layout.x(line), layout.x(parent) + RADIUS, RADIUS + 3
        if line["promoted"]:
            path = f"M{begin:.1f} {MAIN}H{x - gap:.1f}m-6 -4l6 4l-6 4"
        else:
            path = f"M{begin:.1f} {MAIN}H{x - 14:.1f}q14 0 14 14V{MAIN + DROP - gap}m-4 -6l4 6l4 -6"
        parts.append(f'<path class="arrow" d="{path}"><title>{_origin(layout, line)}</title></path>')
    return "".join(parts)


def _models(layout: _Layout) -> str:
    """Returns a circle with the round's number and the model's size below; a ring if it was not promoted."""
    parts = []
    for line in layout.lines:
        x, y, ring = layout.x(line), layout.y(line), "" if line["promoted"] else " ring"
        words = f"<title>{_origin(layout, line)}: {escape(_verdict(line))}</title>"
        parts.append(
            f'<g>{words}<circle class="d1{ring}" cx="{x:.1f}" cy="{y}" r="{RADIUS}"/>'
            + _text(x, y + 4, str(line["round"]), "inside" if line["promoted"] else "name")
            + _text(x, y + RADIUS + 14, str(line["model"]))
            + "</g>"
        )
    return "".join(parts)


def _masks(layout: _Layout) -> str:
    """Returns a bar per round: the drawn masks, and the automatic masks on top."""
    most = max((line["masks"] for line in layout.rounds), default=0) or 1
    parts = [f'<line class="axis" x1="{LEFT}" x2="{layout.width - RIGHT:.1f}" y1="{layout.base}" y2="{layout.base}"/>']
    for line in layout.rounds:
        bottom = float(layout.base)
        for kind, (name, count) in zip((3, 2), _counts(line), strict=True):
            height = BAR * count / most
            bottom -= height
            parts.append(
                f'<rect class="f{kind}" x="{layout.x(line) - BAR_WIDTH / 2:.1f}" y="{bottom:.1f}" width="{BAR_WIDTH}" '
                f'height="{height:.1f}"><title>round {line["round"]}: {count:,} masks {name}</title></rect>'
            )
    return "".join(parts)


def _numbers(layout: _Layout) -> str:
    """Returns the rows of numbers below the bars."""
    parts = []
    for line in layout.rounds:
        (_, drawn), (_, automatic) = _counts(line)
        parent, filled = layout.parent(line), f"{automatic:,}" if line.get("detector") else "–"
        cells = [f"{drawn:,}", *([filled] if layout.has_automatic else []), str(parent["round"]) if parent else "–"]
        parts += [_text(layout.x(line), layout.base + ROW * (i + 1), cell, "name") for i, cell in enumerate(cells)]
    return "".join(parts)


def _counts(line: Line) -> list[tuple[str, int]]:
    """Returns the numbers of drawn and automatic masks."""
    automatic = line.get("masks_automatic") or 0
    return [("drawn", line["masks"] - automatic), ("made automatically", automatic)]


def _origin(layout: _Layout, line: Line) -> str:
    """Says from which model the round's model was trained."""
    parent = layout.parent(line)
    return f"model of round {line['round']}" + (f", trained from that of round {parent['round']}" if parent else "")


def _verdict(line: Line) -> str:
    """Returns the model's size, its metric, and whether it was promoted."""
    name = str(line["promote_metric"])
    value = line["metrics_after"].get(name)
    measured = f", {name} {value:.3f}" if value is not None else ""
    kept = "promoted" if line["promoted"] else "not better, so the previous model stayed"
    return f"{line['model']}{measured}, {kept if line['parent'] else 'the first model'}"


def _legend(layout: _Layout) -> str:
    """Returns the symbols that the drawing uses, with their names."""
    keys = [("k1 dot", "promoted"), *([("k1 hollow", "not better")] if layout.has_rings else []), ("k3 box", "masks drawn")]
    keys += [("k2 box", "masks made automatically")] * layout.has_automatic
    return "".join(f'<span><i class="key {kind}"></i>{name}</span>' for kind, name in keys)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

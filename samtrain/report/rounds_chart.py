"""Which model made which masks: the rounds of the data engine as an image, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from samtrain.report.tables import STAGE_NAMES

LEFT, RIGHT = 116, 4  # names of the rows; room behind the last column
FIT = 1106  # pixels that a page for a desktop has room for; columns are made to fill it
COLUMN = (82, 108)  # the narrowest and the widest: below it the image scrolls
RADIUS = 12  # of a model
TOP, MAIN, DROP = 8, 56, 56  # the bands begin; where promoted models stand; how much lower the others do
BAR, BAR_WIDTH, ROW = 44, 26, 17  # height of the longest bar; width; a row of numbers
TITLE = "Which model made which masks"
NOTE = """An arrow goes from a model to the one that was trained from it. The masks of a round were made with the model
that its arrow comes from."""
RINGS = " A ring was not better than the model in use: nothing comes from it."

Line = dict[str, Any]


def rounds_chart(lines: Sequence[Line]) -> str:
    """A figure of the ledger's lines, the first model among them; "" where no round has ended."""
    if len(lines) < 2:
        return ""
    plan = _Plan(lines)
    drawing = _bands(plan) + _row_names(plan) + _arrows(plan) + _models(plan) + _masks(plan) + _numbers(plan)
    size = f'viewBox="0 0 {plan.width:.0f} {plan.height:.0f}" style="width:{plan.width:.0f}px"'
    words = f"{len(lines) - 1} rounds: which model was trained from which, and the masks that it helped to make"
    svg = f'<svg {size} role="img" aria-label="{words}">{drawing}</svg>'
    return (
        f'<figure class="chart wide"><figcaption>{TITLE}</figcaption><div class="legend">{_legend(plan)}</div>'
        f'<div class="scroll">{svg}</div><p class="note">{NOTE}{RINGS * plan.has_rings}</p></figure>'
    )


class _Plan:
    """Where everything stands. Models are told apart by their digests, rounds by their numbers."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines, self.rounds = lines, lines[1:]
        self.column = min(max((FIT - LEFT - RIGHT) / len(lines), COLUMN[0]), COLUMN[1])
        self.width = LEFT + len(lines) * self.column + RIGHT
        self.has_rings = any(not line["promoted"] for line in lines)
        self.has_automatic = any(line.get("masks_automatic") for line in lines)
        self.base = MAIN + DROP * self.has_rings + 40 + BAR  # of the bars
        self.rows = ["drawn", *(["automatic"] if self.has_automatic else []), "made with model"]
        self.height = self.base + ROW * len(self.rows) + 12
        self.made = {line["digest"]: line for line in lines if line["promoted"]}

    def x(self, line: Line) -> float:
        """The middle of the round's column."""
        return LEFT + (line["round"] - self.lines[0]["round"] + 0.5) * self.column

    def y(self, line: Line) -> float:
        """Of the round's model."""
        return MAIN if line["promoted"] else MAIN + DROP

    def parent(self, line: Line) -> Line | None:
        """The line of the model that this one was trained from, where the ledger has it."""
        return self.made.get(line["parent"])


def _bands(plan: _Plan) -> str:
    """A stage each, behind everything, with its name on top; the first model stands before them."""
    parts = [_text(plan.x(plan.lines[0]), TOP + 15, "first model")]
    for stage, group in groupby(plan.rounds, key=lambda line: str(line["stage"])):
        inside = list(group)
        left, width = plan.x(inside[0]) - plan.column / 2 + 2, len(inside) * plan.column - 4
        name = STAGE_NAMES.get(stage, stage.replace("_", "-"))
        name = name if width > 190 else name.split(": ")[-1]
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{plan.height - TOP:.0f}" rx="8"/>'
            + _text(left + width / 2, TOP + 15, name)
        )
    return "".join(parts)


def _row_names(plan: _Plan) -> str:
    """What stands in which height, on the left."""
    places = [(MAIN, "model of round", "name"), (plan.base - BAR / 2, "masks added", "name")]
    places += [(MAIN + DROP, "not better", "")] * plan.has_rings
    places += [(plan.base + ROW * (i + 1) - 4, name, "") for i, name in enumerate(plan.rows)]
    return "".join(_text(LEFT - 12, y + 4, name, kind, "end") for y, name, kind in places)


def _arrows(plan: _Plan) -> str:
    """From parent to child: straight on where the child was promoted, else along and down."""
    parts = []
    for line in plan.rounds:
        parent = plan.parent(line)
        if parent is None:
            continue
        x, begin, gap = plan.x(line), plan.x(parent) + RADIUS, RADIUS + 3
        if line["promoted"]:
            path = f"M{begin:.1f} {MAIN}H{x - gap:.1f}m-6 -4l6 4l-6 4"
        else:
            path = f"M{begin:.1f} {MAIN}H{x - 14:.1f}q14 0 14 14V{MAIN + DROP - gap}m-4 -6l4 6l4 -6"
        parts.append(f'<path class="arrow" d="{path}"><title>{_came_from(plan, line)}</title></path>')
    return "".join(parts)


def _models(plan: _Plan) -> str:
    """Circles with the round's number in them and the size below; rings where the old model stayed."""
    parts = []
    for line in plan.lines:
        x, y, ring = plan.x(line), plan.y(line), "" if line["promoted"] else " ring"
        words = f"<title>{_came_from(plan, line)}: {escape(_verdict(line))}</title>"
        parts.append(
            f'<g>{words}<circle class="d1{ring}" cx="{x:.1f}" cy="{y}" r="{RADIUS}"/>'
            + _text(x, y + 4, str(line["round"]), "inside" if line["promoted"] else "name")
            + _text(x, y + RADIUS + 14, str(line["model"]))
            + "</g>"
        )
    return "".join(parts)


def _masks(plan: _Plan) -> str:
    """A bar a round: what was drawn, and on top of it what was filled in."""
    most = max((line["masks"] for line in plan.rounds), default=0) or 1
    parts = [f'<line class="axis" x1="{LEFT}" x2="{plan.width - RIGHT:.1f}" y1="{plan.base}" y2="{plan.base}"/>']
    for line in plan.rounds:
        bottom = float(plan.base)
        for kind, (name, count) in zip((3, 2), _counts(line), strict=True):
            height = BAR * count / most
            bottom -= height
            parts.append(
                f'<rect class="f{kind}" x="{plan.x(line) - BAR_WIDTH / 2:.1f}" y="{bottom:.1f}" width="{BAR_WIDTH}" '
                f'height="{height:.1f}"><title>round {line["round"]}: {count:,} masks {name}</title></rect>'
            )
    return "".join(parts)


def _numbers(plan: _Plan) -> str:
    """The rows below the bars."""
    parts = []
    for line in plan.rounds:
        (_, drawn), (_, automatic) = _counts(line)
        parent, filled = plan.parent(line), f"{automatic:,}" if line.get("detector") else "–"
        cells = [f"{drawn:,}", *([filled] if plan.has_automatic else []), str(parent["round"]) if parent else "–"]
        parts += [_text(plan.x(line), plan.base + ROW * (i + 1), cell, "name") for i, cell in enumerate(cells)]
    return "".join(parts)


def _counts(line: Line) -> list[tuple[str, int]]:
    automatic = line.get("masks_automatic") or 0
    return [("drawn", line["masks"] - automatic), ("filled in automatically", automatic)]


def _came_from(plan: _Plan, line: Line) -> str:
    parent = plan.parent(line)
    return f"model of round {line['round']}" + (f", trained from that of round {parent['round']}" if parent else "")


def _verdict(line: Line) -> str:
    """Size, metric, and whether it came into use."""
    name = str(line["promote_metric"])
    value = line["metrics_after"].get(name)
    measured = f", {name} {value:.3f}" if value is not None else ""
    kept = "promoted" if line["promoted"] else "not better, the old model stayed"
    return f"{line['model']}{measured}, {kept if line['parent'] else 'the first model'}"


def _legend(plan: _Plan) -> str:
    keys = [("k1 dot", "promoted"), *([("k1 hollow", "not better")] if plan.has_rings else []), ("k3 box", "masks drawn")]
    keys += [("k2 box", "masks filled in automatically")] * plan.has_automatic
    return "".join(f'<span><i class="key {kind}"></i>{name}</span>' for kind, name in keys)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

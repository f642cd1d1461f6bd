"""What a run learned, drawn over what was put into it: masks, annotator's seconds, device hours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samtrain.report.figures import COLOURS, Axis, Point, Series, line_chart
from samtrain.report.run_files import RunFiles

INPUTS = (
    ("masks_seen", "masks seen in training, each time counted"),
    ("masks", "masks annotated so far"),
    ("annotator_seconds", "annotator's time so far, modelled seconds"),
    ("device_hours", "device hours of training so far"),
)
LINES = (("miou_1", "1 click"), ("oracle_miou_1", "1 click, best of three"), ("miou_3", "3 clicks"))


def learning_curve_charts(run: RunFiles) -> list[str]:
    """A chart for each thing that was put in: of one set by clicks, of several a line each at 1 click; [] for other runs."""
    steps, sets = run.zero_shot.get("milestones", []), run.zero_shot.get("sets", [])
    if not steps:
        return []
    charts = []
    for name, words in INPUTS:
        lines = [
            Series(label, [_points(run, steps, name, of_set, metric)], i + 1, dots=True)
            for i, (of_set, metric, label) in enumerate(_lines(sets))
        ]
        charts.append(line_chart("Learned from", Axis(words, zero=True), Axis("mean IoU"), lines, note=_note(sets)))
    return [chart for chart in charts if chart]


def _lines(sets: Sequence[str]) -> list[tuple[str, str, str]]:
    """Set, metric, label."""
    if len(sets) == 1:
        return [(sets[0], metric, label) for metric, label in LINES]
    return [(name, "miou_1", name) for name in sets[:COLOURS]]


def _points(run: RunFiles, steps: Sequence[dict[str, Any]], x: str, of_set: str, metric: str) -> list[Point]:
    places = [(step[x], run.metrics.get(f"{of_set}/{step['name']}/{metric}")) for step in steps]
    return [(float(px), py) for px, py in places if px is not None and py is not None]


def _note(sets: Sequence[str]) -> str:
    if len(sets) == 1:
        return ""
    return "At 1 click." + (f" The first {COLOURS} of {len(sets)} sets." if len(sets) > COLOURS else "")

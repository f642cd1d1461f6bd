"""Learning curves: quality over the masks, the annotator's seconds and the device hours that a run has used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samtrain.report.figures import COLOURS, Axis, Point, Series, line_chart
from samtrain.report.run_files import RunFiles

INPUTS = (
    ("masks_seen", "masks seen in training, with repetitions"),
    ("masks", "masks annotated so far"),
    ("annotator_seconds", "annotator's time so far, modelled seconds"),
    ("device_hours", "device hours of training so far"),
)
LINES = (("miou_1", "1 click"), ("oracle_miou_1", "1 click, best of three"), ("miou_3", "3 clicks"))


def learning_curve_charts(run: RunFiles) -> list[str]:
    """Returns a chart for each input, with lines by clicks for one set, or at 1 click for several sets."""
    steps, sets = run.zero_shot.get("milestones", []), run.zero_shot.get("sets", [])
    if not steps:
        return []
    charts = []
    for name, words in INPUTS:
        lines = [
            Series(label, [_points(run, steps, name, of_set, metric)], i + 1, dots=True)
            for i, (of_set, metric, label) in enumerate(_lines(sets))
        ]
        charts.append(line_chart("Learning curve", Axis(words, zero=True), Axis("mean IoU"), lines, note=_note(sets)))
    return [chart for chart in charts if chart]


def _lines(sets: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns (set, metric, label) of each line."""
    if len(sets) == 1:
        return [(sets[0], metric, label) for metric, label in LINES]
    return [(name, "miou_1", name) for name in sets[:COLOURS]]


def _points(run: RunFiles, steps: Sequence[dict[str, Any]], x: str, of_set: str, metric: str) -> list[Point]:
    places = [(step[x], run.metrics.get(f"{of_set}/{step['name']}/{metric}")) for step in steps]
    return [(float(px), py) for px, py in places if px is not None and py is not None]


def _note(sets: Sequence[str]) -> str:
    if len(sets) == 1:
        return ""
    return "At 1 click." + (f" The chart shows the first {COLOURS} of {len(sets)} sets." if len(sets) > COLOURS else "")

"""Charts of mask quality after one click and more, with a line per split or per zero-shot set."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from samtrain.report.figures import COLOURS, Axis, Point, Series, line_chart
from samtrain.report.run_files import RunFiles

CLICKS = re.compile(r"miou_(\d+)")  # matches neither `oracle_miou_1` nor `box_miou`
LINES = (
    ("test/", "test", 1),
    ("test/start_", "test, before this run", 2),
    ("val/", "validation", 3),
)


def clicks_charts(run: RunFiles) -> list[str]:
    """Returns the chart of test and validation; none for a zero-shot run, because its sets have their own chart."""
    if is_zero_shot(run):
        return []
    lines = [Series(name, [click_points(run.metrics, prefix)], colour, dots=True) for prefix, name, colour in LINES]
    return clicks_chart("IoU against clicks", lines)


def zero_shot_clicks(run: RunFiles) -> list[str]:
    """Returns a chart with one line per set, or with the mean alone if there are more sets than colours."""
    if not is_zero_shot(run):
        return []
    sets, note = clicked_sets(run.metrics), ""
    own = [name for name in sets if name != "mean"]
    if len(own) > COLOURS:
        note = f"The mean over {len(own)} sets; the table has each of them."
    shown = ["mean"] if note else own
    lines = [Series(name, [click_points(run.metrics, f"{name}/")], i + 1, dots=True) for i, name in enumerate(shown)]
    return clicks_chart("IoU against clicks", lines, note)


def clicks_chart(title: str, lines: Sequence[Series], note: str = "") -> list[str]:
    """Returns one figure with a tick at each measured number of clicks, or none if no line has two points."""
    places = {x for line in lines for piece in line.pieces for x, _ in piece}
    if not any(len(piece) > 1 for line in lines for piece in line.pieces):
        return []
    x = Axis("clicks", {place: f"{place:g}" for place in sorted(places)})
    return [line_chart(title, x, Axis("mean IoU"), lines, note=note)]


def click_points(metrics: Mapping[str, float | None], prefix: str) -> list[Point]:
    """Returns (clicks, mean IoU) from the metrics `<prefix>miou_1`, `_2`, `_3` and so on that exist."""
    named = [(CLICKS.fullmatch(key.removeprefix(prefix)), value) for key, value in metrics.items() if key.startswith(prefix)]
    return sorted((float(match[1]), value) for match, value in named if match and value is not None and math.isfinite(value))


def clicked_sets(metrics: Mapping[str, float | None]) -> list[str]:
    """Returns the names of the sets that have `miou_1` and so on, in their order."""
    found = [key.rsplit("/", 1) for key in metrics if "/" in key]
    return list(dict.fromkeys(name for name, last in found if CLICKS.fullmatch(last)))


def is_zero_shot(run: RunFiles) -> bool:
    return run.config.get("task") == "zero_shot"

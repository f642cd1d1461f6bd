"""The charts of a comparison: one line a run, the same in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samtrain.report.clicks import click_points, clicked_sets, clicks_chart
from samtrain.report.curves import pieces, probe_pieces, promoted_values, x_axis
from samtrain.report.figures import COLOURS, Axis, Point, Series, line_chart
from samtrain.report.run_files import RunFiles

MAX_RUNS = 2 * COLOURS  # each colour once as a line and once dashed
MAX_POINTS = 200  # of one run in one chart
MAX_SETS = 4  # zero-shot sets with a chart of their own

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """A run and how it is known on the page: by a letter, and by the line that all charts draw for it."""

    run: RunFiles
    number: int
    of: int

    @property
    def letter(self) -> str:
        return chr(ord("A") + self.number)

    @property
    def title(self) -> str:
        return f"{self.letter} {self.run.name}"

    @property
    def colour(self) -> int:
        return self.number % COLOURS + 1

    @property
    def dashed(self) -> bool:
        return self.number >= COLOURS

    def series(self, drawn: list[list[Point]], dots: bool = False) -> Series:
        """Its line; a legend of many has the letters alone."""
        name = self.title if self.of <= COLOURS else self.letter
        return Series(name, drawn, self.colour, dots=dots, dashed=self.dashed)


def training_comparison(known: Sequence[Compared]) -> list[str]:
    """Validation and training loss over images seen, or over steps where no run has counted images."""
    trained = [(each, *x_axis(each.run.trainings)) for each in known if each.run.trainings]
    if not trained:
        return []
    counted = any(name == "images seen" for _, name, _ in trained)
    x = "images seen" if counted else "steps"
    left_out = [each.letter for each, name, _ in trained if name != x]
    note = f"Without {', '.join(left_out)}: no images were counted." if left_out else ""

    def over(key: str) -> list[Series]:
        drawn = []
        for each, name, place in trained:
            if name == x:  # rounds joined: a gap would look like a dash
                of_trainings = pieces(each.run.trainings, key, place, max(MAX_POINTS // len(each.run.trainings), 10))
                drawn.append(each.series([[point for piece in of_trainings for point in piece]]))
        return drawn

    figures = [
        line_chart("Validation, 1 click", Axis(x), Axis("val/miou_1, mean IoU"), over("val/miou_1"), note=note),
        line_chart("Training loss", Axis(x), Axis("loss"), over("train/loss"), note=note),
    ]
    return [figure for figure in figures if figure]


def click_comparison(known: Sequence[Compared]) -> list[str]:
    """IoU against clicks on the test images; of zero-shot runs on their mean, or a chart a set."""
    sets = list(dict.fromkeys(name for each in known for name in clicked_sets(each.run.metrics) if name != "val"))
    shown = [name for name in sets if name in ("test", "mean") or "mean" not in sets][:MAX_SETS]
    titles = {"test": "IoU against clicks, test", "mean": "IoU against clicks, mean over sets"}
    figures = []
    for name in shown:
        lines = [each.series([click_points(each.run.metrics, f"{name}/")], dots=True) for each in known]
        figures += clicks_chart(titles.get(name, f"IoU against clicks, {name}"), lines)
    return figures


def round_comparison(known: Sequence[Compared]) -> list[str]:
    """The metric that promotes and the time a mask by round, where several runs have rounds."""
    engines = [each for each in known if len(each.run.ledger) > 1]
    if len(engines) < 2:
        return []
    most = max(each.run.ledger[-1]["round"] for each in engines)
    x = Axis("round", {float(n): str(n) if n else "start" for n in range(most + 1)})
    metrics = {str(each.run.ledger[0]["promote_metric"]) for each in engines}
    metric = metrics.pop() if len(metrics) == 1 else "own metric"

    def chart(title: str, y: Axis, values: Callable[[Lines], list[list[Point]]], note: str = "") -> str:
        return line_chart(title, x, y, [each.series(values(each.run.ledger), dots=True) for each in engines], note=note)

    seconds = Axis("modelled seconds a mask", zero=True)
    figures = [
        chart("Quality by round", Axis(f"{metric}, model in use"), _quality),
        chart("Time a mask, drawn in the round", seconds, _seconds, "Automatic masks take no time and are not counted."),
        chart("Time a mask, probe", seconds, _probe_seconds, "Of each run the same objects throughout a stage."),
    ]
    return [figure for figure in figures if figure]


def _quality(lines: Lines) -> list[list[Point]]:
    return [promoted_values(lines, str(lines[0]["promote_metric"]))]


def _seconds(lines: Lines) -> list[list[Point]]:
    return [[(float(line["round"]), line["seconds_per_mask"]) for line in lines if line.get("seconds_per_mask") is not None]]


def _probe_seconds(lines: Lines) -> list[list[Point]]:
    return probe_pieces(lines, "seconds_per_mask")

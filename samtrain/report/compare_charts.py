"""The charts of a comparison: each run has one line, drawn the same in all charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samtrain.report.clicks import click_points, clicked_sets, clicks_chart
from samtrain.report.curves import pieces, x_axis
from samtrain.report.figures import COLOURS, Axis, Point, Series, line_chart
from samtrain.report.round_charts import probe_pieces, promoted_values
from samtrain.report.run_files import RunFiles

MAX_RUNS = 2 * COLOURS  # each colour as a solid and as a dashed line
MAX_LETTERS = 26 * 27  # A to ZZ: runs that the tables can name
MAX_POINTS = 200  # per run and chart
MAX_SETS = 4  # zero-shot sets that get a chart

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """A run with its letter, its colour and its line style on the page."""

    run: RunFiles
    number: int
    of: int

    @property
    def letter(self) -> str:
        more, last = divmod(self.number, 26)  # A to Z, then AA, AB, ...
        return (chr(ord("A") + more - 1) if more else "") + chr(ord("A") + last)

    @property
    def title(self) -> str:
        return f"{self.letter} {self.run.name}"

    @property
    def drawn(self) -> bool:
        """Returns whether the charts show the run: there are no more lines that can be told apart."""
        return self.number < MAX_RUNS

    @property
    def colour(self) -> int:
        return self.number % COLOURS + 1

    @property
    def dashed(self) -> bool:
        return self.number >= COLOURS

    def series(self, drawn: list[list[Point]], dots: bool = False) -> Series:
        """Returns the line of the run; with many runs, the legend has only the letters."""
        name = self.title if self.of <= COLOURS else self.letter
        return Series(name, drawn, self.colour, dots=dots, dashed=self.dashed)


def training_comparison(known: Sequence[Compared]) -> list[str]:
    """Returns charts of validation and training loss, over images seen or over steps if no run has counted images."""
    trained = [(each, *x_axis(each.run.trainings)) for each in known if each.run.trainings]
    if not trained:
        return []
    counted = any(name == "images seen" for _, name, _ in trained)
    x = "images seen" if counted else "steps"
    left_out = [each.letter for each, name, _ in trained if name != x]
    note = f"Without {', '.join(left_out)}, because no images were counted." if left_out else ""

    def over(key: str) -> list[Series]:
        drawn = []
        for each, name, place in trained:
            if name == x:  # the rounds are joined, because a gap would look like a dashed line
                of_trainings = pieces(each.run.trainings, key, place, max(MAX_POINTS // len(each.run.trainings), 10))
                drawn.append(each.series([[point for piece in of_trainings for point in piece]]))
        return drawn

    figures = [
        line_chart("Validation, 1 click", Axis(x), Axis("val/miou_1, mean IoU"), over("val/miou_1"), note=note),
        line_chart("Training loss", Axis(x), Axis("loss"), over("train/loss"), note=note),
    ]
    return [figure for figure in figures if figure]


def click_comparison(known: Sequence[Compared]) -> list[str]:
    """Returns charts of IoU against clicks: on the test images, on the mean over zero-shot sets, or one per set."""
    sets = list(dict.fromkeys(name for each in known for name in clicked_sets(each.run.metrics) if name != "val"))
    shown = [name for name in sets if name in ("test", "mean") or "mean" not in sets][:MAX_SETS]
    titles = {"test": "IoU against clicks, test", "mean": "IoU against clicks, mean over sets"}
    figures = []
    for name in shown:
        lines = [each.series([click_points(each.run.metrics, f"{name}/")], dots=True) for each in known]
        figures += clicks_chart(titles.get(name, f"IoU against clicks, {name}"), lines)
    return figures


def round_comparison(known: Sequence[Compared]) -> list[str]:
    """Returns charts of the metric that promotes and of the time per mask, by round, if several runs have rounds."""
    engines = [each for each in known if len(each.run.ledger) > 1]
    if len(engines) < 2:
        return []
    most = max(each.run.ledger[-1]["round"] for each in engines)
    x = Axis("round", {float(n): str(n) if n else "start" for n in range(most + 1)})
    metrics = {str(each.run.ledger[0]["promote_metric"]) for each in engines}
    metric = metrics.pop() if len(metrics) == 1 else "the metric that promotes"

    def chart(title: str, y: Axis, values: Callable[[Lines], list[list[Point]]], note: str = "") -> str:
        return line_chart(title, x, y, [each.series(values(each.run.ledger), dots=True) for each in engines], note=note)

    seconds = Axis("modelled seconds per mask", zero=True)
    figures = [
        chart("Quality by round", Axis(f"{metric}, model in use"), _quality),
        chart("Time per mask, drawn in the round", seconds, _seconds, "Automatic masks take no time and are not counted."),
        chart("Time per mask, probe", seconds, _probe_seconds, "Each run has the same objects throughout a stage."),
    ]
    return [figure for figure in figures if figure]


def _quality(lines: Lines) -> list[list[Point]]:
    return [promoted_values(lines, str(lines[0]["promote_metric"]))]


def _seconds(lines: Lines) -> list[list[Point]]:
    return [[(float(line["round"]), line["seconds_per_mask"]) for line in lines if line.get("seconds_per_mask") is not None]]


def _probe_seconds(lines: Lines) -> list[list[Point]]:
    return probe_pieces(lines, "seconds_per_mask")

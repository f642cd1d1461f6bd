"""The charts of the data engine's rounds: quality, the annotator's time and work, coverage, and computing time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samtrain.report.figures import Axis, Marks, Point, Series, line_chart, stacked_bars
from samtrain.report.people import has_people
from samtrain.report.run_files import RunFiles

PHASES = ("detector", "annotate", "fit", "measure", "probe")  # keys of the ledger's `wall`

Line = dict[str, Any]


@dataclass(frozen=True)
class Rounds:
    """The lines of a ledger, of which the first is the first model, and what their charts share."""

    lines: Sequence[Line]

    @property
    def x(self) -> Axis:
        return Axis("round", round_labels(self.lines))

    @property
    def marks(self) -> Marks:
        """Returns a mark where a stage begins, if the run has several stages."""
        begins = [b for a, b in zip(self.lines, self.lines[1:], strict=False) if a["stage"] != b["stage"]]
        return Marks([(line["round"] - 0.5, "stage 2" if line.get("detector") else str(line["stage"])) for line in begins])

    @property
    def has_stage_2(self) -> bool:
        return any(line.get("detector") for line in self.lines)

    def points(self, key: str) -> list[list[Point]]:
        """Returns a column of the ledger as one piece, without the first model."""
        return [[(float(line["round"]), line[key]) for line in self.lines[1:] if line.get(key) is not None]]

    def chart(self, title: str, y: Axis, series: Sequence[Series], note: str = "") -> str:
        return line_chart(title, self.x, y, series, self.marks, note)


def round_charts(run: RunFiles) -> list[str]:
    """Returns the charts of the rounds; none before the first round has ended."""
    if len(run.ledger) < 2:
        return []
    rounds = Rounds(run.ledger)
    figures = [
        quality_chart(rounds),
        seconds_chart(rounds),
        masks_per_image_chart(rounds),
        coverage_chart(rounds),
        work_chart(rounds),
        mask_quality_chart(rounds),
        computing_time_chart(rounds),
    ]
    return [figure for figure in figures if figure]


def quality_chart(rounds: Rounds) -> str:
    """Draws the metric that promotes: a line for the model in use, a dot for each new model, a ring if it was not better."""
    lines, metric = rounds.lines, str(rounds.lines[0]["promote_metric"])
    new = [(float(line["round"]), line["metrics_after"].get(metric)) for line in lines]
    measured = [(point, line["promoted"]) for point, line in zip(new, lines, strict=True) if point[1] is not None]
    hollow = frozenset(i for i, (_, promoted) in enumerate(measured) if not promoted)
    oracle = promoted_values(lines, metric.replace("miou_1", "oracle_miou_1")) if "/miou_1" in metric else []
    series = [
        Series("best of three masks", [oracle], 3, dashed=True),
        Series(f"{metric}, model in use", [promoted_values(lines, metric)], 1),
        Series("new model", [[point] for point, _ in measured], 1, dots=True, hollow=hollow),
    ]
    note = (
        "A ring is a new model that was not better, so the previous one stayed in use."
        if hollow
        else "Each new model was better and was promoted."
    )
    return rounds.chart("Quality by round", Axis("mean IoU, validation"), series, note)


def seconds_chart(rounds: Rounds) -> str:
    """Draws the seconds per drawn mask, in the rounds and on the probe."""
    series = [
        Series("drawn in the round", rounds.points("seconds_per_mask"), 1, dots=True),
        Series("probe: the same objects throughout a stage", probe_pieces(rounds.lines, "seconds_per_mask"), 2, dots=True),
    ]
    note = "Automatic masks take no time and are not counted." if rounds.has_stage_2 else ""
    kind = "measured" if has_people(rounds.lines) else "modelled"
    return rounds.chart("Time per mask", Axis(f"{kind} seconds per mask", zero=True), series, note)


def masks_per_image_chart(rounds: Rounds) -> str:
    """Draws the masks per annotated image, and how many of them were drawn."""
    series = [Series("all" if rounds.has_stage_2 else "annotated in the round", rounds.points("masks_per_image"), 1, dots=True)]
    if rounds.has_stage_2:
        series.append(Series("drawn by the annotator", rounds.points("assisted_per_image"), 3, dots=True))
    note = "" if has_people(rounds.lines) else "An annotator stops with an image when a mask takes too long."
    return rounds.chart("Masks per image", Axis("masks per image", zero=True), series, note)


def coverage_chart(rounds: Rounds) -> str:
    """Draws the share of the probe's objects that have a mask, by size."""
    series = [
        Series(name, probe_pieces(rounds.lines, f"coverage.{name}"), i + 1, dots=True, dashed=name == "all")
        for i, name in enumerate(("all", "small", "medium", "large"))
    ]
    note = "On the images of the probe, which stay the same throughout a stage."
    return rounds.chart("Objects that have a mask, by size", Axis("share with IoU above 0.75"), series, note)


def work_chart(rounds: Rounds) -> str:
    """Draws clicks and brush strokes per drawn mask."""
    series = [
        Series("clicks", rounds.points("clicks_per_mask"), 1, dots=True),
        Series("brush strokes", rounds.points("strokes_per_mask"), 3, dots=True),
        Series("clicks, probe", probe_pieces(rounds.lines, "clicks_per_mask"), 2, dots=True, dashed=True),
    ]
    return rounds.chart("Work per mask", Axis("number per mask", zero=True), series)


def mask_quality_chart(rounds: Rounds) -> str:
    """Draws how well drawn and automatic masks agree with the ground truth, or what people let stand if there is none."""
    if has_people(rounds.lines) and all(line["coverage"].get("all") is None for line in rounds.lines):
        stood = Series("not rejected by people", rounds.points("automatic_precision"), 3, dots=True)
        return rounds.chart("Prefilled masks", Axis("share of the masks", zero=True), [stood])
    series = [
        Series("drawn in the round", rounds.points("mask_iou"), 1, dots=True),
        Series("probe", probe_pieces(rounds.lines, "mask_iou"), 2, dots=True),
        Series("automatic: share above IoU 0.75", rounds.points("automatic_precision"), 3, dots=True, dashed=True),
    ]
    return rounds.chart("Drawn masks against the ground truth", Axis("mean IoU"), series)


def computing_time_chart(rounds: Rounds) -> str:
    """Draws the wall-clock minutes of each round, stacked by phase."""
    phases = [phase for phase in PHASES if phase != "annotate" or not has_people(rounds.lines)]  # people are waited for
    minutes = {float(line["round"]): [line["wall"].get(phase, 0.0) / 60 for phase in phases] for line in rounds.lines}
    return stacked_bars("Computing time by phase", rounds.x, Axis("minutes", zero=True), phases, minutes)


# ---- from the ledger to points


def probe_pieces(lines: Sequence[Line], key: str) -> list[list[Point]]:
    """Returns `probe_<key>` by round, one piece per stage; each begins with the probe of the model before that stage.

    A dot in the key goes down a level, as in "coverage.small".
    """
    pieces: list[list[Point]] = []
    stage = None
    for line in lines:
        if line["stage"] != stage:
            stage = line["stage"]
            before = _get(line.get("probe_before") or {}, f"probe_{key}")
            pieces.append([(float(line["round"]) - 1, before)] if before is not None else [])
        if (value := _get(line, f"probe_{key}")) is not None:
            pieces[-1].append((float(line["round"]), value))
    return pieces


def promoted_values(lines: Sequence[Line], name: str) -> list[Point]:
    """Returns a metric of the model in use, by round."""
    points: list[Point] = []
    for line in lines:
        value = line["metrics_after"].get(name) if line["promoted"] else (points[-1][1] if points else None)
        if value is not None:
            points.append((float(line["round"]), value))
    return points


def round_labels(lines: Sequence[Line]) -> dict[float, str]:
    """Returns a label for each round: its number and, below it, the size of the model in use if that changes."""
    labels, before = {}, None
    for line in lines:
        size = str(line["encoder"]).removeprefix("vit_")
        number = "start" if line["round"] == 0 else str(line["round"])
        labels[float(line["round"])] = f"{number}\n{size}" if size != before else number
        before = size
    return labels


def _get(values: Line, key: str) -> Any:
    """Returns the value at a dotted key, or None."""
    value: Any = values
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value

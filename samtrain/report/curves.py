"""Which charts a run has: how it learned, and how its rounds went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from samtrain.report.figures import Axis, Marks, Point, Series, line_chart, stacked_bars
from samtrain.report.run_files import Row, RunFiles, Training

MAX_POINTS = 150  # of one training in one chart; more are averaged
VALIDATION = (
    ("val/miou_1", "1 click"),
    ("val/oracle_miou_1", "1 click, best of three"),
    ("val/miou_3", "3 clicks"),
    ("val/miou_5", "5 clicks"),
    ("val/box_miou", "box"),
)
PHASES = ("detector", "annotate", "fit", "measure", "probe")  # of the ledger's `wall`


def training_charts(run: RunFiles) -> list[str]:
    """Loss, validation, and dice at the first and the last interaction, over images seen."""
    if not run.trainings:
        return []
    name, place = x_axis(run.trainings)
    starts = [(place(t, t.rows[0]), t.label.removeprefix("round ")) for t in run.trainings if t.label]
    marks = Marks([(x, {"first model": ""}.get(word, word)) for x, word in starts])
    note = "Thin lines: rounds of the data engine begin." if len(starts) > 1 else ""
    x = Axis(name)

    def curves(columns: Sequence[tuple[str, str]]) -> list[Series]:
        return [Series(label, pieces(run.trainings, key, place), i + 1) for i, (key, label) in enumerate(columns)]

    last = _last_interaction(run.trainings)
    dice = [("train/dice_0", "first prompt")] + [(f"train/dice_{last}", f"interaction {last + 1}")] * (last > 0)
    charts = [
        line_chart("Training loss", x, Axis("loss"), curves([("train/loss", "loss")]), marks, note),
        line_chart("Validation", x, Axis("mean IoU"), curves(VALIDATION), marks),
        line_chart("Dice loss by interaction", x, Axis("1 − dice"), curves(dice), marks),
    ]
    return [chart for chart in charts if chart]


def round_charts(run: RunFiles) -> list[str]:
    """What each round of the ledger brought."""
    lines = run.ledger
    if len(lines) < 2:
        return []
    labels = _round_labels(lines)
    x, rounds = Axis("round", labels), lines[1:]
    metric = str(lines[0]["promote_metric"])
    marks = _stage_marks(lines)

    def over(key: str, chosen: Sequence[dict[str, Any]]) -> list[list[Point]]:
        return [[(float(line["round"]), line[key]) for line in chosen if line.get(key) is not None]]

    has_stage_2 = any(line.get("detector") for line in lines)
    drawn = [Series("drawn by the annotator", over("assisted_per_image", rounds), 3, dots=True)] if has_stage_2 else []
    minutes = {float(line["round"]): [line["wall"].get(phase, 0.0) / 60 for phase in PHASES] for line in lines}
    charts = [
        _quality_chart(lines, metric, x, marks),
        line_chart(
            "Time a mask",
            x,
            Axis("modelled seconds a mask", zero=True),
            [
                Series("drawn in the round", over("seconds_per_mask", rounds), 1, dots=True),
                Series("probe: the same objects in a stage", probe_pieces(lines, "seconds_per_mask"), 2, dots=True),
            ],
            marks,
            note="Automatic masks take no time and are not counted." if has_stage_2 else "",
        ),
        line_chart(
            "Masks an image",
            x,
            Axis("masks an image", zero=True),
            [Series("all" if has_stage_2 else "annotated in the round", over("masks_per_image", rounds), 1, dots=True), *drawn],
            marks,
            note="An annotator leaves an image once a mask takes too long.",
        ),
        line_chart(
            "Objects that have a mask, by size",
            x,
            Axis("share with IoU above 0.75"),
            [
                Series(name, probe_pieces(lines, f"coverage.{name}"), i + 1, dots=True, dashed=name == "all")
                for i, name in enumerate(("all", "small", "medium", "large"))
            ],
            marks,
            note="On the probe's images, which are the same throughout a stage.",
        ),
        line_chart(
            "Work a mask",
            x,
            Axis("number a mask", zero=True),
            [
                Series("clicks", over("clicks_per_mask", rounds), 1, dots=True),
                Series("brush strokes", over("strokes_per_mask", rounds), 3, dots=True),
                Series("clicks, probe", probe_pieces(lines, "clicks_per_mask"), 2, dots=True, dashed=True),
            ],
            marks,
        ),
        line_chart(
            "Drawn masks against the ground truth",
            x,
            Axis("mean IoU"),
            [
                Series("drawn in the round", over("mask_iou", rounds), 1, dots=True),
                Series("probe", probe_pieces(lines, "mask_iou"), 2, dots=True),
                Series("automatic: share above IoU 0.75", over("automatic_precision", rounds), 3, dots=True, dashed=True),
            ],
            marks,
        ),
        stacked_bars("Where the computer's time went", x, Axis("minutes", zero=True), PHASES, minutes),
    ]
    return [chart for chart in charts if chart]


def probe_pieces(lines: Sequence[dict[str, Any]], key: str) -> list[list[Point]]:
    """`probe_<key>` by round, a piece a stage, which begins with what the model before it does on its probe.

    A dot in the key goes down a level: "coverage.small".
    """
    pieces: list[list[Point]] = []
    stage = None
    for line in lines:
        if line["stage"] != stage:
            stage = line["stage"]
            opening = _at(line.get("probe_before") or {}, f"probe_{key}")
            pieces.append([(float(line["round"]) - 1, opening)] if opening is not None else [])
        if (value := _at(line, f"probe_{key}")) is not None:
            pieces[-1].append((float(line["round"]), value))
    return pieces


def _at(values: dict[str, Any], key: str) -> Any:
    """A value by a dotted key, None where there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def _stage_marks(lines: Sequence[dict[str, Any]]) -> Marks:
    """Where stages begin, if there are several."""
    begins = [b for a, b in zip(lines, lines[1:], strict=False) if a["stage"] != b["stage"]]
    return Marks([(line["round"] - 0.5, "stage 2" if line.get("detector") else str(line["stage"])) for line in begins])


def _quality_chart(lines: Sequence[dict[str, Any]], metric: str, x: Axis, marks: Marks) -> str:
    """The metric that promotes: the model in use as a line, each new model as a dot, a ring if it was not better."""
    used = promoted_values(lines, metric)
    new = [(float(line["round"]), line["metrics_after"].get(metric)) for line in lines]
    known = [(point, line["promoted"]) for point, line in zip(new, lines, strict=True) if point[1] is not None]
    hollow = frozenset(i for i, (_, promoted) in enumerate(known) if not promoted)
    oracle = promoted_values(lines, metric.replace("miou_1", "oracle_miou_1")) if "/miou_1" in metric else []
    dots = [[point] for point, _ in known]
    series = [
        Series("best of three masks", [oracle], 3, dashed=True),
        Series(f"{metric}, model in use", [used], 1),
        Series("new model", dots, 1, dots=True, hollow=hollow),
    ]
    note = "A ring: not better, the old model stayed." if hollow else "Each new model was better and was promoted."
    return line_chart("Quality by round", x, Axis("mean IoU, validation"), series, marks, note)


def promoted_values(lines: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """A metric of the model in use, by round."""
    points: list[Point] = []
    for line in lines:
        value = line["metrics_after"].get(name) if line["promoted"] else (points[-1][1] if points else None)
        if value is not None:
            points.append((float(line["round"]), value))
    return points


def _round_labels(lines: Sequence[dict[str, Any]]) -> dict[float, str]:
    """Round numbers, and the size of the model in use below them where it changes."""
    labels, before = {}, None
    for line in lines:
        size = str(line["encoder"]).removeprefix("vit_")
        number = "start" if line["round"] == 0 else str(line["round"])
        labels[float(line["round"])] = f"{number}\n{size}" if size != before else number
        before = size
    return labels


def x_axis(trainings: Sequence[Training]) -> tuple[str, Callable[[Training, Row], float]]:
    """Images seen, which go on from training to training; steps put end to end where they were not counted."""
    if all("images_seen" in row for training in trainings for row in training.rows):
        return "images seen", lambda training, row: row["images_seen"]
    offsets, total = {}, 0.0
    for training in trainings:
        offsets[training.label] = total
        total += max(row.get("step", 0.0) for row in training.rows)
    return "steps", lambda training, row: offsets[training.label] + row.get("step", 0.0)


def pieces(
    trainings: Sequence[Training], key: str, place: Callable[[Training, Row], float], most: int = MAX_POINTS
) -> list[list[Point]]:
    """A column of `metrics.csv`, a piece a training of at most so many points."""
    return [_thinned([(place(t, row), row[key]) for row in t.rows if key in row], most) for t in trainings]


def _thinned(points: list[Point], most: int) -> list[Point]:
    """At most so many points, each the mean of its neighbours."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _last_interaction(trainings: Sequence[Training]) -> int:
    names = {key for training in trainings for row in training.rows for key in row if key.startswith("train/dice_")}
    return max((int(name.rsplit("_", 1)[1]) for name in names), default=0)

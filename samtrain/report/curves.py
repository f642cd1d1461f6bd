"""The charts of a training: loss and validation over images seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from samtrain.report.figures import Axis, Marks, Point, Series, line_chart
from samtrain.report.run_files import Row, RunFiles, Training

MAX_POINTS = 150  # per training and chart; more points are averaged in groups
VALIDATION = (
    ("val/miou_1", "1 click"),
    ("val/oracle_miou_1", "1 click, best of three"),
    ("val/miou_3", "3 clicks"),
    ("val/miou_5", "5 clicks"),
    ("val/box_miou", "box"),
)


def training_charts(run: RunFiles) -> list[str]:
    """Returns charts of the loss, the validation, and the dice loss of the first and last interaction."""
    if not run.trainings:
        return []
    # mark the places where rounds begin
    name, place = x_axis(run.trainings)
    starts = [(place(t, t.rows[0]), t.label.removeprefix("round ")) for t in run.trainings if t.label]
    marks = Marks([(x, {"first model": ""}.get(word, word)) for x, word in starts])
    note = "A thin line marks the start of a round of the data engine." if len(starts) > 1 else ""
    x = Axis(name)

    def curves(columns: Sequence[tuple[str, str]]) -> list[Series]:
        return [Series(label, pieces(run.trainings, key, place), i + 1) for i, (key, label) in enumerate(columns)]

    # the loss of the first interaction and of the last, where there are several
    last = _last_interaction(run.trainings)
    dice = [("train/dice_0", "first prompt")] + [(f"train/dice_{last}", f"interaction {last + 1}")] * (last > 0)
    charts = [
        line_chart("Training loss", x, Axis("loss"), curves([("train/loss", "loss")]), marks, note),
        line_chart("Validation", x, Axis("mean IoU"), curves(VALIDATION), marks),
        line_chart("Dice loss by interaction", x, Axis("1 − dice"), curves(dice), marks),
    ]
    return [chart for chart in charts if chart]


def x_axis(trainings: Sequence[Training]) -> tuple[str, Callable[[Training, Row], float]]:
    """Returns the name of the x axis and a function for places on it: images seen over all trainings, or else steps.

    Steps begin at 0 in each training, so the steps of the trainings before are added.
    """
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
    """Returns a column of `metrics.csv` with one piece per training, each of at most `most` points."""
    return [_averaged([(place(t, row), row[key]) for row in t.rows if key in row], most) for t in trainings]


def _averaged(points: list[Point], most: int) -> list[Point]:
    """Returns at most `most` points, each the mean of a group of neighbours."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _last_interaction(trainings: Sequence[Training]) -> int:
    """Returns the highest number of an interaction with a logged dice loss."""
    names = {key for training in trainings for row in training.rows for key in row if key.startswith("train/dice_")}
    return max((int(name.rsplit("_", 1)[1]) for name in names), default=0)

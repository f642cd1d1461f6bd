"""Whether a SAM serves groups alike (section 6, "segmenting people"; appendix C): mIoU by group, with intervals.

The paper's protocol: the random one of appendix D, in which the first point is drawn on the object and each further one lies
in the middle of the error; mean IoU at 1 and 3 points with 95 % intervals. Groups are whatever column there is: of people,
of microscopes, of sites.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import choose_objects, click_ious, draw_of, image_of, objects_together
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.summaries import mean_with_interval

CLICKS = (1, 3)
Row = dict[str, Any]
GroupOf = Callable[[Record, dict[str, Any]], str | None]


def read_groups(column: str, table: str | Path | None) -> GroupOf:
    """What says the group of a record's annotation: its own field `column`, or a CSV with the columns key, id and `column`.

    Raises ValueError for a CSV without these columns, or that names an object twice.
    """
    if table is None:
        return lambda record, annotation: _text(annotation.get(column))
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := {"key", "id", column} - set(reader.fieldnames or []):
            raise ValueError(f"zero_shot.groups {table} has no column {', '.join(sorted(missing))}: it wants key, id, {column}")
        groups: dict[tuple[str, str], str | None] = {}
        for row in reader:
            if (place := (row["key"], row["id"])) in groups:
                raise ValueError(f"zero_shot.groups {table} names object {row['id']} of {row['key']} twice: leave one line")
            groups[place] = _text(row[column])
    return lambda record, annotation: groups.get((record.key, str(annotation.get("id"))))


@torch.no_grad()
def fairness_rows(
    predictor: SamPredictor, record: Record, group_of: GroupOf, *, max_masks: int | None = None, seed: int = 0
) -> list[Row]:
    """A row for each object that has pixels: key, object, id, group (None where nothing says), area, `iou_1` and `iou_3`.

    The first click is drawn on the object, the next ones lie in the middle of the error. Raises ValueError as
    `evaluators.clicks.evaluate_clicks`.
    """
    chosen = choose_objects(record, max_masks, seed)
    if not chosen:
        return []
    predictor.set_image(image_of(record))
    rows: list[Row] = []
    objects = record.annotation["annotations"]
    for indices, masks in objects_together(record, chosen, predictor.device):
        draw = draw_of(record, seed, len(rows))
        ious = click_ious(predictor.decoder(), masks, max(CLICKS), first="random", seed=draw)
        for n, i in enumerate(indices):
            rows.append(
                {
                    "key": record.key, "object": i, "id": objects[i].get("id"), "group": group_of(record, objects[i]),
                    "area": int(masks[n].sum()), **{f"iou_{k}": float(ious[f"iou_{k}"][n]) for k in CLICKS},
                }
            )  # fmt: skip
    return rows


def summarise_groups(rows: Sequence[Row], seed: int = 0) -> dict[str, float]:
    """Of each group `<group>/miou_1`, `<group>/miou_3`, each with `_low` and `_high`, and `<group>/objects`; `ungrouped`, and
    `gap_1`, `gap_3` between the best group and the worst.

    Intervals are of a bootstrap over images. Raises ValueError where no object has a group.
    """
    groups = sorted({row["group"] for row in rows if row["group"] is not None})
    if not groups:
        raise ValueError("no object has a group (zero_shot.group_by): it names a field of the annotations, or a CSV's column")
    found: dict[str, float] = {"ungrouped": float(sum(row["group"] is None for row in rows))}
    for group in groups:
        own = [row for row in rows if row["group"] == group]
        keys = [row["key"] for row in own]
        found[f"{group}/objects"] = float(len(own))
        for k in CLICKS:
            name, values = f"{group}/miou_{k}", [row[f"iou_{k}"] for row in own]
            found[name], found[f"{name}_low"], found[f"{name}_high"] = mean_with_interval(values, keys, seed)
    for k in CLICKS:
        means = [found[f"{group}/miou_{k}"] for group in groups]
        found[f"gap_{k}"] = max(means) - min(means)
    return found


def _text(value: Any) -> str | None:
    """A group's name for metrics; nothing is no group."""
    text = "" if value is None else str(value).strip().replace("/", " ")
    return text or None

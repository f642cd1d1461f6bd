"""Whether SAM serves groups alike (section 6, "segmenting people"; appendix C): mean IoU by group, with intervals.

The paper's protocol is the random one of appendix D: the first point is drawn on the object, and each further point is in
the middle of the error; mean IoU at 1 and 3 points with 95 % intervals. A group can be anything that a column holds: groups
of people, microscopes, or sites.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from samtrain.data.coco_fields import id_text, some_ids
from samtrain.data.shards import Record
from samtrain.data.tables import open_csv
from samtrain.evaluators.clicks import choose_objects, click_ious, draw_seed, mask_chunks, read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.evaluator import Part, PredictorEvaluator, Row, check_file
from samtrain.metrics.summaries import mean_with_interval

log = logging.getLogger(__name__)

CLICKS = (1, 3)
GroupOf = Callable[[Record, dict[str, Any]], str | None]


class Fairness(PredictorEvaluator):
    """Compares groups of objects, named by `zero_shot.group_by`, by their IoU after 1 and 3 clicks."""

    def __init__(self, config: ZeroShotConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        check_file(self.config.groups, "zero_shot.groups")
        if self.config.group_by is None:
            raise ValueError("zero_shot.group_by is null: name the field of the annotations, or the column of zero_shot.groups")
        self.group_by = self.config.group_by
        self.group_of = read_groups(self.group_by, self.config.groups)

    def check(self, part: Part) -> None:
        """Raises ValueError if no object of the set has a group; logs how many objects have none."""
        objects = ((image, each) for image in self.open(part) for each in image.annotation["annotations"])
        found = [(image.key, each.get("id"), self.group_of(image, each)) for image, each in objects]
        num_ungrouped = sum(group is None for _, _, group in found)
        if num_ungrouped < len(found):
            if num_ungrouped:
                log.warning("%d of the %d objects of %s have no group.", num_ungrouped, len(found), part.name)
            return
        if self.config.groups is None:
            raise ValueError(
                f"zero_shot.group_by is {self.group_by!r}, and no object of {part.name} has it as a field of its annotation: "
                "name another"
            )
        with open_csv(self.config.groups, "zero_shot.groups") as file:
            named = [f"{line['key']} {line['id']}" for line in csv.DictReader(file)]
        raise ValueError(
            f"zero_shot.group_by is {self.group_by!r}, and no object of {part.name} has it in {self.config.groups} "
            f"(zero_shot.groups), by key and id: the table has {some_ids(named)}, and the set has "
            f"{some_ids(f'{key} {id_text(number)}' for key, number, _ in found)}"
        )

    @torch.no_grad()
    def rows(self, image: Record) -> list[Row]:
        """Returns one row per object that has pixels: key, object, id, group (None if unknown), area, `iou_1` and `iou_3`.

        The first click is drawn on the object, the next ones are in the middle of the error. Raises ValueError as
        `evaluators.clicks.evaluate_clicks` does.
        """
        chosen = choose_objects(image, self.config.max_masks, self.seed)
        if not chosen:
            return []
        self.predictor.set_image(read_image(image))
        rows: list[Row] = []
        objects = image.annotation["annotations"]
        for indices, masks_NHW in mask_chunks(image, chosen, self.predictor.device):
            seed = draw_seed(image, self.seed, len(rows))
            ious = click_ious(self.predictor.decoder(), masks_NHW, max(CLICKS), first="random", seed=seed)
            for n, i in enumerate(indices):
                rows.append(
                    {
                        "key": image.key, "object": i, "id": objects[i].get("id"), "group": self.group_of(image, objects[i]),
                        "area": int(masks_NHW[n].sum()), **{f"iou_{k}": float(ious[f"iou_{k}"][n]) for k in CLICKS},
                    }
                )  # fmt: skip
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the metrics of every group, and the gaps between them; raises ValueError if no object has a group.

        <group>/miou_1, <group>/miou_3   with `_low` and `_high`, the ends of the interval of a bootstrap over images
        <group>/objects                  how many the group has
        ungrouped                        objects without a group
        gap_1, gap_3                     between the best group and the worst
        """
        groups = sorted({row["group"] for row in rows if row["group"] is not None})
        if not groups:
            raise ValueError(
                f"no object has a group: set zero_shot.group_by, now {self.group_by!r}, to a field of the annotations or to a "
                "column of zero_shot.groups"
            )
        found: dict[str, float] = {"ungrouped": float(sum(row["group"] is None for row in rows))}
        for group in groups:
            own = [row for row in rows if row["group"] == group]
            keys = [row["key"] for row in own]
            found[f"{group}/objects"] = float(len(own))
            for k in CLICKS:
                name, values = f"{group}/miou_{k}", [row[f"iou_{k}"] for row in own]
                found[name], found[f"{name}_low"], found[f"{name}_high"] = mean_with_interval(values, keys, self.seed)
        for k in CLICKS:
            means = [found[f"{group}/miou_{k}"] for group in groups]
            found[f"gap_{k}"] = max(means) - min(means)
        return found


def read_groups(column: str, table: str | Path | None) -> GroupOf:
    """Returns a function that gives the group of an annotation of a record.

    The group is the annotation's own field `column`, or comes from a CSV with the columns key, id and `column`, where key is
    that of the record or the name of the image's file. Raises ValueError for a CSV without these columns, and for one that
    names an object twice.
    """
    if table is None:
        return lambda record, annotation: _text(annotation.get(column))
    with open_csv(table, "zero_shot.groups") as file:
        reader = csv.DictReader(file)
        if missing := {"key", "id", column} - set(reader.fieldnames or []):
            raise ValueError(
                f"zero_shot.groups is {table}, which has no column {', '.join(sorted(missing))}: it needs key, id and {column}"
            )
        groups: dict[tuple[str, str], str | None] = {}
        for row in reader:
            if (place := ((row["key"] or "").strip(), (row["id"] or "").strip())) in groups:
                raise ValueError(
                    f"zero_shot.groups is {table}, which names object {row['id']} of {row['key']} twice: keep one of the lines"
                )
            groups[place] = _text(row[column])

    def group_of(record: Record, annotation: dict[str, Any]) -> str | None:
        number = id_text(annotation.get("id"))
        by_file = groups.get((str(record.annotation["image"].get("source_name")), number))
        return groups.get((record.key, number), by_file)

    return group_of


def _text(value: Any) -> str | None:
    """Returns the name of a group as metrics may have it, None for an empty one."""
    text = "" if value is None else str(value).strip().replace("/", " ")
    return text or None

"""Objects and the masks that were found for them: rows of images that keep RLEs, rows of objects that hold numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import size_of
from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.ops.rle import RLE, rle_area, rle_iou, to_compressed

FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}  # LVIS' own letters, by images of the training set
Row = dict[str, Any]


def image_row(record: Record, found: Sequence[RLE], scores: Sequence[float]) -> Row:
    """`key`; of the objects `objects` (RLEs), `crowd`, `ids`, `frequency` (LVIS' letter, or None); `found` and `scores`.

    Raises ValueError where an object's RLE does not fit the record.
    """
    annotations = record.annotation["annotations"]
    for each in annotations:
        to_compressed(each["segmentation"], size_of(record))
    return {
        "key": record.key,
        "objects": [each["segmentation"] for each in annotations],
        "crowd": [bool(each.get("iscrowd", 0)) for each in annotations],
        "ids": [each.get("id") for each in annotations],
        "frequency": [each.get("frequency") for each in annotations],
        "found": list(found),
        "scores": [float(score) for score in scores],
    }


def scored(rows: Sequence[Row], frequency: str | None = None) -> list[ScoredMasks]:
    """For `mask_metrics`; of one frequency the other objects are left out, as LVIS counts a category alone."""
    images = []
    for row in rows:
        kept = [i for i, each in enumerate(row["frequency"]) if frequency is None or each == frequency]
        objects, crowd = ([row[name][i] for i in kept] for name in ("objects", "crowd"))
        images.append(ScoredMasks(objects, row["found"], row["scores"], crowd))
    return images


def recall_by_frequency(rows: Sequence[Row], max_masks: int) -> dict[str, float]:
    """`mask_ar_<max_masks>_frequent`, `_common`, `_rare` over the objects of each kind; {} where objects have none."""
    found = {}
    for letter, word in FREQUENCIES.items():
        images = scored(rows, letter)
        if any(image.objects for image in images):
            name = f"mask_ar_{max_masks}"
            found[f"{name}_{word}"] = mask_metrics(images, max_masks=[max_masks])[name]
    return found


def object_rows(row: Row) -> list[Row]:
    """A row an object: key, object, id, area, crowd, frequency; `iou` of its best mask, that one's `score` and `rank` from 1.

    The latter two are None where no mask was found in the image.
    """
    if not row["objects"]:
        return []
    order = np.argsort(-np.asarray(row["scores"]), kind="stable")
    found = [row["found"][i] for i in order]
    ious_FN = rle_iou(found, row["objects"]) if found else np.zeros((1, len(row["objects"])))
    best, result = ious_FN.argmax(axis=0), []
    for n, rle in enumerate(row["objects"]):
        rank = int(best[n])
        result.append(
            {
                "key": row["key"], "object": n, "id": row["ids"][n], "area": rle_area(to_compressed(rle)),
                "crowd": row["crowd"][n], "frequency": row["frequency"][n], "iou": float(ious_FN[rank, n]),
                "score": row["scores"][order[rank]] if found else None, "rank": rank + 1 if found else None,
            }
        )  # fmt: skip
    return result

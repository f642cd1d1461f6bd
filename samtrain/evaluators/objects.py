"""Rows of images, which keep the RLEs of objects and found masks, and rows of objects, which hold numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samtrain.data.coco_fields import is_crowd
from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_size
from samtrain.evaluators.evaluator import Row
from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.ops.rle import RLE, rle_area, rle_iou, to_compressed

FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}  # LVIS' own letters, by the number of training images


def image_row(record: Record, found: Sequence[RLE], scores: Sequence[float]) -> Row:
    """Returns the row of one image; raises ValueError if the RLE of an object does not fit the record.

    key
    objects, crowd, ids, frequency   of the objects: RLEs, crowd regions, ids, and LVIS' letters or None
    found, scores                    of the masks that were found: RLEs and scores
    """
    annotations = [*record.annotation["annotations"], *record.annotation.get("evaluation_only", [])]
    for each in annotations:
        to_compressed(each["segmentation"], image_size(record))
    return {
        "key": record.key,
        "objects": [each["segmentation"] for each in annotations],
        "crowd": [is_crowd(each) for each in annotations],
        "ids": [each.get("id") for each in annotations],
        "frequency": [each.get("frequency") for each in annotations],
        "found": list(found),
        "scores": [float(score) for score in scores],
    }


def scored_masks(rows: Sequence[Row], frequency: str | None = None) -> list[ScoredMasks]:
    """Returns the rows as `mask_metrics` takes them, with the objects of one frequency only if it is given.

    Objects of other frequencies are left out, because LVIS counts every category by itself.
    """
    images = []
    for row in rows:
        kept = [i for i, each in enumerate(row["frequency"]) if frequency is None or each == frequency]
        objects, crowd = ([row[name][i] for i in kept] for name in ("objects", "crowd"))
        images.append(ScoredMasks(objects, row["found"], row["scores"], crowd))
    return images


def recall_by_frequency(rows: Sequence[Row], max_masks: int) -> dict[str, float]:
    """Returns `mask_ar_<max_masks>_frequent`, `_common` and `_rare` over the objects of each kind, {} if none has a kind."""
    found = {}
    for letter, word in FREQUENCIES.items():
        images = scored_masks(rows, letter)
        if any(image.objects for image in images):
            name = f"mask_ar_{max_masks}"
            found[f"{name}_{word}"] = mask_metrics(images, max_masks=[max_masks])[name]
    return found


def object_rows(row: Row) -> list[Row]:
    """Returns one row per object of an image's row.

    key, object, id, area, crowd, frequency
    iou          of its best mask
    score, rank  of this mask, with ranks from 1; None if no mask was found in the image
    """
    if not row["objects"]:
        return []
    # masks in order of their scores, and the best of them for each object
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

"""Rows of images, which keep the RLEs of objects and found masks, and rows of objects, which hold numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samtrain.data.coco_fields import id_text, is_crowd
from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_size
from samtrain.evaluators.evaluator import Row
from samtrain.metrics.instances import FREQUENCIES, InstanceMasks
from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.ops.rle import RLE, rle_area, rle_iou, to_compressed

LVIS = ("neg_category_ids", "not_exhaustive_category_ids")  # fields of an image that only LVIS has


def image_row(
    record: Record, found: Sequence[RLE], scores: Sequence[float], found_categories: Sequence[Any] | None = None
) -> Row:
    """Returns the row of one image; raises ValueError if the RLE of an object does not fit the record.

    key, image_id                     of the image, and LVIS' lists of categories if it has them
    objects, crowd, ids, areas        of the objects: RLEs, crowd regions, ids, and the areas of the original annotation
    categories, names, frequency      of the objects: ids and names of the category, and LVIS' letters, None if unknown
    found, scores, found_categories   of the masks that were found: RLEs, scores, and categories or None
    """
    annotations = [*record.annotation["annotations"], *record.annotation.get("evaluation_only", [])]
    image = record.annotation["image"]
    rles = [to_compressed(each["segmentation"], image_size(record)) for each in annotations]
    return {
        "key": record.key,
        "image_id": image.get("image_id"),
        **{name: image[name] for name in LVIS if name in image},
        "objects": [each["segmentation"] for each in annotations],
        "crowd": [is_crowd(each) for each in annotations],
        "ids": [each.get("id") for each in annotations],
        "areas": [each.get("source_area", rle_area(rle)) for each, rle in zip(annotations, rles, strict=True)],
        "categories": [each.get("category_id") for each in annotations],
        "names": [each.get("category_name") for each in annotations],
        "frequency": [each.get("frequency") for each in annotations],
        "found": list(found),
        "scores": [float(score) for score in scores],
        "found_categories": list(found_categories) if found_categories is not None else [None] * len(found),
    }


def scored_masks(rows: Sequence[Row], frequency: str | None = None) -> list[ScoredMasks]:
    """Returns the rows as `mask_metrics` takes them, with the objects of one frequency only if it is given.

    Objects of other frequencies are left out, because LVIS counts every category by itself.
    """
    images = []
    for row in rows:
        kept = [i for i, each in enumerate(row["frequency"]) if frequency is None or each == frequency]
        objects, crowd, areas = ([row[name][i] for i in kept] for name in ("objects", "crowd", "areas"))
        images.append(ScoredMasks(objects, row["found"], row["scores"], crowd, areas))
    return images


def instance_masks(rows: Sequence[Row]) -> list[InstanceMasks]:
    """Returns the rows as `instance_metrics` takes them, in the order of the images' ids, as the official tools have it.

    The order decides between equal scores. If either the objects or the masks that were found have no category, all are of
    one class, and LVIS' rules about categories do not apply.
    """
    known = all(all(c is not None for c in row[name]) for row in rows for name in ("categories", "found_categories"))
    images = []
    for row, masks in zip(rows, scored_masks(rows), strict=True):
        own, found = (_ids(row[name]) if known else [None] * len(row[name]) for name in ("categories", "found_categories"))
        lvis = {}
        if known and LVIS[0] in row:
            lvis = {"negative": _ids(row[LVIS[0]]), "not_exhaustive": _ids(row.get(LVIS[1], []))}
        images.append(InstanceMasks(masks, own, found, **lvis))
    order = sorted(range(len(rows)), key=lambda i: (str(type(rows[i]["image_id"])), rows[i]["image_id"] or 0))
    return [images[i] for i in order]


def _ids(categories: Sequence[Any]) -> list[str]:
    """Returns the ids as text, because a set and its detections may write them as numbers or as text."""
    return [id_text(each) for each in categories]


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

    key, object, id, area, crowd, category, frequency
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
        category = row["categories"][n] if row["names"][n] is None else row["names"][n]
        result.append(
            {
                "key": row["key"], "object": n, "id": row["ids"][n], "area": rle_area(to_compressed(rle)),
                "crowd": row["crowd"][n], "category": None if category is None else str(category),
                "frequency": row["frequency"][n], "iou": float(ious_FN[rank, n]),
                "score": row["scores"][order[rank]] if found else None, "rank": rank + 1 if found else None,
            }
        )  # fmt: skip
    return result

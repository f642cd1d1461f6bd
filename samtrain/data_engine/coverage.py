"""Coverage: how many of the objects have a mask, and how many of the automatic masks show an object.

Both need the ground truth, so only a simulation knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samtrain.ops.rle import RLE, rle_area, rle_iou

COVERED = 0.75  # IoU above which a mask shows an object; section 5 reports its own masks' share above 75 %
SIZES = ("small", "medium", "large")


def compare(objects: Sequence[RLE], masks: Sequence[RLE], automatic: Sequence[RLE]) -> dict[str, Any]:
    """Compares one image's masks with its ground truth; objects without pixels are left out.

    Returns the area of each object in pixels ("areas"), its best IoU with any of `masks` ("covered"), and the best IoU of
    each automatic mask with any object ("automatic").
    """
    objects = [each for each in objects if rle_area(each) > 0]
    return {
        "areas": [rle_area(each) for each in objects],
        "covered": _best_ious(objects, masks),
        "automatic": _best_ious(automatic, objects),
    }


def coverage(truths: Sequence[dict[str, Any]], size_limits: tuple[float, float]) -> dict[str, float | None]:
    """Returns the share of the objects with a mask of IoU above COVERED, of all and by size; None if there are no objects.

    The sizes are areas in pixels: small < size_limits[0] <= medium < size_limits[1] <= large.
    """
    pairs = [pair for truth in truths for pair in zip(truth["areas"], truth["covered"], strict=True)]
    by_size: dict[str, list[float]] = {"all": [iou for _, iou in pairs]}
    for number, name in enumerate(SIZES):
        by_size[name] = [iou for area, iou in pairs if sum(area >= limit for limit in size_limits) == number]
    return {name: share_above(ious) for name, ious in by_size.items()}


def share_above(ious: Sequence[float]) -> float | None:
    """Returns the share of IoUs above COVERED; None for an empty sequence."""
    return sum(iou > COVERED for iou in ious) / len(ious) if ious else None


def _best_ious(masks: Sequence[RLE], others: Sequence[RLE]) -> list[float]:
    """Returns the highest IoU of each mask with any of the others, to six digits as stored in the drawings."""
    if not others:
        return [0.0] * len(masks)
    return [round(float(iou), 6) for iou in rle_iou(masks, others).max(axis=1)] if masks else []

"""How much of what there is has a mask, and how many of the automatic masks show something; a simulation knows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samtrain.ops.rle import RLE, rle_area, rle_iou

COVERED = 0.75  # IoU above which a mask shows an object; section 5 reports its own masks' share above 75 %
SIZES = ("small", "medium", "large")


def compare(objects: Sequence[RLE], masks: Sequence[RLE], automatic: Sequence[RLE]) -> dict[str, Any]:
    """One image's masks against its ground truth: areas of the objects in pixels, the best IoU that any of `masks` has
    with each, and the best IoU with any object of each automatic mask. Objects without pixels are left out.
    """
    objects = [each for each in objects if rle_area(each) > 0]
    return {
        "areas": [rle_area(each) for each in objects],
        "covered": _best(objects, masks),
        "automatic": _best(automatic, objects),
    }


def coverage(truths: Sequence[dict[str, Any]], size_limits: tuple[float, float]) -> dict[str, float | None]:
    """Share of the objects that a mask of IoU above COVERED shows, of all and by size; None where there are none.

    small < size_limits[0] <= medium < size_limits[1] <= large, in pixels of area.
    """
    pairs = [pair for truth in truths for pair in zip(truth["areas"], truth["covered"], strict=True)]
    by_size: dict[str, list[float]] = {"all": [iou for _, iou in pairs]}
    for number, name in enumerate(SIZES):
        by_size[name] = [iou for area, iou in pairs if sum(area >= limit for limit in size_limits) == number]
    return {name: share_above(ious) for name, ious in by_size.items()}


def share_above(ious: Sequence[float]) -> float | None:
    """Share of IoUs above COVERED; None of none."""
    return sum(iou > COVERED for iou in ious) / len(ious) if ious else None


def _best(these: Sequence[RLE], those: Sequence[RLE]) -> list[float]:
    if not those:
        return [0.0] * len(these)
    return [round(float(iou), 6) for iou in rle_iou(these, those).max(axis=1)] if these else []

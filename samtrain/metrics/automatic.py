"""Compares automatic masks with full ground truth: recall by pycocotools, precision, and both at several thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samtrain.metrics.full_truth import ImageMasks
from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.ops.rle import rle_iou

MAX_MASKS = 100  # per image, those of highest predicted IoU: AR@100
PRECISE = (0.5, 0.75)  # a mask is right if its IoU with some object is above this
PRED_IOU_THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.96)
STABILITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.99)


def automatic_metrics(images: Sequence[ImageMasks]) -> dict[str, Any]:
    """Returns `ar_100`, `precision_50`, `precision_75` and `masks_per_image`; None as in `evaluate_automatic`."""
    return _measure(images, [_best_ious(image) for image in images])


def evaluate_automatic(images: Sequence[ImageMasks]) -> dict[str, Any]:
    """Returns `automatic_metrics`, and under `by_pred_iou` and `by_stability` the same metrics at each threshold.

    Thresholds below the generator's own are left out, because its records are already filtered by it. The generator
    filters before NMS and this function after it: for pred_iou_thresh the result is the same, for the stability score
    nearly. Precision is None if no mask is left, AR if there is no object.
    """
    best = [_best_ious(image) for image in images]
    result: dict[str, Any] = _measure(images, best)
    for name, key, thresholds in (
        ("by_pred_iou", "predicted_iou", PRED_IOU_THRESHOLDS),
        ("by_stability", "stability_score", STABILITY_THRESHOLDS),
    ):
        # the thresholds that the generator has not already applied itself
        scores = [np.array([record[key] for record in image.records]) for image in images]
        lowest = min((float(s.min()) for s in scores if len(s)), default=0.0)
        # the same metrics of the records that reach each of them
        rows = []
        for thresh in (t for t in thresholds if t >= lowest):
            kept = [s >= thresh for s in scores]
            chosen = [
                ImageMasks(p.objects, [r for r, k in zip(p.records, keep, strict=True) if k])
                for p, keep in zip(images, kept, strict=True)
            ]
            rows.append({"threshold": thresh, **_measure(chosen, [b[k] for b, k in zip(best, kept, strict=True)])})
        result[name] = rows
    return result


def _measure(images: Sequence[ImageMasks], best: Sequence[np.ndarray]) -> dict[str, Any]:
    ious = np.concatenate(best) if best else np.zeros(0)
    precision = {f"precision_{100 * t:.0f}": float((ious > t).mean()) if len(ious) else None for t in PRECISE}
    return {"ar_100": average_recall(images), **precision, "masks_per_image": len(ious) / max(len(images), 1)}


def _best_ious(image: ImageMasks) -> np.ndarray:
    """Returns (R,) the best IoU of each record with any object."""
    if not image.objects or not image.records:
        return np.zeros(len(image.records))
    return rle_iou([record["segmentation"] for record in image.records], image.objects).max(axis=1)


def average_recall(images: Sequence[ImageMasks], max_masks: int = MAX_MASKS) -> float | None:
    """Returns COCO's mask AR over IoU 0.50 to 0.95, of the `max_masks` of highest predicted IoU per image.

    Returns None if there are no objects.
    """
    if not any(image.objects for image in images):
        return None
    scored = [
        ScoredMasks(p.objects, [r["segmentation"] for r in p.records], [r["predicted_iou"] for r in p.records])
        for p in images
    ]
    return mask_metrics(scored, max_masks=[max_masks])[f"mask_ar_{max_masks}"]

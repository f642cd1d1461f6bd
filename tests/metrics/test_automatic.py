"""Recall and precision with answers known by hand, and by pycocotools as people call it."""

from __future__ import annotations

import numpy as np
import pytest

from samtrain.metrics.automatic import average_recall, evaluate_automatic
from samtrain.metrics.full_truth import ImageMasks
from samtrain.ops.rle import encode_mask


def rectangle(height: int, left: int = 0) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[:height, left : left + 20] = True
    return mask


def record(mask: np.ndarray, iou: float = 0.9, stability: float = 0.95) -> dict:
    return {
        "segmentation": encode_mask(mask), "area": int(mask.sum()), "bbox": [0, 0, 1, 1], "predicted_iou": iou,
        "stability_score": stability,
    }  # fmt: skip


def test_recall_by_hand() -> None:
    """Two objects: one found exactly, one by a mask of IoU 0.75, which counts at 0.50, 0.55, ..., 0.75: 6 of 10."""
    objects = [encode_mask(rectangle(20)), encode_mask(rectangle(20, left=30))]
    image = ImageMasks(objects, [record(rectangle(20)), record(rectangle(15, left=30))])
    assert average_recall([image]) == pytest.approx((1 + 0.6) / 2)
    assert average_recall([image, ImageMasks(objects, [])]) == pytest.approx((1 + 0.6) / 4)


def test_only_the_best_hundred_count() -> None:
    objects = [encode_mask(rectangle(20))]
    noise = [record(rectangle(1 + i % 3, left=30), iou=0.99) for i in range(100)]
    assert average_recall([ImageMasks(objects, [*noise, record(rectangle(20), iou=0.5)])]) == 0
    assert average_recall([ImageMasks(objects, [*noise[:99], record(rectangle(20), iou=0.5)])]) == 1


def test_images_without_masks_or_objects() -> None:
    assert average_recall([ImageMasks([], [record(rectangle(5))])]) is None
    assert average_recall([ImageMasks([encode_mask(rectangle(5))], [])]) == 0
    assert evaluate_automatic([ImageMasks([encode_mask(rectangle(5))], [])])["precision_50"] is None


def test_thresholds_move_precision_and_number() -> None:
    objects = [encode_mask(rectangle(20)), encode_mask(rectangle(20, left=30))]
    records = [
        record(rectangle(20), 0.95, 0.6), record(rectangle(13, left=30), 0.85, 0.9), record(rectangle(3), 0.7, 0.99)
    ]  # fmt: skip
    found = evaluate_automatic([ImageMasks(objects, records)])
    assert found["precision_50"] == pytest.approx(2 / 3) and found["precision_75"] == pytest.approx(1 / 3)
    by_iou = {row["threshold"]: row for row in found["by_pred_iou"]}
    assert min(by_iou) == 0.7  # lower ones were not looked at
    assert by_iou[0.9]["masks_per_image"] == 1 and by_iou[0.9]["precision_75"] == 1
    assert by_iou[0.8]["masks_per_image"] == 2 and by_iou[0.8]["precision_50"] == 1
    by_stability = {row["threshold"]: row for row in found["by_stability"]}
    assert by_stability[0.95]["precision_50"] == 0 and by_stability[0.99]["masks_per_image"] == 1
    assert by_iou[0.96]["precision_50"] is None and by_iou[0.96]["ar_100"] == 0

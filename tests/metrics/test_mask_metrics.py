"""Mask AP and AR with answers computed by hand, and by pycocotools as people call it."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pretend_predictor import disc
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh, to_compressed


def rectangle(height: int, left: int = 0, width: int = 20) -> dict:
    mask = np.zeros((120, 160), bool)
    mask[:height, left : left + width] = True
    return encode_mask(mask)


def test_average_precision_by_hand() -> None:
    """Two objects. In order of score: a hit of IoU 1, a miss, a hit of IoU 1: precision 1 up to recall 0.5, then 2/3."""
    masks = [rectangle(20), rectangle(20, 100), rectangle(20, 40)]
    found = mask_metrics([ScoredMasks([rectangle(20), rectangle(20, 40)], masks, [0.9, 0.8, 0.7])])
    assert found["mask_ap"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)  # COCO's 101 recall levels
    assert found["mask_ar_10"] == pytest.approx(1) and found["mask_ar_1000"] == pytest.approx(1)


def test_a_crowd_region_is_neither_found_nor_missed() -> None:
    """A mask inside it does not count; outside of it the same mask is a miss."""
    objects, masks = [rectangle(20), rectangle(100, 40, 100)], [rectangle(30, 60), rectangle(20)]
    with_crowd = mask_metrics([ScoredMasks(objects, masks, [0.9, 0.8], crowd=[False, True])])
    assert with_crowd["mask_ap"] == pytest.approx(1) and with_crowd["mask_ar_10"] == pytest.approx(1)
    without = mask_metrics([ScoredMasks(objects, masks, [0.9, 0.8])])
    assert without["mask_ap"] < 0.5


def test_equals_pycocotools_called_directly() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(12):
        discs = [disc(120, 160, *rng.uniform((10, 10), (110, 150)), rng.uniform(4, 40)) for _ in range(6)]
        moved = [np.roll(d, rng.integers(-4, 5, 2), (0, 1)) for d in discs] + [disc(120, 160, 60, 60, 9)]
        images.append(ScoredMasks([encode_mask(d) for d in discs], [encode_mask(m) for m in moved], rng.random(7).tolist()))
    coco, results = COCO(), []
    coco.dataset = {"images": [{"id": i, "height": 120, "width": 160} for i in range(12)], "categories": [{"id": 1}]}
    coco.dataset["annotations"] = [
        {
            "id": 100 * i + j + 1, "image_id": i, "category_id": 1, "segmentation": to_compressed(rle), "area": rle_area(rle),
            "bbox": rle_to_box_xywh(rle), "iscrowd": 0,
        }
        for i, image in enumerate(images)
        for j, rle in enumerate(image.objects)
    ]  # fmt: skip
    for i, image in enumerate(images):
        for rle, score in zip(image.found, image.scores, strict=True):
            results.append({"image_id": i, "category_id": 1, "segmentation": to_compressed(rle), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    found = mask_metrics(images, max_masks=[1, 10, 100])
    names = ["mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large"]
    names += ["mask_ar_1", "mask_ar_10", "mask_ar_100", "mask_ar_100_small", "mask_ar_100_medium", "mask_ar_100_large"]
    assert [found.get(name, -1) for name in names] == pytest.approx(evaluation.stats.tolist())  # -1: no such object


def test_sets_without_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="holds an object"):
        mask_metrics([ScoredMasks([], [rectangle(3)], [1.0])])
    assert mask_metrics([ScoredMasks([rectangle(20)], [], [])])["mask_ap"] == 0

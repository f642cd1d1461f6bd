"""The paper's zero-shot protocols with answers that are known."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pretend_predictor import PretendPredictor, disc, eroded, record_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtrain.data.shards import Record
from samtrain.evaluators.zero_shot_instances import instance_row, read_detections
from samtrain.evaluators.zero_shot_points import mean_over_sets, point_rows, summarise
from samtrain.evaluators.zero_shot_proposals import proposal_row
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.masks import ScoredMasks, mask_metrics
from samtrain.metrics.summaries import clicks_until, mean_with_interval
from samtrain.modeling import build_sam
from samtrain.ops.rle import decode_rle, encode_mask, rle_area, rle_to_box_xywh, to_compressed


def record(seed: int = 0, num: int = 4) -> Record:
    data, ext, annotation = record_of(seed, num)
    return Record(f"scene_{seed}", ext, data, annotation, "made.tar")


# ---- clicks until it is good


def test_clicks_by_hand() -> None:
    ious = np.full((5, 20), 0.5)
    ious[0, 0] = 0.95  # at once, and worse again afterwards
    ious[1, 2:] = 0.90  # exactly the level counts
    ious[2, 19] = 0.91  # at the last click: no failure
    ious[4, :3], ious[4, 3:] = 0.92, math.nan  # stopped early
    clicks, never = clicks_until(ious, 0.90)
    assert clicks.tolist() == [1, 3, 20, 20, 1]
    assert never.tolist() == [False, False, False, True, False]
    clicks, never = clicks_until(ious, 0.5)
    assert clicks.tolist() == [1] * 5 and not never.any()


def test_an_interval_counts_images_not_objects() -> None:
    values, images = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    mean, low, high = mean_with_interval(values, images)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # of two images one cannot say more
    mean, low, high = mean_with_interval(values, list(range(20)))
    assert mean == 0.5 and 0.2 < low < 0.4 and 0.6 < high < 0.8
    with pytest.raises(ValueError, match="no value"):
        mean_with_interval([], [])


def test_rows_and_summary_of_a_model_that_needs_three_clicks() -> None:
    """Each click takes a pixel less off the mask; the third is perfect."""
    predictor = PretendPredictor(eroded(2))
    rows = point_rows(predictor, record())
    assert len(rows) == 4 and predictor.encoded == 1
    for row in rows:
        assert row["iou_1"] < row["iou_2"] < row["iou_3"] == 1 == row["iou_9"]
        assert math.isnan(row["iou_10"])  # all were at 90 % by then
        assert row["random_iou_3"] == 1 and row["click_seconds"] > 0
    found = summarise(rows)
    assert found["miou_3"] == 1 and found["miou_1"] == pytest.approx(np.mean([row["iou_1"] for row in rows]))
    expected = [next(k for k in (1, 2, 3) if row[f"iou_{k}"] >= 0.9) for row in rows]
    assert found["noc_90"] == np.mean(expected) and found["failures_90"] == 0
    assert found["objects"] == 4 and found["images"] == 1
    assert found["miou_1_low"] <= found["miou_1"] <= found["miou_1_high"]


def test_a_model_that_never_gets_there_fails() -> None:
    rows = point_rows(PretendPredictor(lambda whole, clicks: np.zeros_like(whole)), record())
    found = summarise(rows)
    assert found["noc_80"] == 20 and found["failures_80"] == 4 and found["miou_9"] == 0
    assert not math.isnan(rows[0]["iou_20"])


def test_means_over_sets_count_every_set_once() -> None:
    one, two = ({"miou_1": value, "failures_80": 3.0, "miou_1_low": 0.0} for value in (0.2, 0.6))
    assert mean_over_sets([one, two]) == {"miou_1": pytest.approx(0.4), "failures_80": 6.0}


# ---- masks with scores


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
    """What lies in it counts for nothing; outside of it the same mask is a miss."""
    objects, masks = [rectangle(20), rectangle(100, 40, 100)], [rectangle(30, 60), rectangle(20)]
    with_crowd = mask_metrics([ScoredMasks(objects, masks, [0.9, 0.8], crowd=[False, True])])
    assert with_crowd["mask_ap"] == pytest.approx(1) and with_crowd["mask_ar_10"] == pytest.approx(1)
    without = mask_metrics([ScoredMasks(objects, masks, [0.9, 0.8])])
    assert without["mask_ap"] < 0.5


def test_as_people_call_pycocotools() -> None:
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


def test_nothing_to_find() -> None:
    with pytest.raises(ValueError, match="holds an object"):
        mask_metrics([ScoredMasks([], [rectangle(3)], [1.0])])
    assert mask_metrics([ScoredMasks([rectangle(20)], [], [])])["mask_ap"] == 0


# ---- proposals and instances


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(3)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    return sam


def test_proposals_are_ranked_by_the_mean_of_both_scores(sam, monkeypatch) -> None:
    from samtrain.evaluators import zero_shot_proposals as module

    monkeypatch.setattr(module, "MAX_PROPOSALS", 3)
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.99}
    generator = SamAutomaticMaskGenerator(sam, **settings, output_mode="coco_rle")
    row = proposal_row(generator, record())
    assert len(row["found"]) == 3 and row["scores"] == sorted(row["scores"], reverse=True)
    assert len(row["objects"]) == 4 and row["crowd"] == [False] * 4
    from samtrain.evaluators.clicks import image_of

    means = sorted((r["predicted_iou"] + r["stability_score"]) / 2 for r in generator.generate(image_of(record())))
    assert row["scores"] == pytest.approx(means[::-1][:3])


def test_instances_are_what_two_calls_of_the_predictor_give(sam) -> None:
    """A box alone, then the box with the mask of highest predicted IoU."""
    predictor, shown = SamPredictor(sam), record()
    row = instance_row(predictor, shown, None)
    from samtrain.evaluators.clicks import image_of

    predictor.set_image(image_of(shown))
    for rle, found, score in zip(row["objects"], row["found"], row["scores"], strict=True):
        x, y, w, h = rle_to_box_xywh(rle)
        box = np.array([x, y, x + w - 1, y + h - 1])
        _, ious, low_res = predictor.predict(box=box, multimask_output=True)
        mask, iou, _ = predictor.predict(box=box, mask_input=low_res[[ious.argmax()]], multimask_output=False)
        assert (decode_rle(found) == mask[0]).mean() > 0.999
        assert score == pytest.approx(float(iou[0]), abs=1e-4)


def test_boxes_of_a_results_file(sam) -> None:
    results = [{"image_id": 0, "bbox": [2, 3, 10, 20], "score": 0.7}, {"image_id": 9, "bbox": [0, 0, 5, 5], "score": 0.9}]
    detections = read_detections(results, "boxes.json")
    assert detections[0][0].tolist() == [[2, 3, 12, 23]]
    row = instance_row(SamPredictor(sam), record(), detections)
    assert len(row["found"]) == 1 and row["scores"] == [0.7] and len(row["objects"]) == 4
    assert instance_row(SamPredictor(sam), record(5), detections)["found"] == []
    with pytest.raises(ValueError, match="boxes.json: result 1"):
        read_detections([results[0], {"bbox": [1, 2, 3]}], "boxes.json")

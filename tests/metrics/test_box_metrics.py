"""Box AP and AR: against pycocotools' own summary, against numbers by hand, and at the edges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pretend_predictor import record_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtrain.data.shards import Record
from samtrain.metrics.boxes import ImageBoxes, box_metrics, evaluate_boxes
from samtrain.ops.rle import rle_to_box_xywh

NOTHING = np.zeros((0, 4))
# 10 x 10 boxes in a row, 100 pixels apart
APART = np.array([[100 * i, 0, 100 * i + 10, 10] for i in range(4)], dtype=float)


def make_image(boxes: np.ndarray, found: np.ndarray, scores: list[float], areas: list[float] | None = None) -> ImageBoxes:
    sides = boxes[:, 2:] - boxes[:, :2]
    return ImageBoxes(boxes, np.array(areas) if areas else sides.prod(axis=1), found, np.array(scores))


def pycocotools_stats(photos: list[ImageBoxes], tmp_path: Path) -> np.ndarray:
    """The twelve numbers of `summarize`, by files and `loadRes` as its own demo goes."""

    def xywh(box: np.ndarray) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    truth = [
        {"image_id": i, "category_id": 1, "iscrowd": 0, "bbox": xywh(box), "area": area}
        for i, p in enumerate(photos)
        for box, area in zip(p.boxes.tolist(), p.areas.tolist(), strict=True)
    ]
    found = [
        {"image_id": i, "category_id": 1, "bbox": xywh(box), "score": score}
        for i, p in enumerate(photos)
        for box, score in zip(p.found.tolist(), p.scores.tolist(), strict=True)
    ]
    annotations = [{"id": n + 1, **each} for n, each in enumerate(truth)]
    images = [{"id": i} for i in range(len(photos))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}], "info": {}}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


NAMES = (  # in the order of `summarize`
    "box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ap_medium", "box_ap_large",
    "box_ar_1", "box_ar_10", "box_ar_100", "box_ar_100_small", "box_ar_100_medium", "box_ar_100_large",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed: int, tmp_path: Path) -> None:
    """Random images: boxes that are moved, missed and made up; masks of all sizes; an image without objects."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(6):
        count = 0 if number == 2 else int(rng.integers(1, 15))
        sides, corners = rng.uniform(8, 200, (count, 2)), rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        noisy = boxes[rng.random(count) < 0.8]
        noisy = noisy + rng.normal(0, 4, noisy.shape)
        invented = rng.uniform(0, 200, (5, 4))
        invented[:, 2:] += invented[:, :2] + 1
        found = np.concatenate([noisy, invented])
        areas = sides.prod(axis=1) * rng.uniform(0.3, 1, count)
        images.append(ImageBoxes(boxes, areas, found, rng.random(len(found))))
    ours, theirs = box_metrics(images), pycocotools_stats(images, tmp_path)
    for name, value in zip(NAMES, theirs, strict=True):
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    assert ours["box_ap"] not in (0, 1)


def test_numbers_by_hand() -> None:
    """Two images with three objects: one found exactly, one to an IoU of 0.8, one missed; the second answer is wrong.

    Answers by score: 0.9 exact, 0.8 wrong, 0.7 of IoU 0.8. Thresholds 0.50 to 0.80 (7 of 10) see true, false, true:
    precision 1 up to recall 1/3, then 2/3 up to recall 2/3. Of COCO's 101 recalls 34 (0 to 0.33) lie in the first part,
    33 (0.34 to 0.66) in the second. The three thresholds above see true, false, false: precision 1 at 34 recalls.
    """
    shifted = APART[1].copy()
    shifted[2] = shifted[0] + 8  # 80 of 100 pixels
    wrong = np.array([500.0, 500, 510, 510])
    images = [
        make_image(APART[:2], np.stack([APART[0], shifted]), [0.9, 0.7]),
        make_image(APART[2:3], wrong[None], [0.8]),
    ]
    metrics = box_metrics(images)
    loose, strict = (34 + 33 * 2 / 3) / 101, 34 / 101
    assert metrics["box_ap50"] == metrics["box_ap75"] == pytest.approx(loose)
    assert metrics["box_ap"] == pytest.approx((7 * loose + 3 * strict) / 10)
    assert metrics["box_ar_1"] == pytest.approx(1 / 3)  # one answer an image: the exact one, and the wrong one
    for count in (10, 20, 100):
        assert metrics[f"box_ar_{count}"] == pytest.approx((7 * 2 / 3 + 3 * 1 / 3) / 10)
    assert metrics["box_recall70_10"] == metrics["box_recall70_20"] == pytest.approx(2 / 3)


def test_sizes_are_those_of_the_masks_with_limits_from_the_caller() -> None:
    """Of a small and a large object the large one is found; by COCO's limits both are small."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 50, 50]], dtype=float)
    images = [make_image(boxes, boxes[1:], [0.9], areas=[90, 700])]
    ours = box_metrics(images, size_limits=(100, 400))
    assert (ours["box_ar_100_small"], ours["box_ar_100_large"], ours["box_ar_100"]) == (0, 1, 0.5)
    assert "box_ar_100_medium" not in ours and "box_ap_medium" not in ours
    theirs = box_metrics(images)
    assert theirs["box_ar_100_small"] == 0.5 and "box_ar_100_large" not in theirs
    with pytest.raises(ValueError, match="size_limits is"):
        box_metrics(images, size_limits=(400, 100))


def test_a_detector_that_finds_nothing() -> None:
    metrics = box_metrics([make_image(APART, NOTHING, [])])
    assert metrics and set(metrics.values()) == {0.0}


def test_a_detector_that_finds_everything() -> None:
    metrics = box_metrics([make_image(APART, APART, [0.4, 0.3, 0.2, 0.1])])
    assert metrics.pop("box_ar_1") == 0.25  # one of four
    assert all(value == pytest.approx(1) for value in metrics.values())


def test_boxes_in_images_without_objects_count_as_wrong() -> None:
    good, empty = make_image(APART, APART, [0.5] * 4), ImageBoxes(NOTHING, np.zeros(0), NOTHING, np.zeros(0))
    assert box_metrics([good, empty]) == box_metrics([good])
    disturbed = ImageBoxes(NOTHING, np.zeros(0), APART, np.full(4, 0.9))
    metrics = box_metrics([good, disturbed])
    assert metrics["box_ar_100"] == 1 and metrics["box_ap"] == pytest.approx(0.5)  # four wrong ones stand before
    with pytest.raises(ValueError, match="holds an object"):
        box_metrics([empty, disturbed])


def test_records_are_evaluated_in_their_own_pixels() -> None:
    records = []
    for seed in range(2):
        data, ext, annotation = record_of(seed, 3)
        records.append(Record(f"scene_{seed}", ext, data, annotation, "made.tar"))
    answers = []
    for record in records:
        xywh = np.array([rle_to_box_xywh(o["segmentation"]) for o in record.annotation["annotations"]])
        answers.append((np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1), np.ones(len(xywh))))
    shapes = []

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shapes.append(image.shape)
        return answers[len(shapes) - 1]

    assert evaluate_boxes(detect, records)["box_ap"] == pytest.approx(1)
    sides = records[0].annotation["image"]
    assert shapes[0] == (sides["height"], sides["width"], 3)


def test_a_broken_mask_names_its_record() -> None:
    data, ext, annotation = record_of(0, 1)
    annotation["annotations"][0]["segmentation"] = {"size": [3, 3], "counts": [9]}
    with pytest.raises(ValueError, match="made.tar, record a: annotation .*data.on_error"):
        evaluate_boxes(lambda image: (NOTHING, np.zeros(0)), [Record("a", ext, data, annotation, "made.tar")])

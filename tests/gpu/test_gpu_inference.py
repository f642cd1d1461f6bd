"""Predictor, automatic generator, detector and evaluator on a GPU give what they give on a CPU."""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from colour_sam import ColourSam
from PIL import Image
from small_scenes import SIDE, scene_record

from samtrain.data.shards import Record
from samtrain.data_engine.prefill import PrefillConfig, Prefiller
from samtrain.detector.model import build_detector
from samtrain.evaluators.clicks import evaluate_clicks
from samtrain.inference.frames import make_predictor
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.modeling.sam import Sam

SETTINGS: dict[str, Any] = {
    "points_per_side": 12,
    "pred_iou_thresh": 0.1,  # a model of 300 steps is sure of little
    "stability_score_thresh": 0.1,
    "min_mask_region_area": 4,
    "crop_n_layers": 1,
    "output_mode": "coco_rle",
}


def on_both(sam: Sam, device: torch.device) -> tuple[Sam, Sam]:
    return sam, deepcopy(sam).to(device)


@pytest.mark.parametrize("frame", ["resize", "native"])
def test_the_predictor(trained: Sam, device: torch.device, frame: str) -> None:
    """With clicks, a box and the mask of the call before; the image is larger than the input, in tiles or resized."""
    image = np.concatenate([scene_record(2000)[0], scene_record(2001)[0]], axis=1)
    calls: list[dict[str, Any]] = [
        {"point_coords": np.array([[50, 40]]), "point_labels": np.array([1])},
        {"point_coords": np.array([[50, 40], [60, 70]]), "point_labels": np.array([1, 0]), "multimask_output": False},
        {"box": np.array([20, 20, 80, 70])},
    ]
    answers = []
    for sam in on_both(trained, device):
        predictor = make_predictor(sam, frame=frame)
        predictor.set_image(image)
        answers.append([predictor.predict(**call, return_logits=True) for call in calls])
        low_res = answers[-1][1][2]
        answers[-1].append(predictor.predict(**calls[1], mask_input=low_res, return_logits=True))
        answers[-1].append(predictor.predict_many(boxes=np.array([[20, 20, 80, 70], [100, 10, 150, 60]]), return_logits=True))
    for expected, here in zip(*answers, strict=True):
        for a, b in zip(expected, here, strict=True):
            assert a.dtype == b.dtype and np.abs(a - b).max() <= 1e-4 * np.abs(a).max()


def same(a: dict, b: dict) -> bool:
    """Returns whether two records are of the same click and crop, with the same scores and the same mask but for its edge."""
    return (
        a["point_coords"] == b["point_coords"]
        and a["crop_box"] == b["crop_box"]
        and a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-4)
        and a["stability_score"] == pytest.approx(b["stability_score"], abs=5e-3)
        and np.allclose(a["bbox"], b["bbox"], atol=1)
        and a["area"] == pytest.approx(b["area"], rel=2e-3, abs=2)
    )


def assert_same_records(expected: list[dict], here: list[dict], share: float) -> None:
    """At least `share` of the records of either side are also on the other."""
    assert min(len(expected), len(here)) >= 5, "too few masks to show anything"
    for one, other in ((expected, here), (here, expected)):
        missing = [a for a in one if not any(same(a, b) for b in other)]
        assert len(missing) <= (1 - share) * len(one), f"{len(missing)} of {len(one)} records: {missing[:3]}"


@pytest.mark.parametrize("model", ["trained", "colours"])
@pytest.mark.parametrize("frame", ["resize", "native"])
def test_the_automatic_generator(trained: Sam, device: torch.device, model: str, frame: str) -> None:
    image = np.concatenate([scene_record(2000)[0], scene_record(2001)[0]], axis=1)
    if model == "colours":
        image = image.repeat(2, axis=0).repeat(2, axis=1)
    settings = {**SETTINGS, "frame": frame, "crop_n_layers": int(frame == "resize")}
    sam = trained if model == "trained" else ColourSam().eval()
    expected, here = (SamAutomaticMaskGenerator(each, **settings).generate(image) for each in on_both(sam, device))
    # of two masks of almost the same score, or next to a threshold, another one may be kept; colours have no such ties
    assert_same_records(expected, here, share=0.95 if model == "trained" else 1.0)


def test_the_evaluator(trained: Sam, device: torch.device) -> None:
    """Clicks at the centre of the error, and boxes."""
    records = []
    for seed in range(2000, 2004):
        image, annotations = scene_record(seed)
        about = {"image_id": seed, "width": SIDE, "height": SIDE, "file_name": ""}
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "png")
        records.append(Record(str(seed), "png", stream.getvalue(), {"image": about, "annotations": annotations}, "scenes.tar"))
    found = [evaluate_clicks(make_predictor(sam, frame=None), records, num_points=3) for sam in on_both(trained, device)]
    (expected, rows), (here, others) = found
    assert len(rows) == len(others) >= 8
    assert here == pytest.approx(expected, abs=1e-2)
    assert expected["miou_1"] > 0.3, "the model is trained too little to show anything"


def test_prefilled_masks(trained: Sam, device: torch.device) -> None:
    """From a detector with random weights to masks."""
    image, (height, width) = scene_record(2000)[0], (SIDE, SIDE)
    found = []
    for place in (torch.device("cpu"), device):
        detector = build_detector("small", seed=0).to(place).eval()
        boxes, scores = detector.detect(image, max_detections=20)
        predictor = make_predictor(deepcopy(trained).to(place), frame=None)
        predictor.set_image(image)
        config = PrefillConfig(box_score_thresh=0.0, pred_iou_thresh=0.0, stability_score_thresh=0.0)
        Prefiller(detector, config).prefill(image, predictor)
        given = np.array([[10, 10, 60, 50], [20, 30, width, height]], dtype=np.float32)
        found.append((boxes, scores, Prefiller(detector, config).propose((height, width), given, np.ones(2), predictor)))
    (boxes, scores, masks), (here, their_scores, theirs) = found
    assert len(boxes) == len(here) and np.allclose(np.sort(scores), np.sort(their_scores), atol=1e-4)
    assert len(masks) == len(theirs) == 2
    assert [each.predicted_iou for each in theirs] == pytest.approx([each.predicted_iou for each in masks], abs=1e-4)

"""Masks from boxes of the objects and of a detector's result file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samtrain.evaluators import Instances
from samtrain.evaluators.clicks import read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.instances import read_detections
from samtrain.inference.predictor import SamPredictor
from samtrain.ops.rle import decode_rle, rle_to_box_xywh
from tests.evaluators.records import record


def loaded(sam, boxes: Path | None = None) -> Instances:
    evaluator = Instances(ZeroShotConfig(protocol="instances", boxes=None if boxes is None else str(boxes)))
    evaluator.load(sam)
    return evaluator


def test_masks_equal_two_calls_of_the_predictor(sam) -> None:
    """A box alone, then the box with the mask of highest predicted IoU."""
    predictor, shown = SamPredictor(sam), record()
    (row,) = loaded(sam).rows(shown)
    predictor.set_image(read_image(shown))
    for rle, found, score in zip(row["objects"], row["found"], row["scores"], strict=True):
        x, y, w, h = rle_to_box_xywh(rle)
        box = np.array([x, y, x + w - 1, y + h - 1])
        _, ious, low_res = predictor.predict(box=box, multimask_output=True)
        mask, iou, _ = predictor.predict(box=box, mask_input=low_res[[ious.argmax()]], multimask_output=False)
        assert (decode_rle(found) == mask[0]).mean() > 0.999
        assert score == pytest.approx(float(iou[0]), abs=1e-4)


def test_boxes_of_a_result_file(sam, tmp_path: Path) -> None:
    results = [{"image_id": 0, "bbox": [2, 3, 10, 20], "score": 0.7}, {"image_id": 9, "bbox": [0, 0, 5, 5], "score": 0.9}]
    detections = read_detections(results, "boxes.json")
    assert detections[0][0].tolist() == [[2, 3, 12, 23]]
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    evaluator = loaded(sam, tmp_path / "boxes.json")
    (row,) = evaluator.rows(record())
    assert len(row["found"]) == 1 and row["scores"] == [0.7] and len(row["objects"]) == 4
    assert evaluator.rows(record(5))[0]["found"] == []
    with pytest.raises(ValueError, match="boxes.json: result 1"):
        read_detections([results[0], {"bbox": [1, 2, 3]}], "boxes.json")

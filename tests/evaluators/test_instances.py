"""Masks from boxes of the objects and of a detector's result file, and AP equal to pycocotools' on the original JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pretend_predictor import disc
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtrain.data.image_set import records
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import Record
from samtrain.evaluators import Instances, Part
from samtrain.evaluators.clicks import read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.detections import read_detections
from samtrain.evaluators.objects import image_row
from samtrain.inference.predictor import SamPredictor
from samtrain.ops.rle import decode_rle, encode_mask, rle_area, rle_to_box_xywh
from tests.evaluators.records import record, record_with, square


def loaded(sam, boxes: Path | None = None, **settings: Any) -> Instances:
    evaluator = Instances(ZeroShotConfig(protocol="instances", boxes=None if boxes is None else str(boxes)), **settings)
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
    assert detections["0"][0].tolist() == [[2, 3, 12, 23]]
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    evaluator = loaded(sam, tmp_path / "boxes.json")
    (row,) = evaluator.rows(record())
    assert len(row["found"]) == 1 and row["scores"] == [0.7] and len(row["objects"]) == 4
    assert evaluator.rows(record(5))[0]["found"] == []
    with pytest.raises(ValueError, match="boxes.json: result 1"):
        read_detections([results[0], {"bbox": [1, 2, 3]}], "boxes.json")
    with pytest.raises(ValueError, match="boxes.json: result 0"):
        read_detections([{**results[0], "score": None}], "boxes.json")


# ---- detections and images are joined by id


def matching(tmp_path: Path, images: list[Record], results: list[dict], monkeypatch: pytest.MonkeyPatch) -> Instances:
    """Returns the evaluator after it has joined the results with the images of a set."""
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    monkeypatch.setattr("samtrain.evaluators.evaluator.records", lambda sources, on_error: iter(images))
    evaluator = Instances(ZeroShotConfig(protocol="instances", boxes=str(tmp_path / "boxes.json")))
    evaluator.check(Part("mine", [], "none"))
    return evaluator


def named(key: str, image_id: Any, category: int | None = 3) -> Record:
    each = {"id": 1, "segmentation": square(0, 0, 4), "category_id": category, "category_name": "cell"}
    about = {"image_id": image_id, "height": 10, "width": 10, "source_name": f"day/{key}.jpg"}
    return Record(key, "png", b"", {"image": about, "annotations": [each]}, "made.tar")


def result(image_id: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "bbox": [0, 0, 4, 4], "score": 0.5, "category_id": 3, **more}


@pytest.mark.parametrize("ids", [["img_1", "img_2"], [7, "8"], ["7", 8.0], ["a", "b"], ["day/a.jpg", "day/b.jpg"]])
def test_results_name_images_in_any_of_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list) -> None:
    own = ids if str(ids[0]).startswith("img") else [7, 8]
    images = [named(key, image_id) for key, image_id in zip("ab", own, strict=True)]
    results = [result(image_id, score=score) for image_id, score in zip(ids, (0.1, 0.2), strict=True)]
    evaluator = matching(tmp_path, images, results, monkeypatch)
    assert [evaluator.detections.of(image).scores.tolist() for image in images] == [[0.1], [0.2]]


def test_a_file_may_write_one_id_in_several_ways() -> None:
    assert read_detections([result(7, score=0.1), result("7", score=0.2), result(7.0)], "boxes.json")["7"].scores.tolist() == [
        0.1, 0.2, 0.5,
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"image_id": [1]}, {"image_id": None}, {"category_id": [3]}, {"category_id": {}}])
def test_an_id_that_is_neither_number_nor_text_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="boxes.json: result 0 .*(image_id|category_id).*zero_shot.boxes"):
        read_detections([result(1) | wrong], "boxes.json")


def test_one_file_names_all_images_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image called 7.jpg does not get the boxes of the image with the id 7."""
    images = [named("7", 21), named("x", 7), named("y", 8)]
    evaluator = matching(tmp_path, images, [result(7), result(8)], monkeypatch)
    assert [len(evaluator.detections.of(image).boxes) for image in images] == [0, 1, 1]


def test_results_of_other_images_or_categories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [named("a", "img_1"), named("b", "img_2")]
    with pytest.raises(ValueError, match="none of its 2 images is in the set mine: its image_id are 1, 2.*img_1, img_2"):
        matching(tmp_path, images, [result(1), result(2)], monkeypatch)
    with pytest.raises(ValueError, match=r"none of its category_id \(1\) is in the set mine, which has 3 \(cell\)"):
        matching(tmp_path, images, [result("img_1", category_id=1)], monkeypatch)
    with pytest.raises(ValueError, match="zero_shot.boxes is .*boxes.json, which holds no results"):
        matching(tmp_path, images, [], monkeypatch)


def test_results_that_do_not_fit_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    results = [result(1), result(1, category_id=5), result(9)]
    matching(tmp_path, [named("a", 1), named("b", 2)], results, monkeypatch)
    text = caplog.text
    assert "detections of 1 images that the set mine does not hold: 9" in text
    assert "1 of the 2 images of the set mine have no detection" in text and "1 of 2 detections" in text
    caplog.clear()
    matching(tmp_path, [named("a", 1)], [result(1, category_id=None)], monkeypatch)
    assert "over one class, because not every detection has a category_id" in caplog.text


@pytest.mark.parametrize(("own", "given"), [(1, "1"), ("1", 1), (1, 1.0)])
def test_categories_are_matched_whatever_their_type(own: Any, given: Any) -> None:
    """A perfect mask of category 1 has AP 1, also if the detections call it "1"."""
    row = image_row(named("a", 7, category=own), [square(0, 0, 4)], [0.9], [given])
    assert Instances(ZeroShotConfig(protocol="instances")).summary([row])["mask_ap"] == pytest.approx(1)


# ---- AP of a prepared JSON


SIZE = (120, 160)


def coco_json(rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a JSON with crowds, images without objects, several categories and doubled masks; and results with masks."""
    categories = [{"id": number, "name": f"kind {number}"} for number in (2, 5, 9, 11)]  # there is no object of the last one
    images = [{"id": 3 * n + 1, "file_name": f"{n:02d}.png", "width": SIZE[1], "height": SIZE[0]} for n in range(14)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for n, image in enumerate(images):
        discs = [disc(*SIZE, *rng.uniform((10, 10), (110, 150)), rng.uniform(4, 60)) for _ in range(6)]
        for k, mask in enumerate(discs):
            category = int(rng.choice([2, 5, 9]))
            moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            score = round(float(rng.random()), 1)  # some scores are equal
            each = {"image_id": image["id"], "category_id": category}
            results.append({**each, "segmentation": encode_mask(moved), "score": score})
            if n % 5 != 2:  # the others have no object
                each["segmentation"] = encode_mask(mask)
                # areas as drawn, which a rounded mask does not meet exactly; one in six is a crowd
                annotations.append({**each, "area": float(mask.sum()) * 1.02, "iscrowd": int(k == 5)})
        if n % 5 == 0:  # the same mask in another category, the same mask twice, and a mask without pixels
            annotations += [{**annotations[-2], "category_id": 2}, dict(annotations[-3])]
            annotations.append({**annotations[-4], "segmentation": encode_mask(np.zeros(SIZE, bool)), "area": 3.0})
    for number, each in enumerate(annotations, start=1):
        each |= {"id": number, "bbox": rle_to_box_xywh(each["segmentation"])}
    return {"images": images, "annotations": annotations, "categories": categories}, results


def prepared_rows(tmp_path: Path, content: dict[str, Any], results: list[dict[str, Any]], **config: Any) -> list[dict]:
    """Prepares the JSON, and returns the rows of its images as if the model had made the masks of the results."""
    (tmp_path / "images").mkdir(exist_ok=True)
    for image in content["images"]:
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / image["file_name"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = {"root": str(tmp_path / "images"), "annotations": str(tmp_path / "a.json"), "empty_images": True}
    folder = prepare(tmp_path / "out", PrepareConfig(**settings, **config, val=0.0, test=0.4, max_count=4))
    rows = []
    for image in records(sorted(map(str, folder.glob("*/*.tar")))):
        own = [each for each in results if each["image_id"] == image.annotation["image"]["image_id"]]
        masks, scores, categories = ([each[name] for each in own] for name in ("segmentation", "score", "category_id"))
        rows.append(json.loads(json.dumps(image_row(image, masks, scores, categories))))
    return rows


def official(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return evaluation.stats.tolist()


NAMES = ["mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large"]
NAMES += ["mask_ar_1", "mask_ar_10", "mask_ar_100", "mask_ar_100_small", "mask_ar_100_medium", "mask_ar_100_large"]


@pytest.mark.parametrize("seed", [0, 1])
def test_ap_equals_pycocotools_on_the_original_json(tmp_path: Path, seed: int) -> None:
    content, results = coco_json(np.random.default_rng(seed))
    rows = prepared_rows(tmp_path, content, results)
    assert len(rows) == 14 and any(not row["objects"] for row in rows) and any(any(row["crowd"]) for row in rows)
    found = Instances().summary(rows)
    assert [found[name] for name in NAMES] == pytest.approx(official(content, results), abs=1e-12)
    assert found["categories"] == 3


def test_ap_of_named_categories_equals_pycocotools_on_these(tmp_path: Path) -> None:
    content, results = coco_json(np.random.default_rng(2))
    rows = prepared_rows(tmp_path, content, results, categories=["kind 5"])
    of_5 = [each for each in content["annotations"] if each["category_id"] == 5]
    want = official({**content, "annotations": of_5, "categories": [{"id": 5, "name": "kind 5"}]}, results)
    assert [Instances().summary(rows).get(name, -1) for name in NAMES] == pytest.approx(want, abs=1e-12)  # -1: no such object


def test_images_that_were_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, results = coco_json(np.random.default_rng(3))
    prepared_rows(tmp_path, content, results)
    config = PrepareConfig(root=str(tmp_path / "images"), annotations=str(tmp_path / "a.json"), val=0.0, test=0.4)
    (tmp_path / "boxes.json").write_text(json.dumps([{**each, "bbox": [0, 0, 9, 9]} for each in results]))
    evaluator = Instances(ZeroShotConfig(protocol="instances", boxes=str(tmp_path / "boxes.json")))
    for root, left_out in ((tmp_path / "out", False), (tmp_path / "without", True)):
        folder = prepare(root, replace(config, empty_images=not left_out))
        caplog.clear()
        evaluator.check(Part("mine", sorted(map(str, folder.glob("*/*.tar"))), "none"))
        assert ("3 images without objects" in caplog.text) == left_out


def test_size_limits_are_honoured(tmp_path: Path) -> None:
    rows = [image_row(record_with({"id": 1, "segmentation": square(0, 0, 4)}), [square(0, 0, 4)], [0.9])]
    assert "mask_ap_small" in Instances().summary(rows) and "mask_ap_large" not in Instances().summary(rows)
    assert "mask_ap_large" in Instances(size_limits=(4, 9)).summary(rows)


def test_masks_without_categories_are_of_one_class() -> None:
    """With categories the mask of another category is wrong; without them it is right."""
    each = {"id": 1, "segmentation": square(0, 0, 4), "category_id": 2}
    arguments = [record_with(each), [square(0, 0, 4)], [0.9]]
    assert Instances().summary([image_row(*arguments, [2])])["mask_ap"] == pytest.approx(1)
    assert Instances().summary([image_row(*arguments, [3])])["mask_ap"] == 0
    assert Instances().summary([image_row(*arguments)])["mask_ap"] == pytest.approx(1)


def test_masks_of_object_boxes_have_the_categories_of_the_objects(sam) -> None:
    shown = record()
    for n, each in enumerate(shown.annotation["annotations"]):
        each["category_id"] = 10 + n
    shown.annotation["annotations"][1]["segmentation"] = encode_mask(np.zeros(read_image(shown).shape[:2], bool))
    (row,) = loaded(sam).rows(shown)
    assert row["found_categories"] == [10, 12, 13] and rle_area(row["found"][0]) >= 0

"""Rows of objects, LVIS' recall by frequency, groups, and what a run's checkpoints had gone into them: answers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samtrain.data.shards import Record
from samtrain.evaluators.fairness import read_groups, summarise_groups
from samtrain.evaluators.learning_curve import milestones
from samtrain.evaluators.objects import image_row, object_rows, recall_by_frequency, scored
from samtrain.metrics.masks import mask_metrics
from samtrain.ops.rle import encode_mask

SIZE = (10, 10)


def square(top: int, left: int, side: int) -> dict:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return encode_mask(mask)


def record(*annotations: dict) -> Record:
    image = {"image_id": 7, "height": SIZE[0], "width": SIZE[1]}
    return Record("image", "png", b"", {"image": image, "annotations": list(annotations)}, "image of a test")


# a frequent object that is found, a rare one that is not, and one whose category nobody counted
OBJECTS = [
    {"id": 1, "segmentation": square(0, 0, 4), "frequency": "f"},
    {"id": 2, "segmentation": square(6, 6, 4), "frequency": "r"},
    {"id": 3, "segmentation": square(0, 6, 4)},
]


def test_a_row_an_object_has_its_best_mask() -> None:
    wide = np.zeros(SIZE, dtype=bool)
    wide[0:4, 0:8] = True  # covers all 16 pixels of object 1 and 8 of object 3, 32 in all: IoU 16/32 and 8/40
    row = image_row(record(*OBJECTS), [encode_mask(wide), square(0, 0, 4)], [0.9, 0.4])
    one, two, three = object_rows(row)
    assert (one["iou"], one["score"], one["rank"], one["area"], one["id"]) == (1.0, 0.4, 2, 16, 1)
    assert (two["iou"], three["iou"], three["rank"]) == (0.0, pytest.approx(8 / 40), 1)
    assert [each["frequency"] for each in (one, two, three)] == ["f", "r", None]
    json.dumps(row)


def test_no_mask_and_no_object() -> None:
    alone = object_rows(image_row(record(OBJECTS[0]), [], []))
    assert (alone[0]["iou"], alone[0]["score"], alone[0]["rank"]) == (0.0, None, None)
    assert object_rows(image_row(record(), [square(0, 0, 4)], [1.0])) == []
    with pytest.raises(ValueError, match="image|size"):
        image_row(record({"segmentation": {"size": [9, 9], "counts": [81]}}), [], [])


def test_recall_by_frequency_counts_each_kind_alone() -> None:
    rows = [image_row(record(*OBJECTS), [square(0, 0, 4), square(0, 6, 4)], [0.9, 0.8])]
    found = recall_by_frequency(rows, 1000)
    assert found == {"mask_ar_1000_frequent": 1.0, "mask_ar_1000_rare": 0.0}  # of "common" there is none
    assert mask_metrics(scored(rows))["mask_ar_1000"] == pytest.approx(2 / 3)
    assert recall_by_frequency([image_row(record(OBJECTS[2]), [], [])], 1000) == {}


# ---- groups


def row(key: str, group: str | None, one: float, three: float) -> dict:
    return {"key": key, "object": 0, "group": group, "iou_1": one, "iou_3": three}


def test_means_and_gaps_of_groups() -> None:
    rows = [row("a", "x", 0.2, 0.8), row("b", "x", 0.4, 0.9), row("a", "y", 0.9, 0.9), row("b", None, 0.0, 0.0)]
    found = summarise_groups(rows)
    assert found["x/miou_1"] == pytest.approx(0.3) and found["x/miou_3"] == pytest.approx(0.85)
    assert (found["x/objects"], found["y/objects"], found["ungrouped"]) == (2, 1, 1)
    assert found["gap_1"] == pytest.approx(0.6) and found["gap_3"] == pytest.approx(0.05)
    # two images, drawn twice with replacement: means are 0.2, 0.3 or 0.4, and the ends those of a quarter each
    assert (found["x/miou_1_low"], found["x/miou_1_high"]) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found["y/miou_1_low"] == found["y/miou_1_high"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="zero_shot.group_by"):
        summarise_groups([row("a", None, 0.1, 0.1)])


def test_groups_are_fields_or_columns(tmp_path: Path) -> None:
    annotation = {"id": 2, "site": "north/west", "empty": " "}
    one = record(annotation)
    assert read_groups("site", None)(one, annotation) == "north west"  # a slash parts names of metrics
    assert read_groups("empty", None)(one, annotation) is None
    assert read_groups("nothing", None)(one, annotation) is None
    table = tmp_path / "groups.csv"
    table.write_text("key,id,site\nimage,2,north\nother,2,south\n")
    assert read_groups("site", table)(one, annotation) == "north"
    assert read_groups("site", table)(one, {"id": 5}) is None
    table.write_text("key,id,site\nimage,2,north\nimage,2,south\n")
    with pytest.raises(ValueError, match="object 2 of image twice"):
        read_groups("site", table)


# ---- learning curves


def checkpoint(path: Path, masks: int, images: int, step: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"masks_seen": masks, "images_seen": images, "global_step": step}, path)
    return str(path)


def line(number: int, name: str, masks: int, automatic: int, seconds: float | None, fit: float, total: int) -> dict:
    return {
        "round": number, "checkpoint": name, "masks": masks, "masks_automatic": automatic, "masks_total": total,
        "seconds_per_mask": seconds, "wall": {"fit": fit} if fit else {"probe": 5.0},
    }  # fmt: skip


def test_what_had_gone_into_the_rounds(tmp_path: Path) -> None:
    names = ["pretrain/best.ckpt", "rounds/1/best.ckpt", "rounds/2/best.ckpt"]
    for name, masks, images in zip(names, (100, 40, 60), (10, 20, 40), strict=True):
        checkpoint(tmp_path / name, 1, 1, 1)  # of an earlier validation: what was trained on stands in the last one
        checkpoint(tmp_path / name.replace("best", "last"), masks, images, 9)
    (tmp_path / "pretrain" / "fit.json").write_text(json.dumps({"result": {}, "wall": 360.0}))
    lines = [
        line(0, names[0], 0, 0, None, 0, 0), line(1, names[1], 30, 0, 20.0, 1800.0, 30),
        line(2, names[2], 50, 10, 15.0, 3600.0, 80),
    ]  # fmt: skip
    (tmp_path / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {devices: 2, num_nodes: 1}")
    found = milestones(tmp_path)
    assert [each.name for each in found] == ["first model", "round 1", "round 2"]
    assert [each.masks for each in found] == [0, 30, 80]
    assert [each.masks_seen for each in found] == [100, 140, 200]
    assert [each.annotator_seconds for each in found] == [0, 600, 600 + 40 * 15]
    assert [each.device_hours for each in found] == pytest.approx([0.2, 1.2, 3.2])
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match="rounds/1/best.ckpt is gone"):
        milestones(tmp_path)


def test_the_best_and_the_last_of_one_training(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints" / "best.ckpt", 30, 6, 3)
    checkpoint(tmp_path / "checkpoints" / "last.ckpt", 40, 8, 4)
    (tmp_path / "metrics.json").write_text(json.dumps({"time/seconds": 7200.0}))
    best, last = milestones(tmp_path)
    assert (best.name, best.masks_seen, last.masks_seen, last.images_seen) == ("best", 30, 40, 8)
    assert best.device_hours == 1.5 and last.device_hours == 2.0 and last.annotator_seconds is None
    with pytest.raises(ValueError, match="neither ledger.jsonl nor checkpoints"):
        milestones(tmp_path / "checkpoints")
    (tmp_path / "metrics.json").unlink()
    assert milestones(tmp_path)[0].device_hours is None

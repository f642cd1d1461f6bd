"""Shares that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samtrain.data.shards import Record
from samtrain.data_engine.automatic.audit import Pair, pairs_with_corrections, pairs_with_truth, sample, summary
from samtrain.data_engine.brush import Brush
from samtrain.ops.rle import decode_rle, encode_mask

SIZE = (40, 50)


def rectangle(height: int, width: int = 20, left: int = 0) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:height, left : left + width] = True
    return mask


def record(key: str, masks: list[np.ndarray]) -> Record:
    annotations = [{"id": i, "segmentation": encode_mask(mask)} for i, mask in enumerate(masks)]
    return Record(key, "jpg", b"", {"image": {"width": 50, "height": 40}, "annotations": annotations}, "a.tar")


def test_pairs_by_id(tmp_path: Path) -> None:
    """20 of 20, 19 of 20, 15 of 20 and 8 of 20 rows: IoU 1, 0.95, 0.75 and 0.4."""
    one = record("sa_1", [rectangle(20), rectangle(19), rectangle(15)])
    two = record("sa_2", [rectangle(8), rectangle(20)])
    corrected = [{"id": i, "segmentation": encode_mask(rectangle(20))} for i in range(3)]
    (tmp_path / "sa_1.json").write_text(json.dumps({"annotations": corrected}))
    polygon = {"id": 0, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
    (tmp_path / "sa_2.json").write_text(json.dumps([polygon]))
    pairs, missing = pairs_with_corrections([one, two, record("sa_3", [rectangle(3)])], tmp_path)
    assert [(p.image, p.id, round(p.iou, 4)) for p in pairs] == [
        ("sa_1", 0, 1.0), ("sa_1", 1, 0.95), ("sa_1", 2, 0.75), ("sa_2", 0, 0.4)
    ]  # fmt: skip
    assert missing == {"images without a file": 1, "masks without a correction": 1}
    found = summary(pairs, seed=0)
    assert found["share_above_90"] == 0.5 and found["share_above_75"] == 0.5  # 0.75 is not above 0.75
    assert found["images"] == 2 and found["mean_iou"] == pytest.approx(0.775)
    assert sum(found["distribution"]) == 4 and sum(found["distribution"][-2:]) == 2 and found["distribution"][8] == 1


def test_intervals_are_those_of_images() -> None:
    """Ten alike masks in each of 50 images say no more than one would."""
    rng = np.random.default_rng(0)
    good = rng.random(50) < 0.8
    many = summary([Pair(str(p), i, 0.95 if good[p] else 0.5) for p in range(50) for i in range(10)], seed=1)
    one = summary([Pair(str(p), 0, 0.95 if good[p] else 0.5) for p in range(50)], seed=1)
    assert many["share_above_90"] == one["share_above_90"] == good.mean()
    for end in ("low", "high"):
        assert many[f"share_above_90_{end}"] == pytest.approx(one[f"share_above_90_{end}"])
    normal = 1.96 * np.sqrt(good.mean() * (1 - good.mean()) / 50)
    assert one["share_above_90_high"] - one["share_above_90_low"] == pytest.approx(2 * normal, rel=0.25)


def test_the_simulated_annotator_paints_towards_the_object() -> None:
    truth = {"photo": [encode_mask(rectangle(30, 30)), encode_mask(rectangle(10, 10, left=40))]}
    masks = [rectangle(30, 30), rectangle(24, 30), rectangle(40, 5, left=32)]  # whole, 80 % of it, no object
    shown = record("sa_1", masks)
    shown.annotation["image"]["source_name"] = "photo.jpg"
    pairs, missing = pairs_with_truth([shown], truth, target_iou=0.97, min_iou=0.5, brush=Brush(), seed=0)
    assert missing == {"masks that show no object": 1}
    assert pairs[0].iou == 1.0
    assert pairs[1].iou == pytest.approx(0.8, abs=0.03)  # with what is within 3 % of the object
    again, _ = pairs_with_truth([shown], truth, target_iou=0.97, min_iou=0.5, brush=Brush(), seed=0)
    assert again == pairs


def test_images_are_drawn_once_each() -> None:
    records = [record(f"sa_{i}", []) for i in range(20)]
    chosen = sample(records, 7, seed=0)
    assert len({r.key for r in chosen}) == 7 and sample(records, 7, seed=0) == chosen != sample(records, 7, seed=1)
    assert sample(records, 50, seed=0) == records


OTHER_SIZE = json.dumps([{"id": 0, "segmentation": encode_mask(np.ones((3, 3), bool))}])


@pytest.mark.parametrize(("text", "said"), [("x", "cannot be parsed as JSON"), ("{}", "no list"), (OTHER_SIZE, "annotation 0")])
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sa_1.json").write_text(text)
    with pytest.raises(ValueError, match=said) as raised:
        pairs_with_corrections([record("sa_1", [rectangle(3)])], tmp_path)
    assert "sa_1.json" in str(raised.value)


def test_no_pair_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="audit.corrected"):
        pairs_with_corrections([record("sa_1", [rectangle(3)])], tmp_path)
    with pytest.raises(ValueError, match="audit.truth"):
        pairs_with_truth([record("sa_1", [rectangle(3)])], {}, target_iou=0.9, min_iou=0.5, brush=Brush(), seed=0)


def test_ids_may_be_text() -> None:
    """The strokes of a mask are drawn by its id, whatever its type is."""
    text = record("sa_1", [rectangle(20)])
    text.annotation["annotations"][0]["id"] = "cell-7"
    pairs, _ = pairs_with_truth(
        [text], {"sa_1": [encode_mask(rectangle(22))]}, target_iou=0.95, min_iou=0.5, brush=Brush(), seed=0
    )
    assert [pair.id for pair in pairs] == ["cell-7"]


def test_masks_are_what_they_were() -> None:
    assert (decode_rle(encode_mask(rectangle(7))) == rectangle(7)).all()

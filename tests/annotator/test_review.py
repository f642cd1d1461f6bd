"""Review: the most doubtful masks first, and corrections as the audit reads them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samtrain.annotator.store import NewMask, Store, open_store
from samtrain.annotator.transfer import disagreements, export_corrections, import_shards, order_by_doubt
from samtrain.annotator.transfer.review import doubt
from samtrain.data.image_set import records
from samtrain.data.shards import ShardWriter
from samtrain.data_engine.automatic.audit import pairs_with_corrections
from samtrain.ops.rle import encode_mask

SIZE = (12, 16)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture
def shards(tmp_path: Path, making) -> list[str]:
    """Two images; the masks of the second are worse by what their model says."""
    with ShardWriter(tmp_path / "shards", "set") as writer:
        for number, ious in enumerate(([0.95, 0.9, 0.92], [0.9, 0.5])):
            boxes = [box(0, 0, 4, 4), box(6, 0, 10, 10), box(12, 6, 16, 12)][: len(ious)]
            annotation = making.annotate(boxes, SIZE)
            for each, iou in zip(annotation["annotations"], ious, strict=True):
                each |= {"id": 100 * number + each["id"], "predicted_iou": iou, "stability_score": 0.97}
            writer.write(f"sa_{number}", making.encode_png(np.zeros((*SIZE, 3), np.uint8)), "png", annotation)
    return [str(path) for path in writer.paths]


@pytest.fixture
def store(tmp_path: Path, shards: list[str]) -> Store:
    with open_store(str(tmp_path / "a.db")) as store:
        import_shards(store, shards)
        yield store


def test_what_speaks_least_for_a_mask_decides_its_doubt() -> None:
    def mask(iou, stability) -> SimpleNamespace:
        return SimpleNamespace(predicted_iou=iou, stability_score=stability)

    assert doubt(mask(0.9, 0.7)) == pytest.approx(0.3) == doubt(mask(0.7, 0.9))
    assert doubt(mask(0.9, 0.9), 0.6) == pytest.approx(0.6)
    assert doubt(mask(None, None)) == 1 and doubt(mask(1.2, 1.0)) == 0


def test_doubtful_images_and_masks_come_first(store: Store) -> None:
    order_by_doubt(store)
    assert [row.name for row in store.images()] == ["sa_1", "sa_0"]
    first = store.masks(store.images()[0].id)
    assert [mask.doubt for mask in first] == pytest.approx([0.1, 0.5])
    lease = store.lease_next("ann", 60)
    assert lease is not None and lease.image_id == first[0].image_id
    drawn = store.accept(lease.image_id, "ann", NewMask(segmentation=encode_mask(box(0, 8, 3, 12))))
    order_by_doubt(store)
    assert store.mask(drawn.id).doubt is None, "what a person drew is not in doubt"
    # what the new model would draw otherwise counts more than what the old one said
    other = store.masks(store.image_of("sa_0").id)
    order_by_doubt(store, {mask.id: 0.9 for mask in other})
    assert [row.name for row in store.images()] == ["sa_0", "sa_1"]


def test_disagreement_is_that_with_the_models_best_mask(store: Store) -> None:
    masks = store.masks(store.image_of("sa_0").id)

    class Predictor:
        def set_image(self, image: np.ndarray) -> None:
            assert image.shape == (*SIZE, 3)

        def predict(self, box: np.ndarray, multimask_output: bool):
            x0, y0, x1, y1 = (int(value) for value in box)
            drawn = np.zeros((3, *SIZE), dtype=bool)
            drawn[1, y0:y1, x0 : (x0 + x1) // 2] = True  # half of the box
            return drawn, np.zeros(3), None

    found = disagreements(Predictor(), np.zeros((*SIZE, 3), np.uint8), masks)
    assert found == {mask.id: pytest.approx(0.5) for mask in masks}
    assert disagreements(Predictor(), np.zeros((*SIZE, 3), np.uint8), []) == {}


def test_the_audit_reads_what_people_corrected(store: Store, shards: list[str], tmp_path: Path) -> None:
    first, second = store.image_of("sa_0"), store.image_of("sa_1")
    a, b, c = store.masks(first.id)
    store.change(a.id, "ann", {"segmentation": encode_mask(box(0, 0, 4, 3)), "seconds": 2.0})  # repainted
    refined = store.accept(first.id, "ann", NewMask(segmentation=encode_mask(box(6, 0, 10, 8)), parent=b.id, origin="refined"))
    again = store.accept(first.id, "ann", NewMask(segmentation=encode_mask(box(6, 0, 10, 5)), parent=refined.id))
    store.reject(c.id, "ann")
    added = store.accept(first.id, "ann", NewMask(segmentation=encode_mask(box(11, 0, 12, 2))))
    store.finish(first.id, "ann")
    d, e = store.masks(second.id)
    store.reject(e.id, "ann")  # and the image is left open
    counts = export_corrections(store, tmp_path / "corrected")
    assert counts == {"images": 2, "accepted": 0, "corrected": 2, "rejected": 2, "added": 1}
    content = json.loads((tmp_path / "corrected" / "sa_0.json").read_text())
    assert [each["id"] for each in content["added"]] == [added.id] and content["rejected"] == [c.object_id]
    assert json.loads((tmp_path / "corrected" / "sa_1.json").read_text())["annotations"] == [], "nobody looked at the other"

    pairs, missing = pairs_with_corrections(list(records(shards)), tmp_path / "corrected")
    assert {(pair.id, round(pair.iou, 6)) for pair in pairs} == {(a.object_id, 0.75), (b.object_id, 0.5)}
    assert missing["masks without a correction"] == 3
    original = tmp_path / "originals" / "sa_0.json"
    original.parent.mkdir()
    original.write_text("{}")
    with pytest.raises(ValueError, match="was not written by an export"):
        export_corrections(store, tmp_path / "originals")
    assert original.read_text() == "{}"
    # a mask that was looked at and found right is accepted, and one that the page has corrected in its place is corrected
    store.reopen(first.id, "ann")
    store.change(a.id, "ann", {"state": "accepted"})
    before = export_corrections(store, tmp_path / "corrected")
    store.change(d.id, "ann", {"state": "accepted"})
    assert export_corrections(store, tmp_path / "corrected") == before | {"accepted": 1}
    page = {"segmentation": encode_mask(box(0, 0, 3, 3)), "origin": "refined", "seconds": 1.5, "story": [{"kind": "point"}]}
    store.change(d.id, "ann", page)
    assert export_corrections(store, tmp_path / "corrected") == before | {"corrected": before["corrected"] + 1}
    content = json.loads((tmp_path / "corrected" / "sa_1.json").read_text())
    assert [each["id"] for each in content["annotations"]] == [d.object_id] and content["added"] == []
    store.change(d.id, "ann", {"segmentation": d.segmentation, "seconds": 0.0, "origin": "imported"})
    store.finish(first.id, "ann")
    # when the second image is done, the mask that was left as it is counts as accepted
    store.finish(second.id, "ann")
    assert export_corrections(store, tmp_path / "corrected")["accepted"] == 1
    pairs, _ = pairs_with_corrections(list(records(shards)), tmp_path / "corrected")
    assert (d.object_id, 1.0) in {(pair.id, pair.iou) for pair in pairs} and again.state == "accepted"


def test_an_image_that_nobody_touched_has_no_correction(store: Store, tmp_path: Path) -> None:
    assert export_corrections(store, tmp_path / "corrected")["images"] == 0
    assert not (tmp_path / "corrected").exists() or not list((tmp_path / "corrected").iterdir())

"""The store: images, masks, drafts, people and rounds, the same in SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from store_objects import image, square

from samtrain.annotator.store import Conflict, Model, NewMask, NotFound, Store, Work
from samtrain.ops.rle import encode_mask


def test_a_mask_comes_back_as_it_was_accepted(store: Store) -> None:
    (added,) = store.add_images([image()])
    new = square(
        1, 2, point_coords=[[3.5, 2.0]], point_labels=[1], box=[0, 0, 4, 4], strokes=[{"size": 3, "points": [[1, 1]]}],
        seconds=3.25, predicted_iou=0.9, stability_score=0.8, model="abc", label="cell", story=[{"at": 0.1}], request="r1",
    )  # fmt: skip
    row = store.accept(added.id, "ann", new)
    assert row.area == 9 and row.bbox == [2, 1, 3, 3] and row.annotator == "ann" and row.revision == 0
    for field in dataclasses.fields(NewMask):
        assert getattr(row, field.name) == getattr(new, field.name), field.name
    assert store.masks(added.id) == [row] == [store.mask(row.id)]
    assert store.image(added.id).masks == 1


def test_images_are_added_once(store: Store) -> None:
    first = store.add_images([image("a", rank=2.0), image("b", rank=1.0)])
    assert store.add_images([image("b"), image("a"), image("c")])[:2] == [first[1], first[0]]
    assert [each.key for each in store.images()] == ["c", "b", "a"]
    assert [each.key for each in store.images(limit=1, offset=1)] == ["b"]
    assert store.image_of("a") == first[0]
    with pytest.raises(ValueError, match="image a was added before with 8 x 6 pixels"):
        store.add_images([image("d"), image("a", width=9)])
    assert store.count_images() == 3, "an image of a refused call was added"


def test_a_repeated_save_is_one_mask(store: Store) -> None:
    (added,) = store.add_images([image()])
    first = store.accept(added.id, "ann", square(request="r1"))
    assert store.accept(added.id, "ann", square(1, request="r1")) == first
    assert store.saved(added.id, "ann", "r1") == first and store.saved(added.id, "ann", "r2") is None
    assert store.accept(added.id, "ann", square(request="r2")).id != first.id
    with pytest.raises(Conflict, match="made by ann"):
        store.accept(added.id, "bob", square(request="r1"))
    assert len(store.masks(added.id)) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"segmentation": encode_mask(np.zeros((6, 8), dtype=bool))}, "empty"),
        ({"segmentation": encode_mask(np.ones((8, 6), dtype=bool))}, r"size \(8, 6\), but the image has \(6, 8\)"),
        ({"segmentation": {"size": [6, 8], "counts": "1"}}, "runs sum to"),
        ({"segmentation": {"size": [6, 8], "counts": "\x00é"}}, "outside COCO's code"),
        ({"segmentation": {"size": [6, 8]}}, "'size' and 'counts'"),
        ({"segmentation": None}, "an RLE is a mapping"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"predicted_iou": float("inf")}, "predicted_iou"),
        ({"point_coords": [[1.0, 2.0]], "point_labels": []}, "points"),
        ({"point_coords": [[1.0, float("nan")]], "point_labels": [1]}, "points"),
        ({"point_coords": [[1.0, 2.0]], "point_labels": [2]}, "labels"),
        ({"box": [1, 2, 3]}, "box"),
        ({"label": "x" * 501}, "label"),
        ({"label": "a\0b"}, "label"),
        ({"label": "\ud800"}, "label"),
        ({"label": 3}, "label"),
        ({"request": "a\0b"}, "request"),
        ({"request": ""}, "request"),
        ({"story": [float("nan")]}, "story cannot be written as JSON"),
        ({"strokes": [object()]}, "strokes cannot be written as JSON"),
    ],
)
def test_a_wrong_mask_is_refused(store: Store, fields: dict[str, Any], words: str) -> None:
    (added,) = store.add_images([image()])
    with pytest.raises(ValueError, match=words):
        store.accept(added.id, "ann", square(**fields))
    assert store.masks(added.id) == []


def test_names_that_a_database_cannot_hold_are_refused() -> None:
    for name in ("a\0b", "\udce9.png"):
        with pytest.raises(ValueError, match="is not UTF-8, or has a zero byte: rename the file"):
            image(name)


def test_any_text_of_a_draft_comes_back(store: Store) -> None:
    (added,) = store.add_images([image()])
    content = {"text": "é\0\u2028 \ud800 😀", "numbers": [1e300, -0.5, 2**53]}
    assert store.save_draft(added.id, "ann", content, 1).content == content
    found = store.draft(added.id, "ann")
    assert found is not None and found.content == content
    with pytest.raises(ValueError, match="the draft cannot be written as JSON"):
        store.save_draft(added.id, "ann", float("inf"), 2)


def test_uncompressed_runs_are_stored_as_text(store: Store) -> None:
    (added,) = store.add_images([image()])
    row = store.accept(added.id, "ann", square(segmentation={"size": [6, 8], "counts": [0, 3, 3, 3, 3, 3, 33]}))
    assert row.segmentation == square().segmentation


def test_a_change_is_undone_by_restore(store: Store) -> None:
    (added,) = store.add_images([image()])
    row = store.accept(added.id, "ann", square())
    assert store.delete(row.id, "ann").state == "deleted" and store.masks(added.id) == []
    back = store.restore(row.id, "ann")
    assert back.state == "accepted" and back.revision == 2
    changed = store.change(row.id, "ann", {"segmentation": square(side=2).segmentation, "seconds": 4.0, "label": "x"})
    assert (changed.area, changed.seconds, changed.label, changed.revision) == (4, 4.0, "x", 3)
    with pytest.raises(Conflict, match="changed since you loaded it") as error:
        store.change(row.id, "ann", {"label": "y"}, revision=2)
    assert error.value.reason == "revision"
    with pytest.raises(ValueError, match="no changeable area"):
        store.change(row.id, "ann", {"area": 3})
    with pytest.raises(ValueError, match="state"):
        store.change(row.id, "ann", {"state": "lost"})
    assert store.mask(row.id) == changed


def test_a_refined_mask_replaces_its_parent(store: Store) -> None:
    a, b = store.add_images([image(), image("b")])
    old = store.accept(a.id, "ann", square())
    new = store.accept(a.id, "ann", square(side=2, parent=old.id, origin="refined"))
    assert store.masks(a.id) == [new] and store.mask(old.id).state == "deleted"
    with pytest.raises(NotFound, match=f"no mask {old.id} of image {b.id}"):
        store.accept(b.id, "ann", square(parent=old.id))


def test_a_locked_mask_is_only_rejected(store: Store) -> None:
    (added,) = store.add_images([image()])
    new = square(locked=True, origin="prefilled", source="automatic", request="p")
    (row,) = store.add_masks(added.id, "detector", [new])
    assert store.add_masks(added.id, "detector", [new]) == [row], "a resumed engine adds nothing"
    for changes in ({"segmentation": square(1).segmentation}, {"state": "deleted"}):
        with pytest.raises(Conflict, match="locked"):
            store.change(row.id, "ann", changes)
    with pytest.raises(Conflict, match="locked"):
        store.accept(added.id, "ann", square(parent=row.id))
    assert store.reject(row.id, "ann").state == "rejected"
    assert store.restore(row.id, "ann").state == "accepted"


def test_a_draft_is_never_overwritten_by_an_earlier_one(store: Store) -> None:
    (added,) = store.add_images([image()])
    assert store.draft(added.id, "ann") is None
    store.save_draft(added.id, "ann", {"clicks": 2}, 2)
    assert store.save_draft(added.id, "ann", {"clicks": 1}, 1).content == {"clicks": 2}
    assert store.save_draft(added.id, "ann", {"clicks": 3}, 3).seq == 3
    assert store.draft(added.id, "bob") is None
    store.drop_draft(added.id, "ann", seq=2)
    assert store.draft(added.id, "ann") is not None
    store.drop_draft(added.id, "ann")
    assert store.draft(added.id, "ann") is None


def test_tokens_name_annotators_and_are_not_stored(store: Store, store_url: str) -> None:
    token, other = store.add_annotator("Ann"), store.add_annotator("Bob")
    assert store.annotator_of(token) == "Ann" and store.annotator_of(other) == "Bob"
    assert len(token) >= 43
    for wrong in ("", token[:-1], token + "x", "é\ud800"):
        assert store.annotator_of(wrong) is None
    new = store.add_annotator("Ann")
    assert store.annotator_of(token) is None and store.annotator_of(new) == "Ann"
    assert store.annotators() == ["Ann", "Bob"]
    for wrong in ("", "a/b", "../x", "a\nb", "x" * 65, "<b>", " a"):
        with pytest.raises(ValueError, match="cannot be an annotator's name"):
            store.add_annotator(wrong)


def test_model_and_work_are_read_back(store: Store) -> None:
    assert store.model() is None and store.work() is None and store.value("x") is None
    for model in (Model("/a.pt", "d1", "a", {"val/miou_1": 0.5}), Model("/b.pt", "d2")):
        store.set_model(model)
        assert store.model() == model
    work = Work("annotate", 1, 1, "Round 1", {"images": 3}, {"images": 0}, {"labels": True})
    store.set_work(work)
    assert store.work() == work
    store.set_value("x", [1, None])
    assert store.value("x") == [1, None]


def test_a_closed_round_changes_no_more(store: Store) -> None:
    a, b = store.add_images([image(round=1), image("b", round=1)])
    store.set_model(Model("/a.pt", "d1"))
    opened = store.open_round(1, 1, {"images": 2})
    assert store.open_round(1, 1) == opened and opened.model is not None and opened.model["digest"] == "d1"
    row = store.accept(a.id, "ann", square())
    assert row.round == 1
    store.finish(a.id, "ann")
    lease = store.lease(b.id, "bob", 60)
    assert store.close_round(1).state == "closed"
    assert store.close_round(1) == store.rounds()[0]
    for late in (
        lambda: store.accept(a.id, "ann", square()),
        lambda: store.accept(b.id, "bob", square(), lease.token),
        lambda: store.delete(row.id, "ann"),
        lambda: store.reopen(a.id),
        lambda: store.lease(b.id, "bob", 60),
        lambda: store.heartbeat(b.id, "bob", lease.token, 60),
    ):
        with pytest.raises(Conflict):
            late()
    assert store.lease_next("bob", 60) is None
    assert [each.state for each in store.images()] == ["done", "closed"]
    assert store.masks(a.id) == [row]
    with pytest.raises(Conflict, match="does not open again"):
        store.open_round(1, 1)


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for call in (
        lambda: store.image(1),
        lambda: store.image_of("x"),
        lambda: store.lease(1, "ann", 60),
        lambda: store.accept(1, "ann", square()),
        lambda: store.masks(1),
        lambda: store.mask(1),
        lambda: store.delete(1, "ann"),
        lambda: store.finish(1, "ann"),
        lambda: store.save_draft(1, "ann", {}, 1),
        lambda: store.close_round(1),
    ):
        with pytest.raises(NotFound):
            call()

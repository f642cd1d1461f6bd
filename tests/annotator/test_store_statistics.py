"""The store's counts and means, and the agreement of two annotators."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import event
from store_objects import image, square

from samtrain.annotator.store import Store
from samtrain.annotator.store.statistics import matched_ious
from samtrain.ops.rle import encode_mask


def test_an_empty_store_has_no_means(store: Store) -> None:
    found = store.statistics()
    assert found["images"] == {"total": 0, "open": 0, "done": 0, "skipped": 0, "closed": 0}
    assert found["masks"]["done"] == 0 and found["seconds_per_mask"] == {"now": None, "rounds": {}}
    assert found["annotators"] == {} and found["masks_per_image"] is None and found["rejected"] is None
    assert found["agreement"]["iou"] is None and found["agreement"]["paper"] == [0.85, 0.91]


def test_seconds_and_clicks_are_those_of_people(store: Store) -> None:
    a, b, c = store.add_images([image(round=1), image("b", round=2), image("c", round=2)])
    store.add_masks(a.id, "model", [square(locked=True, source="automatic", origin="prefilled")] * 4)
    wrong = store.masks(a.id)[0]
    store.reject(wrong.id, "ann")
    store.accept(a.id, "ann", square(seconds=10, point_coords=[[1, 1], [2, 2]], point_labels=[1, 0]))
    gone = store.accept(a.id, "ann", square(seconds=99))
    store.delete(gone.id, "ann")
    store.finish(a.id, "ann")
    for seconds in (2, 4):
        store.accept(b.id, "bob", square(seconds=seconds, point_coords=[[1, 1]], point_labels=[1]))
    found = store.statistics()
    assert found["images"] == {"total": 3, "open": 2, "done": 1, "skipped": 0, "closed": 0}
    assert found["masks"] == {"done": 6, "assisted": 3, "automatic": 3, "rejected": 1, "deleted": 1}
    assert found["seconds_per_mask"] == {"now": pytest.approx(16 / 3), "rounds": {"1": 10.0, "2": 3.0}}
    assert found["annotators"] == {
        "ann": {"masks": 1, "images": 1, "seconds_per_mask": 10.0, "clicks_per_mask": 2.0},
        "bob": {"masks": 2, "images": 1, "seconds_per_mask": 3.0, "clicks_per_mask": 1.0},
    }
    assert found["masks_per_image"] == 4 and found["rejected"] == 0.25


def test_now_means_the_last_fifty_masks(store: Store) -> None:
    (a,) = store.add_images([image()])
    store.add_masks(a.id, "ann", [square(seconds=1000)] * 5 + [square(seconds=2)] * 50)
    assert store.statistics()["seconds_per_mask"]["now"] == 2


def test_the_agreement_of_two_opinions(store: Store) -> None:
    a, b = store.add_images([image(opinions_wanted=2), image("b", opinions_wanted=2)])
    wide = np.zeros((6, 8), dtype=bool)
    wide[:3, :4] = True
    store.accept(a.id, "ann", square(0, 0))
    other = store.accept(a.id, "ann", square(3, 5))
    store.finish(a.id, "ann")
    assert store.statistics()["agreement"]["images"] == 0
    store.accept(a.id, "bob", square(segmentation=encode_mask(wide)))
    store.accept(a.id, "bob", square(3, 5))
    store.accept(a.id, "bob", square(3, 0))
    store.finish(a.id, "bob")
    found = store.statistics()["agreement"]
    assert (found["images"], found["pairs"], found["unmatched"]) == (1, 2, 1)
    assert found["iou"] == pytest.approx((0.75 + 1) / 2) and found["above_0.9"] == found["above_0.75"] == 0.5
    assert store.statistics()["masks"]["done"] == 2, "second opinions are no masks of the set"
    # a change of either opinion is seen
    store.delete(other.id, "ann")
    found = store.statistics()["agreement"]
    assert (found["pairs"], found["unmatched"], found["iou"]) == (1, 2, pytest.approx(0.75))


def test_each_mask_is_matched_once() -> None:
    def box(x0: int, x1: int):
        mask = np.zeros((10, 20), dtype=bool)
        mask[:, x0:x1] = True
        return encode_mask(mask)

    assert matched_ious([box(0, 10), box(0, 9)], [box(0, 10)]) == [1.0]
    assert matched_ious([box(0, 10)], [box(8, 20)]) == [] == matched_ious([], [box(0, 1)])


def test_the_cost_of_a_save_does_not_grow_with_the_masks(store: Store) -> None:
    """Every query of a save finds its rows by an index: no table of many rows is read from end to end."""
    rows = store.add_images([image(f"{i:03d}") for i in range(30)])
    for row in rows:
        store.add_masks(row.id, "model", [square()] * 10)
    statements: list[tuple[str, object]] = []
    engine = store.database.engine
    event.listen(engine, "before_cursor_execute", lambda c, u, sql, values, *_: statements.append((sql, values)))
    lease = store.lease_next("ann", 60)
    assert lease is not None
    store.accept(lease.image_id, "ann", square(request="r"), lease.token)
    store.save_draft(lease.image_id, "ann", {}, 1)
    store.finish(lease.image_id, "ann", lease.token)
    assert len(statements) < 25
    if store.database.sqlite:
        plans = []
        for sql, values in list(statements):
            if sql.startswith(("SELECT", "UPDATE", "DELETE")):
                with engine.connect() as connection:
                    plans += [(sql, step[-1]) for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert not [plan for plan in plans if "SCAN masks" in plan[1]], plans

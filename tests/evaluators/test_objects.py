"""Rows of images and of objects, and LVIS' recall by frequency, with answers computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samtrain.evaluators.objects import image_row, object_rows, recall_by_frequency, scored_masks
from samtrain.metrics.masks import mask_metrics
from samtrain.ops.rle import encode_mask
from tests.evaluators.records import SIZE, record_with, square

# a frequent object that is found, a rare one that is not, and one with a category of unknown frequency
OBJECTS = [
    {"id": 1, "segmentation": square(0, 0, 4), "frequency": "f"},
    {"id": 2, "segmentation": square(6, 6, 4), "frequency": "r"},
    {"id": 3, "segmentation": square(0, 6, 4)},
]


def test_the_row_of_an_object_has_its_best_mask() -> None:
    wide = np.zeros(SIZE, dtype=bool)
    wide[0:4, 0:8] = True  # covers all 16 pixels of object 1 and 8 of object 3, 32 in all: IoU 16/32 and 8/40
    row = image_row(record_with(*OBJECTS), [encode_mask(wide), square(0, 0, 4)], [0.9, 0.4])
    one, two, three = object_rows(row)
    assert (one["iou"], one["score"], one["rank"], one["area"], one["id"]) == (1.0, 0.4, 2, 16, 1)
    assert (two["iou"], three["iou"], three["rank"]) == (0.0, pytest.approx(8 / 40), 1)
    assert [each["frequency"] for each in (one, two, three)] == ["f", "r", None]
    json.dumps(row)


def test_images_without_masks_or_without_objects() -> None:
    alone = object_rows(image_row(record_with(OBJECTS[0]), [], []))
    assert (alone[0]["iou"], alone[0]["score"], alone[0]["rank"]) == (0.0, None, None)
    assert object_rows(image_row(record_with(), [square(0, 0, 4)], [1.0])) == []
    with pytest.raises(ValueError, match="image|size"):
        image_row(record_with({"segmentation": {"size": [9, 9], "counts": [81]}}), [], [])


def test_recall_by_frequency_counts_every_kind_by_itself() -> None:
    rows = [image_row(record_with(*OBJECTS), [square(0, 0, 4), square(0, 6, 4)], [0.9, 0.8])]
    found = recall_by_frequency(rows, 1000)
    assert found == {"mask_ar_1000_frequent": 1.0, "mask_ar_1000_rare": 0.0}  # there is no "common" one
    assert mask_metrics(scored_masks(rows))["mask_ar_1000"] == pytest.approx(2 / 3)
    assert recall_by_frequency([image_row(record_with(OBJECTS[2]), [], [])], 1000) == {}

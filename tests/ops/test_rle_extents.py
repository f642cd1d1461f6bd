"""Areas and boxes of many masks at once equal pycocotools' of each, and a broken mask is named by its number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh
from samtrain.ops.rle_extents import rle_extents

SIZE = (37, 53)


def some_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [rng.random(SIZE) < share for share in (0.0, 0.01, 0.5, 0.99, 1.0)]
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    masks += [(rows - y) ** 2 + (columns - x) ** 2 < r * r for y, x, r in rng.uniform(0, 40, (60, 3))]
    corners = np.zeros((4, *SIZE), bool)
    corners[0, 0, 0] = corners[1, -1, -1] = corners[2, -1, 0] = corners[3, 0, -1] = True
    wrapped = np.zeros(SIZE, bool)
    wrapped[-1, 3] = wrapped[0, 4] = True  # one run over two columns
    return [*masks, *corners, wrapped]


def test_areas_and_boxes_equal_pycocotools() -> None:
    rles = [encode_mask(mask) for mask in some_masks()]
    areas, boxes = rle_extents(rles, SIZE)
    assert areas.tolist() == [rle_area(rle) for rle in rles] == [mask.sum() for mask in some_masks()]
    for rle, (x0, y0, x1, y1), area in zip(rles, boxes.tolist(), areas.tolist(), strict=True):
        assert [x0, y0, x1 - x0, y1 - y0] == (rle_to_box_xywh(rle) if area else [0, 0, 0, 0])


def test_lists_of_runs_are_measured_too() -> None:
    mixed = [encode_mask(some_masks()[2]), {"size": list(SIZE), "counts": [5, 3, SIZE[0] * SIZE[1] - 8]}]
    areas, boxes = rle_extents(mixed, SIZE)
    assert areas.tolist() == [int(some_masks()[2].sum()), 3] and boxes[1].tolist() == [0, 5, 1, 8]


def test_no_masks_have_no_extents() -> None:
    areas, boxes = rle_extents([], SIZE)
    assert areas.shape == (0,) and boxes.shape == (0, 4)


GOOD = encode_mask(np.ones(SIZE, bool))


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "counts": ""},
        {**GOOD, "counts": "!!"},
        {**GOOD, "counts": GOOD["counts"][:-1]},
        {**GOOD, "counts": "05"},
        {**GOOD, "counts": GOOD["counts"] + "1"},
        {**GOOD, "counts": "oooooooooo0"},
        {**GOOD, "size": [SIZE[0] + 1, SIZE[1]]},
        {"size": list(SIZE)},
        None,
        "text",
    ],
)
def test_a_broken_mask_is_named_by_its_number(bad: Any) -> None:
    with pytest.raises(ValueError) as error:
        rle_extents([GOOD, bad, GOOD], SIZE)
    assert error.value.args[1] == 1

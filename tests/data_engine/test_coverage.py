"""Coverage, compared with values computed by hand."""

from __future__ import annotations

import numpy as np

from samtrain.data_engine.coverage import compare, coverage, share_above
from samtrain.ops.rle import encode_mask


def stripe(first: int, last: int) -> dict:
    """Rows first to last of an image of 20 x 10."""
    mask = np.zeros((20, 10), bool)
    mask[first:last] = True
    return encode_mask(mask)


OBJECTS = [stripe(0, 4), stripe(4, 12), stripe(12, 20), stripe(0, 0)]  # 40, 80, 80 pixels, and an empty one


def test_objects_and_masks_are_compared_pair_by_pair() -> None:
    masks = [stripe(0, 3), stripe(4, 10), stripe(0, 20)]  # IoU 3/4, 6/8, and 4/20 to 8/20
    truth = compare(OBJECTS, masks, [masks[1], masks[2]])
    assert truth["areas"] == [40, 80, 80]
    assert truth["covered"] == [0.75, 0.75, 0.4]
    assert truth["automatic"] == [0.75, 0.4]


def test_coverage_is_above_three_quarters_by_size() -> None:
    truths = [compare(OBJECTS, [stripe(0, 4), stripe(4, 11)], []), compare(OBJECTS, [], [])]
    assert coverage(truths, (50, 100)) == {"all": 2 / 6, "small": 1 / 2, "medium": 1 / 4, "large": None}
    assert coverage(truths, (10, 80)) == {"all": 2 / 6, "small": None, "medium": 1 / 2, "large": 1 / 4}
    at_the_edge = [compare(OBJECTS[:1], [stripe(0, 3)], [])]
    assert coverage(at_the_edge, (50, 100))["all"] == 0, "an IoU of 0.75 is not above it"


def test_nothing_to_compare() -> None:
    assert compare([], [stripe(0, 4)], [stripe(0, 4)]) == {"areas": [], "covered": [], "automatic": [0.0]}
    assert coverage([], (50, 100)) == {"all": None, "small": None, "medium": None, "large": None}
    assert share_above([]) is None and share_above([0.9, 0.5]) == 0.5

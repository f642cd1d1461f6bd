"""Polygons of masks: drawn again, they are the same masks."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from samtrain.data.prepare.segmentations import to_rle
from samtrain.ops.polygons import mask_to_polygons
from samtrain.ops.rle import decode_rle


@pytest.mark.parametrize("seed", range(60))
def test_polygons_drawn_again_are_the_same_mask(seed: int) -> None:
    """Also with holes, regions that touch at a corner, and at the image's edges."""
    rng = np.random.default_rng(seed)
    size = tuple(int(side) for side in rng.integers(3, 24, 2))
    mask = rng.random(size) < rng.random()
    if seed % 2:
        mask = ndimage.binary_closing(mask) ^ (rng.random(size) < 0.03)
    mask[0, 0] |= seed % 3 == 0
    if not mask.any():
        assert mask_to_polygons(mask) == []
        return
    polygons = mask_to_polygons(mask)
    np.testing.assert_array_equal(decode_rle(to_rle(polygons, size)), mask)
    assert len(polygons) == ndimage.label(mask)[1]


def test_a_ring_is_one_polygon_with_a_seam() -> None:
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 40)
    ring = (distance < 25) & (distance > 10)
    (polygon,) = mask_to_polygons(ring)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 60, 80)))
    np.testing.assert_array_equal(drawn.astype(bool), ring)


def test_a_box_has_four_corners() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(2, 1), (2, 3), (6, 1), (6, 3)]

"""Compares grids and crops with those of segment_anything."""

from __future__ import annotations

import numpy as np
import pytest

from samtrain.ops.grids import crop_boxes, point_grid

amg = pytest.importorskip("segment_anything.utils.amg", reason="needs the reference: pip install segment-anything")


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_points(n: int) -> None:
    np.testing.assert_array_equal(point_grid(n), amg.build_point_grid(n))


@pytest.mark.parametrize("size", [(1000, 1500), (333, 77), (1, 1), (64, 65)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("ratio", [512 / 1500, 0.0, 0.5])
def test_crops(size: tuple[int, int], layers: int, ratio: float) -> None:
    boxes, of_layer = amg.generate_crop_boxes(size, layers, ratio)
    assert crop_boxes(size, layers, ratio) == [(layer, tuple(box)) for layer, box in zip(of_layer, boxes, strict=True)]

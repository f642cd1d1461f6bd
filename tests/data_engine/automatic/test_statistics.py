"""Counts of the paper's figures, of shapes whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from samtrain.data_engine.automatic.statistics import BINS, add_statistics, hull_area, image_statistics
from samtrain.ops.rle import encode_mask, rle_runs


def record(mask: np.ndarray, **scores) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]), int(rows[-1] - rows[0])]
    return {"segmentation": encode_mask(mask), "bbox": box, "predicted_iou": 0.9, "stability_score": 0.97, **scores}


def hull(mask: np.ndarray) -> float:
    return hull_area(rle_runs(encode_mask(mask)["counts"].encode()), mask.shape[0])


def test_hulls_of_known_shapes() -> None:
    mask = np.zeros((20, 30), bool)
    assert hull(mask) == 0
    mask[3, 4] = True
    assert hull(mask) == pytest.approx(1)
    mask[3:8, 4:14] = True
    assert hull(mask) == pytest.approx(50)
    mask[:] = True  # a run over all columns
    assert hull(mask) == pytest.approx(600)
    mask[:] = False
    mask[0:10, 0:2], mask[8:10, 2:10] = True, True  # an L: the hull cuts the corner off from (2, 0) to (10, 8)
    assert hull(mask) == pytest.approx(100 - 8 * 8 / 2)


@pytest.mark.parametrize("seed", range(40))
def test_hulls_as_of_all_pixels(seed: int) -> None:
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 9)), int(rng.integers(1, 9)))) < rng.choice([0.1, 0.5, 0.95])
    y, x = np.nonzero(mask)
    if not len(y):
        return
    corners = np.concatenate([np.stack([x + a, y + b], 1) for a in (0, 1) for b in (0, 1)])
    assert hull(mask) == pytest.approx(ConvexHull(corners).volume)


def test_bins_of_a_image() -> None:
    mask = np.zeros((40, 80), bool)
    mask[0:20, 0:40] = True  # a quarter of the image: relative size 0.5; a rectangle: concavity 0
    found = image_statistics([record(mask), record(mask)], (40, 80))
    assert found["masks"] == 2 and found["images"] == 1
    assert found["relative_size"][BINS // 2] == 2 and sum(found["relative_size"]) == 2
    assert found["concavity"][0] == 2
    assert found["position"][BINS // 4][BINS // 4] == 2
    assert found["masks_per_image"] == [0, 1, 0, 0, 0, 0]
    empty = image_statistics([], (40, 80))
    assert empty["masks_per_image"] == [1, 0, 0, 0, 0, 0] and empty["masks"] == 0
    both = add_statistics(found, add_statistics({}, empty))
    assert both["images"] == 2 and both["masks_per_image"] == [1, 1, 0, 0, 0, 0]

"""Thinning keeps what is connected and leaves lines of one pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from samtrain.metrics.thinning import thin

EIGHT = np.ones((3, 3), bool)


def test_a_thick_line_becomes_one_pixel_wide() -> None:
    thick = np.zeros((20, 40), bool)
    thick[8:13, 5:35] = True
    thinned = thin(thick)
    assert (thinned.sum(axis=0) <= 1).all() and thinned[10, 10:30].all() and not (thinned & ~thick).any()


def test_by_hand() -> None:
    """What scikit-image's thin and MATLAB's bwmorph leave: the end of a line of two pixels may lose one."""
    lines = np.zeros((5, 5), bool)
    lines[1:3, :] = True
    assert thin(lines).sum(axis=0).tolist() == [1, 1, 1, 1, 0]
    square = np.zeros((4, 4), bool)
    square[1:3, 1:3] = True
    assert thin(square).sum() == 1
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert thin(ring).sum() == 4  # the corners go, the hole stays closed by its four neighbours


@pytest.mark.parametrize("seed", range(8))
def test_connected_parts_and_holes_stay(seed: int) -> None:
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 70)), 2) > 0.05
    thinned = thin(blobs)
    assert not (thinned & ~blobs).any() and np.array_equal(thin(thinned), thinned)
    assert ndimage.label(thinned, EIGHT)[1] == ndimage.label(blobs, EIGHT)[1]
    outside = [ndimage.label(np.pad(~each, 1, constant_values=True))[1] for each in (thinned, blobs)]
    assert outside[0] == outside[1]
    squares = thinned[:-1, :-1] & thinned[1:, :-1] & thinned[:-1, 1:] & thinned[1:, 1:]
    assert squares.mean() < 0.002  # crossings alone are two pixels wide


def test_an_empty_image_stays_empty() -> None:
    assert not thin(np.zeros((4, 5), bool)).any()

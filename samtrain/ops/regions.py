"""Fills small holes and removes small islands of masks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def fill_small_holes(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fills background regions of fewer than `min_area` pixels; returns the bool mask, and whether there were any.

    Regions are 8-connected, and regions at the image's border are treated like others, as in segment_anything.
    """
    regions, sizes = _regions(~mask_HW)
    small = sizes < min_area
    if not small.any():
        return mask_HW, False
    return mask_HW | np.concatenate([[False], small])[regions], True


def remove_small_islands(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool, int]:
    """Removes 8-connected regions of fewer than `min_area` pixels.

    Returns the bool mask, whether there were any such regions, and the size of the largest region. If all regions are small,
    the largest stays (the first of equal ones), as in segment_anything; SA-1B dropped such masks.
    """
    regions, sizes = _regions(mask_HW)
    largest = int(sizes.max(initial=0))
    kept = sizes >= min_area
    if kept.all():
        return mask_HW, False, largest
    if not kept.any():
        kept[sizes.argmax()] = True
    return np.concatenate([[False], kept])[regions], True, largest


def _regions(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (H, W) labels of the regions from 1, in row order, and the size of each region."""
    regions, count = ndimage.label(mask_HW, structure=EIGHT_CONNECTED)
    return regions, np.bincount(regions.ravel(), minlength=count + 1)[1:]

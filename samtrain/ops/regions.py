"""Connected regions of masks: holes to fill, islands to remove."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def fill_small_holes(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """The bool mask with background regions of fewer than `min_area` pixels filled, and whether there were any.

    Regions are 8-connected, and those at the border count like others, as in segment_anything.
    """
    regions, sizes = _regions(~mask_HW)
    small = sizes < min_area
    if not small.any():
        return mask_HW, False
    return mask_HW | np.concatenate([[False], small])[regions], True


def remove_small_islands(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool, int]:
    """The bool mask without 8-connected regions of fewer than `min_area` pixels, whether there were any, the largest's size.

    Where all are small the largest stays (the first of equal ones), as in segment_anything; SA-1B dropped such a mask.
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
    """(H, W) labels from 1, in the order of rows, and the size of each."""
    regions, count = ndimage.label(mask_HW, structure=EIGHT_CONNECTED)
    return regions, np.bincount(regions.ravel(), minlength=count + 1)[1:]

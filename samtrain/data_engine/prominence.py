"""Prominence: the order in which an annotator sees objects. The paper says "in order of prominence"; the measure is ours."""

from __future__ import annotations

import numpy as np

CENTRE_SIGMA = 0.5  # of the half diagonal; fixations concentrate in the middle (Judd et al. 2009); the width is assumed
RING = 3  # pixels around an object's box that its colour is compared with (assumption)


def prominence(image_HW3: np.ndarray, mask_HW: np.ndarray) -> float:
    """Returns the size of an object relative to the image, weighted by its centrality and its contrast; 0 if it is empty.

    The two weights range from one half to one, so that size dominates:
    sqrt(relative area) * (1 + centrality) / 2 * (1 + contrast) / 2.
    """
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if rows.size == 0:
        return 0.0
    H, W = mask_HW.shape
    window = (
        slice(max(rows[0] - RING, 0), rows[-1] + 1 + RING),
        slice(max(columns[0] - RING, 0), columns[-1] + 1 + RING),
    )
    inside = mask_HW[window]
    side = np.sqrt(inside.sum() / (H * W))
    return float(side * (1 + _centrality(inside, window, (H, W))) / 2 * (1 + _contrast(image_HW3[window], inside)) / 2)


def _centrality(inside: np.ndarray, window: tuple[slice, slice], size: tuple[int, int]) -> float:
    """Returns 1 in the middle of the image, and less with the distance from it, as a Gaussian."""
    y = np.flatnonzero(inside.any(axis=1)).mean() + window[0].start
    x = np.flatnonzero(inside.any(axis=0)).mean() + window[1].start
    distance = np.hypot(y - (size[0] - 1) / 2, x - (size[1] - 1) / 2) / (np.hypot(*size) / 2)
    return float(np.exp(-0.5 * (distance / CENTRE_SIGMA) ** 2))


def _contrast(pixels: np.ndarray, inside: np.ndarray) -> float:
    """Returns the distance of the mean colours inside the object and around it, 0 to 1; 0 if nothing is around it."""
    if inside.all():
        return 0.0
    difference = pixels[inside].mean(axis=0) - pixels[~inside].mean(axis=0)
    return float(np.linalg.norm(difference) / (255 * np.sqrt(3)))

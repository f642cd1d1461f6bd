"""Which object an annotator sees first. The paper says "in order of prominence" and no more; the measure is ours."""

from __future__ import annotations

import numpy as np

CENTRE_SIGMA = 0.5  # of the half diagonal; fixations crowd in the middle of an image (Judd et al. 2009), the width is assumed
RING = 3  # pixels round an object's box whose colour it is compared with (assumption)


def prominence(image_HW3: np.ndarray, mask_HW: np.ndarray) -> float:
    """Side of the object by that of the image, times how central it is, times how its colour stands out.

    The last two count from one half to one, so that size leads: sqrt(area) * (1 + centrality) / 2 * (1 + contrast) / 2.
    0 for an empty mask.
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
    """1 in the middle of the image, falling as a Gaussian of the distance."""
    y = np.flatnonzero(inside.any(axis=1)).mean() + window[0].start
    x = np.flatnonzero(inside.any(axis=0)).mean() + window[1].start
    distance = np.hypot(y - (size[0] - 1) / 2, x - (size[1] - 1) / 2) / (np.hypot(*size) / 2)
    return float(np.exp(-0.5 * (distance / CENTRE_SIGMA) ** 2))


def _contrast(pixels: np.ndarray, inside: np.ndarray) -> float:
    """Distance of the mean colours inside and around, from 0 to 1; 0 where there is no around."""
    if inside.all():
        return 0.0
    difference = pixels[inside].mean(axis=0) - pixels[~inside].mean(axis=0)
    return float(np.linalg.norm(difference) / (255 * np.sqrt(3)))

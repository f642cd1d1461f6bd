"""The brush of the simulated annotator: one stroke over the largest error, painted with an unsteady hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, label

MIN_RADIUS = 0.75  # pixels; the thinnest brush sometimes paints a pixel and its four neighbours (assumption)
MIN_FIT = 0.6  # a stroke continues where the error is at least this wide, in brush widths (assumption)
NEIGHBOURS = np.ones((3, 3), dtype=int)  # a region is 8-connected


@dataclass(frozen=True, kw_only=True)
class Brush:
    """Paints along the middle of a region, with a brush as wide as the region, slightly displaced.

    unsteadiness:  standard deviation of the brush's position and of its width, in brush radii (an assumption)
    max_widths:    maximum length of one stroke, in brush widths (an assumption)
    """

    unsteadiness: float = 0.15
    max_widths: int = 12

    def __post_init__(self) -> None:
        if not self.unsteadiness >= 0:
            raise ValueError(f"annotator.brush.unsteadiness is {self.unsteadiness}: give 0 or more")
        if self.max_widths < 1:
            raise ValueError(f"annotator.brush.max_widths is {self.max_widths}: give 1 or more")

    def paint(self, mask: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Returns a copy of `mask` (H, W) bool with one stroke towards `target`, and the stroke's length in brush widths.

        The brush adds where the object is missing and erases where the mask is too large; it may cross the edge of the
        error. A perfect mask is returned unchanged, with length 0. Crop both arrays to the object and a few pixels around
        it: the cost grows with their size.
        """
        region, adds = _largest_error(mask, target)
        if not region.any():
            return mask.copy(), 0.0

        # the path along the middle of the region, and a brush as wide as the region at its widest place
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        box = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        depth = distance_transform_edt(np.pad(box, 1))[1:-1, 1:-1]
        radius = max(float(depth.max()), MIN_RADIUS)
        path_P2 = _path(depth, radius, self.max_widths) + (rows[0], columns[0])

        # the unsteady hand: where the stroke really is, and how wide
        shift = rng.normal(0, self.unsteadiness * radius, 2)
        width = radius * float(np.clip(1 + rng.normal(0, self.unsteadiness), 0.5, 1.5))

        painted = mask.copy()
        painted[_discs(mask.shape, path_P2 + shift, width)] = adds
        length = np.hypot(*np.diff(path_P2, axis=0).T).sum() / (2 * radius) if len(path_P2) > 1 else 0.0
        return painted, 1 + float(length)


def _largest_error(mask: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns the largest connected error, (H, W) bool, and whether it is missing in the mask (True) or too much (False).

    The error is empty if the mask equals the target.
    """
    largest, size, adds = np.zeros_like(mask), 0, True
    for missing, error in ((True, target & ~mask), (False, mask & ~target)):
        labels, count = label(error, structure=NEIGHBOURS)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        if count and sizes.max() > size:
            largest, size, adds = labels == sizes.argmax() + 1, int(sizes.max()), missing
    return largest, adds


def _path(depth: np.ndarray, radius: float, max_widths: int) -> np.ndarray:
    """Returns a path (P, 2) of (y, x) that follows the ridge of the depth from its maximum as long as the brush fits."""
    depth = depth.copy()
    rows, columns = np.ogrid[: depth.shape[0], : depth.shape[1]]
    place = divmod(int(depth.argmax()), depth.shape[1])
    path = [place]
    while len(path) < max_widths:
        # clear what is painted, then move to the deepest place within one brush width of the brush's edge
        distance = np.hypot(rows - place[0], columns - place[1])
        depth[distance <= radius] = 0
        reach = np.where(distance <= 2 * radius + 1, depth, 0)
        place = divmod(int(reach.argmax()), depth.shape[1])
        if reach[place] < max(MIN_FIT * radius, MIN_RADIUS):
            break
        path.append(place)
    return np.array(path, dtype=float)


def _discs(shape: tuple[int, int], centres_P2: np.ndarray, radius: float) -> np.ndarray:
    """Returns (H, W) bool: discs around the points of a path and around the points half-way between them."""
    between = (centres_P2[1:] + centres_P2[:-1]) / 2
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    covered = np.zeros(shape, dtype=bool)
    for y, x in np.concatenate([centres_P2, between]):
        covered |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return covered

"""The brush of the simulated annotator: one stroke over the largest error, drawn by an unsteady hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, label

MIN_RADIUS = 0.75  # pixels; the thinnest brush paints a pixel and its four neighbours at times (assumption)
FITS = 0.6  # a brush goes on where the error is at least this wide, in its own widths (assumption)
EIGHT = np.ones((3, 3), dtype=int)  # neighbours that make a region


@dataclass(frozen=True, kw_only=True)
class Brush:
    """How a hand paints: along the middle of a region, with a brush as wide as the region, a little off.

    unsteadiness:  standard deviation of the hand, in brush radii, of place and of width (an assumption)
    max_widths:    longest way of one stroke, in brush widths (an assumption)
    """

    unsteadiness: float = 0.15
    max_widths: int = 12

    def __post_init__(self) -> None:
        if self.unsteadiness < 0 or self.max_widths < 1:
            raise ValueError(
                f"annotator.brush has unsteadiness {self.unsteadiness} and max_widths {self.max_widths}: "
                "take 0 or more, and 1 or more"
            )

    def paint(self, mask: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """One stroke on a copy of `mask` (H, W) bool towards `target`, and its way in brush widths.

        Where the object is missing the brush adds, where the mask is too large it erases; it may paint over the edge
        of the error. A perfect mask comes back as it is. Cheapest on arrays cut to the object and some pixels round
        it.
        """
        region, adds = _largest_error(mask, target)
        if not region.any():
            return mask.copy(), 0.0

        # where to go, how wide to paint, and where the hand really goes
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        box = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        depth = distance_transform_edt(np.pad(box, 1))[1:-1, 1:-1]
        radius = max(float(depth.max()), MIN_RADIUS)
        stations = _way(depth, radius, self.max_widths) + (rows[0], columns[0])
        shift = rng.normal(0, self.unsteadiness * radius, 2)
        width = radius * float(np.clip(1 + rng.normal(0, self.unsteadiness), 0.5, 1.5))

        painted = mask.copy()
        painted[_discs(mask.shape, stations + shift, width)] = adds
        way = np.hypot(*np.diff(stations, axis=0).T).sum() / (2 * radius) if len(stations) > 1 else 0.0
        return painted, 1 + float(way)


def _largest_error(mask: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, bool]:
    """(H, W) bool, the largest connected error, and whether it is missing (True) or too much; empty without error."""
    largest, size, adds = np.zeros_like(mask), 0, True
    for missing, error in ((True, target & ~mask), (False, mask & ~target)):
        labels, count = label(error, structure=EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        if count and sizes.max() > size:
            largest, size, adds = labels == sizes.argmax() + 1, int(sizes.max()), missing
    return largest, adds


def _way(depth: np.ndarray, radius: float, max_widths: int) -> np.ndarray:
    """(P, 2) float (y, x): from the deepest place on along the ridge of the depth, as long as the brush fits."""
    depth = depth.copy()
    rows, columns = np.ogrid[: depth.shape[0], : depth.shape[1]]
    place = divmod(int(depth.argmax()), depth.shape[1])
    stations = [place]
    while len(stations) < max_widths:
        # what is painted is done; go to the deepest place within a brush width of the rim
        distance = np.hypot(rows - place[0], columns - place[1])
        depth[distance <= radius] = 0
        reach = np.where(distance <= 2 * radius + 1, depth, 0)
        place = divmod(int(reach.argmax()), depth.shape[1])
        if reach[place] < max(FITS * radius, MIN_RADIUS):
            break
        stations.append(place)
    return np.array(stations, dtype=float)


def _discs(shape: tuple[int, int], centres_P2: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) bool, the capsules along the way: discs about its places and half way between them."""
    between = (centres_P2[1:] + centres_P2[:-1]) / 2
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    covered = np.zeros(shape, dtype=bool)
    for y, x in np.concatenate([centres_P2, between]):
        covered |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return covered

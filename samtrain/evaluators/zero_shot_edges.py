"""Zero-shot edge detection (section 7.2, appendix D.2): edges are where the masks of a grid of clicks end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from samtrain.data.decode import decode_shown
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.metrics.edge_matching import count_edges, read_boundaries

AROUND = np.ones((3, 3), dtype=bool)
ROUNDING = 1e-5
SMOOTHING = 2.0  # pixels: standard deviation of what the direction of an edge is taken from (ours; the paper says "edge NMS")


@dataclass(frozen=True)
class EdgeImage:
    """An image of BSDS500 and its annotators' file."""

    key: str
    image: Path
    boundaries: Path


def edge_images(folder: Path, split: str, *, key: str) -> Iterator[EdgeImage]:
    """`<folder>/images/<split>/*.jpg` with `<folder>/groundTruth/<split>/*.mat`, as BSDS500 lies in its archive.

    Raises ValueError that names `key` where there is no image, or one without annotators.
    """
    images = sorted((folder / "images" / split).glob("*.jpg"))
    if not images:
        raise ValueError(f"{key} is {str(folder)!r}: there is no image in {folder / 'images' / split}")
    for image in images:
        boundaries = folder / "groundTruth" / split / f"{image.stem}.mat"
        if not boundaries.is_file():
            raise ValueError(f"{key}: {image.name} has no annotators' file, {boundaries}")
        yield EdgeImage(image.stem, image, boundaries)


def edge_row(generator: SamAutomaticMaskGenerator, item: EdgeImage) -> dict[str, Any]:
    """The `EdgeCounts` of a item as plain lists."""
    image = decode_shown(item.image.read_bytes(), str(item.image))
    counts = count_edges(edge_strength(generator, image), read_boundaries(item.boundaries))
    return {name: values.tolist() for name, values in vars(counts).items()}


def edge_strength(generator: SamAutomaticMaskGenerator, image: np.ndarray) -> np.ndarray:
    """(H, W) float in 0 to 1: thin edges of an (H, W, 3) uint8 image.

    The Sobel magnitude of each mask's probabilities, zero off the mask's outer boundary, the pixel-wise maximum of all,
    normalised linearly, thinned. generator: a 16 x 16 grid, no thresholds, NMS (conf/generator/edges.yaml).
    """
    H, W = image.shape[:2]
    strongest = np.zeros((H, W))
    for candidate in generator.candidates(image):
        logits = candidate.low_res_logits
        assert logits is not None
        whole = candidate.crop.frame.render(logits, (slice(0, H), slice(0, W))).T
        probabilities = whole.double().sigmoid().cpu().numpy()
        magnitude = np.hypot(ndimage.sobel(probabilities, axis=0), ndimage.sobel(probabilities, axis=1))
        strongest = np.maximum(strongest, np.where(outer_boundary(probabilities > 0.5), magnitude, 0))
    low, high = strongest.min(), strongest.max()
    return thinned((strongest - low) / (high - low)) if high > low else np.zeros((H, W))


def outer_boundary(mask_HW: np.ndarray) -> np.ndarray:
    """(H, W) bool, the pixels on either side of the mask's outline; edges of holes are none."""
    filled = ndimage.binary_fill_holes(mask_HW)
    return ndimage.binary_dilation(filled, AROUND) & ~ndimage.binary_erosion(filled, AROUND, border_value=1)


def thinned(strength_HW: np.ndarray) -> np.ndarray:
    """The strength where it is a maximum across the edge, else 0.

    The direction across is that of the strongest curvature of the smoothed strength; neighbours a pixel away on either
    side are interpolated.
    """
    smooth = ndimage.gaussian_filter(strength_HW, SMOOTHING)
    dy, dx = np.gradient(smooth)
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    across = 0.5 * np.arctan2(2 * dyx, dxx - dyy)  # a main axis of the curvature, x from y
    along = across + np.pi / 2
    curved = [dxx * np.cos(a) ** 2 + 2 * dyx * np.cos(a) * np.sin(a) + dyy * np.sin(a) ** 2 for a in (across, along)]
    angle = np.where(np.abs(curved[0]) >= np.abs(curved[1]), across, along)  # a ridge curves most across itself
    rows, columns = np.indices(strength_HW.shape)
    kept = strength_HW > 0
    neighbours = [
        ndimage.map_coordinates(
            strength_HW, [rows + sign * np.sin(angle), columns + sign * np.cos(angle)], order=1, mode="constant"
        )
        for sign in (-1, 1)
    ]
    # of two that are equal, but for rounding, one stays
    kept &= (strength_HW >= neighbours[0] - ROUNDING) & (strength_HW > neighbours[1] + ROUNDING)
    return np.where(kept, strength_HW, 0)

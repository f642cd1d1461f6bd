"""Counts what the paper's dataset figures show: masks per image, sizes, positions, concavity; counts add up over shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from samtrain.ops.rle import rle_runs

BINS = 20  # of sizes, concavity, and each axis of positions
MASKS_PER_IMAGE = (0, 10, 50, 100, 200)  # each number ends a bin, and the last bin is open (paper, figure 6)
Statistics = dict[str, Any]


def image_statistics(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> Statistics:
    """Returns the counts of one image of size (H, W), as lists of bins that `add_statistics` can add up."""
    H, W = size
    runs = [rle_runs(each["segmentation"]["counts"].encode()) for each in annotations]
    areas = np.array([int(r[1::2].sum()) for r in runs], dtype=np.float64)
    hulls = np.array([hull_area(r, H) for r in runs])
    centres = np.array([_centre(each["bbox"]) for each in annotations]).reshape(-1, 2)
    position, *_ = np.histogram2d(centres[:, 1] / H, centres[:, 0] / W, bins=BINS, range=[(0, 1), (0, 1)])
    per_image = np.zeros(len(MASKS_PER_IMAGE) + 1, dtype=np.int64)
    per_image[np.searchsorted(MASKS_PER_IMAGE, len(annotations))] = 1
    return {
        "images": 1,
        "masks": len(annotations),
        "masks_per_image": per_image.tolist(),
        # the square root of mask area over image area
        "relative_size": _histogram(np.sqrt(areas / (H * W))),
        "concavity": _histogram(1 - areas / np.maximum(hulls, 1)),
        "position": position.astype(np.int64).tolist(),
        "predicted_iou": _histogram(np.array([each["predicted_iou"] for each in annotations])),
        "stability_score": _histogram(np.array([each["stability_score"] for each in annotations])),
    }


def add_statistics(a: Statistics, b: Statistics) -> Statistics:
    """Returns the sum of both, key by key; an empty one adds nothing."""
    if not a or not b:
        return a or b
    return {key: (np.array(a[key]) + np.array(b[key])).tolist() for key in a}


def hull_area(runs: np.ndarray, height: int) -> float:
    """Returns the area of the convex hull of a mask's pixels, as squares of side 1; 0 for an empty mask.

    The run lengths count down the columns of `height` pixels, as in COCO's RLE.
    """
    # the first and last pixel of each run of the mask
    ends = np.cumsum(runs)
    first, last = ends[0 : len(runs) - 1 : 2], ends[1::2] - 1
    filled = last >= first
    first, last = first[filled], last[filled]
    if not len(first):
        return 0.0
    # a run over several columns also contains the ends of the columns that it crosses
    broken = first // height != last // height
    pixels = np.concatenate(
        [first, last, (first[broken] // height + 1) * height - 1, last[broken] // height * height]
        + [(first[broken] // height + 1) * height, last[broken] // height * height - 1]
    )
    # the hull of the corners of these pixels is the hull of all
    x, y = pixels // height, pixels % height
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    return float(ConvexHull(corners).volume)  # in two dimensions SciPy calls the area "volume"


def _centre(bbox: Sequence[float]) -> tuple[float, float]:
    """Returns the (x, y) centre of an xywh box in SA-1B's convention, in which w and h are one less than the pixels."""
    return bbox[0] + (bbox[2] + 1) / 2, bbox[1] + (bbox[3] + 1) / 2


def _histogram(values: np.ndarray) -> list[int]:
    """Returns the counts of values in BINS equal bins from 0 to 1."""
    counts, _ = np.histogram(np.clip(values, 0, 1), bins=BINS, range=(0, 1))
    return counts.tolist()

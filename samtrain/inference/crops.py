"""Places the clicks of the automatic mask generator, on the image and its crops or on tiles, and checks its settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from samtrain.inference.tiled import most_central_tile, tile_corners
from samtrain.ops.grids import Box, crop_boxes, point_grid
from samtrain.types import Size

# the least and the greatest value of each number that the generator is set by; whole numbers have whole limits
RANGES: dict[str, tuple[float, float]] = {
    "points_per_side": (1, 4096),
    "points_per_batch": (1, 2**31),
    "pred_iou_thresh": (-math.inf, math.inf),  # the head's output has no bounds
    "stability_score_thresh": (-math.inf, math.inf),
    "stability_score_offset": (0.0, math.inf),
    "box_nms_thresh": (0.0, 1.0),
    "crop_n_layers": (0, 16),
    "crop_nms_thresh": (0.0, 1.0),
    "crop_overlap_ratio": (0.0, 1.0),
    "crop_n_points_downscale_factor": (1, 2**31),
    "min_mask_region_area": (0, 2**31),
    "max_mask_area": (0.0, 1.0),
    "mask_nms_thresh": (0.0, 1.0),
    "crops_per_batch": (1, 2**31),
}
OPTIONAL = ("points_per_side", "max_mask_area", "mask_nms_thresh", "crops_per_batch")  # these may be None
ClickedBox = tuple[int, Box, np.ndarray]  # the layer, the box, and the clicks (K, 2) in pixels of the box


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for the first number out of its range in `RANGES`, for NaN, and for a fraction of a count."""
    for name, value in settings.items():
        least, greatest = RANGES[name]
        if value is None and name in OPTIONAL:
            continue
        is_count = isinstance(least, int)
        try:
            fits = least <= value <= greatest and not (is_count and value != int(value))
        except TypeError:
            fits = False
        if not fits:
            kind = "a whole number" if is_count else "a number"
            limits = "" if math.isinf(least) else f" of at least {least:g}"
            limits += "" if greatest > 4096 else f", at most {greatest:g}"
            raise ValueError(f"{name} is {value!r}: use {kind}{limits} (generator.{name})")


def clicked_crops(
    size: Size, point_grids: Sequence[np.ndarray], num_layers: int, overlap_ratio: float
) -> Iterator[ClickedBox]:
    """Yields the image of `size` (H, W) and its crops, each with the grid of clicks of its layer."""
    for layer, (x0, y0, x1, y1) in crop_boxes(size, num_layers, overlap_ratio):
        if x0 < x1 and y0 < y1:  # an image of few pixels has empty crops
            yield layer, (x0, y0, x1, y1), point_grids[layer] * (x1 - x0, y1 - y0)


def clicked_tiles(
    size: Size, grid: np.ndarray, points_per_side: int | None, *, side: int, overlap: float
) -> Iterator[ClickedBox]:
    """Yields the tiles of an image of `size` (H, W), each with the clicks that are more central in it than in other tiles.

    The grid covers the image. With `points_per_side` it is as dense as on an image of the size of a tile.
    """
    height, width = size
    if points_per_side is not None:
        grid = point_grid(*(max(round(points_per_side * length / side), 1) for length in (width, height)))
    points_N2 = grid * (width, height)
    corners, (h, w) = tile_corners(size, side, overlap), (min(side, height), min(side, width))
    owner_N = most_central_tile(torch.from_numpy(points_N2), torch.tensor(corners), (h, w)).numpy()
    for number, (x, y) in enumerate(corners):
        if (own := owner_N == number).any():
            yield 0, (x, y, x + w, y + h), points_N2[own] - (x, y)


def _is_one(grids: Any) -> bool:
    """Returns whether the points are those of one grid, (K, 2), not a list of grids."""
    return isinstance(grids, np.ndarray) and grids.ndim == 2


def point_grids_of(
    per_side: int | None, grids: Sequence[np.ndarray] | None, num_layers: int, downscale: int
) -> list[np.ndarray]:
    """Returns a grid for the image and one for each layer of crops; raises ValueError for settings that do not fit."""
    if (per_side is None) == (grids is None):
        raise ValueError("set either points_per_side or point_grids, and the other one to null")
    if grids is None:
        assert per_side is not None
        sides = [int(per_side / downscale**layer) for layer in range(num_layers + 1)]
        if min(sides) < 1:
            raise ValueError(
                f"points_per_side {per_side} with crop_n_points_downscale_factor {downscale} leaves {sides} points a side in "
                f"the {num_layers + 1} layers: set more points, fewer layers or a smaller factor"
            )
        return [point_grid(side) for side in sides]
    arrays = [np.asarray(grid, dtype=np.float64) for grid in ([grids] if _is_one(grids) else grids)]
    shapes = [grid.shape for grid in arrays][:5]
    if len(arrays) <= num_layers or any(grid.ndim != 2 or grid.shape[1] != 2 for grid in arrays):
        raise ValueError(
            f"point_grids has the shapes {shapes}: give an array (K, 2) of x, y in 0 to 1 for each of {num_layers + 1} layers"
        )
    if not all(((grid >= 0) & (grid <= 1)).all() for grid in arrays):
        raise ValueError("point_grids has a point outside of the image: x and y are shares of its sides, from 0 to 1")
    return arrays

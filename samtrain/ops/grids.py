"""Places the clicks and crops of the automatic mask generator, with the numbers of segment_anything."""

from __future__ import annotations

import math

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, where x1 and y1 are one past the last pixel


def point_grid(num_x: int, num_y: int | None = None) -> np.ndarray:
    """Returns (num_x * num_y, 2) float64 points (x, y) in 0 to 1, the centres of equal cells, row by row.

    `num_y` None gives as many rows as columns.
    """
    x, y = np.meshgrid(*(np.linspace(1 / (2 * num), 1 - 1 / (2 * num), num) for num in (num_x, num_y or num_x)))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], num_layers: int, overlap_ratio: float) -> list[tuple[int, Box]]:
    """Returns (layer, box) of each crop of an (H, W) image; layer 0 is the whole image, layer i has 2^i x 2^i crops.

    Crops of layer 1 overlap by `overlap_ratio` of the image's short side, those of each further layer by half as much.
    """
    H, W = size
    crops: list[tuple[int, Box]] = [(0, (0, 0, W, H))]
    for layer in range(1, num_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(H, W) * (2 / per_side))
        w, h = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (W, H))
        for x0 in (column * (w - overlap) for column in range(per_side)):
            for y0 in (row * (h - overlap) for row in range(per_side)):
                crops.append((layer, (x0, y0, min(x0 + w, W), min(y0 + h, H))))
    return crops

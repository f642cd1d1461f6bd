"""Small images and masks for tests of the store."""

from __future__ import annotations

from typing import Any

import numpy as np

from samtrain.annotator.store import NewImage, NewMask
from samtrain.ops.rle import encode_mask


def image(key: str = "a", **fields: Any) -> NewImage:
    """An image of 8 x 6 pixels."""
    return NewImage(**{"key": key, "source": f"/images/{key}.png", "width": 8, "height": 6} | fields)


def square(row: int = 0, column: int = 0, side: int = 3, **fields: Any) -> NewMask:
    """A square mask of such an image."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[row : row + side, column : column + side] = True
    return NewMask(**{"segmentation": encode_mask(mask)} | fields)

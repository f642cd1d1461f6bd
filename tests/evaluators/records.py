"""Small records for the evaluators' tests."""

from __future__ import annotations

import numpy as np
from pretend_predictor import record_of

from samtrain.data.shards import Record
from samtrain.ops.rle import encode_mask

SIZE = (10, 10)


def record(seed: int = 0, num: int = 4) -> Record:
    data, ext, annotation = record_of(seed, num)
    return Record(f"scene_{seed}", ext, data, annotation, "made.tar")


def square(top: int, left: int, side: int) -> dict:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return encode_mask(mask)


def record_with(*annotations: dict) -> Record:
    image = {"image_id": 7, "height": SIZE[0], "width": SIZE[1]}
    return Record("image", "png", b"", {"image": image, "annotations": list(annotations)}, "image of a test")

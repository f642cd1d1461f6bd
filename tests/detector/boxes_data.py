"""Images of bright rectangles on dark ground as shards, and a detector small enough for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samtrain.data.shards import ShardWriter
from samtrain.detector import DetectorRecipe, RuntimeOptions, build_detector, train_detector
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh

SIZE = (56, 64)
TINY: dict[str, Any] = {
    "name": "small",
    "image_size": 64,
    "width": 16,
    "head_dim": 32,
    "anchor_sizes": [[10], [16], [24], [40]],
}


def rectangles(number: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image and the masks in it; image 3 is empty."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 40, (*SIZE, 3), dtype=np.uint8)
    masks = []
    for i in range(0 if number == 3 else 2):
        x, y = int(rng.integers(32 * i, 32 * i + 10)), int(rng.integers(2, 30))
        mask = np.zeros(SIZE, dtype=bool)
        mask[y : y + int(rng.integers(12, 24)), x : x + int(rng.integers(10, 20))] = True
        image[mask] = rng.integers(150, 250, 3)
        masks.append(mask)
    return image, masks


def write_rectangles(folder: Path, count: int = 8) -> list[str]:
    """A shard of them; returns its path in a list."""
    with ShardWriter(folder, "rectangles") as writer:
        for number in range(count):
            image, masks = rectangles(number)
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "png")
            rles = [encode_mask(mask) for mask in masks]
            objects = [
                {"id": i, "segmentation": rle, "area": rle_area(rle), "bbox": rle_to_box_xywh(rle)}
                for i, rle in enumerate(rles)
            ]
            size = {"image_id": number, "width": SIZE[1], "height": SIZE[0]}
            writer.write(f"image_{number}", stream.getvalue(), "png", {"image": size, "annotations": objects})
    return [str(path) for path in writer.paths]


def train_tiny(
    directory: Path, shards: list[str], *, steps: int = 8, val: list[str] | None = None, init: Path | None = None, seed: int = 0
) -> Path:
    """Trains, or resumes where the directory stopped."""
    torch.set_num_threads(1)
    recipe = DetectorRecipe(steps=steps, batch_size=3, learning_rate=2e-3, warmup_steps=2, val_every_steps=4)
    options = RuntimeOptions(accelerator="cpu", cache_images=True, log_every_steps=1, checkpoint_every_steps=3)
    start = init or build_detector(**TINY, seed=seed)
    return train_detector(shards, directory, recipe=recipe, seed=seed, init=start, val=val or [], options=options)

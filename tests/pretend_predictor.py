"""A predictor that knows the objects and answers as well as it is told to, and shards to let it work on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from samtrain.data.shards import ShardWriter
from samtrain.ops.rle import encode_mask
from samtrain.types import PointLabel, Prompts, SamOutput


def disc(H: int, W: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.indices((H, W))
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def scene(seed: int, size: tuple[int, int] = (64, 80), num: int = 5) -> tuple[np.ndarray, list[np.ndarray]]:
    """A grey image with up to 6 discs apart from each other, each of its own colour."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 90, np.uint8)
    masks = []
    for n in range(num):
        y, x = (n // 3 + 0.5) * size[0] / 2, (n % 3 + 0.5) * size[1] / 3
        mask = disc(*size, y, x, rng.uniform(5, 11))
        image[mask] = (10 + 40 * n, *rng.integers(0, 255, 2))
        masks.append(mask)
    return image, masks


def write_pool(folder: Path, count: int, num: int = 5, first: int = 0) -> list[str]:
    """Two tars of `count` scenes in SA-1B's form."""
    for half in range(2):
        with ShardWriter(folder, f"pool{half}") as writer:
            for n in range(first + half, first + count, 2):
                writer.write(f"scene_{n:03d}", *record_of(n, num))
    return sorted(str(path) for path in folder.glob("*.tar"))


def record_of(seed: int, num: int = 5) -> tuple[bytes, str, dict[str, Any]]:
    """The bytes of a scene, their extension, its JSON."""
    image, masks = scene(seed, num=num)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    objects = [{"id": i, "segmentation": encode_mask(mask)} for i, mask in enumerate(masks)]
    size = {"image_id": seed, "height": image.shape[0], "width": image.shape[1]}
    return data.getvalue(), "png", {"image": size, "annotations": objects}


class PretendPredictor:
    """Answers click number k on an object with `answer(object, k)`; it finds the object by the image's colours.

    Encodings and decodings are counted. Logits are at the image's own size.
    """

    device = torch.device("cpu")

    def __init__(self, answer: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self.answer, self.encoded, self.decoded = answer, 0, 0

    def set_image(self, image: np.ndarray) -> None:
        self.image, self.encoded = image, self.encoded + 1

    def decoder(self) -> PretendPredictor:
        return self

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        self.decoded += 1
        found = []
        for coords, labels in zip(prompts.coords, prompts.labels, strict=True):
            place = self._place_on_object(coords, labels)
            whole = (self.image == self.image[int(place[1]), int(place[0])]).all(axis=2)
            found.append(self.answer(whole, int((labels != PointLabel.PADDING).sum())))
        logits = torch.from_numpy(np.stack(found)).float()[:, None] * 20 - 10
        if multimask_output:
            wrong = torch.full_like(logits, -10.0)
            ious = torch.tensor([[0.1, 0.8, 0.2]]).expand(len(found), 3)
            return SamOutput(torch.cat([wrong, logits, wrong], 1), ious)
        return SamOutput(logits, torch.full((len(found), 1), 0.7))

    def _place_on_object(self, coords: Tensor, labels: Tensor) -> Tensor:
        """The middle of the box, or the first click (the last click token)."""
        box = labels >= PointLabel.BOX_TOP_LEFT
        return coords[box].mean(dim=0) if box.any() else coords[labels == PointLabel.FOREGROUND][-1]

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        return low_res_logits_N1hw


def eroded(by: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """An answer that loses `by` pixels of the edge, one less with each click."""
    return lambda whole, clicks: binary_erosion(whole, iterations=by - clicks + 1) if by >= clicks else whole

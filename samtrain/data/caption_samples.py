"""Samples for training a CLIP: crops of objects with sentences that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.scenes.captions import vary
from samtrain.ops.crops import object_crops, without_background
from samtrain.ops.rle import decode_rle


@dataclass
class CaptionSample:
    """The objects of one image.

    crops:    (N, 3, s, s) uint8
    inside:   (N, s, s) bool, the objects
    captions: N sentences
    """

    crops: Tensor
    inside: Tensor
    captions: list[str]
    key: str = ""

    @classmethod
    def of(cls, samples: Sequence[CaptionSample], count: int | None = None) -> CaptionSample:
        """Collates samples into one of at most `count` objects."""
        crops, inside = (torch.cat([getattr(s, name) for s in samples])[:count] for name in ("crops", "inside"))
        captions = [caption for sample in samples for caption in sample.captions]
        return cls(crops, inside, captions[:count], ", ".join(sample.key for sample in samples))


class CaptionTransform:
    """Turns an image of a `SamDataset` into a `CaptionSample`; all its objects need a `caption`.

    With `vary`, the crops' size, whether their background is black, a quarter turn and the words are drawn at random, as the
    paper draws its crops (appendix D.5).
    """

    def __init__(self, *, side: int, scale: tuple[float, float], zero_background: float, varied: bool) -> None:
        self.side, self.scale, self.zero_background, self.varied = side, scale, zero_background, varied

    def __call__(
        self, image: np.ndarray, annotations: Sequence[dict[str, Any]], max_masks: int, rng: np.random.Generator
    ) -> CaptionSample:
        if missing := [each.get("id") for each in annotations if not each.get("caption")]:
            raise ValueError(
                f"annotation {missing[0]} has no caption for a CLIP to learn: use data=synthetic, or give clip=FILE instead"
            )
        count, size = len(annotations), image.shape[:2]
        masks = torch.from_numpy(np.stack([decode_rle(each["segmentation"], size) for each in annotations])).bool()
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.varied:
            crops, inside = object_crops(pixels, masks, self.side, torch.full((count,), sum(self.scale) / 2))
            return CaptionSample(crops, inside, [str(each["caption"]) for each in annotations])
        scale = torch.from_numpy(rng.uniform(*self.scale, count))
        crops, inside = object_crops(pixels, masks, self.side, scale)
        crops = without_background(crops, inside, torch.from_numpy(rng.random(count) < self.zero_background))
        turns = int(rng.integers(4))
        crops, inside = (each.rot90(turns, (-2, -1)) for each in (crops, inside))
        return CaptionSample(crops, inside, [vary(each, rng) for each in annotations])

"""Embeds the objects of a batch by CLIP, as the paper trains text prompts without any text (appendix D.5)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from samtrain.text.clip import Clip
from samtrain.text.config import TextConfig
from samtrain.types import Batch


class Crops(Protocol):
    """Defines what training needs: the embeddings of a batch's objects, computed or stored."""

    @property
    def dim(self) -> int:
        """The length of the embeddings."""
        ...

    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Returns (N, E) float32 of length 1 on the batch's device; without a generator nothing is drawn at random."""
        ...


class CropEmbedder:
    """Computes the embeddings of the crops of a batch.

    It is no `nn.Module`, so that CLIP's weights do not become part of a model or of its checkpoints.
    """

    def __init__(self, clip: Clip, config: TextConfig) -> None:
        self.clip, self.config = clip, config

    @property
    def dim(self) -> int:
        return self.clip.dim

    @torch.no_grad()
    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Returns (N, E) float32 of length 1, on the batch's device.

        With a generator the size of the crop and whether its background is black are drawn at random. Without one the size
        is the middle of its range and the background stays.
        """
        device, count = batch.masks.device, len(batch.masks)
        self.clip.to(device)
        found = torch.zeros(count, self.clip.dim, device=device)
        scale, zeroed = draw_crops(self.config, count, generator)
        for index in batch.image_index.unique().tolist():
            rows = (batch.image_index == index).nonzero()[:, 0]
            found[rows] = self.clip.embed_objects(
                batch.images[index], batch.masks[rows], scale_N=scale.to(device)[rows], zeroed_N=zeroed.to(device)[rows]
            )
        return found


def draw_crops(config: TextConfig, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Returns (N,) factors by which boxes are enlarged and (N,) bool, whose background becomes black."""
    low, high = config.box_scale
    if generator is None:
        return torch.full((count,), (low + high) / 2), torch.zeros(count, dtype=torch.bool)
    draws = torch.rand(2, count, generator=generator, device=generator.device)
    return low + (high - low) * draws[0], draws[1] < config.zero_background

"""A SAM with answers that anybody can foretell: a disc around each click, a rectangle for a box, at three sizes."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samtrain.modeling import SAM_CONFIGS, Sam
from samtrain.types import Prompts, SamOutput

SIDE = 256  # of the input frame; low-resolution masks have 64 x 64 cells
SIZES = (0.5, 1.0, 1.6)  # of the three candidates, relative to the radius
SCORES = (0.6, 0.9, 0.7)
CONFIG = replace(SAM_CONFIGS["vit_tiny"], image_size=SIDE, patch_size=16, encoder_depth=1, global_attn_indexes=(0,))
may_encode = threading.Event()  # while it is not set, the encoder is busy
may_encode.set()


class DiscSam(Sam):
    """Answers clicks with discs of `radius` pixels of the input frame; background clicks take half as large ones away."""

    def __init__(self, radius: float = 24.0) -> None:
        super().__init__(CONFIG)
        self.radius = radius

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        may_encode.wait(60)
        return torch.zeros(len(images), CONFIG.prompt_dim, CONFIG.grid, CONFIG.grid)

    def decode(self, images: Any, image_index_N: torch.Tensor, prompts: Prompts, multimask_output: bool) -> SamOutput:
        masks = torch.stack([self._answer(prompts, size) for size in SIZES], dim=1)
        return SamOutput(masks, torch.tensor([SCORES]).expand(len(masks), 3))

    def _answer(self, prompts: Prompts, size: float) -> torch.Tensor:
        cells = (torch.arange(64) + 0.5) * SIDE / 64
        coords, labels = prompts.coords[..., None, None], prompts.labels[..., None, None]
        distance = torch.hypot(cells - coords[:, :, 0], cells[:, None] - coords[:, :, 1])
        here = (self.radius * size - distance).masked_fill(labels != 1, -100).amax(dim=1)
        gone = (self.radius / 2 - distance).masked_fill(labels != 0, -100).amax(dim=1)
        if (prompts.labels == 2).any():  # the two corners of a box
            (x0, y0), (x1, y1) = prompts.coords[prompts.labels == 2][0], prompts.coords[prompts.labels == 3][0]
            edges = torch.stack(torch.broadcast_tensors(cells - x0, x1 - cells, (cells - y0)[:, None], (y1 - cells)[:, None]))
            here = torch.maximum(here, edges.amin(dim=0))
        if prompts.mask_logits is not None:
            here = torch.maximum(here, prompts.mask_logits[:, 0])
        return torch.minimum(here, -gone)


def load_disc_sam(path: Any, *_: Any, **__: Any) -> DiscSam:
    """Stands in for `load_sam`: the radius is the number in the file's name."""
    return DiscSam(float(Path(path).stem.rpartition("_")[2]))

"""MobileSAM's image encoder, timm's TinyViT with SAM's neck behind it; translates the names of MobileSAM's weights."""

from __future__ import annotations

import re
from itertools import product
from math import isqrt
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models.tiny_vit import Attention, TinyVit
from torch import Tensor, nn

MODEL = "mobile_sam"  # the model's name
# sizes of MobileSAM's TinyViT-5M
DIMS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
MARK = "image_encoder.patch_embed.seq.0.c.weight"  # a name that only MobileSAM's layout has
CLASSIFIER = re.compile(r"^image_encoder\.(norm_head|head)\.")  # of ImageNet, which its files still hold

# patterns of MobileSAM's names and their replacements, applied in this order
_NAMES: list[tuple[str, Any]] = [
    (r"patch_embed\.seq\.([02])\.", lambda found: f"patch_embed.conv{int(found[1]) // 2 + 1}."),
    # a stage begins with its downsampling, where a layer ends with that of the next
    (r"layers\.(\d)\.downsample\.", lambda found: f"stages.{int(found[1]) + 1}.downsample."),
    (r"layers\.(\d)\.", r"stages.\1."),
    (r"\.c\.weight$", ".conv.weight"),
]


class TinyVitEncoder(nn.Module):
    """Encodes (B, 3, S, S) normalised images as (B, C, g, g) embeddings; S may be any multiple of 16."""

    def __init__(self, *, out_chans: int, drop_path: float) -> None:
        super().__init__()
        vit = TinyVit(
            num_classes=0, embed_dims=DIMS, depths=DEPTHS, num_heads=HEADS, window_sizes=WINDOWS, drop_path_rate=drop_path
        )
        self.patch_embed, self.stages = vit.patch_embed, vit.stages
        last = self.stages.get_submodule("3.downsample.conv2.conv")
        assert isinstance(last, nn.Conv2d)
        last.stride = (1, 1)  # MobileSAM keeps 16 pixels per cell
        # segment_anything's neck
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    @property
    def blocks(self) -> nn.Sequential:
        """The stages, where the optimiser and FSDP look for blocks."""
        return self.stages

    def register_constants(self) -> None:
        """Makes the tables that checkpoints do not hold; called again for a model that was built on the "meta" device."""
        for module in self.modules():
            if isinstance(module, Attention):
                table = _distances(isqrt(module.attention_biases.shape[1]))
                module.register_buffer("attention_bias_idxs", table, persistent=False)
                module.attention_bias_cache = {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises ValueError, because TinyViT has no checkpoints to save memory with."""
        if enable:
            raise ValueError(
                f"{MODEL} cannot recompute its activations: set trainer.activation_checkpointing=false, or train the decoder "
                "alone (optim.trainable)"
            )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Returns the embeddings."""
        return self.neck(self.stages(self.patch_embed(images_B3SS)))


def _distances(side: int) -> Tensor:
    """Returns (side^2, side^2) int64, the number of the distance between each two cells of a square window."""
    cells = list(product(range(side), range(side)))
    return torch.tensor([[abs(a[0] - b[0]) * side + abs(a[1] - b[1]) for b in cells] for a in cells])


def from_mobile_sam(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of MobileSAM under our names, without the classifier; other weights are returned as they are."""
    if MARK not in state:
        return state
    found = {}
    for key, value in state.items():
        if CLASSIFIER.match(key) or key.endswith("attention_bias_idxs"):
            continue
        if key.startswith("image_encoder."):
            for pattern, replacement in _NAMES:
                key = re.sub(pattern, replacement, key)
        found[key] = value
    return found

"""A small model with random weights, none of which is left at zero or one, where mistakes would not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samtrain.modeling import Sam, SamConfig

SMALL = SamConfig(
    model="custom", encoder_dim=32, encoder_depth=2, encoder_heads=2, global_attn_indexes=(1,), window_size=3, image_size=64,
    patch_size=8, prompt_dim=32, mask_in_chans=8, decoder_heads=4, decoder_mlp_dim=48, iou_head_dim=24,
)  # fmt: skip


def random_sam(seed: int = 0, **fields: object) -> Sam:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = Sam(replace(SMALL, **fields)).eval()
        for name, parameter in sam.named_parameters():
            # tables of positions and norms are strong enough to change the masks
            scale = 0.3 if "rel_pos" in name or "pos_embed" in name or "embed" in name else 0.05
            parameter.data += scale * torch.randn_like(parameter)
    return sam


@pytest.fixture(scope="session")
def sam() -> Sam:
    return random_sam()

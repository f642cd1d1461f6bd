"""One set of random weights in all packages: segment_anything's, timm's, transformers' and ours."""

from __future__ import annotations

from functools import partial

import timm
import torch
from segment_anything import sam_model_registry
from torch import nn

from samtrain.modeling import SAM_CONFIGS, Sam
from samtrain.modeling.weights import to_our_layout


def official_sam(model: str = "vit_b") -> nn.Module:
    """segment_anything's model, the same each time; positions are drawn too, where they would begin as zeros."""
    torch.manual_seed(0)
    sam = sam_model_registry[model]().eval()
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.1)
    return sam


def our_sam(official: nn.Module, model: str = "vit_b") -> Sam:
    """Ours, with the same weights."""
    sam = Sam(SAM_CONFIGS[model]).eval()
    sam.load_state_dict(to_our_layout(official.state_dict()))
    return sam


def timm_encoder(ours: Sam) -> nn.Module:
    """timm's encoder as it is, but for the epsilon of the norms, without which it is another model."""
    names = {"vit_b": "samvit_base_patch16", "vit_l": "samvit_large_patch16", "vit_h": "samvit_huge_patch16"}
    name = names[ours.config.model]
    encoder = timm.create_model(name, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    encoder.load_state_dict(ours.image_encoder.state_dict())
    return encoder


def transformers_sam(ours: Sam) -> nn.Module:
    """transformers' SamModel of ViT-B, with the same weights."""
    from transformers import SamConfig, SamModel

    sam = SamModel(SamConfig(mask_decoder_config={"layer_norm_eps": 1e-5})).eval()
    state = ours.state_dict()
    # each of its tensors is told by the name that ours would have
    place = {name: torch.tensor(i) for i, name in enumerate(sam.state_dict())}
    mapped = {int(i): key for key, i in to_our_layout(place).items()}
    own = sam.state_dict()
    for name, i in place.items():
        key = mapped.get(int(i), "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
        own[name].copy_(state[key])
    return sam

"""Builds one set of random weights in all packages: segment_anything, timm, transformers and samtrain."""

from __future__ import annotations

from functools import partial

import timm
import torch
from segment_anything import sam_model_registry
from torch import nn

from samtrain.modeling import SAM_CONFIGS, Sam
from samtrain.modeling.weights import official_state_dict, to_our_layout


def official_sam(model: str = "vit_b") -> nn.Module:
    """Returns segment_anything's model, the same each time; positions, which would start at zero, are random, too."""
    torch.manual_seed(0)
    sam = sam_model_registry[model]().eval()
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.1)
    return sam


def our_sam(official: nn.Module, model: str = "vit_b") -> Sam:
    """Returns our model with the same weights."""
    sam = Sam(SAM_CONFIGS[model]).eval()
    sam.load_state_dict(to_our_layout(official.state_dict()))
    return sam


def official_like(ours: Sam) -> nn.Module:
    """Returns segment_anything's model with the sizes and weights of ours."""
    from segment_anything import modeling as parts

    c = ours.config
    sam = parts.Sam(
        parts.ImageEncoderViT(
            img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.encoder_dim, depth=c.encoder_depth,
            num_heads=c.encoder_heads, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
            global_attn_indexes=c.global_attn_indexes, window_size=c.window_size, out_chans=c.prompt_dim,
        ),
        parts.PromptEncoder(
            embed_dim=c.prompt_dim, image_embedding_size=(c.grid, c.grid), input_image_size=(c.image_size, c.image_size),
            mask_in_chans=c.mask_in_chans,
        ),
        parts.MaskDecoder(
            num_multimask_outputs=3,
            transformer=parts.TwoWayTransformer(
                depth=c.decoder_depth, embedding_dim=c.prompt_dim, mlp_dim=c.decoder_mlp_dim, num_heads=c.decoder_heads
            ),
            transformer_dim=c.prompt_dim, iou_head_depth=3, iou_head_hidden_dim=c.iou_head_dim,
        ),
    ).eval()  # fmt: skip
    sam.load_state_dict(official_state_dict(ours))
    return sam


def timm_encoder(ours: Sam) -> nn.Module:
    """Returns timm's encoder with segment_anything's epsilon in the norms, without which the outputs differ."""
    names = {"vit_b": "samvit_base_patch16", "vit_l": "samvit_large_patch16", "vit_h": "samvit_huge_patch16"}
    name = names[ours.config.model]
    encoder = timm.create_model(name, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    encoder.load_state_dict(ours.image_encoder.state_dict())
    return encoder


def transformers_sam(ours: Sam) -> nn.Module:
    """Returns transformers' SamModel of ViT-B with the same weights."""
    from transformers import SamConfig, SamModel

    sam = SamModel(SamConfig(mask_decoder_config={"layer_norm_eps": 1e-5})).eval()
    state = ours.state_dict()
    # match its tensors to ours by name
    place = {name: torch.tensor(i) for i, name in enumerate(sam.state_dict())}
    mapped = {int(i): key for key, i in to_our_layout(place).items()}
    own = sam.state_dict()
    for name, i in place.items():
        key = mapped.get(int(i), "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
        own[name].copy_(state[key])
    return sam

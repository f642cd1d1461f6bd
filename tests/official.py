"""segment_anything's model at any size, for tests that compare with it."""

from __future__ import annotations

from functools import partial

import torch
from segment_anything import modeling as parts
from torch import Tensor

from samtrain.modeling import Sam, SamConfig
from samtrain.modeling.weights import official_state_dict


def official_like(sam: Sam) -> parts.Sam:
    """The same sizes and weights as ours."""
    return official_sam(sam.config, official_state_dict(sam))


def official_sam(config: SamConfig, state: dict[str, Tensor]) -> parts.Sam:
    """Of a state dict in Meta's layout, whose memory it shares."""
    with torch.device("meta"):
        sam = parts.Sam(
            parts.ImageEncoderViT(
                img_size=config.image_size,
                patch_size=config.patch_size,
                embed_dim=config.encoder_dim,
                depth=config.encoder_depth,
                num_heads=config.encoder_heads,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                global_attn_indexes=config.global_attn_indexes,
                window_size=config.window_size,
                out_chans=config.prompt_dim,
            ),
            parts.PromptEncoder(
                embed_dim=config.prompt_dim,
                image_embedding_size=(config.grid, config.grid),
                input_image_size=(config.image_size, config.image_size),
                mask_in_chans=config.mask_in_chans,
            ),
            parts.MaskDecoder(
                transformer_dim=config.prompt_dim,
                transformer=parts.TwoWayTransformer(
                    depth=config.decoder_depth,
                    embedding_dim=config.prompt_dim,
                    num_heads=config.decoder_heads,
                    mlp_dim=config.decoder_mlp_dim,
                ),
                iou_head_hidden_dim=config.iou_head_dim,
            ),
        )
    sam.register_buffer("pixel_mean", torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1), persistent=False)
    sam.register_buffer("pixel_std", torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1), persistent=False)
    sam.load_state_dict(state, strict=True, assign=True)
    return sam.eval()

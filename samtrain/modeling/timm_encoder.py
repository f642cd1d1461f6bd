"""A Vision Transformer of timm as the image encoder: any of its ViTs by name, with SAM's neck behind it."""

from __future__ import annotations

from math import isqrt
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

PREFIX = "timm/"  # of a model's name: timm/vit_small_patch16_224
PRETRAINED = "pretrained"  # in place of a file: the weights that timm downloads for the name
PATCH_SIZE = 16  # in place of sizes such as 14, which the decoder's masks (4 x 4 per patch) do not divide


def is_timm(model: str) -> bool:
    """Returns whether a model's name stands for an encoder of timm."""
    return model.startswith(PREFIX)


def timm_sizes(model: str) -> dict[str, Any]:
    """Returns the fields of `SamConfig` that the encoder decides; raises ValueError for a name that is no ViT of timm."""
    name = model.removeprefix(PREFIX)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:8]}*")[:10]) or "vit_small_patch16_224"
        raise ValueError(f"timm has no model {name!r} (model.name): choose one of timm.list_models('vit_*'), such as {near}")
    with torch.device("meta"):
        vit = timm.create_model(name, num_classes=0)
    if not isinstance(vit, VisionTransformer):
        raise ValueError(
            f"{name} is a {type(vit).__name__} of timm (model.name): choose a plain Vision Transformer, one of "
            "timm.list_models('vit_*') or timm.list_models('deit3_*')"
        )
    patch = vit.patch_embed.patch_size[0]
    return {
        "encoder_dim": vit.embed_dim,
        "encoder_depth": len(vit.blocks),
        "encoder_heads": vit.blocks[0].attn.num_heads,
        "global_attn_indexes": tuple(range(len(vit.blocks))),
        "window_size": 0,
        "patch_size": patch if patch % 4 == 0 else PATCH_SIZE,
    }


class TimmEncoder(nn.Module):
    """(B, 3, S, S) normalised images to (B, C, g, g) embeddings, by a ViT of timm and SAM's neck."""

    def __init__(self, *, model: str, image_size: int, patch_size: int, out_chans: int, drop_path: float) -> None:
        super().__init__()
        self.vit = _create(model, image_size, patch_size, drop_path_rate=drop_path)
        # segment_anything's neck
        self.neck = nn.Sequential(
            nn.Conv2d(self.vit.embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, where the optimiser and FSDP look for them."""
        return self.vit.blocks

    @property
    def pos_embed(self) -> nn.Parameter:
        """The absolute positions, class token's included."""
        return self.vit.pos_embed

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.vit.set_grad_checkpointing(enable)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        tokens = self.vit.forward_features(images_B3SS)[:, self.vit.num_prefix_tokens :]  # without class and register tokens
        side = isqrt(tokens.shape[1])
        return self.neck(tokens.transpose(1, 2).unflatten(2, (side, side)))


def load_timm(encoder: nn.Module, model: str, source: str) -> None:
    """Sets the ViT's weights from timm's own ("pretrained") or from a file in timm's layout; positions are resized."""
    assert isinstance(encoder, TimmEncoder)
    vit = encoder.vit
    overlay = {} if source == PRETRAINED else {"pretrained_cfg_overlay": {"file": source}}
    side, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    try:
        trained = _create(model, side, patch, pretrained=True, **overlay)
    except Exception as error:  # the network's edge: whatever the hub's client raises
        raise ValueError(
            f"the weights of {model} could not be loaded from {source} ({error}): set recipes.timm.mae to a downloaded file, "
            "or model.mae=false to start without them"
        ) from error
    vit.load_state_dict(trained.state_dict())


def resize_timm_positions(state: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """Returns a model's tensors with timm's absolute positions resized to another grid."""
    key = "image_encoder.vit.pos_embed"
    if key not in state:
        return state
    count = state[key].shape[1]
    registers = state.get("image_encoder.vit.reg_token", torch.empty(1, 0)).shape[1]
    num_prefix = 0 if isqrt(count) ** 2 == count else 1 + registers  # some ViTs give prefix tokens no position
    return state | {key: resample_abs_pos_embed(state[key], [grid, grid], num_prefix_tokens=num_prefix)}


def _create(model: str, image_size: int, patch_size: int, **more: Any) -> Any:
    """Returns timm's ViT without its classifier."""
    return timm.create_model(model.removeprefix(PREFIX), num_classes=0, img_size=image_size, patch_size=patch_size, **more)

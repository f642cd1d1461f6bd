"""Implements the image encoder: timm's ViT of SAM, with memory-efficient relative positions and drop path per sample."""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.models.vision_transformer_sam import (
    Attention,
    Block,
    VisionTransformerSAM,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samtrain.modeling.patches import conv_as_product
from samtrain.modeling.recompute import recompute_in_backward
from samtrain.ops.rel_pos_attention import rel_pos_attention

TOKENS_AT_A_TIME = 1024  # in the MLP without gradients, on a CPU; the only size that was tried (experiments/LOG.md, 2026-11-24)


class RelPosAttention(Attention):
    """Replaces timm's attention with `rel_pos_attention`, which needs no N x N bias for the decomposed relative positions."""

    def attend(self, qkv_BHW3C: Tensor) -> Tensor:
        """Returns (B, H, W, C), the attended values before the output projection."""
        B, H, W, C = qkv_BHW3C.shape
        for rel_pos, size in ((self.rel_pos_h, H), (self.rel_pos_w, W)):
            assert len(rel_pos) == 2 * size - 1, "relative positions are resized when weights are loaded"
        qkv = qkv_BHW3C.view(B, H * W, 3, self.num_heads, self.head_dim)
        return rel_pos_attention(qkv, self.rel_pos_h, self.rel_pos_w, self.scale).view(B, H, W, C // 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, H, W, C) for x of the same shape."""
        return self.proj(self.attend(self.qkv(x)))


class EncoderBlock(Block):
    """Changes timm's block so that drop path drops whole samples, after the windows are merged again, as in ViTDet."""

    def __init__(self, dim: int, num_heads: int, *, input_size=None, window_size: int = 0, **kwargs) -> None:
        super().__init__(dim, num_heads, input_size=input_size, window_size=window_size, **kwargs)
        size = input_size if window_size == 0 else (window_size, window_size)
        self.attn = RelPosAttention(dim, num_heads, use_rel_pos=True, input_size=size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, H, W, C) for x of the same shape."""
        H, W = x.shape[1:3]

        # Attention, in windows or over the whole image
        y = self.attn.attend(recompute_in_backward(self._qkv, x))
        if self.window_size > 0:
            # windows are padded, and the padding is attended to (released code); it is cut off before the projection
            rows, columns = (math.ceil(side / self.window_size) * self.window_size for side in (H, W))
            y = window_unpartition(y, self.window_size, (H, W), (rows, columns))
        x = x + self.drop_path1(self.attn.proj(y))

        # MLP
        return x + self.drop_path2(self._mlp(x))

    def _qkv(self, x: Tensor) -> Tensor:
        """Returns queries, keys and values, (B, H, W, 3 C), or those of the windows if the block is windowed."""
        y = self.norm1(x)
        if torch.is_autocast_enabled(x.device.type):
            # the product would do it next, but windows are half as large to copy then
            y = y.to(torch.get_autocast_dtype(x.device.type))
        return self.attn.qkv(window_partition(y, self.window_size)[0] if self.window_size > 0 else y)

    def _mlp(self, x: Tensor) -> Tensor:
        """Returns the block's MLP of x, (B, H, W, C)."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_exporting():
            return recompute_in_backward(self._contract, recompute_in_backward(self._expand, x))
        # in parts, so that the encoder's widest tensor stays small and its memory is reused by the processor's cache
        parts = x.flatten(0, 2).split(TOKENS_AT_A_TIME)
        return torch.cat([self._contract(self._expand(part)) for part in parts]).view(x.shape)

    def _expand(self, x: Tensor) -> Tensor:
        return self.mlp.fc1(self.norm2(x))

    def _contract(self, h: Tensor) -> Tensor:
        return self.mlp.fc2(self.mlp.act(h))


class ImageEncoder(VisionTransformerSAM):
    """Encodes (B, 3, S, S) normalised images as (B, C, g, g) embeddings (paper, section 3).

    Parameters have timm's names; `weights` translates Meta's.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        global_attn_indexes: tuple[int, ...],
        window_size: int,
        out_chans: int,
        drop_path: float,
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            # segment_anything's epsilon; with timm's default of 1e-5 the outputs would differ
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            block_fn=EncoderBlock,
            use_rel_pos=True,
            window_size=window_size,
            global_attn_indexes=tuple(global_attn_indexes),
            neck_chans=out_chans,
            drop_path_rate=drop_path,
        )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Returns (B, C, g, g) embeddings of (B, 3, S, S) normalised images."""
        # Patches and absolute positions
        embed = self._patches_in_a_product if images_B3SS.is_cuda else self.patch_embed
        x = embed(images_B3SS).contiguous() + self.pos_embed

        # Blocks, windowed except at `global_attn_indexes`
        for block in self.blocks:
            checkpointed = self.grad_checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)

        # Neck: two convolutions that bring the width down to the prompts'
        return self.neck(x.permute(0, 3, 1, 2))

    def _patches_in_a_product(self, images_B3SS: Tensor) -> Tensor:
        """Returns (B, g, g, D), what `patch_embed` computes."""
        proj = self.patch_embed.proj
        assert isinstance(proj, nn.Conv2d)
        return conv_as_product(proj, images_B3SS.permute(0, 2, 3, 1))

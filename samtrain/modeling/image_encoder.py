"""The image encoder: timm's SAM ViT with drop path by sample, and relative positions that take no memory."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import (
    Attention,
    Block,
    VisionTransformerSAM,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RelPosAttention(Attention):
    """timm's attention with decomposed relative positions folded into query and key where the bias would be large.

    ``q·k * scale + rel_h + rel_w`` is one dot product of ``[q * scale, rel_h(q), rel_w(q)]`` with ``[k, onehot(row),
    onehot(column)]``, so that a global block needs no N x N bias in memory (measured in DESIGN.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        qkv = self.qkv(x.reshape(B, H * W, -1)).view(B, H * W, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        rel_h, rel_w = self._relative_positions(q.reshape(B, self.num_heads, H, W, self.head_dim))
        if H * W > 512:  # from about here on the fused kernel beats the explicit bias on CPU (experiments/LOG.md)
            x = self._folded(q, k, v, rel_h, rel_w)
        else:
            bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2).flatten(2, 3)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        x = x.transpose(1, 2).reshape(B, H * W, -1)
        return self.proj(x).view(B, H, W, -1)

    def _relative_positions(self, q_BnHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of each unscaled query against each row (B, n, H, W, H) and each column (B, n, H, W, W)."""
        H, W = q_BnHWC.shape[2:4]
        table_h = _distance_table(self.rel_pos_h, H)
        table_w = _distance_table(self.rel_pos_w, W)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", q_BnHWC, table_h)
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", q_BnHWC, table_w)
        return rel_h, rel_w

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        B, n, N, C = q.shape
        H, W = rel_h.shape[-1], rel_w.shape[-1]
        query = torch.cat([q * self.scale, rel_h.reshape(B, n, N, H), rel_w.reshape(B, n, N, W)], dim=-1)
        key = torch.cat([k, _one_hot_grid(H, W, k).expand(B, n, N, H + W)], dim=-1)
        # the fused kernels want equal widths, so the value is padded and cut again
        value = F.pad(v, (0, H + W))
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :C]


def _distance_table(rel_pos: Tensor, size: int) -> Tensor:
    """(size, size, C): the embedding of each distance; index_select keeps its backward reproducible on CPU."""
    assert rel_pos.shape[0] == 2 * size - 1, "relative positions are resized when weights are loaded"
    steps = torch.arange(size, device=rel_pos.device)
    distance = steps[:, None] - steps[None, :] + size - 1
    return rel_pos.index_select(0, distance.flatten()).view(size, size, -1)


def _one_hot_grid(H: int, W: int, like: Tensor) -> Tensor:
    """(H * W, H + W): for each position of the grid the one-hot of its row, then of its column."""
    rows = torch.eye(H, dtype=like.dtype, device=like.device).repeat_interleave(W, dim=0)
    columns = torch.eye(W, dtype=like.dtype, device=like.device).repeat(H, 1)
    return torch.cat([rows, columns], dim=1)


class EncoderBlock(Block):
    """timm's block whose drop path drops whole samples: after the windows are put together again, as in ViTDet."""

    def __init__(self, dim: int, num_heads: int, *, input_size=None, window_size: int = 0, **kwargs) -> None:
        super().__init__(dim, num_heads, input_size=input_size, window_size=window_size, **kwargs)
        size = input_size if window_size == 0 else (window_size, window_size)
        self.attn = RelPosAttention(dim, num_heads, use_rel_pos=True, input_size=size)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        y = self.norm1(x)
        if self.window_size > 0:
            y, padded_size = window_partition(y, self.window_size)
            y = window_unpartition(self.attn(y), self.window_size, (H, W), padded_size)
        else:
            y = self.attn(y)
        x = x + self.drop_path1(y)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ImageEncoder(VisionTransformerSAM):
    """(B, 3, S, S) normalised images to (B, C, g, g) embeddings; keys are timm's, `checkpoints` knows Meta's."""

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
            # segment_anything's; timm's default of 1e-5 costs parity
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            block_fn=EncoderBlock,
            use_rel_pos=True,
            window_size=window_size,
            global_attn_indexes=tuple(global_attn_indexes),
            neck_chans=out_chans,
            drop_path_rate=drop_path,
        )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        x = self.patch_embed(images_B3SS) + self.pos_embed
        for block in self.blocks:
            checkpointed = self.grad_checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return self.neck(x.permute(0, 3, 1, 2))

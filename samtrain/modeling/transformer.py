"""The two-way transformer: tokens attend to the image, the image attends to the tokens (paper, figure 14)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose inner width is the outer one divided by `downsample_rate`."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        assert inner % num_heads == 0, f"{num_heads} heads do not divide {inner} channels"
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pe: Tensor | None = None, k_pe: Tensor | None = None
    ) -> Tensor:
        """(N, Lq, C), (N, Lk, C), (N, Lk, C) to (N, Lq, C).

        Positions of an image, (1, L, C), are projected once for all prompts and added after: a projection is linear.
        """
        q = _project(self.q_proj, q, q_pe)
        k = _project(self.k_proj, k, k_pe)
        x = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(self.v_proj(v)))
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _project(linear: nn.Linear, x: Tensor, pe: Tensor | None) -> Tensor:
    return linear(x) if pe is None else F.linear(x, linear.weight) + linear(pe)


class MLPBlock(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; dropout after each (paper, appendix A)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, is_first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)
        self.norm4 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.is_first = is_first

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, C) tokens and (N, g*g, C) image, each with what says where they are."""
        # self-attention; in the first block tokens are their own positions, and there is no residual (released code)
        if self.is_first:
            tokens = self.dropout(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = tokens + self.dropout(self.self_attn(q, q, tokens))
        tokens = self.norm1(tokens)

        # tokens look at the image
        attended = self.cross_attn_token_to_image(tokens + token_pe, image, image, k_pe=image_pe)
        tokens = self.norm2(tokens + self.dropout(attended))

        # MLP
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))

        # the image looks at the tokens
        attended = self.cross_attn_image_to_token(image, tokens + token_pe, tokens, q_pe=image_pe)
        image = self.norm4(image + self.dropout(attended))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last look of the tokens at the image."""

    def __init__(self, *, depth: int, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [TwoWayAttentionBlock(dim, num_heads, mlp_dim, dropout, is_first=i == 0) for i in range(depth)]
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_NLC: Tensor, image_NGC: Tensor, image_pe_1GC: Tensor) -> tuple[Tensor, Tensor]:
        tokens, image = tokens_NLC, image_NGC
        for layer in self.layers:
            tokens, image = layer(tokens, image, tokens_NLC, image_pe_1GC)
        attended = self.final_attn_token_to_image(tokens + tokens_NLC, image, image, k_pe=image_pe_1GC)
        return self.norm_final_attn(tokens + self.dropout(attended)), image

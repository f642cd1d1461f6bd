"""Implements the two-way transformer: tokens attend to the image and the image to the tokens (paper, figure 14)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.modeling.image_tokens import OwnImage, PromptedImage


class Attention(nn.Module):
    """Computes multi-head attention; its inner width is the outer one divided by `downsample_rate`.

    Attention among tokens is the usual one (`forward`). Attention between the few tokens and the many cells of the image avoids
    projecting the image for every prompt: each pair of a head and a token becomes one row of R = heads * T rows, zero in the
    channels of the other heads, and `image_tokens` multiplies these rows with what the prompts of an image share.
    """

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        assert inner % num_heads == 0, f"{num_heads} heads do not divide {inner} channels"
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns (N, Lq, C) for queries (N, Lq, C), keys (N, Lk, C) and values (N, Lk, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def token_to_image(self, tokens_NTC: Tensor, image: PromptedImage | OwnImage) -> Tensor:
        """Returns (N, T, C), what each token reads from the cells of the image."""
        queries_NRD = self.split_heads(self.q_proj(tokens_NTC) * self.scale)
        attention_NRG = image.scores(queries_NRD, self.k_proj).softmax(dim=-1)
        return self.out_proj(self.merge_heads(image.weighted_sum(attention_NRG, self.v_proj)))

    def image_to_token(
        self, image: PromptedImage | OwnImage, keys_NTC: Tensor, values_NTC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what each cell reads from the tokens, as (N, R, G) attention and (N, R, C) values.

        Their product, (N, G, R) @ (N, R, C), is left to the caller, which adds it to the image in one operation.
        """
        keys_NRD = self.split_heads(self.k_proj(keys_NTC) * self.scale)
        scores_NRG = image.scores(keys_NRD, self.q_proj)
        attention_NRG = scores_NRG.unflatten(1, (self.num_heads, -1)).softmax(dim=2).flatten(1, 2)
        # a cell's attention sums to 1 in each head, so each head's values carry an equal share of the bias
        bias = self.out_proj.bias / self.num_heads
        return attention_NRG, F.linear(self.split_heads(self.v_proj(values_NTC)), self.out_proj.weight, bias)

    def split_heads(self, x_NTD: Tensor) -> Tensor:
        """Returns (N, R, D), one row per head and token with zeros in the channels of the other heads."""
        return (x_NTD[:, None] * own_channels(self.num_heads, x_NTD.shape[-1], x_NTD.dtype, x_NTD.device)).flatten(1, 2)

    def merge_heads(self, x_NRD: Tensor) -> Tensor:
        """Returns (N, T, D), each channel taken from the row of its head."""
        own = own_channels(self.num_heads, x_NRD.shape[-1], x_NRD.dtype, x_NRD.device)
        return (x_NRD.unflatten(1, (self.num_heads, -1)) * own).sum(dim=1)


def own_channels(heads: int, D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns (heads, 1, D), 1 in the channels of each head and 0 elsewhere."""
    # tensors made during an export have no numbers, and must not be found later
    make = head_channels.__wrapped__ if torch.compiler.is_exporting() else head_channels
    return make(heads, D, dtype, device)


@lru_cache(maxsize=64)
def head_channels(heads: int, D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the tensor of `own_channels`, which is made once."""
    # a tensor made during a validation in inference mode could not be used by the next training step
    with torch.inference_mode(False):
        return torch.eye(heads, dtype=dtype, device=device).repeat_interleave(D // heads, dim=1)[:, None]


class MLPBlock(nn.Module):
    """Applies the two linear layers of a transformer block, with ReLU between them."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Applies one decoder layer: self-attention, token-to-image attention, MLP, image-to-token attention (paper, figure 14).

    Each step is followed by dropout, a residual connection and a layer norm (paper, appendix A). Positions are added to the
    tokens and to the image wherever they attend to each other.
    """

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

    def forward(
        self, tokens: Tensor, image: PromptedImage | OwnImage, token_pe: Tensor
    ) -> tuple[Tensor, OwnImage]:
        """Returns the updated (N, T, C) tokens and image; `token_pe` (N, T, C) are the tokens as they entered the decoder."""
        # Self-attention of the tokens; the first block has no residual and adds no positions (released code)
        if self.is_first:
            tokens = self.dropout(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = tokens + self.dropout(self.self_attn(q, q, tokens))
        tokens = self.norm1(tokens)

        # Token-to-image attention
        attended = self.cross_attn_token_to_image.token_to_image(tokens + token_pe, image)
        tokens = self.norm2(tokens + self.dropout(attended))

        # MLP of each token
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))

        # Image-to-token attention; from here on each prompt has its own version of the image
        attention, values = self.cross_attn_image_to_token.image_to_token(image, tokens + token_pe, tokens)
        return tokens, OwnImage(image.cache, self.norm4(self._add_attended(image.cells(), attention, values)))

    def _add_attended(self, cells_NGC: Tensor, attention_NRG: Tensor, values_NRC: Tensor) -> Tensor:
        """Returns (N, G, C), the cells plus what they read from the tokens."""
        attention_NGR = attention_NRG.transpose(1, 2)
        if self.dropout.p and self.training:
            return cells_NGC + self.dropout(torch.bmm(attention_NGR, values_NRC))
        # without dropout, product and sum are one operation
        return torch.baddbmm(cells_NGC, attention_NGR, values_NRC)


class TwoWayTransformer(nn.Module):
    """Applies `depth` two-way blocks, then a last token-to-image attention."""

    def __init__(self, *, depth: int, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [TwoWayAttentionBlock(dim, num_heads, mlp_dim, dropout, is_first=i == 0) for i in range(depth)]
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_NTC: Tensor, prompted: PromptedImage) -> tuple[Tensor, Tensor]:
        """Returns the updated (N, T, C) tokens and the (N, G, C) cells of each prompt's image."""
        tokens: Tensor = tokens_NTC
        image: PromptedImage | OwnImage = prompted
        for layer in self.layers:
            tokens, image = layer(tokens, image, tokens_NTC)

        # Final token-to-image attention
        attended = self.final_attn_token_to_image.token_to_image(tokens + tokens_NTC, image)
        return self.norm_final_attn(tokens + self.dropout(attended)), image.cells()

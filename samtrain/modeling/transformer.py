"""The two-way transformer: tokens attend to the image, the image attends to the tokens (paper, figure 14)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.modeling.image_tokens import OwnImage, PromptedImage


class Attention(nn.Module):
    """Multi-head attention whose inner width is the outer one divided by `downsample_rate`.

    Between tokens it is the plain one. Where tokens meet the image, each pair of a head and a token is a row of its own, zero
    in the channels of the other heads, and the image stays as it is (`image_tokens`).
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
        """(N, Lq, C), (N, Lk, C), (N, Lk, C) to (N, Lq, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def look_at_image(self, tokens_NTC: Tensor, image: PromptedImage | OwnImage) -> Tensor:
        """(N, T, C): what each token takes from the cells of the image."""
        queries_NRD = self._apart(self.q_proj(tokens_NTC) * self.scale)
        weights_NRG = image.scores(queries_NRD, self.k_proj).softmax(dim=-1)
        return self.out_proj(self._together(image.weighted(weights_NRG, self.v_proj)))

    def look_at_tokens(
        self, image: PromptedImage | OwnImage, keys_NTC: Tensor, values_NTC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What each cell takes from the tokens, as (N, R, G) weights and (N, R, C) values whose product it is."""
        keys_NRD = self._apart(self.k_proj(keys_NTC) * self.scale)
        scores_NRG = image.scores(keys_NRD, self.q_proj)
        weights_NRG = scores_NRG.unflatten(1, (self.num_heads, -1)).softmax(dim=2).flatten(1, 2)
        # a cell's weights are 1 in each head, so its heads share out the bias
        bias = self.out_proj.bias / self.num_heads
        return weights_NRG, F.linear(self._apart(self.v_proj(values_NTC)), self.out_proj.weight, bias)

    def _apart(self, x_NTD: Tensor) -> Tensor:
        """(N, heads * T, D): a row for each head and token."""
        return (x_NTD[:, None] * _channels(self.num_heads, x_NTD.shape[-1], x_NTD.dtype, x_NTD.device)).flatten(1, 2)

    def _together(self, x_NRD: Tensor) -> Tensor:
        """(N, T, D): of each row the channels of its head."""
        own = _channels(self.num_heads, x_NRD.shape[-1], x_NRD.dtype, x_NRD.device)
        return (x_NRD.unflatten(1, (self.num_heads, -1)) * own).sum(dim=1)


@lru_cache(maxsize=64)
def _channels(heads: int, D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(heads, 1, D), 1 where a channel is a head's."""
    with torch.inference_mode(False):  # or a validation's would be refused by the next training step
        return torch.eye(heads, dtype=dtype, device=device).repeat_interleave(D // heads, dim=1)[:, None]


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

    def forward(
        self, tokens: Tensor, image: PromptedImage | OwnImage, token_pe: Tensor
    ) -> tuple[Tensor, OwnImage]:
        """(N, T, C) tokens, with what says where they are, and the image."""
        # self-attention; in the first block tokens are their own positions, and there is no residual (released code)
        if self.is_first:
            tokens = self.dropout(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = tokens + self.dropout(self.self_attn(q, q, tokens))
        tokens = self.norm1(tokens)

        # tokens look at the image
        attended = self.cross_attn_token_to_image.look_at_image(tokens + token_pe, image)
        tokens = self.norm2(tokens + self.dropout(attended))

        # MLP
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))

        # the image looks at the tokens
        weights, values = self.cross_attn_image_to_token.look_at_tokens(image, tokens + token_pe, tokens)
        return tokens, OwnImage(image.cache, self.norm4(self._add(image.cells(), weights, values)))

    def _add(self, cells_NGC: Tensor, weights_NRG: Tensor, values_NRC: Tensor) -> Tensor:
        weights_NGR = weights_NRG.transpose(1, 2)
        if self.dropout.p and self.training:
            return cells_NGC + self.dropout(torch.bmm(weights_NGR, values_NRC))
        return torch.baddbmm(cells_NGC, weights_NGR, values_NRC)


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

    def forward(self, tokens_NTC: Tensor, prompted: PromptedImage) -> tuple[Tensor, Tensor]:
        """(N, T, C) tokens and (N, G, C) cells of the image."""
        tokens: Tensor = tokens_NTC
        image: PromptedImage | OwnImage = prompted
        for layer in self.layers:
            tokens, image = layer(tokens, image, tokens_NTC)
        attended = self.final_attn_token_to_image.look_at_image(tokens + tokens_NTC, image)
        return self.norm_final_attn(tokens + self.dropout(attended)), image.cells()

"""The mask decoder: prompts and image embedding in, masks and their predicted IoU out (paper, figure 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from samtrain.modeling.transformer import TwoWayTransformer
from samtrain.types import SamOutput

NUM_MULTIMASK_OUTPUTS = 3  # whole, part, subpart (paper, section 3)


class MLP(nn.Module):
    """A ReLU MLP of `depth` linear layers."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Token 0 is the single mask for several prompts, tokens 1 to 3 the masks for an ambiguous one (released code)."""

    def __init__(
        self, *, dim: int, depth: int, num_heads: int, mlp_dim: int, iou_head_dim: int, dropout: float
    ) -> None:
        super().__init__()
        num_mask_tokens = NUM_MULTIMASK_OUTPUTS + 1
        self.transformer = TwoWayTransformer(
            depth=depth, dim=dim, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout
        )
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([MLP(dim, dim, dim // 8, 3) for _ in range(num_mask_tokens)])
        self.iou_prediction_head = MLP(dim, iou_head_dim, num_mask_tokens, 3)

    def forward(
        self,
        image_embeddings_BCgg: Tensor,
        image_index_N: Tensor,
        image_pe_1Cgg: Tensor,
        sparse_NKC: Tensor,
        dense: Tensor,
        multimask_output: bool,
    ) -> SamOutput:
        """Masks (N, 3 or 1, 4g, 4g) for N prompts, each on the image that `image_index` names."""
        N, g = len(sparse_NKC), image_embeddings_BCgg.shape[-1]

        # the output tokens stand before the prompt's
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(N, -1, -1), sparse_NKC], dim=1)

        # each prompt gets its image, as rows of channels; index_select keeps the backward reproducible on CPU
        image_BGC = image_embeddings_BCgg.flatten(2).transpose(1, 2).contiguous()
        image = image_BGC.index_select(0, image_index_N) + dense.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, image, image_pe_1Cgg.flatten(2).transpose(1, 2))

        # upscale the image, and let each mask token become the weights of its pixel classifier
        chosen = range(1, NUM_MULTIMASK_OUTPUTS + 1) if multimask_output else range(1)
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen], dim=1)
        masks = self._classify_pixels(image, weights, g)

        # predict how good each mask is
        ious = self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
        return SamOutput(low_res_logits=masks, iou_predictions=ious)

    def _classify_pixels(self, image_NGC: Tensor, weights_NMc: Tensor, g: int) -> Tensor:
        """(N, M, 4g, 4g): the image upscaled four times, each pixel's channels times the weights of each mask.

        A transposed convolution of kernel and stride 2 is a matrix product that turns a cell into 2 x 2 cells; cells
        stay rows of channels, and only the finished masks are put in order (the numbers are `output_upscaling`'s).
        """
        first, norm, activation, second, last_activation = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        cells = _double(image_NGC, first)  # (N, G * 4, C / 4), the 2 x 2 of a cell one after the other
        cells = activation(F.layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        cells = last_activation(_double(cells, second))  # (N, G * 4 * 4, C / 8)
        masks = weights_NMc @ cells.transpose(1, 2)
        N, M = masks.shape[:2]
        # (row, column, then row and column within the cell, twice) to (rows, columns)
        return masks.view(N, M, g, g, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(N, M, 4 * g, 4 * g)


def _double(cells_NLC: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """(N, 4 L, C') rows from (N, L, C): each cell becomes 2 x 2."""
    (N, L), (C, out) = cells_NLC.shape[:2], conv.weight.shape[:2]
    assert conv.bias is not None
    weight = conv.weight.permute(2, 3, 1, 0).reshape(4 * out, C)
    return F.linear(cells_NLC, weight, conv.bias.repeat(4)).view(N, 4 * L, out)

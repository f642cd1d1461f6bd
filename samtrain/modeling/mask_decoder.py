"""The mask decoder: prompts and image embedding in, masks and their predicted IoU out (paper, figure 14)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from samtrain.modeling.image_tokens import PromptedImage
from samtrain.modeling.transformer import TwoWayTransformer
from samtrain.types import SamOutput

NUM_MULTIMASK_OUTPUTS = 3  # whole, part, subpart (paper, section 3)
CELLS_AT_A_TIME = 1024  # of the image, where they are upscaled in parts: the fastest of 128 to 4096 on two cores


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

    def forward(self, image: PromptedImage, sparse_NKC: Tensor, multimask_output: bool) -> SamOutput:
        """Masks (N, 3 or 1, 4g, 4g) for N prompts on their images."""
        # the output tokens stand before the prompt's
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse_NKC), -1, -1), sparse_NKC], dim=1)
        tokens, cells = self.transformer(tokens, image)

        # upscale the image, and let each mask token become the weights of its pixel classifier
        chosen = range(1, NUM_MULTIMASK_OUTPUTS + 1) if multimask_output else range(1)
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen], dim=1)
        masks = self._classify_pixels(cells, weights)

        # predict how good each mask is
        ious = self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
        return SamOutput(low_res_logits=masks, iou_predictions=ious)

    def _classify_pixels(self, image_NGC: Tensor, weights_NMc: Tensor) -> Tensor:
        """(N, M, 4g, 4g): the image upscaled four times, each pixel's channels times the weights of each mask.

        A transposed convolution of kernel and stride 2 is a matrix product that turns a cell into 2 x 2 cells; cells
        stay rows of channels, and only the finished masks are put in order (the numbers are `output_upscaling`'s).
        """
        (N, M), G, g = weights_NMc.shape[:2], image_NGC.shape[1], math.isqrt(image_NGC.shape[1])
        double, double_again = self._upscaling()
        if image_NGC.device.type == "cpu" and not torch.is_grad_enabled():
            # a few cells at a time: what stands between, 32 times as large, stays in the cache
            masks = image_NGC.new_empty(N, M, G * 16)
            for image_GC, weights_Mc, out in zip(image_NGC, weights_NMc, masks, strict=True):
                parts = zip(double(image_GC).split(4 * CELLS_AT_A_TIME), out.split(16 * CELLS_AT_A_TIME, dim=1), strict=True)
                for cells, part in parts:
                    part.copy_(weights_Mc @ double_again(cells).T)
        else:
            masks = weights_NMc @ double_again(double(image_NGC)).transpose(1, 2)
        # (row, column, then row and column within the cell, twice) to (rows, columns)
        return masks.view(N, M, g, g, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(N, M, 4 * g, 4 * g)

    def _upscaling(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What turns cells (..., G, C) into (..., G * 4, C / 4), the 2 x 2 of a cell one after the other, and these again."""
        first, norm, activation, second, last_activation = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        double, double_again = _doubling(first), _doubling(second)

        def activate_and_double(cells: Tensor) -> Tensor:
            cells = activation(F.layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
            return last_activation(double_again(cells))

        return double, activate_and_double


def _doubling(conv: nn.ConvTranspose2d) -> Callable[[Tensor], Tensor]:
    """What turns rows (..., L, C) into (..., 4 L, C'): each cell becomes 2 x 2."""
    C, out = conv.weight.shape[:2]
    assert conv.bias is not None
    weight, bias = conv.weight.permute(2, 3, 1, 0).reshape(4 * out, C), conv.bias.repeat(4)
    return lambda cells: F.linear(cells, weight, bias).view(*cells.shape[:-2], 4 * cells.shape[-2], out)

"""Implements the mask decoder: it predicts masks and their IoU from prompts and an image embedding (paper, figure 14)."""

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
CELLS_AT_A_TIME = 1024  # cells upscaled together on a CPU: the fastest of 128 to 4096 on two cores


class MLP(nn.Module):
    """Applies `depth` linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out_dim) for x (..., in_dim)."""
        return self.layers[-1](self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Returns (..., hidden_dim), the input of the last layer."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return x

    def forward_in_float32(self, x: Tensor) -> Tensor:
        """Returns (..., out_dim) float32; the last layer is computed in float32 under autocast and in bfloat16 models, too.

        A float64 model stays in float64.
        """
        x, last = self.hidden(x), self.layers[-1]
        assert isinstance(last, nn.Linear)
        dtype = torch.promote_types(last.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), last.weight.to(dtype), last.bias.to(dtype))


class MaskDecoder(nn.Module):
    """Predicts masks: mask token 0 for objects with several prompts, tokens 1 to 3 for an ambiguous prompt (released code)."""

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
        """Returns masks (N, M, 4g, 4g) and predicted IoUs (N, M) for N prompts; M is 3 with `multimask_output`, else 1."""
        return self.predict(image, sparse_NKC, range(1, NUM_MULTIMASK_OUTPUTS + 1) if multimask_output else range(1))

    def predict(self, image: PromptedImage, sparse_NKC: Tensor, chosen: range) -> SamOutput:
        """Returns masks and predicted IoUs as `forward` does, of the chosen mask tokens (0 to 3)."""
        # Put the output tokens before the prompt tokens
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(sparse_NKC.shape[0], -1, -1), sparse_NKC], dim=1)

        # Update tokens and image in the two-way transformer
        tokens, cells = self.transformer(tokens, image)

        # Turn each mask token into a linear classifier, and classify the pixels of the upscaled image
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen], dim=1)
        masks = self._classify_pixels(cells, weights)

        # Predict the IoU of each mask: in bfloat16 4 % of three masks would tie, and ties choose the first one
        ious = self.iou_prediction_head.forward_in_float32(tokens[:, 0])[:, chosen.start : chosen.stop]
        return SamOutput(low_res_logits=masks, iou_predictions=ious)

    def _classify_pixels(self, image_NGC: Tensor, weights_NMc: Tensor) -> Tensor:
        """Returns (N, M, 4g, 4g), the channels of each upscaled pixel times the weights of each mask.

        A transposed convolution with kernel and stride 2 is a matrix product that turns a cell into 2 x 2 cells. Cells stay
        rows of channels until the masks are finished; only the masks are reordered. The result is that of `output_upscaling`.
        """
        (N, M), G, g = weights_NMc.shape[:2], image_NGC.shape[1], math.isqrt(image_NGC.shape[1])
        double, double_again = self._upscaling()
        if image_NGC.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
            # a few cells at a time, so that the intermediate tensors, 32 times as large, stay in the processor's cache
            masks = image_NGC.new_empty(N, M, G * 16)
            for image_GC, weights_Mc, out in zip(image_NGC, weights_NMc, masks, strict=True):
                parts = zip(double(image_GC).split(4 * CELLS_AT_A_TIME), out.split(16 * CELLS_AT_A_TIME, dim=1), strict=True)
                for cells, part in parts:
                    part.copy_(weights_Mc @ double_again(cells).T)
        else:
            masks = weights_NMc @ double_again(double(image_NGC)).transpose(1, 2)
        # from (row, column, row and column within the cell, row and column within that) to (rows, columns)
        return masks.view(N, M, g, g, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(N, M, 4 * g, 4 * g)

    def _upscaling(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Returns the two halves of `output_upscaling`, from rows (..., L, C) to (..., 4 L, C / 4) and to (..., 16 L, C / 8).

        The 2 x 2 cells that a cell becomes follow one another.
        """
        first, norm, activation, second, last_activation = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        double, double_again = _doubling(first), _doubling(second)

        # the norm over channels is that of LayerNorm2d, whose channels are in another place
        def activate_and_double(cells: Tensor) -> Tensor:
            cells = activation(F.layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
            return last_activation(double_again(cells))

        return double, activate_and_double


def _doubling(conv: nn.ConvTranspose2d) -> Callable[[Tensor], Tensor]:
    """Returns a transposed convolution as a function of rows, (..., L, C) to (..., 4 L, C'): each cell becomes 2 x 2 cells."""
    C, out = conv.weight.shape[:2]
    assert conv.bias is not None
    weight, bias = conv.weight.permute(2, 3, 1, 0).reshape(4 * out, C), conv.bias.repeat(4)
    return lambda cells: F.linear(cells, weight, bias).view(*cells.shape[:-2], 4 * cells.shape[-2], out)

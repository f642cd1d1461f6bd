"""The mask decoder: prompts and image embedding in, masks and their predicted IoU out (paper, appendix A, figure 14)."""

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
        N, (C, g) = len(sparse_NKC), image_embeddings_BCgg.shape[1:3]

        # the output tokens stand before the prompt's
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(N, -1, -1), sparse_NKC], dim=1)

        # each prompt gets its image; index_select keeps the backward reproducible on CPU
        image = image_embeddings_BCgg.index_select(0, image_index_N) + dense
        tokens, image = self.transformer(
            tokens, image.flatten(2).transpose(1, 2), image_pe_1Cgg.flatten(2).transpose(1, 2)
        )

        # upscale the image, and let each mask token become the weights of its pixel classifier
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(N, C, g, g))
        chosen = slice(1, NUM_MULTIMASK_OUTPUTS + 1) if multimask_output else slice(0, 1)
        mask_tokens = tokens[:, 1 : NUM_MULTIMASK_OUTPUTS + 2]
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in list(enumerate(self.output_hypernetworks_mlps))[chosen]], dim=1
        )
        masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])

        # predict how good each mask is
        ious = self.iou_prediction_head(tokens[:, 0])[:, chosen]
        return SamOutput(low_res_logits=masks, iou_predictions=ious)

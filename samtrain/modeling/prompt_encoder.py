"""The prompt encoder: clicks and boxes become tokens, a mask becomes an image-shaped embedding (paper, appendix A)."""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from samtrain.modeling.image_tokens import ProjectionCache, PromptedImage
from samtrain.modeling.recompute import leaving_little
from samtrain.types import PointLabel, Prompts


class RandomPositionEncoding(nn.Module):
    """Fourier features of 2D positions with a fixed random Gaussian matrix."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # a buffer that must travel with the weights: another draw makes another model
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, coords: Tensor) -> Tensor:
        """(..., 2) positions in [0, 1] to (..., C)."""
        matrix = self.positional_encoding_gaussian_matrix
        # no matrix product: under bfloat16 autocast or with TF32 a pixel of 1024 would be lost in rounding
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        x, y = (2 * coords.to(dtype) - 1)[..., None, :].unbind(dim=-1)
        projected = (x * matrix[0].to(dtype) + y * matrix[1].to(dtype)) * (2 * math.pi)
        return torch.cat([projected.sin(), projected.cos()], dim=-1).to(matrix.dtype)

    def grid(self, size: int) -> Tensor:
        """(1, C, size, size): the encoding of the cell centres of a square grid."""
        centres = (torch.arange(size, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Prompts to tokens (N, K, C) and to what they change in the image; parameters are named as in segment_anything."""

    def __init__(self, *, dim: int, image_size: int, grid: int, mask_in_chans: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = RandomPositionEncoding(dim)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, dim) for _ in range(4)])  # in the order of PointLabel
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def forward(self, prompts: Prompts, cache: ProjectionCache, image_index_N: Tensor) -> tuple[Tensor, PromptedImage]:
        """Tokens (N, K, C), and the images of the image as the prompts show them to the decoder."""
        return self.embed_tokens(prompts), PromptedImage(cache, image_index_N, *self.embed_masks(prompts))

    def embed_tokens(self, prompts: Prompts) -> Tensor:
        """Position plus kind for each token; a padding token has no position."""
        encoding = self.pe_layer((prompts.coords + 0.5) / self.image_size)  # + 0.5: to the centre of the pixel
        kinds = torch.cat([e.weight for e in (self.not_a_point_embed, *self.point_embeddings)])
        kind = kinds.index_select(0, (prompts.labels + 1).flatten()).view(*prompts.labels.shape, kinds.shape[1])
        return torch.where((prompts.labels == PointLabel.PADDING)[..., None], kind, encoding + kind)

    def embed_masks(self, prompts: Prompts) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is added to every cell (1, C), and with masks what is added to each: (N, G, m) times the transpose of (C, m)."""
        if prompts.mask_logits is None:
            return self.no_mask_embed.weight, None, None
        last = self.mask_downscaling[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        detail_Nmgg = leaving_little(self.mask_downscaling[:-1], prompts.mask_logits)
        return last.bias[None], detail_Nmgg.flatten(2).transpose(1, 2), last.weight.flatten(1)

    def dense_pe(self) -> Tensor:
        """(1, C, g, g): the positions of the image embedding."""
        return self.pe_layer.grid(self.grid)

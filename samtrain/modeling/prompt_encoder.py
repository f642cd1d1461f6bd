"""Implements the prompt encoder: clicks, boxes and texts become tokens, a mask a dense embedding (paper, appendix A)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from samtrain.modeling.image_tokens import ProjectionCache, PromptedImage
from samtrain.modeling.patches import conv_as_product
from samtrain.modeling.recompute import recompute_in_backward
from samtrain.types import PointLabel, Prompts


class RandomPositionEncoding(nn.Module):
    """Encodes 2D positions as Fourier features with a fixed random Gaussian matrix (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # saved with the weights, because another random matrix would make another model
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, coords: Tensor) -> Tensor:
        """Returns (..., C) for positions (..., 2) of (x, y) in [0, 1]."""
        matrix = self.positional_encoding_gaussian_matrix
        # not a matrix product: under bfloat16 autocast or TF32 rounding would move a point by a pixel of 1024
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        x, y = (2 * coords.to(dtype) - 1)[..., None, :].unbind(dim=-1)
        projected = (x * matrix[0].to(dtype) + y * matrix[1].to(dtype)) * (2 * math.pi)
        return torch.cat([projected.sin(), projected.cos()], dim=-1).to(matrix.dtype)

    def grid(self, size: int) -> Tensor:
        """Returns (1, C, size, size), the encoding of the cell centres of a square grid."""
        centres = (torch.arange(size, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Encodes clicks and boxes as tokens, and masks as additions to the image; parameters are named as in segment_anything.

    With `text_dim` there is a linear map from embeddings of CLIP to tokens, which segment_anything does not have.
    """

    def __init__(self, *, dim: int, image_size: int, grid: int, mask_in_chans: int, text_dim: int = 0) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = RandomPositionEncoding(dim)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, dim) for _ in range(4)])  # PointLabel 0 to 3, in order
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
        self.text_embedding = nn.Linear(text_dim, dim) if text_dim else None

    def forward(self, prompts: Prompts, cache: ProjectionCache, image_index_N: Tensor) -> tuple[Tensor, PromptedImage]:
        """Returns the tokens (N, K, C), and the image with the mask prompts added, as the decoder takes it."""
        return self.embed_tokens(prompts), PromptedImage(cache, image_index_N, *self.embed_masks(prompts))

    def embed_tokens(self, prompts: Prompts) -> Tensor:
        """Returns (N, K, C), the position plus the learned embedding of its kind for each token; padding has no position."""
        encoding = self.pe_layer((prompts.coords + 0.5) / self.image_size)  # + 0.5: the centre of the pixel
        kinds = torch.cat([e.weight for e in (self.not_a_point_embed, *self.point_embeddings)])
        is_text = prompts.labels == PointLabel.TEXT
        labels = prompts.labels if prompts.text is None else prompts.labels.masked_fill(is_text, int(PointLabel.PADDING))
        kind = kinds.index_select(0, (labels + 1).flatten()).view(*labels.shape, kinds.shape[1])
        tokens = torch.where((labels == PointLabel.PADDING)[..., None], kind, encoding + kind)
        if prompts.text is None:
            return tokens
        return torch.where(is_text[..., None], self.embed_text(prompts.text)[:, None].to(tokens.dtype), tokens)

    def embed_text(self, text_NE: Tensor) -> Tensor:
        """Returns (N, C), the tokens of l2-normalised embeddings, which are scaled so that their numbers are about 1.

        Raises ValueError for a model that takes no text, and for embeddings of another CLIP.
        """
        if self.text_embedding is None:
            raise ValueError(
                "this model takes no text prompts: train it to with +experiment=text, or rank its masks with SamTextGenerator"
            )
        if text_NE.shape[-1] != (length := self.text_embedding.in_features):
            raise ValueError(f"the text has {text_NE.shape[-1]} numbers, the model was trained with a CLIP of {length} (clip)")
        return self.text_embedding(text_NE.to(self.text_embedding.weight.dtype) * math.sqrt(length))

    def embed_masks(self, prompts: Prompts) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns what is added to the cells of the image, in the parts that `PromptedImage` takes.

        The first (1, C) is added to every cell. With masks the second (N, G, m) times the transpose of the third (C, m) is
        added as well; without masks both are None.
        """
        if prompts.mask_logits is None:
            return self.no_mask_embed.weight, None, None
        # the last layer is a 1 x 1 convolution, which `PromptedImage` applies where it is cheap
        last = self.mask_downscaling[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        if prompts.mask_logits.device.type == "cpu":
            detail_Nmgg = recompute_in_backward(self.mask_downscaling[:-1], prompts.mask_logits)
            detail_NGm = detail_Nmgg.flatten(2).transpose(1, 2)
        else:
            detail_NGm = recompute_in_backward(self._downscale_in_products, prompts.mask_logits)
        return last.bias[None], detail_NGm, last.weight.flatten(1)

    def _downscale_in_products(self, mask_logits_N1hw: Tensor) -> Tensor:
        """Returns (N, G, m), what `mask_downscaling` computes before its last layer, with channels last."""
        x = mask_logits_N1hw.permute(0, 2, 3, 1)
        for layer in self.mask_downscaling[:-1]:
            if isinstance(layer, nn.Conv2d):
                x = conv_as_product(layer, x)
            elif isinstance(layer, LayerNorm2d):
                x = F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
            else:
                x = layer(x)
        return x.flatten(1, 2)

    def dense_pe(self) -> Tensor:
        """Returns (1, C, g, g), the encoded positions of the image embedding's cells."""
        return self.pe_layer.grid(self.grid)

"""Represents the image in the decoder's attention, and computes what all prompts of an image share only once.

A prompt has few tokens and an image has many cells. Where a layer W projects the cells x and multiplies the result with a
token, the token's side is projected back instead: ``q·(W x) = (W^T q)·x`` and ``sum p (W x) = W (sum p x)``. The result is
that of the usual order, up to rounding. R counts pairs of a head and a token (see `Attention`), G the g x g cells of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionCache:
    """Caches the projections of B image embeddings and of their cells' positions, one per layer that needs them.

    `SamPredictor` keeps one cache per image, which saves every later click these products. A training step makes a new cache,
    because its weights and its graph are new.

    embeddings_BCgg:  embeddings of B images
    positions_1Cgg:   encodings of the cells' positions, shared by all images
    """

    def __init__(self, embeddings_BCgg: Tensor, positions_1Cgg: Tensor) -> None:
        self.source = embeddings_BCgg
        self.embeddings_BGC = embeddings_BCgg.flatten(2).transpose(1, 2).contiguous()
        self.positions_1GC = positions_1Cgg.flatten(2).transpose(1, 2).to(embeddings_BCgg.dtype)
        self._projections: dict[tuple, Tensor] = {}

    def embedding(self, layer: nn.Linear) -> Tensor:
        """Returns the projected embeddings (B, G, D), without the layer's bias."""
        return self.get_or_compute("embedding", layer, lambda: F.linear(self.embeddings_BGC, layer.weight))

    def position(self, layer: nn.Linear) -> Tensor:
        """Returns the projected positions (1, G, D), with the layer's bias."""
        return self.get_or_compute("position", layer, lambda: layer(self.positions_1GC))

    def get_or_compute(self, name: str, layer: nn.Linear, compute: Callable[[], Tensor]) -> Tensor:
        """Returns the cached tensor of this name and layer, computing it the first time."""
        # the version counts in-place changes of the weights, so that an optimiser step does not find old projections
        key = (name, id(layer), layer.weight._version)
        if key not in self._projections:
            self._projections[key] = compute()
        return self._projections[key]


class PromptedImage:
    """Represents the image in the decoder's first layer, where the prompts of an image still share its embedding.

    A cell is the sum of the image's embedding, a vector that is added to every cell, and the embedding of a mask prompt. The
    last is ``detail_NGm @ mix_Cm.T``: it has few channels (m is 16) and is never computed at full width before `cells`.

    owner_N:       int64, the image that each prompt belongs to
    everywhere_1C: what is added to every cell: the "no mask" embedding, or the bias of the mask prompt's last layer
    detail_NGm:    features of the mask prompts, or None without masks
    mix_Cm:        the weights that mix these features into C channels
    """

    def __init__(
        self,
        cache: ProjectionCache,
        owner_N: Tensor,
        everywhere_1C: Tensor,
        detail_NGm: Tensor | None = None,
        mix_Cm: Tensor | None = None,
    ) -> None:
        self.cache, self.owner_N, self.everywhere_1C = cache, owner_N, everywhere_1C
        self.detail_NGm, self.mix_Cm = detail_NGm, mix_Cm

    def scores(self, tokens_NRD: Tensor, layer: nn.Linear) -> Tensor:
        """Returns (N, R, G), the product of each row with the projected cells and their positions."""
        scores = self._by_owner(tokens_NRD, self._projected(layer, with_positions=True).transpose(1, 2))
        if self.detail_NGm is None or self.mix_Cm is None:
            return scores
        return torch.baddbmm(scores, tokens_NRD @ (layer.weight @ self.mix_Cm), self.detail_NGm.transpose(1, 2))

    def weighted_sum(self, weights_NRG: Tensor, layer: nn.Linear) -> Tensor:
        """Returns (N, R, D), the projected cells (without positions) summed with weights that add up to 1."""
        sums = self._by_owner(weights_NRG, self._projected(layer, with_positions=False))
        if self.detail_NGm is None or self.mix_Cm is None:
            return sums
        return sums + F.linear(weights_NRG @ self.detail_NGm, layer.weight @ self.mix_Cm)

    def _projected(self, layer: nn.Linear, *, with_positions: bool) -> Tensor:
        """Returns (B, G, D), the projection of what all prompts of an image share, including the layer's bias."""
        cache, everywhere = self.cache, self.everywhere_1C

        def compute() -> Tensor:
            if with_positions:
                return cache.embedding(layer) + (cache.position(layer) + F.linear(everywhere, layer.weight))
            return cache.embedding(layer) + layer(everywhere)

        # prompts with and without masks have different vectors in `everywhere`
        mask = "with mask" if self.detail_NGm is not None else "without mask"
        return cache.get_or_compute(f"cells {mask}{', with positions' if with_positions else ''}", layer, compute)

    def cells(self) -> Tensor:
        """Returns the cells (N, G, C), one copy per prompt: the second layer changes them prompt by prompt."""
        N, base = self.owner_N.shape[0], self.cache.embeddings_BGC + self.everywhere_1C
        # index_select keeps the backward reproducible on CPU
        own = base.expand(N, -1, -1) if base.shape[0] == 1 else base.index_select(0, self.owner_N)
        if self.detail_NGm is None or self.mix_Cm is None:
            return own
        return torch.baddbmm(own, self.detail_NGm, self.mix_Cm.T.expand(N, -1, -1))

    def _by_owner(self, x_NRK: Tensor, y_BKM: Tensor) -> Tensor:
        """Returns (N, R, M), each row of x times the matrix of the image that it belongs to."""
        N, R, K = x_NRK.shape
        if y_BKM.shape[0] == 1:
            return (x_NRK.reshape(N * R, K) @ y_BKM[0]).view(N, R, y_BKM.shape[2])
        return torch.bmm(x_NRK, y_BKM.index_select(0, self.owner_N))


class OwnImage:
    """Represents the image in the later layers, where each prompt has its own version of the cells, (N, G, C)."""

    def __init__(self, cache: ProjectionCache, cells_NGC: Tensor) -> None:
        self.cache, self.cells_NGC = cache, cells_NGC

    def scores(self, tokens_NRD: Tensor, layer: nn.Linear) -> Tensor:
        """Returns (N, R, G), as `PromptedImage.scores` does."""
        N, R, D = tokens_NRD.shape
        positions_GD = self.cache.position(layer)[0]
        scores = (tokens_NRD.reshape(N * R, D) @ positions_GD.T).view(N, R, len(positions_GD))
        return torch.baddbmm(scores, tokens_NRD @ layer.weight, self.cells_NGC.transpose(1, 2))

    def weighted_sum(self, weights_NRG: Tensor, layer: nn.Linear) -> Tensor:
        """Returns (N, R, D), as `PromptedImage.weighted_sum` does."""
        return layer(torch.bmm(weights_NRG, self.cells_NGC))

    def cells(self) -> Tensor:
        """Returns the cells (N, G, C)."""
        return self.cells_NGC

"""The image as the decoder's tokens meet it: what all prompts of an image share is computed once, not once a prompt.

Tokens are few and positions many, so wherever a layer projects the image and multiplies the result by something of a token, the
token's side is projected back instead: ``q·(W x) = (W^T q)·x`` and ``sum p (W x) = W (sum p x)``. The numbers are those of the
plain way, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionCache:
    """The embeddings of B images and the positions of their G cells, each projected once by each layer that asks.

    Kept over several calls (`SamPredictor`), it saves every later click these products; a training step makes a new one
    each time, since its weights and graph are others.
    """

    def __init__(self, embeddings_BCgg: Tensor, positions_1Cgg: Tensor) -> None:
        self.source = embeddings_BCgg
        self.embeddings_BGC = embeddings_BCgg.flatten(2).transpose(1, 2).contiguous()
        self.positions_1GC = positions_1Cgg.flatten(2).transpose(1, 2).to(embeddings_BCgg.dtype)
        self._kept: dict[tuple, Tensor] = {}

    def embedding(self, layer: nn.Linear) -> Tensor:
        """(B, G, D) without the layer's bias."""
        return self.once("embedding", layer, lambda: F.linear(self.embeddings_BGC, layer.weight))

    def position(self, layer: nn.Linear) -> Tensor:
        """(1, G, D) with the layer's bias."""
        return self.once("position", layer, lambda: layer(self.positions_1GC))

    def once(self, what: str, layer: nn.Linear, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, from memory if it was asked before for these weights of the layer."""
        key = (what, id(layer), layer.weight._version)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class PromptedImage:
    """The image in the first layer: an image's embedding, a vector on every cell, and what a mask prompt adds to each.

    The last, ``detail_NGm @ mix_Cm.T``, has few channels (m is 16) and is never projected at full width.
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
        """(N, R, G): each token against the projected cells and their positions."""
        scores = self._by_owner(tokens_NRD, self._projected(layer, with_positions=True).transpose(1, 2))
        if self.detail_NGm is None or self.mix_Cm is None:
            return scores
        return torch.baddbmm(scores, tokens_NRD @ (layer.weight @ self.mix_Cm), self.detail_NGm.transpose(1, 2))

    def weighted(self, weights_NRG: Tensor, layer: nn.Linear) -> Tensor:
        """(N, R, D): the projected cells, summed with weights whose sum is 1."""
        sums = self._by_owner(weights_NRG, self._projected(layer, with_positions=False))
        if self.detail_NGm is None or self.mix_Cm is None:
            return sums
        return sums + F.linear(weights_NRG @ self.detail_NGm, layer.weight @ self.mix_Cm)

    def _projected(self, layer: nn.Linear, *, with_positions: bool) -> Tensor:
        """(B, G, D) of what all prompts of an image share, the layer's bias included."""
        cache, everywhere = self.cache, self.everywhere_1C

        def make() -> Tensor:
            if with_positions:
                return cache.embedding(layer) + (cache.position(layer) + F.linear(everywhere, layer.weight))
            return cache.embedding(layer) + layer(everywhere)

        kind = "with a mask" if self.detail_NGm is not None else "without one"  # which decides `everywhere`
        return cache.once(f"cells {kind}{', placed' if with_positions else ''}", layer, make)

    def cells(self) -> Tensor:
        """(N, G, C), a copy for each prompt: from here on each has an image of its own."""
        N, base = len(self.owner_N), self.cache.embeddings_BGC + self.everywhere_1C
        # index_select keeps the backward reproducible on CPU
        own = base.expand(N, -1, -1) if len(base) == 1 else base.index_select(0, self.owner_N)
        if self.detail_NGm is None or self.mix_Cm is None:
            return own
        return torch.baddbmm(own, self.detail_NGm, self.mix_Cm.T.expand(N, -1, -1))

    def _by_owner(self, x_NRK: Tensor, y_BKM: Tensor) -> Tensor:
        """(N, R, M): each row of x times the matrix of the image that it lies in."""
        N, R, K = x_NRK.shape
        if len(y_BKM) == 1:
            return (x_NRK.reshape(N * R, K) @ y_BKM[0]).view(N, R, y_BKM.shape[2])
        return torch.bmm(x_NRK, y_BKM.index_select(0, self.owner_N))


class OwnImage:
    """The image in later layers, where each prompt has one of its own, (N, G, C)."""

    def __init__(self, cache: ProjectionCache, cells_NGC: Tensor) -> None:
        self.cache, self.cells_NGC = cache, cells_NGC

    def scores(self, tokens_NRD: Tensor, layer: nn.Linear) -> Tensor:
        """As `PromptedImage.scores`."""
        N, R, D = tokens_NRD.shape
        positions_GD = self.cache.position(layer)[0]
        scores = (tokens_NRD.reshape(N * R, D) @ positions_GD.T).view(N, R, len(positions_GD))
        return torch.baddbmm(scores, tokens_NRD @ layer.weight, self.cells_NGC.transpose(1, 2))

    def weighted(self, weights_NRG: Tensor, layer: nn.Linear) -> Tensor:
        """As `PromptedImage.weighted`."""
        return layer(torch.bmm(weights_NRG, self.cells_NGC))

    def cells(self) -> Tensor:
        return self.cells_NGC

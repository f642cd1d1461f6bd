"""Saves memory by recomputing cheap operations in the backward pass instead of keeping their results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Bytes of x. Smaller tensors are kept: recomputing them would cost 5 % of a laptop-scale step (experiments/LOG.md)
MIN_BYTES = 2**20


def recompute_in_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns `function(x)` and keeps only x for the backward pass.

    `function` should consist of cheap operations, with at most one matrix product at their end. The backward pass recomputes
    the cheap operations but not the product, because PyTorch stops as soon as it has every tensor that had been saved. For
    ViT-B at 1024 pixels this takes 2.4 instead of 3.2 GB (experiments/LOG.md, 2026-11-24).
    """
    # torch.compile decides by itself what to recompute
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.numel() * x.element_size() < MIN_BYTES:
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)

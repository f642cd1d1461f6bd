"""What is cheap to compute twice is not kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WORTH_IT = 2**20  # bytes of x: less is kept, for to compute it again costs a laptop's step 5 % (experiments/LOG.md)


def leaving_little(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What cheap steps, and at most a matrix product at their end, make of x, keeping x alone for the backward pass.

    The cheap steps are taken again there and the product is not: PyTorch stops once it has what had been saved. 2.4 in
    place of 3.2 GB for ViT-B at 1024 px (experiments/LOG.md, 2026-11-24).
    """
    small = x.numel() * x.element_size() < WORTH_IT
    if small or not torch.is_grad_enabled() or torch.compiler.is_compiling():  # which decides such things itself
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)

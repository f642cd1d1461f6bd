"""Computes convolutions with equal kernel and stride as matrix products, which is how a GPU should be asked for them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_as_product(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """Returns (B, H / p, W / p, C'), what a convolution with a kernel of p x p and stride p computes, with channels last.

    For few input channels cuDNN has no convolution on tensor cores, and in bfloat16 its backward pass may fall back to a kernel
    that is many times slower (pytorch/pytorch#128936).
    """
    p = conv.kernel_size[0]
    patches = x_BHWC.unflatten(2, (-1, p)).unflatten(1, (-1, p)).permute(0, 1, 3, 5, 2, 4).flatten(3)
    return F.linear(patches, conv.weight.flatten(1), conv.bias)

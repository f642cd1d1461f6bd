"""Masks and mask logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_iou(a_NHW: Tensor, b_NHW: Tensor, valid_NHW: Tensor | None = None) -> Tensor:
    """(N,) IoU of bool masks pair by pair, counted where `valid`; two empty masks agree: 1."""
    intersection, union = a_NHW & b_NHW, a_NHW | b_NHW
    if valid_NHW is not None:
        intersection, union = intersection & valid_NHW, union & valid_NHW
    intersection_N = intersection.flatten(1).sum(dim=1, dtype=torch.float32)
    union_N = union.flatten(1).sum(dim=1, dtype=torch.float32)
    return torch.where(union_N > 0, intersection_N / union_N.clamp(min=1), torch.ones_like(union_N))


def pairwise_mask_iou(a_NHW: Tensor, b_PHW: Tensor) -> Tensor:
    """(N, P) IoU of all pairs of bool masks, by one matrix product; 0 where both are empty."""
    a, b = a_NHW.flatten(1).float(), b_PHW.flatten(1).float()
    intersection = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1)[None] - intersection
    return intersection / union.clamp(min=1)


def stability_score(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU of the masks cut at +offset and -offset, over the last two axes (paper, section 4; offset 1 in appendix B)."""
    inner = (logits > offset).sum(dim=(-1, -2), dtype=torch.float32)
    outer = (logits > -offset).sum(dim=(-1, -2), dtype=torch.float32)
    return inner / outer.clamp(min=1)


def shrink_masks(masks_NHW: Tensor, side: int) -> Tensor:
    """(N, side, side) bool: True where at least half of a cell is covered."""
    return F.adaptive_avg_pool2d(masks_NHW[:, None].float(), side)[:, 0] >= 0.5


def longest_side_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(H, W) scaled so that the longer side is `longest`, rounded as segment_anything does."""
    scale = longest / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

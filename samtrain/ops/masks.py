"""Compares, scores and resizes masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_iou(a_NHW: Tensor, b_NHW: Tensor, valid_NHW: Tensor | None = None) -> Tensor:
    """Returns (N,) float32 IoUs of bool masks, pair by pair, counting only `valid` pixels; two empty masks have IoU 1."""
    intersection, union = a_NHW & b_NHW, a_NHW | b_NHW
    if valid_NHW is not None:
        intersection, union = intersection & valid_NHW, union & valid_NHW
    intersection_N = intersection.flatten(1).sum(dim=1, dtype=torch.float32)
    union_N = union.flatten(1).sum(dim=1, dtype=torch.float32)
    return torch.where(union_N > 0, intersection_N / union_N.clamp(min=1), torch.ones_like(union_N))


def pairwise_mask_iou(a_NHW: Tensor, b_PHW: Tensor) -> Tensor:
    """Returns (N, P) float32 IoUs of all pairs of bool masks, by one matrix product; two empty masks have IoU 0."""
    a, b = a_NHW.flatten(1).float(), b_PHW.flatten(1).float()
    intersection = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1)[None] - intersection
    return intersection / union.clamp(min=1)


def stability_score(logits: Tensor, offset: float = 1.0) -> Tensor:
    """Returns the IoU of the masks (..., H, W) cut at +offset and -offset (paper, section 4; appendix B: offset 1)."""
    inner = (logits > offset).sum(dim=(-1, -2), dtype=torch.float32)
    outer = (logits > -offset).sum(dim=(-1, -2), dtype=torch.float32)
    return inner / outer.clamp(min=1)


def shrink_masks(masks_NHW: Tensor, valid_NHW: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns masks and valid pixels on a coarse grid, both (N, side, side) bool, True where half of a cell or more is covered.

    A mask that covers no cell by half keeps the cell that it covers most, so that no object becomes empty. A cell of a mask is
    valid, even if most of it is padding.
    """
    covered_NP = F.adaptive_avg_pool2d(masks_NHW[:, None].float(), side).flatten(1)
    most_N1, cell_N1 = covered_NP.max(dim=1, keepdim=True)
    masks = (covered_NP >= 0.5).scatter_(1, cell_N1, most_N1 > 0).view(-1, side, side)
    valid = F.adaptive_avg_pool2d(valid_NHW[:, None].float(), side)[:, 0] >= 0.5
    return masks, valid | masks


def longest_side_size(size: tuple[int, int], longest: float) -> tuple[int, int]:
    """Returns (H, W) scaled so that the longer side is `longest`, rounded as segment_anything does, and at least 1.

    segment_anything rounds the short side of a very thin image to 0 and then fails.
    """
    scale = longest / max(size)
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

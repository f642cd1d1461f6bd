"""Focal and dice loss of low-resolution logits at full resolution, with nothing of full size kept or held for all objects.

A few objects at a time are upscaled, their sums taken, the best of their masks chosen, and its gradient brought back to low
resolution at once: a backward pass finds it ready. What stands here is the plain formula and its derivative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# pixels at a time: on a CPU what stays in its caches, on a GPU what fills it
PIXELS_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class MaskLossWeights:
    """``focal * focal_loss + dice * dice_loss``, with alpha and gamma of the first and the smoothing of the second."""

    focal: float
    dice: float
    alpha: float
    gamma: float
    smooth: float


def best_mask_loss(
    logits_NMhw: Tensor, masks_NHW: Tensor, valid_NHW: Tensor, weights: MaskLossWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss of the best of each object's M masks, (N,), which alone carries a gradient; and, for the log and the IoU head,
    its focal (N,) and dice loss (N,), which mask it is (N,) int64, and the hard IoU of every mask (N, M).

    Focal is a mean over the `valid` pixels (Lin et al. 2017), dice has plain sums (V-Net); bool masks of (H, W), logits are
    upscaled to it bilinearly. The IoU's union counts as one pixel at least, so two empty masks have 0 (as SAM 2 counts).
    """
    return _BestMaskLoss.apply(logits_NMhw, masks_NHW, valid_NHW, weights)


class _BestMaskLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, valid: Tensor, weights: MaskLossWeights) -> tuple[Tensor, ...]:
        N, M = logits.shape[:2]
        limit = PIXELS_AT_A_TIME.get(logits.device.type, PIXELS_AT_A_TIME["cuda"])
        size = max(1, limit // max(1, M * masks.shape[1] * masks.shape[2]))
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        found = []
        with torch.autocast(logits.device.type, enabled=False):  # sums of a million pixels need more than bfloat16
            for start in range(0, max(N, 1), size):
                rows = slice(start, start + size)
                part = None if gradient is None else gradient[rows]
                found.append(_of_some(logits[rows], masks[rows], valid[rows], weights, part))
        loss, focal, dice, chosen, ious = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.gradient = gradient
        ctx.mark_non_differentiable(focal, dice, chosen, ious)
        return loss, focal, dice, chosen, ious

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * outer[0].to(ctx.gradient.dtype)[:, None, None, None], None, None, None


def _of_some(
    logits_nMhw: Tensor, masks_nHW: Tensor, valid_nHW: Tensor, weights: MaskLossWeights, gradient_nMhw: Tensor | None
) -> tuple[Tensor, ...]:
    """The results for some objects; their gradients are written to `gradient_nMhw`."""
    size = masks_nHW.shape[-2:]
    logits = _at(logits_nMhw.to(torch.promote_types(logits_nMhw.dtype, torch.float32)), size).flatten(2)  # (n, M, P)
    masks, valid = masks_nHW.flatten(1), valid_nHW.flatten(1)
    inside, outside = (masks & valid).to(logits.dtype), (valid > masks).to(logits.dtype)  # (n, P)
    balance = torch.lerp(outside, inside, weights.alpha)  # alpha inside, 1 - alpha outside, 0 in the padding
    area = inside.sum(dim=1, keepdim=True)  # (n, 1)
    pixels = (area + outside.sum(dim=1, keepdim=True)).clamp(min=1)
    predicted = (logits > 0).to(logits.dtype)
    ious = _sums(predicted, inside) / (area + _sums(predicted, outside)).clamp(min=1)

    # how wrong a pixel is, from 0 to 1, and its cross-entropy: sigmoid and softplus of the logit against the truth
    against = logits * (outside - inside)[:, None]
    wrong, entropy = against.sigmoid(), F.softplus(against)
    power = wrong * wrong if weights.gamma == 2 else wrong**weights.gamma
    focal = _sums(torch.mul(entropy, power, out=predicted), balance) / pixels
    # the probability is 1 - wrong inside, wrong outside
    missed, surplus = _sums(wrong, inside), _sums(wrong, outside)
    both, sizes = 2 * (area - missed) + weights.smooth, (area - missed) + surplus + area + weights.smooth
    dice = 1 - both / sizes

    loss, chosen = (weights.focal * focal + weights.dice * dice).min(dim=1, keepdim=True)  # (n, 1)
    if gradient_nMhw is not None:
        wrong, entropy, power = (_of_chosen(each, chosen) for each in (wrong, entropy, power))
        both, sizes = both.gather(1, chosen), sizes.gather(1, chosen)
        # by the logit against the truth: d entropy = wrong, d wrong = wrong * (1 - wrong)
        right = 1 - wrong
        by_focal = entropy.mul_(right).mul_(weights.gamma).add_(wrong).mul_(power)
        by_wrong = right.mul_(wrong)
        by_missed, by_surplus = weights.dice * (2 / sizes - both / sizes**2), weights.dice * both / sizes**2
        # and by the logit: what lowers the loss inside raises it outside
        slope = by_focal.mul_(balance).mul_(weights.focal / pixels)
        slope.addcmul_(by_wrong, inside * by_missed + outside * by_surplus).mul_(outside - inside)
        low = _back(slope.view(len(slope), 1, *size), logits_nMhw.shape[-2:]).to(gradient_nMhw.dtype)
        gradient_nMhw.scatter_(1, chosen[:, :, None, None].expand_as(low), low)
    return loss[:, 0], focal.gather(1, chosen)[:, 0], dice.gather(1, chosen)[:, 0], chosen[:, 0], ious


def _sums(x_nMP: Tensor, weights_nP: Tensor) -> Tensor:
    """(n, M)"""
    return torch.bmm(x_nMP, weights_nP[:, :, None])[..., 0]


def _of_chosen(x_nMP: Tensor, chosen_n1: Tensor) -> Tensor:
    """(n, P)"""
    return x_nMP[:, 0] if x_nMP.shape[1] == 1 else x_nMP[torch.arange(len(x_nMP), device=x_nMP.device), chosen_n1[:, 0]]


def _at(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _back(gradient_n1HW: Tensor, size: torch.Size) -> Tensor:
    """The gradient of `_at`, as two matrix products: PyTorch's own takes five times as long on a CPU."""
    H, W = gradient_n1HW.shape[-2:]
    if size == (H, W):
        return gradient_n1HW
    rows, columns = _bilinear(size[0], H, gradient_n1HW), _bilinear(size[1], W, gradient_n1HW)
    return rows.T @ (gradient_n1HW @ columns)


def _bilinear(low: int, high: int, like: Tensor) -> Tensor:
    """(high, low): the matrix by which one axis is upscaled."""
    eye = torch.eye(low, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(eye, (high, low), mode="bilinear", align_corners=False)[0, 0]

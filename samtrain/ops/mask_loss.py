"""Computes focal and dice loss of low-resolution logits at full resolution, in little memory.

A few objects at a time are upscaled, their losses computed, the best of their masks chosen, and its gradient brought back to
low resolution, all in the forward pass. The backward pass only scales that gradient, so no tensor of full size is kept, nor
made for all objects at once. Formulas and derivatives are written out below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels processed together: few enough for a CPU's cache, enough to fill a GPU
PIXELS_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class MaskLossWeights:
    """Holds the weights of the two losses and their constants.

    alpha:      weight of an object's pixels in the focal loss, others have 1 - alpha; None weighs both by 1
    gamma:      exponent of the focal loss
    smooth:     added to both sums of the dice loss
    mean_valid: the focal loss is a mean over the valid pixels instead of over all pixels of the square
    """

    focal: float
    dice: float
    alpha: float | None
    gamma: float
    smooth: float
    mean_valid: bool = False


def best_mask_loss(
    logits_NMhw: Tensor, masks_NHW: Tensor, valid_NHW: Tensor, weights: MaskLossWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the loss of the best of each object's M masks.

    Logits are upscaled bilinearly to the (H, W) of the bool `masks`. Only `valid` pixels count. The focal loss (Lin et al.
    2017) is their sum divided by the H * W pixels of the square, as SAM 2's, or by the number of valid pixels; the dice loss
    has plain sums (V-Net). Returns

    - (N,) the weighted sum of both losses, for the mask where it is lowest; only this carries a gradient,
    - (N,) the focal and (N,) the dice loss of that mask, for the log,
    - (N,) int64, the index of that mask,
    - (N, M) the IoU of every mask cut at logit 0, the target of the IoU head. A union counts as at least one pixel, so two
      empty masks have IoU 0, as in SAM 2.
    """
    return _BestMaskLoss.apply(logits_NMhw, masks_NHW, valid_NHW, weights)


class _BestMaskLoss(torch.autograd.Function):
    """Computes loss and gradient of a few objects at a time in its forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, valid: Tensor, weights: MaskLossWeights) -> tuple[Tensor, ...]:
        N, M = logits.shape[:2]
        limit = PIXELS_AT_A_TIME.get(logits.device.type, PIXELS_AT_A_TIME["cuda"])
        size = max(1, limit // max(1, M * masks.shape[1] * masks.shape[2]))
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        found = []
        with torch.autocast(logits.device.type, enabled=False):  # sums over a million pixels need more than bfloat16
            for start in range(0, max(N, 1), size):
                rows = slice(start, start + size)
                part = None if gradient is None else gradient[rows]
                found.append(_chunk_loss(logits[rows], masks[rows], valid[rows], weights, part))
        loss, focal, dice, chosen, ious = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.gradient = gradient
        ctx.mark_non_differentiable(focal, dice, chosen, ious)
        return loss, focal, dice, chosen, ious

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * outer[0].to(ctx.gradient.dtype)[:, None, None, None], None, None, None


def _chunk_loss(
    logits_nMhw: Tensor, masks_nHW: Tensor, valid_nHW: Tensor, weights: MaskLossWeights, gradient_nMhw: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns the results of `best_mask_loss` for n objects, and writes their gradients to `gradient_nMhw`."""
    # Upscale the logits; P is the number of pixels
    size = masks_nHW.shape[-2:]
    logits = _upscale(logits_nMhw.to(torch.promote_types(logits_nMhw.dtype, torch.float32)), size).flatten(2)  # (n, M, P)
    masks, valid = masks_nHW.flatten(1), valid_nHW.flatten(1)
    inside, outside = (masks & valid).to(logits.dtype), (valid > masks).to(logits.dtype)  # (n, P)
    area = inside.sum(dim=1, keepdim=True)  # (n, 1)
    valid_pixels = (area + outside.sum(dim=1, keepdim=True)).clamp(min=1)
    pixels = valid_pixels if weights.mean_valid else torch.full_like(area, masks.shape[1])

    # IoU of the masks cut at logit 0
    predicted = (logits > 0).to(logits.dtype)
    ious = _weighted_sums(predicted, inside) / (area + _weighted_sums(predicted, outside)).clamp(min=1)

    # Focal loss: with the sign that makes a high logit wrong, sigmoid is the error (0 to 1) and softplus the cross-entropy
    against = logits * (outside - inside)[:, None]
    wrong, entropy = against.sigmoid(), F.softplus(against)
    power = wrong * wrong if weights.gamma == 2 else wrong**weights.gamma
    # alpha inside, 1 - alpha outside, 0 in the padding
    balance = inside + outside if weights.alpha is None else torch.lerp(outside, inside, weights.alpha)
    focal = _weighted_sums(torch.mul(entropy, power, out=predicted), balance) / pixels

    # Dice loss: the predicted probability is 1 - wrong inside the object and wrong outside
    missed, surplus = _weighted_sums(wrong, inside), _weighted_sums(wrong, outside)
    both, sizes = 2 * (area - missed) + weights.smooth, (area - missed) + surplus + area + weights.smooth
    dice = 1 - both / sizes

    # Choose the best mask, and compute its gradient
    loss, chosen = (weights.focal * focal + weights.dice * dice).min(dim=1, keepdim=True)  # (n, 1)
    if gradient_nMhw is not None:
        wrong, entropy, power = (_select_mask(each, chosen) for each in (wrong, entropy, power))  # frees those of all masks
        focal_weights = balance, weights.focal / pixels
        dice_slopes = _dice_slopes(both.gather(1, chosen), sizes.gather(1, chosen), inside, outside, weights.dice)
        slope = _focal_and_dice_slope(wrong, entropy, power, weights.gamma, focal_weights, dice_slopes).mul_(outside - inside)
        low = _downscale_gradient(slope.view(len(slope), 1, *size), logits_nMhw.shape[-2:]).to(gradient_nMhw.dtype)
        gradient_nMhw.scatter_(1, chosen[:, :, None, None].expand_as(low), low)
    return loss[:, 0], focal.gather(1, chosen)[:, 0], dice.gather(1, chosen)[:, 0], chosen[:, 0], ious


def _focal_and_dice_slope(
    wrong_nP: Tensor,
    entropy_nP: Tensor,
    power_nP: Tensor,
    gamma: float,
    focal_weights: tuple[Tensor, Tensor],
    dice_slopes_nP: Tensor,
) -> Tensor:
    """Returns (n, P), the derivative of the loss by the logit times the sign that makes a high logit wrong; works in place.

    With d entropy = wrong and d wrong = wrong * (1 - wrong), the derivative of entropy * wrong**gamma is
    wrong**gamma * (wrong + gamma * entropy * (1 - wrong)).
    """
    balance_nP, scale_n1 = focal_weights
    right = 1 - wrong_nP
    by_focal = entropy_nP.mul_(right).mul_(gamma).add_(wrong_nP).mul_(power_nP)
    d_wrong = right.mul_(wrong_nP)
    return by_focal.mul_(balance_nP).mul_(scale_n1).addcmul_(d_wrong, dice_slopes_nP)


def _dice_slopes(both_n1: Tensor, sizes_n1: Tensor, inside_nP: Tensor, outside_nP: Tensor, weight: float) -> Tensor:
    """Returns (n, P), the derivative of the dice loss by each pixel's error: missed inside the object, surplus outside."""
    by_missed, by_surplus = weight * (2 / sizes_n1 - both_n1 / sizes_n1**2), weight * both_n1 / sizes_n1**2
    return inside_nP * by_missed + outside_nP * by_surplus


def _weighted_sums(x_nMP: Tensor, weights_nP: Tensor) -> Tensor:
    """Returns (n, M), the sums over pixels of x times weights."""
    return torch.bmm(x_nMP, weights_nP[:, :, None])[..., 0]


def _select_mask(x_nMP: Tensor, chosen_n1: Tensor) -> Tensor:
    """Returns (n, P), the chosen mask's values."""
    return x_nMP[:, 0] if x_nMP.shape[1] == 1 else x_nMP[torch.arange(len(x_nMP), device=x_nMP.device), chosen_n1[:, 0]]


def _upscale(x: Tensor, size: torch.Size) -> Tensor:
    """Returns x resized bilinearly to (H, W)."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _downscale_gradient(gradient_n1HW: Tensor, size: torch.Size) -> Tensor:
    """Returns the gradient of `_upscale`, as two matrix products: PyTorch's own takes five times as long on a CPU."""
    H, W = gradient_n1HW.shape[-2:]
    if size == (H, W):
        return gradient_n1HW
    rows, columns = _bilinear(size[0], H, gradient_n1HW), _bilinear(size[1], W, gradient_n1HW)
    return rows.T @ (gradient_n1HW @ columns)


def _bilinear(low: int, high: int, like: Tensor) -> Tensor:
    """Returns (high, low), the matrix that upscales one axis."""
    eye = torch.eye(low, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(eye, (high, low), mode="bilinear", align_corners=False)[0, 0]

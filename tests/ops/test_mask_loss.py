"""Compares the fused loss with its formula in float64, and its gradient with autograd's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.ops import mask_loss
from samtrain.ops.mask_loss import MaskLossWeights, best_mask_loss

WEIGHTS = MaskLossWeights(focal=20.0, dice=1.0, alpha=0.25, gamma=2.0, smooth=1.0)


def example(M: int = 3, low: int = 6, size: tuple[int, int] = (24, 24)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, M, low, low, generator=generator, dtype=torch.float64) * 3
    masks = torch.rand(5, *size, generator=generator) > 0.7
    masks[4] = False
    valid = torch.ones_like(masks)
    valid[1, 15:] = False
    return logits.requires_grad_(), masks, valid


def plain(logits: Tensor, masks: Tensor, valid: Tensor, weights: MaskLossWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss of the best mask, its index, and the IoUs of all masks, as the papers write them."""
    z = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
    t, v = masks[:, None].double(), valid[:, None].double()
    p = z.sigmoid()
    p_t, alpha_t = p * t + (1 - p) * (1 - t), torch.ones_like(t)
    if weights.alpha is not None:
        alpha_t = weights.alpha * t + (1 - weights.alpha) * (1 - t)
    entropy = F.binary_cross_entropy_with_logits(z, t.expand_as(z), reduction="none")
    pixels = v.sum((2, 3)) if weights.mean_valid else v[0].numel()
    focal = (alpha_t * (1 - p_t) ** weights.gamma * entropy * v).sum((2, 3)) / pixels
    both, sizes = 2 * (p * t * v).sum((2, 3)), (p * v).sum((2, 3)) + (t * v).sum((2, 3))
    loss = weights.focal * focal + weights.dice * (1 - (both + weights.smooth) / (sizes + weights.smooth))
    union = (((z > 0) | (t > 0)) & (v > 0)).sum((2, 3)).clamp(min=1)
    ious = ((z > 0) & (t > 0) & (v > 0)).sum((2, 3)).double() / union
    return *loss.min(dim=1), ious


@pytest.fixture(params=[1, 1 << 20], ids=["an object at a time", "all at once"])
def _pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(mask_loss.PIXELS_AT_A_TIME, "cpu", request.param)
    yield


@pytest.mark.usefixtures("_pixels")
@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("size", [(24, 24), (6, 6)], ids=["upscaled", "as it is"])
@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(("alpha", "mean_valid"), [(0.25, False), (0.25, True), (None, False)])
def test_values_and_gradients_equal_the_formulas(
    M: int, size: tuple[int, int], gamma: float, alpha: float | None, mean_valid: bool
) -> None:
    weights = MaskLossWeights(20.0, 1.0, alpha, gamma, 1.0, mean_valid)
    logits, masks, valid = example(M=M, size=size)
    loss, focal, dice, chosen, ious = best_mask_loss(logits, masks, valid, weights)
    expected, best, expected_ious = plain(logits, masks, valid, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(20 * focal + dice, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ious, expected_ious, rtol=1e-15, atol=0)
    assert chosen.equal(best)
    outer = torch.arange(1.0, 6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss, logits, outer)
    (wanted,) = torch.autograd.grad(expected, logits, outer)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-15)


def test_zero_objects_have_zero_loss() -> None:
    logits, masks, valid = example()
    loss, *_, ious = best_mask_loss(logits[:0], masks[:0], valid[:0], WEIGHTS)
    assert loss.shape == (0,) and ious.shape == (0, 3)


def test_autocast_does_not_round_the_sums() -> None:
    logits, masks, valid = example()
    low = logits.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = best_mask_loss(low, masks, valid, WEIGHTS)
    assert all(a.equal(b) for a, b in zip(inside, best_mask_loss(low, masks, valid, WEIGHTS), strict=True))

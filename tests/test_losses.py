"""Compares the loss with Meta's numbers, and tests what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.losses import LossTerms, MaskTargets, SamLoss
from samtrain.types import SamOutput


def example(N: int = 4, M: int = 3, side: int = 12, seed: int = 0) -> tuple[SamOutput, MaskTargets]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, M, side, side, generator=generator) * 2
    ious = torch.rand(N, M, generator=generator)
    masks = torch.rand(N, side, side, generator=generator) > 0.6
    return SamOutput(logits, ious), MaskTargets(masks, torch.ones_like(masks), torch.ones(N))


def values(terms: LossTerms) -> list[float]:
    return [float(term.detach()) for term in (terms.total, terms.focal, terms.dice, terms.iou)]


@pytest.fixture(scope="module")
def meta() -> dict[str, np.ndarray]:
    path = Path(__file__).resolve().parents[2] / "shared" / "reference" / "loss_vectors.npz"
    if not path.is_file():
        pytest.skip(f"needs the values of Meta's loss, {path} is not there")
    return dict(np.load(path))


@pytest.mark.parametrize(
    ("version", "settings"), [("sam1", {}), ("sam2", {"supervise_all_iou": True, "iou_loss": "l1"})], ids=lambda x: str(x)
)
def test_the_loss_equals_that_of_meta(meta: dict[str, np.ndarray], version: str, settings: dict[str, Any]) -> None:
    """Summed over interactions, divided by the number of objects (loss_vectors.md)."""
    loss = SamLoss(interaction_reduction="sum", **settings)
    masks = torch.from_numpy(meta["targets"]) > 0.5
    targets = MaskTargets(masks, torch.ones_like(masks), torch.ones(len(masks)))
    turns = [
        loss(SamOutput(*(torch.from_numpy(meta[f"{name}_{k}"]) for name in ("logits", "ious"))), targets, float(len(masks)))
        for k in range(3)
    ]
    summed = np.sum([values(terms) for terms in turns], axis=0) * loss.interaction_weight(3)
    expected = [meta[f"{version}_{name}"] for name in ("core_loss", "loss_mask", "loss_dice", "loss_iou")]
    np.testing.assert_allclose(summed, np.array(expected, dtype=np.float64).ravel(), rtol=2e-6)


def test_terms_by_hand() -> None:
    """Compares focal and dice loss of one mask with the formulas of the papers."""
    output, targets = example(N=1, M=1)
    terms = SamLoss()(output, targets, 1.0)
    t, z = targets.masks[0].double(), output.low_res_logits[0, 0].double()
    p = z.sigmoid()
    p_t, alpha_t = p * t + (1 - p) * (1 - t), 0.25 * t + 0.75 * (1 - t)
    focal = (-alpha_t * (1 - p_t) ** 2 * p_t.log()).mean()
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    hard = ((z > 0) & (t > 0)).sum() / ((z > 0) | (t > 0)).sum()
    error = (output.iou_predictions[0, 0] - hard) ** 2
    expected = [float(20 * focal + dice + error), float(focal), float(dice), float(error)]
    assert values(terms) == pytest.approx(expected, rel=1e-5)


def test_the_mask_with_the_lowest_focal_plus_dice_is_chosen() -> None:
    loss = SamLoss()
    output, targets = example()
    chosen = loss(output, targets, 1.0).chosen
    for n in range(4):
        alone = slice(n, n + 1)
        target = MaskTargets(targets.masks[alone], targets.valid[alone], targets.weights[alone])
        each = [
            loss(SamOutput(output.low_res_logits[alone, m : m + 1], output.iou_predictions[alone, m : m + 1]), target, 1.0)
            for m in range(3)
        ]
        assert int(chosen[n]) == int(np.argmin([20 * float(terms.focal) + float(terms.dice) for terms in each]))


def test_only_the_chosen_mask_learns() -> None:
    output, targets = example()
    output.low_res_logits.requires_grad_()
    output.iou_predictions.requires_grad_()
    terms = SamLoss()(output, targets, 4.0)
    terms.total.backward()
    chosen = F.one_hot(terms.chosen, 3).bool()
    assert output.low_res_logits.grad is not None and output.iou_predictions.grad is not None
    assert (output.low_res_logits.grad.abs().sum((2, 3)) > 0).equal(chosen)
    assert (output.iou_predictions.grad != 0).equal(chosen)


def test_padding_is_never_counted() -> None:
    """Other logits and targets in the padding give the same values, and no gradient there."""
    output, targets = example()
    targets.valid[:, 8:] = False
    logits = output.low_res_logits.clone()
    logits[..., 8:, :] = 50.0
    other = MaskTargets(targets.masks.clone(), targets.valid, targets.weights)
    other.masks[:, 8:] = True
    a = SamLoss()(output, targets, 4.0)
    b = SamLoss()(SamOutput(logits.requires_grad_(), output.iou_predictions), other, 4.0)
    assert values(a) == pytest.approx(values(b), rel=1e-6)
    b.total.backward()
    assert logits.grad is not None and not logits.grad[..., 8:, :].any()

    # a mean over the valid pixels is as if the padding were cut off
    a = SamLoss(focal_mean="valid")(output, targets, 4.0)
    cut = MaskTargets(targets.masks[:, :8], targets.valid[:, :8], targets.weights)
    c = SamLoss()(SamOutput(output.low_res_logits[..., :8, :], output.iou_predictions), cut, 4.0)
    assert values(a) == pytest.approx(values(c), rel=1e-6)


@pytest.mark.parametrize("share", [1.0, 2 / 3, 0.01], ids=["square", "3:2", "jitter 0.1"])
def test_padding_does_not_bend_the_ratio_of_focal_and_dice(share: float) -> None:
    """A pixel's focal loss has the same weight in an image that fills the square and in one that does not."""
    side = 100
    valid = torch.zeros(1, side * side, dtype=torch.bool)
    valid[:, : round(share * side * side)] = True
    valid = valid.view(1, side, side)
    masks = torch.zeros_like(valid)
    masks[:, 0, :50] = True
    logits = torch.where(masks, 3.0, -20.0)[:, None]  # only the object's 50 pixels have a loss worth the name
    focal = SamLoss()(SamOutput(logits, torch.ones(1, 1)), MaskTargets(masks, valid, torch.ones(1)), 1.0).focal
    whole = SamLoss()(SamOutput(logits, torch.ones(1, 1)), MaskTargets(masks, masks | True, torch.ones(1)), 1.0).focal
    assert float(focal) == pytest.approx(float(whole), rel=1e-3)


def test_objects_of_weight_zero_are_never_counted() -> None:
    output, targets = example()
    logits = output.low_res_logits.clone().requires_grad_()
    targets.weights[2:] = 0
    targets.masks[3] = False  # as an empty object is
    a = SamLoss()(SamOutput(logits, output.iou_predictions), targets, 2.0)
    a.total.backward()
    assert logits.grad is not None and not logits.grad[2:].any() and torch.isfinite(logits.grad).all()
    kept = MaskTargets(targets.masks[:2], targets.valid[:2], targets.weights[:2])
    b = SamLoss()(SamOutput(output.low_res_logits[:2], output.iou_predictions[:2]), kept, 2.0)
    assert values(a) == pytest.approx(values(b), rel=1e-6)


def test_the_caller_sets_the_number_of_objects() -> None:
    output, targets = example()
    assert 2 * float(SamLoss()(output, targets, 4.0).total) == pytest.approx(float(SamLoss()(output, targets, 2.0).total))


def test_reductions_over_interactions() -> None:
    assert SamLoss().interaction_weight(11) == pytest.approx(1 / 11)
    assert SamLoss(interaction_reduction="sum").interaction_weight(11) == 1.0


def test_extreme_logits_stay_finite() -> None:
    output, targets = example()
    logits = (output.low_res_logits.sign() * 1e4).requires_grad_()
    terms = SamLoss()(SamOutput(logits, output.iou_predictions), targets, 4.0)
    terms.total.backward()
    assert torch.isfinite(terms.total) and logits.grad is not None and torch.isfinite(logits.grad).all()


def test_a_perfect_mask_costs_nothing() -> None:
    _, targets = example()
    logits = torch.where(targets.masks, 40.0, -40.0)[:, None]
    terms = SamLoss()(SamOutput(logits, torch.ones(4, 1)), targets, 4.0)
    assert values(terms) == pytest.approx([0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("resolution", ["input", "decoder"])
def test_the_resolution_of_the_loss(resolution: str) -> None:
    """With "input" the logits are upscaled; with "decoder" the masks are reduced, once per step."""
    loss = SamLoss(resolution=resolution)
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 8:16, 4:20] = True
    valid = torch.ones_like(masks)
    valid[:, 24:] = False
    targets = loss.targets(masks, valid, torch.ones(1), mask_size=8)
    assert targets.masks.shape == targets.valid.shape == ((1, 32, 32) if resolution == "input" else (1, 8, 8))
    assert float(targets.masks.float().mean()) == float(masks.float().mean()), "cells are whole here"
    logits = torch.full((1, 1, 8, 8), -20.0)
    logits[:, :, 2:4, 1:5] = 20.0
    terms = loss(SamOutput(logits, torch.ones(1, 1)), targets, 1.0)
    assert float(terms.dice) < 0.05 and float(terms.iou) < 0.05


def test_half_covered_cells_belong_to_the_object() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :2] = True  # half of the first cell
    masks[0, 2, 0] = True  # a quarter of the third
    shrunk = SamLoss(resolution="decoder").targets(masks, torch.ones_like(masks), torch.ones(1), 2).masks
    assert shrunk.tolist() == [[[True, False], [False, False]]]


def test_an_object_smaller_than_half_a_cell_keeps_one_cell() -> None:
    """Before, nuclei and windows below half a decoder cell were clicked, and trained as if they were empty."""
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 3, 3] = masks[0, 4, 3] = masks[0, 5, 3] = True  # one pixel in one cell, two in the cell below
    masks[1, 7, 7] = True  # in a cell that is mostly padding
    valid = torch.ones_like(masks)
    valid[1, :, :] = False
    valid[1, 7, 7] = True
    targets = SamLoss(resolution="decoder").targets(masks, valid, torch.ones(3), 2)
    assert targets.masks.flatten(1).tolist() == [[False, False, True, False], [False, False, False, True], [False] * 4]
    assert targets.valid[1].flatten().tolist() == [False, False, False, True]
    logits = torch.where(targets.masks, 20.0, -20.0)[:, None]
    terms = SamLoss()(SamOutput(logits, torch.ones(3, 1)), targets, 3.0)
    assert float(terms.focal) == pytest.approx(0, abs=1e-6), "the small object's cell is what the loss asks for"


def test_bfloat16_is_computed_in_float32() -> None:
    output, targets = example()
    low = SamOutput(output.low_res_logits.bfloat16(), output.iou_predictions.bfloat16())
    high = SamOutput(low.low_res_logits.float(), low.iou_predictions.float())
    assert values(SamLoss()(low, targets, 4.0)) == values(SamLoss()(high, targets, 4.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": "half"}, "loss.resolution is 'half': take 'input' or 'decoder'"),
        ({"interaction_reduction": "max"}, "loss.interaction_reduction is 'max'"),
        ({"focal_mean": "image"}, "loss.focal_mean is 'image': take 'square' or 'valid'"),
        ({"focal_alpha": -1}, "loss.focal_alpha is -1: give a number from 0 to 1, or null to switch it off"),
        ({"focal_alpha": 1.5}, "loss.focal_alpha is 1.5"),
        ({"focal_gamma": -2.0}, "loss.focal_gamma is -2.0: give 0 or more"),
        ({"focal_weight": -20.0}, "loss.focal_weight is -20.0"),
        ({"dice_weight": float("nan")}, "loss.dice_weight is nan"),
        ({"iou_weight": float("inf")}, "loss.iou_weight is inf"),
        ({"dice_smooth": 0.0}, "loss.dice_smooth is 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamLoss(**settings)


def test_weights_scale_their_terms() -> None:
    output, targets = example()
    terms: Tensor = SamLoss(focal_weight=0.0, dice_weight=0.0, iou_weight=3.0)(output, targets, 4.0).total
    plain = SamLoss(focal_weight=0.0, dice_weight=0.0)(output, targets, 4.0).total
    assert float(terms) == pytest.approx(3 * float(plain))

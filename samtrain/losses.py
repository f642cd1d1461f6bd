"""Computes SAM's loss: 20 focal + 1 dice + 1 IoU error, for the best of an object's masks (paper, section 3 and appendix A)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from samtrain.ops.mask_loss import MaskLossWeights, best_mask_loss
from samtrain.ops.masks import shrink_masks
from samtrain.types import SamOutput


@dataclass
class LossTerms:
    """Holds the loss of one interaction and its parts, each a mean over the objects.

    total:             scalar, the only one with a gradient
    focal, dice, iou:  scalars for the log, unweighted
    chosen:            (N,) int64, the mask that the loss was taken of
    """

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    chosen: Tensor


@dataclass
class MaskTargets:
    """Holds the true masks at the resolution of the loss.

    masks:    (N, H, W) bool, the objects
    valid:    (N, H, W) bool, False in the padding
    weights:  (N,) float32, 1 for an object, 0 for a placeholder
    """

    masks: Tensor
    valid: Tensor
    weights: Tensor


class SamLoss:
    """Computes the loss of one interaction per call.

    Of an object's masks only the one with the lowest focal plus dice loss receives a gradient (paper, section 3). The IoU head
    learns the IoU of that mask, or of every mask with `supervise_all_iou`. Its target is the IoU of the mask cut at logit 0.
    No loss is taken of padded pixels.

    With `focal_mean="square"` the focal loss is divided by all pixels of the square, padding included, as in SAM 2. Dividing by
    the valid pixels alone would bend focal : dice, which is 20 : 1 in the paper: to 30 : 1 in a 3 : 2 image, and to more than
    2,000 : 1 in one that large-scale jitter shrinks to a tenth, because the dice loss does not depend on the padding.

    Raises ValueError for a number out of range or a choice that does not exist, naming the config key.
    """

    def __init__(
        self,
        *,
        focal_weight: float = 20.0,  # focal : dice is 20 : 1 (appendix A)
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,  # appendix A
        iou_loss: str = "mse",  # appendix A; "l1" is SAM 2's
        supervise_all_iou: bool = False,  # paper silent; SAM 2's code says that SAM 1 supervises the best mask alone
        focal_alpha: float | None = 0.25,  # paper silent; SAM 2. None weighs object and background alike
        focal_gamma: float = 2.0,  # paper silent; SAM 2
        focal_mean: str = "square",  # paper silent; SAM 2 takes the mean over its square input; or "valid"
        dice_smooth: float = 1.0,  # paper silent; SAM 2
        resolution: str = "input",  # paper silent; SAM 2 upsamples its logits to the input
        interaction_reduction: str = "mean",  # paper silent; "sum" is SAM 2's
    ) -> None:
        _check_choice("resolution", resolution, ("input", "decoder"))
        _check_choice("interaction_reduction", interaction_reduction, ("mean", "sum"))
        _check_choice("iou_loss", iou_loss, ("mse", "l1"))
        _check_choice("focal_mean", focal_mean, ("square", "valid"))
        weights = {"focal_weight": focal_weight, "dice_weight": dice_weight, "iou_weight": iou_weight}
        for name, value in {**weights, "focal_gamma": focal_gamma}.items():
            _check_number(name, value, value >= 0, "0 or more")
        _check_number("dice_smooth", dice_smooth, dice_smooth > 0, "a number above 0, because two empty masks would give 0 / 0")
        if focal_alpha is not None:
            _check_number("focal_alpha", focal_alpha, 0 <= focal_alpha <= 1, "a number from 0 to 1, or null to switch it off")
        self.mask_weights = MaskLossWeights(
            focal_weight, dice_weight, focal_alpha, focal_gamma, dice_smooth, mean_valid=focal_mean == "valid"
        )
        self.iou_weight = iou_weight
        self.iou_loss = iou_loss
        self.supervise_all_iou = supervise_all_iou
        self.resolution = resolution
        self.interaction_reduction = interaction_reduction

    def targets(self, masks_NSS: Tensor, valid_NSS: Tensor, weights_N: Tensor, mask_size: int) -> MaskTargets:
        """Returns the true masks at the loss's resolution; called once per training step, before its interactions."""
        if self.resolution == "decoder":
            masks_NSS, valid_NSS = shrink_masks(masks_NSS, valid_NSS, mask_size)
        return MaskTargets(masks_NSS, valid_NSS, weights_N)

    def interaction_weight(self, num_interactions: int) -> float:
        """Returns the factor of each interaction's loss in the sum over all interactions of a step."""
        return 1.0 / num_interactions if self.interaction_reduction == "mean" else 1.0

    def __call__(self, output: SamOutput, targets: MaskTargets, num_objects: Tensor | float) -> LossTerms:
        """Returns the loss of one interaction.

        Sums over the objects are divided by `num_objects`, the number of objects per rank, averaged over the ranks: gradients
        averaged over ranks are then those of one process with all objects. `LitSam` does the same for the micro-batches of a
        step.
        """
        # Focal and dice loss of the best mask
        mask_loss_N, focal_N, dice_N, chosen_N, iou_NM = best_mask_loss(
            output.low_res_logits, targets.masks, targets.valid, self.mask_weights
        )

        # Error of the predicted IoU
        iou_error_N = self._iou_error(output.iou_predictions, iou_NM, chosen_N)

        # Means over the objects; placeholders have weight 0
        total, focal, dice, iou_error = (
            (term * targets.weights).sum() / num_objects
            for term in (mask_loss_N + self.iou_weight * iou_error_N, focal_N, dice_N, iou_error_N)
        )
        return LossTerms(total, focal, dice, iou_error.detach(), chosen_N)

    def _iou_error(self, predicted_NM: Tensor, iou_NM: Tensor, chosen_N: Tensor) -> Tensor:
        """Returns (N,), the error of the predicted IoU: that of the chosen mask, or the mean over all of an object's masks."""
        error_NM = predicted_NM.to(iou_NM.dtype) - iou_NM
        error_NM = error_NM.abs() if self.iou_loss == "l1" else error_NM**2
        return error_NM.mean(dim=1) if self.supervise_all_iou else error_NM.gather(1, chosen_N[:, None])[:, 0]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"loss.{name} is {value!r}: take {' or '.join(map(repr, choices))}")


def _check_number(name: str, value: float, holds: bool, allowed: str) -> None:
    if not (holds and math.isfinite(value)):
        raise ValueError(f"loss.{name} is {value}: give {allowed}")

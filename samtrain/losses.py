"""The loss: 20 focal + 1 dice + 1 IoU error, of the best of the masks (paper, section 3 and appendix A)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.ops.masks import shrink_masks
from samtrain.types import SamOutput


@dataclass
class LossTerms:
    """Means over the objects: `total` carries the gradient, the others are for the log. `chosen` (N,) is the mask taken."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    chosen: Tensor


@dataclass
class MaskTargets:
    """What the masks should be, at the resolution of the loss: (N, H, W) bool objects and valid pixels, (N,) weights."""

    masks: Tensor
    valid: Tensor
    weights: Tensor


class SamLoss:
    """Weights and choices of the loss; a call takes one interaction.

    Of several masks only the one of least focal plus dice gets a gradient, and only its IoU is learnt; `supervise_all_iou`
    learns the IoU of each. The IoU target is the hard IoU at logit 0. Padded pixels count nowhere.
    """

    def __init__(
        self,
        *,
        focal_weight: float = 20.0,  # focal : dice is 20 : 1 (appendix A)
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,  # appendix A
        iou_loss: str = "mse",  # appendix A; "l1" is SAM 2's
        supervise_all_iou: bool = False,  # paper silent; SAM 2's code names the best mask alone SAM 1's
        focal_alpha: float = 0.25,  # paper silent; SAM 2
        focal_gamma: float = 2.0,  # paper silent; SAM 2
        dice_smooth: float = 1.0,  # paper silent; SAM 2
        resolution: str = "input",  # paper silent; SAM 2 upsamples its logits to the input
        interaction_reduction: str = "mean",  # paper silent; "sum" is SAM 2's
    ) -> None:
        if resolution not in ("input", "decoder"):
            raise ValueError(f"loss.resolution is {resolution!r}: take 'input' or 'decoder'")
        if interaction_reduction not in ("mean", "sum"):
            raise ValueError(f"loss.interaction_reduction is {interaction_reduction!r}: take 'mean' or 'sum'")
        if iou_loss not in ("mse", "l1"):
            raise ValueError(f"loss.iou_loss is {iou_loss!r}: take 'mse' or 'l1'")
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        self.iou_weight = iou_weight
        self.iou_loss = iou_loss
        self.supervise_all_iou = supervise_all_iou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.dice_smooth = dice_smooth
        self.resolution = resolution
        self.interaction_reduction = interaction_reduction

    def targets(self, masks_NSS: Tensor, valid_NSS: Tensor, weights_N: Tensor, mask_size: int) -> MaskTargets:
        """Objects brought to the loss's resolution, once a step."""
        if self.resolution == "decoder":
            masks_NSS, valid_NSS = shrink_masks(masks_NSS, mask_size), shrink_masks(valid_NSS, mask_size)
        return MaskTargets(masks_NSS, valid_NSS, weights_N)

    def interaction_weight(self, num_interactions: int) -> float:
        """What one interaction counts in the sum over interactions."""
        return 1.0 / num_interactions if self.interaction_reduction == "mean" else 1.0

    def __call__(self, output: SamOutput, targets: MaskTargets, num_objects: Tensor | float) -> LossTerms:
        """Sums over the objects divided by `num_objects` (the mean over ranks of their number)."""
        # logits at the resolution of the loss, in full precision
        size = targets.masks.shape[-2:]
        logits = output.low_res_logits.float()
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        masks, valid = targets.masks[:, None], targets.valid[:, None]

        # focal and dice of each mask, then the best one
        focal_NM, dice_NM = self._focal_and_dice(logits, masks.to(logits.dtype), valid.to(logits.dtype))
        chosen = (self.focal_weight * focal_NM + self.dice_weight * dice_NM).detach().argmin(dim=1, keepdim=True)

        # the IoU that was predicted against the one that it is
        iou_error_N = self._iou_error(logits, output.iou_predictions.float(), targets, chosen)

        # means over the objects
        focal, dice, iou_error = (
            (term * targets.weights).sum() / num_objects
            for term in (focal_NM.gather(1, chosen).squeeze(1), dice_NM.gather(1, chosen).squeeze(1), iou_error_N)
        )
        total = self.focal_weight * focal + self.dice_weight * dice + self.iou_weight * iou_error
        return LossTerms(total, focal.detach(), dice.detach(), iou_error.detach(), chosen.squeeze(1))

    def _iou_error(self, logits_NMHW: Tensor, predicted_NM: Tensor, targets: MaskTargets, chosen_N1: Tensor) -> Tensor:
        """(N,) error of the predicted IoU: of the chosen mask, or the mean over all of an object's masks."""
        if not self.supervise_all_iou:
            h, w = logits_NMHW.shape[-2:]
            logits_NMHW = logits_NMHW.gather(1, chosen_N1[:, :, None, None].expand(-1, -1, h, w))
            predicted_NM = predicted_NM.gather(1, chosen_N1)
        with torch.no_grad():
            iou_NM = _iou(logits_NMHW > 0, targets.masks[:, None], targets.valid[:, None])
        error = predicted_NM - iou_NM
        return (error.abs() if self.iou_loss == "l1" else error**2).mean(dim=1)

    def _focal_and_dice(self, logits_NMHW: Tensor, masks_N1HW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M) each: focal loss as a mean over valid pixels (Lin et al. 2017), dice as in V-Net with plain sums."""
        probability = logits_NMHW.sigmoid()
        cross_entropy = F.softplus(logits_NMHW) - logits_NMHW * masks_N1HW
        miss = probability + masks_N1HW - 2 * probability * masks_N1HW  # 1 - p where the object is, p elsewhere
        balance = self.focal_alpha * masks_N1HW + (1 - self.focal_alpha) * (1 - masks_N1HW)
        power = miss * miss if self.focal_gamma == 2 else miss**self.focal_gamma
        pixels = valid_N1HW.sum(dim=(2, 3)).clamp(min=1)
        focal = (cross_entropy * power * (balance * valid_N1HW)).sum(dim=(2, 3)) / pixels

        probability = probability * valid_N1HW
        overlap = (probability * masks_N1HW).sum(dim=(2, 3))
        sizes = probability.sum(dim=(2, 3)) + (masks_N1HW * valid_N1HW).sum(dim=(2, 3))
        dice = 1 - (2 * overlap + self.dice_smooth) / (sizes + self.dice_smooth)
        return focal, dice


def _iou(a_NMHW: Tensor, b_N1HW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """(N, M) hard IoU where `valid`; the union counts as one pixel at least, so two empty masks have 0 (as SAM 2 counts)."""
    intersection = (a_NMHW & b_N1HW & valid_N1HW).sum(dim=(2, 3))
    union = ((a_NMHW | b_N1HW) & valid_N1HW).sum(dim=(2, 3))
    return intersection / union.clamp(min=1)

"""Masks that are there before anybody looks: detections prompt the model, and what it is sure of stays (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.boxes import clip_boxes_xyxy
from samtrain.ops.masks import stability_score
from samtrain.ops.rle import RLE, encode_mask, rle_area, rle_iou
from samtrain.types import PointLabel, Prompts

MAX_PIXELS = 1 << 24  # boxes times pixels brought to the image's size at once: 64 MB of float32 logits


class BoxDetector(Protocol):
    """What finds objects: `samtrain.detector.Detector`, or anything that answers like it."""

    def detect(self, image: np.ndarray, *, score_thresh: float, max_detections: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class AutomaticMask:
    """A mask that nobody drew, and the box that prompted it.

    segmentation:   RLE of the image's size
    box_xyxy:       the prompt, pixels of the image, edges on its last pixels
    predicted_iou, stability_score:  the model's
    detector_score: the detector's, 0 to 1
    """

    segmentation: RLE
    box_xyxy: list[float]
    predicted_iou: float
    stability_score: float
    detector_score: float


@dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """What a machine may fill in: the settings of `conf/prefill/`.

    The first, third and fourth were chosen by experiments/prefill/ for the laptop; the defaults are segment_anything's.

    box_score_thresh, max_detections:  the boxes that are asked for
    pred_iou_thresh:         of the mask's predicted IoU
    stability_score_thresh:  IoU of the mask cut at +offset and -offset of its logits
    max_mask_area:           of the image; a mask of so much or more is no object (section 5: 95 %)
    nms_thresh:              mask IoU from which of two masks only the one of the higher predicted IoU stays
    duplicate_thresh:        mask IoU with a mask that was there before from which the new one is its near-duplicate
    """

    box_score_thresh: float = 0.5
    max_detections: int = 100
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    max_mask_area: float = 0.95
    nms_thresh: float = 0.7
    duplicate_thresh: float = 0.7

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)):
                raise ValueError(f"prefill.{field.name} is {value!r}: take a number")
            if field.name == "max_detections":
                wrong, allowed = not isinstance(value, int) or value < 1, "1 or more"
            elif field.name == "stability_score_offset":
                wrong, allowed = not value > 0, "more than 0"
            else:
                wrong, allowed = not 0 <= value <= 1, "0 to 1"
            if wrong:
                raise ValueError(f"prefill.{field.name} is {value}: take {allowed}")


class Prefiller:
    """Fills in what a detector finds and a model is sure of."""

    def __init__(self, detector: BoxDetector, config: PrefillConfig) -> None:
        self.detector, self.config = detector, config

    def fill_in(self, image: np.ndarray, predictor: Any, there: Sequence[RLE] = ()) -> list[AutomaticMask]:
        """The masks of an (H, W, 3) uint8 image that `predictor` has set, in falling order of predicted IoU.

        None is a near-duplicate of another or of those that are `there`; masks that lie in one another are no duplicates.
        """
        config = self.config
        boxes, scores = self.detector.detect(image, score_thresh=config.box_score_thresh, max_detections=config.max_detections)
        found = self.propose(image.shape[:2], boxes, scores, predictor)
        sure = [mask for mask in found if self.is_sure(mask, image.shape[:2])]
        return self.without_duplicates(sure, there)

    @torch.no_grad()
    def propose(self, size: tuple[int, int], boxes_N4: np.ndarray, scores_N: np.ndarray, predictor: Any) -> list[AutomaticMask]:
        """One mask a box, the one of the highest predicted IoU of three, before anything is left out.

        Boxes are xyxy in pixels of the image with the right and lower edges behind the last pixel, as detectors give them.
        """
        if len(boxes_N4) == 0:
            return []
        decoder = predictor.decoder()
        at_once = max(1, MAX_PIXELS // (size[0] * size[1]))
        prompts_N4 = _as_prompts(torch.from_numpy(np.asarray(boxes_N4, dtype=np.float32)), size)
        found: list[AutomaticMask] = []
        for start in range(0, len(prompts_N4), at_once):
            boxes = prompts_N4[start : start + at_once]
            labels = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]).expand(len(boxes), 2)
            output = decoder.decode(Prompts(boxes.view(-1, 2, 2).to(predictor.device), labels.to(predictor.device)), True)
            best_N = output.iou_predictions.argmax(dim=1)
            rows = torch.arange(len(boxes), device=best_N.device)
            logits_NHW = decoder.to_frame(output.low_res_logits[rows, best_N][:, None])[:, 0]
            predicted = output.iou_predictions[rows, best_N].tolist()
            found += self._masks(logits_NHW, boxes, predicted, scores_N[start : start + at_once].tolist())
        return found

    def is_sure(self, mask: AutomaticMask, size: tuple[int, int]) -> bool:
        """Whether predicted IoU, stability and area pass."""
        area, config = rle_area(mask.segmentation), self.config
        return (
            mask.predicted_iou >= config.pred_iou_thresh
            and mask.stability_score >= config.stability_score_thresh
            and 0 < area < config.max_mask_area * size[0] * size[1]
        )

    def without_duplicates(self, masks: Sequence[AutomaticMask], there: Sequence[RLE]) -> list[AutomaticMask]:
        """NMS by mask IoU, and none that is there."""
        kept: list[AutomaticMask] = []
        for mask in sorted(masks, key=lambda each: -each.predicted_iou):
            known = rle_iou([mask.segmentation], there)
            own = rle_iou([mask.segmentation], [each.segmentation for each in kept])
            if not (known >= self.config.duplicate_thresh).any() and not (own >= self.config.nms_thresh).any():
                kept.append(mask)
        return kept

    def _masks(self, logits_NHW: Tensor, boxes_N4: Tensor, predicted: list[float], scores: list[float]) -> list[AutomaticMask]:
        stable = stability_score(logits_NHW, self.config.stability_score_offset).tolist()
        masks = (logits_NHW > 0).cpu().numpy()
        return [
            AutomaticMask(encode_mask(mask), *numbers)
            for mask, *numbers in zip(masks, boxes_N4.tolist(), predicted, stable, scores, strict=True)
        ]


def _as_prompts(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """A detector's right and lower edges lie behind the last pixel, a box prompt ends on it; clipped to the image."""
    inclusive = boxes_N4 - torch.tensor([0.0, 0.0, 1.0, 1.0])
    clipped = clip_boxes_xyxy(inclusive, torch.tensor([size]).expand(len(boxes_N4), 2))
    return torch.cat([clipped[:, :2], torch.maximum(clipped[:, 2:], clipped[:, :2])], dim=1)

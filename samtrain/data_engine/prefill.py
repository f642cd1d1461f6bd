"""Prefilling: detected boxes prompt the model, and the masks that it is confident of are kept (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samtrain.data_engine.interface import AutomaticMask
from samtrain.ops.boxes import clip_boxes_xyxy
from samtrain.ops.masks import stability_score
from samtrain.ops.rle import RLE, encode_mask, rle_area, rle_iou
from samtrain.types import PointLabel, Prompts

MAX_PIXELS = 1 << 24  # boxes times pixels that are resized to the image at once: 64 MB of float32 logits


class BoxDetector(Protocol):
    """Finds objects, as `samtrain.detector.Detector` does."""

    def detect(self, image: np.ndarray, *, score_thresh: float, max_detections: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes (N, 4) xyxy in pixels of the image, and scores (N,), best first."""
        ...


@dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """The settings of the config node `prefill`: which masks are kept before an annotator sees the image.

    The paper gives no numbers. The defaults are those of segment_anything; experiments/prefill/ chose box_score_thresh,
    pred_iou_thresh and stability_score_thresh for the laptop scale.

    box_score_thresh, max_detections:  minimum score and maximum number of the boxes
    pred_iou_thresh:         minimum of the mask's predicted IoU
    stability_score_thresh:  minimum IoU of the masks cut at +offset and -offset of the logits
    max_mask_area:           share of the image from which a mask is not an object (section 5: 95 %)
    nms_thresh:              mask IoU from which, of two prefilled masks, only the one of the higher predicted IoU is kept
    duplicate_thresh:        mask IoU with an existing mask from which a prefilled mask is a duplicate
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
            if field.name == "max_detections":
                wrong, allowed = value < 1, "1 or more"
            elif field.name == "stability_score_offset":
                wrong, allowed = not value > 0, "more than 0"
            else:
                wrong, allowed = not 0 <= value <= 1, "0 to 1"
            if wrong:
                raise ValueError(f"prefill.{field.name} is {value}: give {allowed}")


class Prefiller:
    """Prefills the masks of objects that a detector finds and that the model is confident of."""

    def __init__(self, detector: BoxDetector, config: PrefillConfig) -> None:
        self.detector, self.config = detector, config

    def prefill(self, image: np.ndarray, predictor: Any, existing: Sequence[RLE] = ()) -> list[AutomaticMask]:
        """Returns masks of an (H, W, 3) uint8 image, best predicted IoU first; `predictor` must already hold the image.

        None of them duplicates another or one of the `existing` masks. Nested masks, such as a whole and its part, are not
        duplicates.
        """
        config = self.config
        boxes, scores = self.detector.detect(image, score_thresh=config.box_score_thresh, max_detections=config.max_detections)
        found = self.propose(image.shape[:2], boxes, scores, predictor)
        confident = [mask for mask in found if self.is_confident(mask, image.shape[:2])]
        return self.remove_duplicates(confident, existing)

    @torch.no_grad()
    def propose(self, size: tuple[int, int], boxes_N4: np.ndarray, scores_N: np.ndarray, predictor: Any) -> list[AutomaticMask]:
        """Returns one mask per box, the one of three with the highest predicted IoU, before any mask is removed.

        Boxes are xyxy in pixels of the image; their right and lower edges are one past the last pixel, as detectors give
        them.
        """
        if len(boxes_N4) == 0:
            return []
        decoder = predictor.decoder()
        at_once = max(1, MAX_PIXELS // (size[0] * size[1]))
        prompts_N4 = _as_prompts(torch.from_numpy(np.asarray(boxes_N4, dtype=np.float32)), size)
        found: list[AutomaticMask] = []
        for start in range(0, len(prompts_N4), at_once):
            # prompt with as many boxes as fit into memory
            boxes = prompts_N4[start : start + at_once]
            labels = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]).expand(len(boxes), 2)
            output = decoder.decode(Prompts(boxes.view(-1, 2, 2).to(predictor.device), labels.to(predictor.device)), True)

            # keep the best of the three masks, at the image's size
            best_N = output.iou_predictions.argmax(dim=1)
            rows = torch.arange(len(boxes), device=best_N.device)
            logits_NHW = decoder.to_frame(output.low_res_logits[rows, best_N][:, None])[:, 0]
            predicted = output.iou_predictions[rows, best_N].tolist()
            found += self._masks(logits_NHW, boxes, predicted, scores_N[start : start + at_once].tolist())
        return found

    def is_confident(self, mask: AutomaticMask, size: tuple[int, int]) -> bool:
        """Returns whether predicted IoU, stability and area pass their thresholds."""
        area, config = rle_area(mask.segmentation), self.config
        return (
            mask.predicted_iou >= config.pred_iou_thresh
            and mask.stability_score >= config.stability_score_thresh
            and 0 < area < config.max_mask_area * size[0] * size[1]
        )

    def remove_duplicates(self, masks: Sequence[AutomaticMask], existing: Sequence[RLE]) -> list[AutomaticMask]:
        """Returns the masks after NMS by mask IoU, without those that duplicate an existing mask; the best comes first."""
        kept: list[AutomaticMask] = []
        for mask in sorted(masks, key=lambda each: -each.predicted_iou):
            with_existing = rle_iou([mask.segmentation], existing)
            with_kept = rle_iou([mask.segmentation], [each.segmentation for each in kept])
            if not (with_existing >= self.config.duplicate_thresh).any() and not (with_kept >= self.config.nms_thresh).any():
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
    """Returns detected boxes as prompts, clipped to the image: a prompt ends on the last pixel, a detection one past it."""
    inclusive = boxes_N4 - torch.tensor([0.0, 0.0, 1.0, 1.0])
    clipped = clip_boxes_xyxy(inclusive, torch.tensor([size]).expand(len(boxes_N4), 2))
    return torch.cat([clipped[:, :2], torch.maximum(clipped[:, 2:], clipped[:, :2])], dim=1)

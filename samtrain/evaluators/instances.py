"""Instance segmentation (section 7.4): boxes become masks, and each mask is refined once by prompting with itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_size, read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.evaluator import PredictorEvaluator, Row, check_file
from samtrain.evaluators.objects import image_row, object_rows, scored_masks
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.masks import mask_metrics
from samtrain.modeling.sam import Sam
from samtrain.ops.boxes import xywh_to_xyxy
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh, to_compressed
from samtrain.types import PointLabel, Prompts

MAX_PIXELS = 1 << 24  # boxes times pixels that are resized to the image together: 64 MB of float32 logits
Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) xyxy in the image's pixels, (N,) scores


class Instances(PredictorEvaluator):
    """Prompts with the boxes of a detector (`zero_shot.boxes`), or with those of the objects themselves."""

    detections: Mapping[Any, Boxes] | None = None  # by image id or key; None: the boxes of the objects

    def __init__(self, config: ZeroShotConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        check_file(self.config.boxes, "zero_shot.boxes")

    def load(self, sam: Sam) -> None:
        super().load(sam)
        if self.config.boxes is not None:
            self.detections = read_detections(json.loads(Path(self.config.boxes).read_text()), self.config.boxes)

    def rows(self, image: Record) -> list[Row]:
        """Returns the objects of an image and the masks of its boxes as one row of `image_row`.

        A mask has the score of its detection, or its predicted IoU if the box is that of an object. Raises ValueError if
        the image or an RLE does not fit the record.
        """
        if self.detections is None:
            boxes, scores = _object_boxes(image), None
        else:
            nothing = (np.zeros((0, 4)), np.zeros(0))
            image_id = image.annotation["image"].get("image_id")
            found, scores = self.detections.get(image_id, self.detections.get(image.key, nothing))
            boxes = torch.as_tensor(found, dtype=torch.float32)
        masks, ious = masks_of_boxes(self.predictor, read_image(image), boxes)
        return [image_row(image, masks, ious if scores is None else [float(score) for score in scores])]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `mask_metrics` with at most 100 masks per image, as COCO has them."""
        return mask_metrics(scored_masks(rows), max_masks=[1, 10, 100])

    def objects(self, row: Row) -> list[Row]:
        return object_rows(row)


def _object_boxes(image: Record) -> Tensor:
    """Returns (N, 4) xyxy, the boxes of the objects that have pixels."""
    rles = [to_compressed(each["segmentation"], image_size(image)) for each in image.annotation["annotations"]]
    boxes = torch.tensor([rle_to_box_xywh(rle) for rle in rles if rle_area(rle)]).reshape(-1, 4)
    return xywh_to_xyxy(boxes) - torch.tensor([0.0, 0, 1, 1])  # our boxes end at the last pixel, COCO's after it


@torch.no_grad()
def masks_of_boxes(predictor: SamPredictor, image: np.ndarray, boxes_N4: Tensor) -> tuple[list[dict], list[float]]:
    """Returns the RLEs and predicted IoUs of refined masks for boxes xyxy in the image's pixels."""
    if not len(boxes_N4):
        return [], []
    predictor.set_image(image)
    decoder, device = predictor.decoder(), predictor.device
    # prompt with the boxes alone
    corners = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=device)
    prompts = Prompts(boxes_N4.to(device).reshape(-1, 2, 2), corners.expand(len(boxes_N4), 2))
    first = decoder.decode(prompts, multimask_output=True)
    # prompt again, with the mask of highest predicted IoU
    rows = torch.arange(len(boxes_N4), device=device)
    prompts = prompts.with_mask(first.low_res_logits[rows, first.best()][:, None])
    refined = decoder.decode(prompts, multimask_output=False)
    # resize to the image, a few at a time
    masks: list[dict] = []
    chunk = max(1, MAX_PIXELS // (image.shape[0] * image.shape[1]))
    for start in range(0, len(boxes_N4), chunk):
        logits = decoder.to_frame(refined.low_res_logits[start : start + chunk])[:, 0]
        masks += [encode_mask(mask) for mask in (logits > predictor.model.mask_threshold).cpu().numpy()]
    return masks, refined.iou_predictions[:, 0].tolist()


def read_detections(results: Sequence[dict[str, Any]], name: str, *, min_score: float = 0.0) -> dict[Any, Boxes]:
    """Returns the boxes of a COCO result file by image id; raises ValueError that begins with the file's `name`."""
    by_image: dict[Any, list[tuple[list[float], float]]] = {}
    for number, each in enumerate(results):
        box = each.get("bbox") if isinstance(each, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and "image_id" in each and "score" in each):
            raise ValueError(
                f"{name}: result {number} has no image_id, bbox [x, y, w, h] and score: set zero_shot.boxes to COCO results"
            )
        if each["score"] >= min_score:
            by_image.setdefault(each["image_id"], []).append((box, each["score"]))
    found = {}
    for image_id, pairs in by_image.items():
        boxes = np.array([box for box, _ in pairs], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        found[image_id] = (boxes, np.array([score for _, score in pairs]))
    return found

"""Zero-shot instance segmentation (section 7.4): boxes become masks, and are refined once by their own mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_of, size_of
from samtrain.evaluators.objects import image_row
from samtrain.inference.predictor import SamPredictor
from samtrain.ops.boxes import xywh_to_xyxy
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh, to_compressed
from samtrain.types import PointLabel, Prompts

TOGETHER = 1 << 24  # boxes times pixels that are brought to the image's size at once
Row = dict[str, Any]
Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) xyxy in the image's pixels, (N,) scores


def instance_row(predictor: SamPredictor, record: Record, detections: Mapping[Any, Boxes] | None) -> Row:
    """Masks for the boxes of an image, beside its objects, as `objects.image_row`.

    detections: by image id or key, as `read_detections` gives them; None: the objects' own boxes, scored by predicted IoU.
    A box is first asked alone, and then with the mask of highest predicted IoU, which gives the one that counts. Raises
    ValueError where image or RLEs do not fit the record.
    """
    annotations = record.annotation["annotations"]
    rles = [to_compressed(each["segmentation"], size_of(record)) for each in annotations]
    if detections is None:
        sizes = [rle_to_box_xywh(rle) for rle in rles if rle_area(rle)]
        boxes = xywh_to_xyxy(torch.tensor(sizes).reshape(-1, 4)) - torch.tensor([0.0, 0, 1, 1])  # ours end at the last pixel
        scores = None
    else:
        image_id = record.annotation["image"].get("image_id")
        nothing = (np.zeros((0, 4)), np.zeros(0))
        found_boxes, scores = detections.get(image_id, detections.get(record.key, nothing))
        boxes = torch.as_tensor(found_boxes, dtype=torch.float32)
    masks, ious = masks_of_boxes(predictor, image_of(record), boxes)
    return image_row(record, masks, ious if scores is None else [float(score) for score in scores])


@torch.no_grad()
def masks_of_boxes(predictor: SamPredictor, image: np.ndarray, boxes_N4: torch.Tensor) -> tuple[list[dict], list[float]]:
    """RLEs and predicted IoUs of refined masks, for boxes xyxy in the image's pixels."""
    if not len(boxes_N4):
        return [], []
    predictor.set_image(image)
    decoder, device = predictor.decoder(), predictor.device
    corners = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=device)
    prompts = Prompts(boxes_N4.to(device).reshape(-1, 2, 2), corners.expand(len(boxes_N4), 2))
    first = decoder.decode(prompts, multimask_output=True)
    rows = torch.arange(len(boxes_N4), device=device)
    prompts = prompts.with_mask(first.low_res_logits[rows, first.best()][:, None])
    refined = decoder.decode(prompts, multimask_output=False)
    masks: list[dict] = []
    some = max(1, TOGETHER // (image.shape[0] * image.shape[1]))
    for start in range(0, len(boxes_N4), some):
        logits = decoder.to_frame(refined.low_res_logits[start : start + some])[:, 0]
        masks += [encode_mask(mask) for mask in (logits > predictor.model.mask_threshold).cpu().numpy()]
    return masks, refined.iou_predictions[:, 0].tolist()


def read_detections(results: Sequence[dict[str, Any]], name: str, *, min_score: float = 0.0) -> dict[Any, Boxes]:
    """Boxes by image id, of a list as COCO's result files hold it; raises ValueError that names `name`."""
    by_image: dict[Any, list[tuple[list[float], float]]] = {}
    for number, each in enumerate(results):
        box = each.get("bbox") if isinstance(each, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and "image_id" in each and "score" in each):
            raise ValueError(f"{name}: result {number} has no image_id, bbox [x, y, w, h] and score")
        if each["score"] >= min_score:
            by_image.setdefault(each["image_id"], []).append((box, each["score"]))
    found = {}
    for image_id, pairs in by_image.items():
        boxes = np.array([box for box, _ in pairs], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        found[image_id] = (boxes, np.array([score for _, score in pairs]))
    return found

"""Instance segmentation (section 7.4): boxes become masks, and each mask is refined once by prompting with itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.coco_fields import id_text
from samtrain.data.prepare.importers import num_left_out
from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_size, read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.detections import DetectionFile
from samtrain.evaluators.evaluator import Part, PredictorEvaluator, Row, check_file
from samtrain.evaluators.objects import image_row, instance_masks, object_rows
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.instances import instance_metrics
from samtrain.ops.boxes import xywh_to_xyxy
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh, to_compressed
from samtrain.types import PointLabel, Prompts

log = logging.getLogger(__name__)

MAX_PIXELS = 1 << 24  # boxes times pixels that are resized to the image together: 64 MB of float32 logits


class Instances(PredictorEvaluator):
    """Prompts with the boxes of a detector (`zero_shot.boxes`), or with those of the objects themselves."""

    def __init__(self, config: ZeroShotConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        check_file(self.config.boxes, "zero_shot.boxes")

    @cached_property
    def detections(self) -> DetectionFile | None:
        """Returns the boxes of a detector, None for the boxes of the objects."""
        return None if self.config.boxes is None else DetectionFile(self.config.boxes)

    def check(self, part: Part) -> None:
        """Raises ValueError if no detection is of an image and a category of the set, and logs those that are not."""
        if self.detections is None:
            return
        self.detections.match(super().open(part), part.name)
        if left_out := sum(num_left_out(folder) for folder in {Path(source).absolute().parents[1] for source in part.sources}):
            log.warning(
                "AP of the set %s does not count what was found in %d images without objects, because they were left out when "
                "the set was prepared: prepare it with data.empty_images=true.", part.name, left_out,
            )  # fmt: skip

    def open(self, part: Part) -> Iterator[Record]:
        """Yields the images, after finding out how the detections name them."""
        if self.detections is not None:
            self.detections.choose_names(super().open(part))
        yield from super().open(part)

    def rows(self, image: Record) -> list[Row]:
        """Returns the objects of an image and the masks of its boxes as one row of `image_row`.

        A mask has the score of its detection, or its predicted IoU if the box is that of an object. Raises ValueError if
        the image or an RLE does not fit the record.
        """
        if self.detections is None:
            boxes, categories = _object_boxes(image)
            masks, scores = masks_of_boxes(self.predictor, read_image(image), boxes)
        else:
            found = self.detections.of(image)
            masks, _ = masks_of_boxes(self.predictor, read_image(image), torch.as_tensor(found.boxes, dtype=torch.float32))
            scores, categories = found.scores.tolist(), found.categories
        return [image_row(image, masks, scores, categories)]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `instance_metrics`, by LVIS' rules if the set has LVIS' lists of categories, otherwise by COCO's."""
        pairs = [pair for row in rows for pair in zip(row["categories"], row["frequency"], strict=True)]
        frequencies = {id_text(category): frequency for category, frequency in pairs if frequency is not None}
        return instance_metrics(instance_masks(rows), size_limits=self.size_limits, frequencies=frequencies)

    def objects(self, row: Row) -> list[Row]:
        return object_rows(row)


def _object_boxes(image: Record) -> tuple[Tensor, list[Any]]:
    """Returns (N, 4) xyxy, the boxes of the objects that have pixels, and their categories."""
    objects = [(to_compressed(each["segmentation"], image_size(image)), each) for each in image.annotation["annotations"]]
    objects = [(rle, each) for rle, each in objects if rle_area(rle)]
    boxes = xywh_to_xyxy(torch.tensor([rle_to_box_xywh(rle) for rle, _ in objects]).reshape(-1, 4))
    # our boxes end at the last pixel, COCO's after it
    return boxes - torch.tensor([0.0, 0, 1, 1]), [each.get("category_id") for _, each in objects]


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


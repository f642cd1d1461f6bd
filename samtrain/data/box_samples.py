"""Samples for a detector: images with the boxes of their objects. Masks stay RLE and are never decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.rle import rle_area, rle_to_box_xywh, to_compressed


@dataclass
class BoxSample:
    """One image in its original pixels with its N objects; N may be 0.

    image: (3, H, W) uint8 RGB
    boxes: (N, 4) float32 xyxy, each side at least 1; right and lower edges are exclusive
    areas: (N,) float32, pixels of the masks
    """

    image: Tensor
    boxes: Tensor
    areas: Tensor
    key: str = ""


@dataclass
class BoxBatch:
    """Holds B images of any sizes: one list entry per image, as in `BoxSample`."""

    images: list[Tensor]
    boxes: list[Tensor]
    areas: list[Tensor]
    keys: list[str]

    @classmethod
    def of(cls, samples: Sequence[BoxSample]) -> BoxBatch:
        """Collates samples into a batch."""
        return cls([s.image for s in samples], [s.boxes for s in samples], [s.areas for s in samples], [s.key for s in samples])


def annotated_boxes(
    annotations: Sequence[dict[str, Any]], size: tuple[int, int], *, max_mask_area: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, 4) float32 xyxy boxes and (N,) float32 mask areas of an image of `size` (H, W), in the annotations' order.

    Empty masks and masks above `max_mask_area` of the image are left out. Raises ValueError that begins with the annotation's
    id for an RLE that is broken or of another size.
    """
    boxes, areas = [], []
    for annotation in annotations:
        try:
            rle = to_compressed(annotation["segmentation"], size)
        except ValueError as error:
            cure = "correct it, leave it out of the JSON, or set data.on_error=skip"
            raise ValueError(f"annotation {annotation.get('id')}: {error}: {cure}") from error
        area = rle_area(rle)
        if 0 < area <= max_mask_area * size[0] * size[1]:
            x, y, width, height = rle_to_box_xywh(rle)
            boxes.append((x, y, x + width, y + height))
            areas.append(area)
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(areas, dtype=np.float32)


class BoxTransform:
    """Turns an image of a `SamDataset` into a `BoxSample`, at random mirrored from left to right for training.

    `max_masks` is ignored and all objects are kept, because a missing one would be learned as background. Masks above
    `max_mask_area` of the image are dropped (paper, appendix A: 90 %).
    """

    def __init__(self, *, max_mask_area: float = 0.9, flip_probability: float = 0.0) -> None:
        self.max_mask_area, self.flip_probability = max_mask_area, flip_probability

    def __call__(
        self, image: np.ndarray, annotations: Sequence[dict[str, Any]], max_masks: int, rng: np.random.Generator
    ) -> BoxSample:
        boxes_N4, areas_N = annotated_boxes(annotations, image.shape[:2], max_mask_area=self.max_mask_area)
        if self.flip_probability > 0 and rng.random() < self.flip_probability:
            image = image[:, ::-1]
            boxes_N4[:, 0::2] = image.shape[1] - boxes_N4[:, 2::-2]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return BoxSample(pixels, torch.from_numpy(boxes_N4), torch.from_numpy(areas_N))

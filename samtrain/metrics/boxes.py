"""COCO's box AP and AR by pycocotools for one class of objects, in pixels of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samtrain.data.box_samples import annotated_boxes
from samtrain.data.decode import decode_image
from samtrain.data.shards import Record
from samtrain.metrics.coco import COCO_SIZES, Annotation, accumulate, known_means, size_ranges

Detect = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (H, W, 3) uint8 to boxes (N, 4) xyxy and scores (N,)

MAX_DETECTIONS = (1, 10, 20, 100)  # COCO's, and 20, the most that prefilling looks at
LOOSE_IOU = 0.7  # such a box is good enough for a prompt; AR averages over IoUs and hides how many boxes are


@dataclass(frozen=True)
class ImageBoxes:
    """One image: its N objects, and the D boxes that were found.

    boxes: (N, 4) xyxy. areas: (N,) pixels of the masks, which decide the size class. found: (D, 4) xyxy. scores: (D,).
    """

    boxes: np.ndarray
    areas: np.ndarray
    found: np.ndarray
    scores: np.ndarray


def evaluate_boxes(
    detect: Detect,
    records: Iterable[Record],
    *,
    max_mask_area: float = 0.9,
    size_limits: tuple[float, float] = COCO_SIZES,
) -> dict[str, float]:
    """Returns `box_metrics` of a detector on whole images in their own pixels.

    Objects that cover more than `max_mask_area` of the image are left out, as in training. Raises ValueError if an image
    or an RLE does not fit its record, or if no record holds an object.
    """
    images = []
    for record in records:
        size = record.annotation["image"]["height"], record.annotation["image"]["width"]
        try:
            boxes, areas = annotated_boxes(record.annotation["annotations"], size, max_mask_area=max_mask_area)
        except ValueError as error:
            raise ValueError(f"{record.name}: {error}") from error
        image = decode_image(record.image_bytes, size[1], size[0], record.name)
        images.append(ImageBoxes(boxes, areas, *detect(image)))
    return box_metrics(images, size_limits=size_limits)


def box_metrics(images: Sequence[ImageBoxes], *, size_limits: tuple[float, float] = COCO_SIZES) -> dict[str, float]:
    """Returns AP and AR of boxes over all images, 0 to 1, as pycocotools computes them for one class.

    `box_ap` is over IoU 0.5 to 0.95 and 100 boxes per image; there are also `box_ap50`, `box_ap75`, `box_ar_1`, `_10`,
    `_20` and `_100`. `box_recall70_10` and `_20` are the share of objects found at IoU 0.7. `box_ap_small`,
    `box_ar_100_small`, `_medium` and `_large` follow `size_limits`, in square pixels of the mask; a size without objects
    has no metric. Raises ValueError if no image holds an object, or if the limits do not ascend.
    """
    sizes = size_ranges(size_limits)
    if not any(len(image.boxes) for image in images):
        raise ValueError("no image holds an object to compare boxes with: check the validation and test splits (data)")
    objects = [_annotations(image.boxes, image.areas, None) for image in images]
    answers = [_annotations(image.found, None, image.scores) for image in images]
    precision_TRKAM, recall_TKAM, at = accumulate("bbox", objects, answers, list(sizes.values()), MAX_DETECTIONS)
    precision_TRAM, recall_TAM = precision_TRKAM[:, :, 0], recall_TKAM[:, 0]
    last = len(MAX_DETECTIONS) - 1
    found = {
        "box_ap50": precision_TRAM[at[0.5], :, 0, last],
        "box_ap75": precision_TRAM[at[0.75], :, 0, last],
        **{f"box_ar_{count}": recall_TAM[:, 0, m] for m, count in enumerate(MAX_DETECTIONS)},
        **{f"box_recall70_{count}": recall_TAM[at[LOOSE_IOU], 0, MAX_DETECTIONS.index(count)] for count in (10, 20)},
    }
    for a, size in enumerate(sizes):
        found[f"box_ap{size}"] = precision_TRAM[:, :, a, last]
        found[f"box_ar_100{size}"] = recall_TAM[:, a, last]
    return known_means(found)


def _annotations(boxes_xyxy: np.ndarray, areas: np.ndarray | None, scores: np.ndarray | None) -> list[Annotation]:
    """Returns pycocotools' annotations: objects with the areas of their masks, detections with those of their boxes."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1) if areas is None else areas
    scores = np.ones(len(boxes)) if scores is None else scores
    return [
        {"bbox": [*box[:2].tolist(), *side.tolist()], "area": float(area), "score": float(score)}
        for box, side, area, score in zip(boxes, sides, areas, scores, strict=True)
    ]

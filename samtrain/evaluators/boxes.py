"""How well boxes are found, whatever the objects are: COCO's box AP and AR, by pycocotools, in pixels of the pictures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtrain.data.box_samples import annotated_boxes
from samtrain.data.decode import decode_image
from samtrain.data.shards import Record

Detect = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (H, W, 3) uint8 to boxes (N, 4) xyxy and scores (N,)

COCO_SIZES = (32**2, 96**2)  # pixels of a mask: below the first it is small, from the second on large (COCO)
MAX_DETECTIONS = (1, 10, 20, 100)  # COCO's, and 20: what pre-filling may look at
LOOSE_IOU = 0.7  # a box that holds its object well enough for a prompt: AR's mean hides how many do
UNLIMITED = 1e10  # square pixels, as COCO writes it


@dataclass(frozen=True)
class PictureBoxes:
    """One picture: its N objects and the D boxes that were found.

    boxes: (N, 4) xyxy. areas: (N,) pixels of the masks, by which sizes go. found: (D, 4) xyxy. scores: (D,).
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
    """`box_metrics` of a detector on whole pictures in their own pixels.

    Objects over `max_mask_area` of the picture are no objects here, as in training. Raises ValueError where a picture or
    an RLE does not fit its record, or where no record holds an object.
    """
    pictures = []
    for record in records:
        size = record.annotation["image"]["height"], record.annotation["image"]["width"]
        try:
            boxes, areas = annotated_boxes(record.annotation["annotations"], size, max_mask_area=max_mask_area)
        except ValueError as error:
            raise ValueError(f"{record.name}: {error}") from error
        image = decode_image(record.image_bytes, size[1], size[0], record.name)
        pictures.append(PictureBoxes(boxes, areas, *detect(image)))
    return box_metrics(pictures, size_limits=size_limits)


def box_metrics(pictures: Sequence[PictureBoxes], *, size_limits: tuple[float, float] = COCO_SIZES) -> dict[str, float]:
    """AP and AR of boxes over all pictures, 0 to 1, as pycocotools computes them for one class.

    `box_ap` over IoU 0.5 to 0.95 and 100 boxes a picture, `box_ap50`, `box_ap75`; `box_ar_1`, `_10`, `_20`, `_100`;
    `box_recall70_10`, `_20`: the share of objects found at IoU 0.7. `box_ap_small`, `box_ar_100_small`, `_medium` and
    `_large` by `size_limits`, square pixels of the mask; a size that no object has gives no number. Raises ValueError
    where there is no object at all, or limits do not ascend.
    """
    if not 0 < size_limits[0] < size_limits[1]:
        raise ValueError(f"size_limits are {list(size_limits)}: take two ascending areas in pixels, as [1024, 9216]")
    if not any(len(picture.boxes) for picture in pictures):
        raise ValueError("no picture to evaluate boxes on holds an object; check the validation and test splits (data)")
    sizes = {
        "": (0, UNLIMITED),
        "_small": (0, size_limits[0]),
        "_medium": size_limits,
        "_large": (size_limits[1], UNLIMITED),
    }
    precision_TRAM, recall_TAM, thresholds = _accumulate(pictures, list(sizes.values()))
    at = {round(float(threshold), 2): i for i, threshold in enumerate(thresholds)}
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
    return {name: float(np.mean(values)) for name, values in sorted(found.items()) if np.min(values) >= 0}


def _accumulate(
    pictures: Sequence[PictureBoxes], ranges: list[tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pycocotools' (T, R, A, M) precision and (T, A, M) recall, -1 where there is nothing to find, and its T thresholds."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth, found = _coco(pictures, found=False), _coco(pictures, found=True)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.params.areaRng = [list(each) for each in ranges]
        evaluation.params.areaRngLbl = [str(i) for i in range(len(ranges))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRKAM, recall_TKAM = evaluation.eval["precision"], evaluation.eval["recall"]
    return precision_TRKAM[:, :, 0], recall_TKAM[:, 0], evaluation.params.iouThrs


def _coco(pictures: Sequence[PictureBoxes], *, found: bool) -> COCO:
    """Objects or answers in the form that COCOeval reads; ids count from 1, since 0 means "no match" there."""
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        boxes = np.asarray(picture.found if found else picture.boxes, dtype=np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas, scores = (sides.prod(axis=1), picture.scores) if found else (picture.areas, np.ones(len(boxes)))
        for box, side, area, score in zip(boxes, sides, areas, scores, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [*box[:2].tolist(), *side.tolist()],
                    "area": float(area),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(pictures))],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    coco.createIndex()
    return coco

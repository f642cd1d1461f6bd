"""pycocotools' evaluation for one class of objects, whatever they are: boxes or masks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_SIZES = (32**2, 96**2)  # pixels of a mask: below the first it is small, from the second on large (COCO)
UNLIMITED = 1e10  # square pixels, as COCO writes it
Annotation = dict[str, Any]


def size_ranges(limits: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Areas by the ending of a metric's name, "" for all; raises ValueError where limits do not ascend."""
    if not 0 < limits[0] < limits[1]:
        raise ValueError(f"size_limits are {list(limits)}: take two ascending areas in pixels, as [1024, 9216]")
    return {"": (0, UNLIMITED), "_small": (0, limits[0]), "_medium": limits, "_large": (limits[1], UNLIMITED)}


def accumulate(
    kind: str,
    objects: Sequence[Sequence[Annotation]],
    found: Sequence[Sequence[Annotation]],
    ranges: Sequence[tuple[float, float]],
    max_detections: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, dict[float, int]]:
    """pycocotools' (T, R, A, M) precision and (T, A, M) recall, -1 where there is nothing to find, and the place of each T.

    kind: "bbox" or "segm". objects, found: for each image annotations with `bbox` xywh, `area`, for masks
    `segmentation`, of what was found a `score`, of objects at choice `iscrowd`.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        evaluation = COCOeval(_coco(objects), _coco(found), kind)
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.areaRng = [list(each) for each in ranges]
        evaluation.params.areaRngLbl = [str(i) for i in range(len(ranges))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRKAM, recall_TKAM = evaluation.eval["precision"], evaluation.eval["recall"]
    places = {round(float(threshold), 2): i for i, threshold in enumerate(evaluation.params.iouThrs)}
    return precision_TRKAM[:, :, 0], recall_TKAM[:, 0], places


def known_means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means by sorted name, without those of what there was not (-1)."""
    return {name: float(np.mean(each)) for name, each in sorted(values.items()) if np.min(each) >= 0}


def _coco(images: Sequence[Sequence[Annotation]]) -> COCO:
    """Ids count from 1, since 0 means "no match" to COCOeval."""
    annotations: list[Annotation] = []
    for number, image in enumerate(images):
        for each in image:
            annotations.append(
                {"iscrowd": 0, **each, "id": len(annotations) + 1, "image_id": number, "category_id": 1}
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": 1, "width": 1} for number in range(len(images))],  # RLEs carry their own
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    coco.createIndex()
    return coco

"""Runs pycocotools' evaluation of boxes or of masks, over one class or over categories."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_SIZES = (32**2, 96**2)  # pixels of a mask: small below the first, large from the second on (COCO)
UNLIMITED = 1e10  # square pixels, as COCO writes it
Annotation = dict[str, Any]


def size_ranges(limits: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Returns ranges of area by the suffix of a metric's name, "" for all; raises ValueError unless limits ascend."""
    if not 0 < limits[0] < limits[1]:
        raise ValueError(f"size_limits is {list(limits)}: give two ascending areas in pixels, such as [1024, 9216]")
    return {"": (0, UNLIMITED), "_small": (0, limits[0]), "_medium": limits, "_large": (limits[1], UNLIMITED)}


def accumulate(
    kind: str,
    objects: Sequence[Sequence[Annotation]],
    found: Sequence[Sequence[Annotation]],
    ranges: Sequence[tuple[float, float]],
    max_detections: Sequence[int],
    *,
    not_exhaustive: Collection[tuple[int, int]] = (),
) -> tuple[np.ndarray, np.ndarray, dict[float, int]]:
    """Returns pycocotools' (T, R, K, A, M) precision, its (T, K, A, M) recall, and the index of each IoU threshold in T.

    Both are -1 where there is nothing to find. `kind` is "bbox" or "segm". `objects` and `found` hold, for each image,
    annotations with `bbox` xywh and `area`, plus `segmentation` for masks; found ones have a `score`, objects may have
    `iscrowd`. `category_id` counts from 1 along K; without it there is one class.

    `not_exhaustive` has (number of the image, category) where not every object is annotated: what is found there and matches
    no object counts as neither right nor wrong (LVIS; Gupta et al. 2019, section 4).
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        last = max((each.get("category_id", 1) for image in (*objects, *found) for each in image), default=1)
        categories = list(range(1, last + 1))
        evaluation = COCOeval(_coco(objects, categories), _coco(found, categories), kind)
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.areaRng = [list(each) for each in ranges]
        evaluation.params.areaRngLbl = [str(i) for i in range(len(ranges))]
        evaluation.evaluate()
        for each in evaluation.evalImgs:
            if each is not None and (each["image_id"], each["category_id"]) in not_exhaustive:
                each["dtIgnore"][each["dtMatches"] == 0] = 1
        evaluation.accumulate()
    places = {round(float(threshold), 2): i for i, threshold in enumerate(evaluation.params.iouThrs)}
    return evaluation.eval["precision"], evaluation.eval["recall"], places


def known_means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the means by sorted name, over the values that pycocotools could compute (not -1); none of them, no mean."""
    known = {name: each[each > -1] for name, each in sorted(values.items())}
    return {name: float(np.mean(each)) for name, each in known.items() if each.size}


def _coco(images: Sequence[Sequence[Annotation]], categories: Sequence[int]) -> COCO:
    """Returns pycocotools' index of the annotations; their ids start at 1, because 0 means "no match" to COCOeval."""
    annotations: list[Annotation] = []
    for number, image in enumerate(images):
        for each in image:
            annotations.append(
                {"iscrowd": 0, "category_id": 1, **each, "id": len(annotations) + 1, "image_id": number}
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": 1, "width": 1} for number in range(len(images))],  # RLEs carry their own size
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in categories],
    }
    coco.createIndex()
    return coco

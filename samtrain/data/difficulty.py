"""Measures how hard a set of images is for one click: a colour flood fill as floor, the best single mask as ceiling.

The report shows both beside a model's 1-click mIoU. The click is that of the evaluation protocol: the object's point farthest
from its outline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import ndimage

from samtrain.data.decode import decode_image
from samtrain.data.shards import Record
from samtrain.ops.points import centre_points
from samtrain.ops.rle import decode_rle

ImageAndMasks = tuple[np.ndarray, Sequence[np.ndarray]]  # ((H, W, 3) uint8, the (H, W) bool masks)

TOLERANCES = (8, 12, 16, 20, 25, 30, 35, 40, 50, 60, 75, 90)  # RGB distance; 441 is black to white


def decoded_images(records: Iterable[Record]) -> Iterator[ImageAndMasks]:
    """Yields the decoded image and all masks of each record, in original pixels."""
    for record in records:
        width, height = record.annotation["image"]["width"], record.annotation["image"]["height"]
        image = decode_image(record.image_bytes, width, height, record.name)
        yield image, [decode_rle(each["segmentation"], (height, width)) for each in record.annotation["annotations"]]


def centre_clicks(masks: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Returns for each mask the (row, column) farthest from its outline, which is the evaluation protocol's click."""
    if not masks:
        return []
    coords, _ = centre_points(torch.from_numpy(np.stack(masks)))
    return [(int(y), int(x)) for x, y in coords.tolist()]


def flood_fill_miou(images: Iterable[ImageAndMasks], tolerances: Sequence[float] = TOLERANCES) -> float:
    """Returns the mean IoU of a flood fill: the connected region around the centre click with a similar colour.

    Similar means an RGB distance to the clicked pixel of at most a tolerance, the one that is best for the whole set.
    """
    scores = [
        [_iou(_flood(image, click, tolerance), mask) for tolerance in tolerances]
        for image, masks in images
        for mask, click in zip(masks, centre_clicks(masks), strict=True)
    ]
    if not scores:
        raise ValueError("there are no objects to measure a flood fill on: check data.test")
    return float(np.max(np.mean(scores, axis=0)))


def _flood(image: np.ndarray, click: tuple[int, int], tolerance: float) -> np.ndarray:
    """Returns the 4-connected region of similar colour around the click."""
    difference = image.astype(np.float32) - image[click].astype(np.float32)
    labels, _ = ndimage.label(np.einsum("hwc,hwc->hw", difference, difference) <= tolerance**2)
    return labels == labels[click]


def best_single_mask_miou(images: Iterable[ImageAndMasks], reach: float | None = None) -> float:
    """Returns the highest mean IoU that one annotated mask per centre click can reach if the intended object is unknown.

    Several masks may contain a click. The intended one is, with equal probability, any of those with their own centre within
    `reach` pixels of the click, or any of them if `reach` is None. The guess is the mask with the highest expected IoU, and
    that expectation is the score. None means that the place of a click says nothing about the intended object, 0 that it
    says all it can.
    """
    scores = []
    for _, masks in images:
        centres = centre_clicks(masks)
        for index, click in enumerate(centres):
            # the masks under the click, and those of them that may be meant
            under = [i for i, mask in enumerate(masks) if mask[click]]
            near = [i for i in under if reach is None or np.hypot(*np.subtract(centres[i], click)) <= reach]
            meant = near or [index]
            scores.append(max(np.mean([_iou(masks[guess], masks[i]) for i in meant]) for guess in under))
    if not scores:
        raise ValueError("there are no objects to measure the ambiguity on: check data.test")
    return float(np.mean(scores))


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return int(np.count_nonzero(first & second)) / max(int(np.count_nonzero(first | second)), 1)

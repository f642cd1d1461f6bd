"""How hard a set of images is for one click: what a colour flood fill reaches, and what no single mask can exceed.

Both numbers stand beside a model's 1-click mIoU in the report, as floor and as ceiling. The click is the evaluation
protocol's: the object's point farthest from its own outline.
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

ImageToAnnotate = tuple[np.ndarray, Sequence[np.ndarray]]  # ((H, W, 3) uint8, the (H, W) bool masks)

TOLERANCES = (8, 12, 16, 20, 25, 30, 35, 40, 50, 60, 75, 90)  # RGB distance; 441 is black to white


def decoded_images(records: Iterable[Record]) -> Iterator[ImageToAnnotate]:
    """Records of a shard as decoded images with all their masks, in original pixels."""
    for record in records:
        width, height = record.annotation["image"]["width"], record.annotation["image"]["height"]
        image = decode_image(record.image_bytes, width, height, record.name)
        yield image, [decode_rle(each["segmentation"], (height, width)) for each in record.annotation["annotations"]]


def centre_clicks(masks: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """The (row, column) of each mask that is farthest from its outline: the evaluation protocol's click."""
    if not masks:
        return []
    coords, _ = centre_points(torch.from_numpy(np.stack(masks)))
    return [(int(y), int(x)) for x, y in coords.tolist()]


def flood_fill_miou(images: Iterable[ImageToAnnotate], tolerances: Sequence[float] = TOLERANCES) -> float:
    """Mean IoU over all objects of the connected region of like colour around the centre click.

    Like colour means an RGB distance to the clicked pixel of at most a tolerance: the one that serves the set best.
    """
    scores = [
        [_iou(_flood(image, click, tolerance), mask) for tolerance in tolerances]
        for image, masks in images
        for mask, click in zip(masks, centre_clicks(masks), strict=True)
    ]
    if not scores:
        raise ValueError("no objects to measure a flood fill on")
    return float(np.max(np.mean(scores, axis=0)))


def _flood(image: np.ndarray, click: tuple[int, int], tolerance: float) -> np.ndarray:
    """The 4-connected region around the click."""
    difference = image.astype(np.float32) - image[click].astype(np.float32)
    labels, _ = ndimage.label(np.einsum("hwc,hwc->hw", difference, difference) <= tolerance**2)
    return labels == labels[click]


def best_single_mask_miou(images: Iterable[ImageToAnnotate], reach: float | None = None) -> float:
    """Mean IoU of the best guess that answers each centre click with one annotated mask, not knowing which object was
    meant.

    Under a click lie all masks that contain it. Those that may be meant are the ones whose own centre is within `reach`
    pixels of it, or all of them when `reach` is None; each is as likely as the other. The guess is the mask of highest
    expected IoU, and its expectation is the score. None says that the place of a click tells nothing about the level
    meant; 0 that it tells all it can.
    """
    scores = []
    for _, masks in images:
        centres = centre_clicks(masks)
        for index, click in enumerate(centres):
            under = [i for i, mask in enumerate(masks) if mask[click]]
            near = [i for i in under if reach is None or np.hypot(*np.subtract(centres[i], click)) <= reach]
            meant = near or [index]
            scores.append(max(np.mean([_iou(masks[guess], masks[i]) for i in meant]) for guess in under))
    if not scores:
        raise ValueError("no objects to measure the ambiguity on")
    return float(np.mean(scores))


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return int(np.count_nonzero(first & second)) / max(int(np.count_nonzero(first | second)), 1)

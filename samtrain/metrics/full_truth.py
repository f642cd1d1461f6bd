"""Compares masks with all objects of an image: nuclei AP, panoptic quality, Dice and boundary F, also by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from samtrain.metrics.coco import COCO_SIZES, size_ranges
from samtrain.ops.rle import RLE, decode_rle, rle_area, rle_iou, rle_to_box_xywh, to_compressed

THRESHOLDS = np.arange(50, 100, 5) / 100  # 2018 Data Science Bowl; np.arange(0.5, 1, 0.05) misses 0.6, 0.65, ... by rounding
TOLERANCE = 0.008  # of the image's diagonal, rounded up to pixels (DAVIS; Perazzi et al. 2016)
BY_SIZE = ("nuclei_ap50", "pq", "object_dice", "boundary_f")


@dataclass(frozen=True)
class ImageMasks:
    """One image: its objects, and the records that a mask generator returned for it."""

    objects: Sequence[RLE]
    records: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class _Compared:
    """The comparison of the N objects and M masks of one image; areas are in pixels.

    partners_TN: the mask that is matched with each object at each threshold, -1 for none
    """

    ious_NM: np.ndarray
    partners_TN: np.ndarray
    object_areas_N: np.ndarray
    mask_areas_M: np.ndarray
    object_dice_N: np.ndarray
    boundary_f_N: np.ndarray
    foreground_dice: float


def full_truth_metrics(images: Sequence[ImageMasks], *, size_limits: tuple[float, float] = COCO_SIZES) -> dict[str, float]:
    """Returns `nuclei_ap`, `nuclei_ap50`, `nuclei_ap75`, `pq`, `sq`, `rq`, `object_dice`, `foreground_dice`, `boundary_f`.

    `nuclei_ap50`, `pq`, `object_dice` and `boundary_f` also come by size, as in `pq_small`. All records count, whatever
    their predicted IoU. Matches are one to one and have an IoU above the threshold, not at it.

    nuclei_ap:                TP / (TP + FP + FN) of an image, mean over IoU 0.50 to 0.95, then over images (2018 Data
                              Science Bowl); 1 if an image has neither objects nor masks
    pq:                       over the whole set (Kirillov et al. 2019); sq is the mean IoU of matches, 0 without matches
    object_dice, boundary_f:  mean over objects, each compared with its best mask by IoU; objects may share a mask
    foreground_dice:          all masks together against all objects together, mean over images; 1 if both are empty

    By size: small < size_limits[0] <= medium < size_limits[1] <= large, in pixels of area. A match has the size of its
    object, and its mask may have any size; a mask without an object is a FP of its own size. Images with neither objects
    nor FP of a size are left out of its nuclei_ap50. A size without objects has no metric. Raises ValueError if no image
    holds an object, and if masks of one image differ in size.
    """
    if not any(len(image.objects) for image in images):
        raise ValueError("no image holds an object to compare masks with: check the data set (data)")
    sizes = size_ranges(size_limits)
    compared = [_compare(image) for image in images]
    metrics = _measure(compared, sizes.pop(""), empty=1.0)
    metrics["foreground_dice"] = float(np.mean([each.foreground_dice for each in compared]))
    for size, areas in sizes.items():
        if any(_inside(each.object_areas_N, areas).any() for each in compared):
            measured = _measure(compared, areas, empty=np.nan)
            metrics |= {f"{name}{size}": measured[name] for name in BY_SIZE}
    return metrics


def _compare(image: ImageMasks) -> _Compared:
    """Computes everything that the metrics need of one image."""
    objects, masks = list(image.objects), [record["segmentation"] for record in image.records]
    ious_NM = rle_iou(objects, masks)
    best_N = ious_NM.max(axis=1, initial=0.0)
    return _Compared(
        ious_NM=ious_NM,
        partners_TN=np.stack([_assign(ious_NM, threshold) for threshold in THRESHOLDS]),
        object_areas_N=np.array([rle_area(rle) for rle in objects]),
        mask_areas_M=np.array([rle_area(rle) for rle in masks]),
        object_dice_N=2 * best_N / (1 + best_N),  # Dice grows with IoU, so the best mask by one is the best by the other
        boundary_f_N=_boundary_f(objects, masks, ious_NM),
        foreground_dice=_foreground_dice(objects, masks),
    )


def _assign(ious_NM: np.ndarray, threshold: float) -> np.ndarray:
    """Returns (N,) the mask of each object, -1 for none: the most pairs above the threshold, then the largest sum of IoUs.

    SAM's masks of wholes and parts overlap, so even above 0.5 an object may have several masks and a mask several objects.
    """
    above_NM = ious_NM > threshold
    # one more pair outweighs any sum of IoUs
    objects, masks = linear_sum_assignment(above_NM * (min(ious_NM.shape) + ious_NM), maximize=True)
    matched = above_NM[objects, masks]
    partner_N = np.full(len(ious_NM), -1)
    partner_N[objects[matched]] = masks[matched]
    return partner_N


def _foreground_dice(objects: Sequence[RLE], masks: Sequence[RLE]) -> float:
    """Returns the Dice of the union of all masks and the union of all objects."""
    unions = [[to_compressed(rle) for rle in each if rle_area(rle)] for each in (objects, masks)]
    if not all(unions):
        return float(not any(unions))
    iou = float(rle_iou(*[[coco_mask.merge(each)] for each in unions])[0, 0])
    return 2 * iou / (1 + iou)


def _boundary_f(objects: Sequence[RLE], masks: Sequence[RLE], ious_NM: np.ndarray) -> np.ndarray:
    """Returns (N,) the boundary F of each object and its best mask.

    Precision and recall are the shares of boundary pixels within the tolerance of the other boundary.
    """
    f_N = np.zeros(len(objects))
    boundaries: dict[int, cKDTree] = {}  # by mask: one mask may be the best of many objects
    for n, rle in enumerate(objects):
        if not ious_NM[n].any():
            continue
        m = int(ious_NM[n].argmax())
        if m not in boundaries:
            boundaries[m] = _boundary(masks[m])
        truth, found = _boundary(rle), boundaries[m]
        tolerance = float(np.ceil(TOLERANCE * np.hypot(*rle["size"])))
        precision, recall = _share_near(found, truth, tolerance), _share_near(truth, found, tolerance)
        f_N[n] = 2 * precision * recall / max(precision + recall, 1e-12)
    return f_N


def _share_near(points: cKDTree, others: cKDTree, tolerance: float) -> float:
    """Returns the share of `points` that are within the tolerance of any of the `others`."""
    # only points in the others' box can be near; this saves time if one mask over the whole image is the best of all objects
    in_box = ((points.data >= others.mins - tolerance) & (points.data <= others.maxes + tolerance)).all(axis=1)
    distances, _ = others.query(points.data[in_box])
    return float((distances <= tolerance).sum() / points.n)


def _boundary(rle: RLE) -> cKDTree:
    """Returns rows and columns of the mask's pixels with one of four neighbours outside of it, or of the image."""
    left, top, width, height = (int(side) for side in rle_to_box_xywh(rle))
    mask_HW = decode_rle(rle)[top : top + height, left : left + width]
    padded = np.pad(mask_HW, 1)
    inner_HW = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return cKDTree(np.argwhere(mask_HW & ~inner_HW) + (top, left))


def _measure(compared: Sequence[_Compared], areas: tuple[float, float], empty: float) -> dict[str, float]:
    """Returns all metrics but foreground_dice for objects of these areas; `empty` is nuclei AP of an image without any."""
    inside = np.concatenate([_inside(each.object_areas_N, areas) for each in compared])
    counts_PT4 = np.stack([_count(each, areas) for each in compared])
    return {
        **_nuclei_ap(counts_PT4, empty),
        **_panoptic_quality(counts_PT4[:, 0].sum(axis=0)),
        "object_dice": float(np.concatenate([each.object_dice_N for each in compared])[inside].mean()),
        "boundary_f": float(np.concatenate([each.boundary_f_N for each in compared])[inside].mean()),
    }


def _inside(areas_N: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (areas_N >= limits[0]) & (areas_N < limits[1])


def _count(image: _Compared, areas: tuple[float, float]) -> np.ndarray:
    """Returns (T, 4) TP, FP, FN and the sum of the IoUs of the TP, for objects of these areas and their masks."""
    counts_T4 = np.zeros((len(THRESHOLDS), 4))
    inside_N, inside_M = _inside(image.object_areas_N, areas), _inside(image.mask_areas_M, areas)
    for counts, partner_N in zip(counts_T4, image.partners_TN, strict=True):
        found = np.flatnonzero(inside_N & (partner_N >= 0))
        alone_M = np.ones(len(inside_M), dtype=bool)
        alone_M[partner_N[partner_N >= 0]] = False
        iou = image.ious_NM[found, partner_N[found]].sum()
        counts[:] = len(found), (alone_M & inside_M).sum(), inside_N.sum() - len(found), iou
    return counts_T4


def _nuclei_ap(counts_PT4: np.ndarray, empty: float) -> dict[str, float]:
    """Returns nuclei AP over all thresholds, at 0.50 and at 0.75; images without a score (NaN) are left out of the means."""
    total_PT = counts_PT4[..., :3].sum(axis=-1)
    scores_PT = np.where(total_PT > 0, counts_PT4[..., 0] / np.maximum(total_PT, 1), empty)
    by_level = dict(zip((100 * THRESHOLDS).round().astype(int).tolist(), np.nanmean(scores_PT, axis=0).tolist(), strict=True))
    return {"nuclei_ap": float(np.nanmean(scores_PT)), "nuclei_ap50": by_level[50], "nuclei_ap75": by_level[75]}


def _panoptic_quality(counts_4: np.ndarray) -> dict[str, float]:
    """Returns panoptic, segmentation and recognition quality; the counts must include an object."""
    found, wrong, missed, iou = counts_4.tolist()
    total = found + wrong / 2 + missed / 2
    return {"pq": iou / total, "sq": iou / found if found else 0.0, "rq": found / total}

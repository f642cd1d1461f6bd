"""COCO's mask AP and AR by pycocotools for one class of objects, in pixels of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from samtrain.metrics.coco import COCO_SIZES, Annotation, accumulate, known_means, size_ranges
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh, to_compressed


@dataclass(frozen=True)
class ScoredMasks:
    """One image: its objects, and the masks that were found, with one score each; all are RLEs of the image's size.

    `crowd` marks the objects that are COCO's crowd regions: a mask anywhere inside counts neither as right nor as wrong.
    `areas` are the areas of the objects that decide their size, in pixels; without them the masks are counted.
    """

    objects: Sequence[RLE]
    found: Sequence[RLE]
    scores: Sequence[float]
    crowd: Sequence[bool] = field(default_factory=list)
    areas: Sequence[float] = field(default_factory=list)


def mask_metrics(
    images: Sequence[ScoredMasks],
    *,
    max_masks: Sequence[int] = (10, 100, 1000),
    size_limits: tuple[float, float] = COCO_SIZES,
) -> dict[str, float]:
    """Returns `mask_ar_10`, `_100`, `_1000` (the last one also by size), `mask_ap` (also by size), `mask_ap50`, `mask_ap75`.

    All are over IoU 0.50 to 0.95. AR takes the `max_masks` of highest score per image; AP takes the largest of these
    numbers. A size without objects has no metric. Raises ValueError if no image holds an object.
    """
    if not any(len(image.objects) for image in images):
        raise ValueError("no image holds an object to compare masks with: check the data set (data)")
    sizes = size_ranges(size_limits)
    objects, found = ([function(image) for image in images] for function in (object_annotations, found_annotations))
    precision_TRKAM, recall_TKAM, at = accumulate("segm", objects, found, list(sizes.values()), max_masks)
    precision_TRAM, recall_TAM = precision_TRKAM[:, :, 0], recall_TKAM[:, 0]
    metrics = {f"mask_ar_{count}": recall_TAM[:, 0, m] for m, count in enumerate(max_masks)}
    metrics |= {f"mask_ap{100 * level:.0f}": precision_TRAM[at[level], :, 0, -1] for level in (0.5, 0.75)}
    for a, size in enumerate(sizes):
        metrics[f"mask_ap{size}"] = precision_TRAM[:, :, a, -1]
        metrics[f"mask_ar_{max_masks[-1]}{size}"] = recall_TAM[:, a, -1]
    return known_means(metrics)


def object_annotations(image: ScoredMasks) -> list[Annotation]:
    """Returns the objects of an image as pycocotools' annotations."""
    annotations = [_annotation(rle) for rle in image.objects]
    for i, each in enumerate(annotations):
        each["iscrowd"] = int(bool(image.crowd and image.crowd[i]))
        each["area"] = image.areas[i] if image.areas else each["area"]
    return annotations


def found_annotations(image: ScoredMasks) -> list[Annotation]:
    """Returns the masks that were found in an image as pycocotools' results."""
    return [{**_annotation(rle), "score": float(score)} for rle, score in zip(image.found, image.scores, strict=True)]


def _annotation(rle: RLE) -> Annotation:
    rle = to_compressed(rle)
    return {"segmentation": rle, "bbox": rle_to_box_xywh(rle), "area": rle_area(rle)}

"""COCO's mask AP and AR by pycocotools, whatever the objects are, in pixels of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from samtrain.metrics.coco import COCO_SIZES, Annotation, accumulate, known_means, size_ranges
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh, to_compressed


@dataclass(frozen=True)
class ScoredMasks:
    """One image: its objects, and masks with a score each; `crowd` says of which objects any part is as good as all.

    All masks are RLEs of the image's size.
    """

    objects: Sequence[RLE]
    found: Sequence[RLE]
    scores: Sequence[float]
    crowd: Sequence[bool] = field(default_factory=list)


def mask_metrics(
    images: Sequence[ScoredMasks],
    *,
    max_masks: Sequence[int] = (10, 100, 1000),
    size_limits: tuple[float, float] = COCO_SIZES,
) -> dict[str, float]:
    """`mask_ar_10`, `_100`, `_1000` and of the last also by size; `mask_ap`, `mask_ap50`, `mask_ap75` and `mask_ap` by size.

    Over IoU 0.50 to 0.95, with the `max_masks` of highest score an image; AP with the most of them. A size that no object
    has gives no number. Raises ValueError where there is no object at all.
    """
    if not any(len(image.objects) for image in images):
        raise ValueError("no image to evaluate masks on holds an object; check the set (data)")
    sizes = size_ranges(size_limits)
    objects = [
        [{**_annotation(rle), "iscrowd": int(bool(p.crowd and p.crowd[i]))} for i, rle in enumerate(p.objects)]
        for p in images
    ]
    found = [
        [{**_annotation(rle), "score": float(score)} for rle, score in zip(p.found, p.scores, strict=True)] for p in images
    ]
    precision_TRAM, recall_TAM, at = accumulate("segm", objects, found, list(sizes.values()), max_masks)
    metrics = {f"mask_ar_{count}": recall_TAM[:, 0, m] for m, count in enumerate(max_masks)}
    metrics |= {f"mask_ap{100 * level:.0f}": precision_TRAM[at[level], :, 0, -1] for level in (0.5, 0.75)}
    for a, size in enumerate(sizes):
        metrics[f"mask_ap{size}"] = precision_TRAM[:, :, a, -1]
        metrics[f"mask_ar_{max_masks[-1]}{size}"] = recall_TAM[:, a, -1]
    return known_means(metrics)


def _annotation(rle: RLE) -> Annotation:
    rle = to_compressed(rle)
    return {"segmentation": rle, "bbox": rle_to_box_xywh(rle), "area": rle_area(rle)}

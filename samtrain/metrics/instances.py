"""COCO's and LVIS' mask AP over categories, by pycocotools; the rules that only LVIS has are applied around it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samtrain.metrics.coco import COCO_SIZES, Annotation, accumulate, known_means, size_ranges
from samtrain.metrics.masks import ScoredMasks, found_annotations, object_annotations

COCO_MAX_MASKS = (1, 10, 100)  # per image and category
LVIS_MAX_MASKS = 300  # per image, those of highest score over all categories
FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}  # LVIS' own letters, by the number of training images


@dataclass(frozen=True)
class InstanceMasks:
    """One image with the category of each object and of each mask that was found.

    categories, found_categories:  ids of any type, as many as masks.objects and masks.found
    negative, not_exhaustive:      LVIS' lists of categories that the image has none of, and of those that are not annotated
                                   completely; None for COCO, where every object of every category is annotated
    """

    masks: ScoredMasks
    categories: Sequence[Any]
    found_categories: Sequence[Any]
    negative: Collection[Any] | None = None
    not_exhaustive: Collection[Any] = ()


def instance_metrics(
    images: Sequence[InstanceMasks],
    *,
    size_limits: tuple[float, float] = COCO_SIZES,
    frequencies: dict[Any, str] | None = None,
) -> dict[str, float]:
    """Returns `mask_ap` (also by size), `mask_ap50`, `mask_ap75`, AR, and `categories`, the number that AP is a mean over.

    LVIS' rules hold if every image has its lists: at most 300 masks per image count, a mask counts only if its category is
    annotated in the image or known to be absent, and where it is not annotated completely, masks without an object are
    neither right nor wrong. `frequencies` (category -> LVIS' letter) adds `mask_ap_rare`, `_common` and `_frequent`. Raises
    ValueError if no image holds an object.

    For the same numbers as the official tools, to the last digit, give the images in the order of their ids.
    """
    if not any(len(image.masks.objects) for image in images):
        raise ValueError("no image holds an object to compare masks with: check the data set (data)")
    lvis = all(image.negative is not None for image in images)
    numbers = _numbers([c for image in images for c in (*image.categories, *image.found_categories)])
    sizes, counts = size_ranges(size_limits), (LVIS_MAX_MASKS,) if lvis else COCO_MAX_MASKS
    precision_TRKAM, recall_TKAM, at = accumulate(
        "segm",
        [_objects(image, numbers) for image in images],
        [_found(image, numbers, lvis) for image in images],
        list(sizes.values()),
        counts,
        not_exhaustive={(i, numbers[c]) for i, image in enumerate(images) for c in image.not_exhaustive if c in numbers},
    )
    metrics = {f"mask_ar_{count}": recall_TKAM[:, :, 0, m] for m, count in enumerate(counts)}
    metrics |= {f"mask_ap{100 * level:.0f}": precision_TRKAM[at[level], :, :, 0, -1] for level in (0.5, 0.75)}
    for a, size in enumerate(sizes):
        metrics[f"mask_ap{size}"] = precision_TRKAM[:, :, :, a, -1]
        metrics[f"mask_ar_{counts[-1]}{size}"] = recall_TKAM[:, :, a, -1]
    for letter, word in FREQUENCIES.items():
        # a category of which nothing counts has no place behind the last one that does
        counted = [(category, n - 1) for category, n in numbers.items() if n <= precision_TRKAM.shape[2]]
        own = [place for category, place in counted if (frequencies or {}).get(category) == letter]
        metrics[f"mask_ap_{word}"] = precision_TRKAM[:, :, own, 0, -1]
    measured = (recall_TKAM[0, :, 0, -1] > -1).sum()
    return known_means(metrics) | {"categories": float(measured)}


def _numbers(categories: Sequence[Any]) -> dict[Any, int]:
    """Returns consecutive numbers from 1 for the categories, in the order of their ids."""
    ordered = sorted(set(categories), key=_by_number)
    return {category: number for number, category in enumerate(ordered, start=1)}


def _by_number(category: Any) -> tuple[int, int, str]:
    """Returns a sort key: numbers first, also those that are written as text, in the order of the official tools."""
    text = str(category)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _objects(image: InstanceMasks, numbers: dict[Any, int]) -> list[Annotation]:
    pairs = zip(object_annotations(image.masks), image.categories, strict=True)
    return [{**each, "category_id": numbers[category]} for each, category in pairs]


def _found(image: InstanceMasks, numbers: dict[Any, int], lvis: bool) -> list[Annotation]:
    """Returns the masks that count; for LVIS the best of an image, in categories of which the image's content is known."""
    masks, kept = image.masks, list(range(len(image.masks.found)))
    if lvis:
        known = {*image.categories, *(image.negative or ())}
        best = np.argsort(-np.asarray(masks.scores, dtype=float), kind="stable")[:LVIS_MAX_MASKS]
        kept = [i for i in best.tolist() if image.found_categories[i] in known]
    found = found_annotations(masks)
    return [{**found[i], "category_id": numbers[image.found_categories[i]]} for i in kept]

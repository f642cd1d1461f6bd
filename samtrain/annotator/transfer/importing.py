"""Puts masks that exist into the store, so that people correct them: every form that `task=prepare` reads, and shards."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from samtrain.annotator.store import NewImage, NewMask, Store
from samtrain.annotator.store.rows import MAX_TEXT
from samtrain.data.prepare.config import PrepareConfig, mask_source
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.record_checks import check_record
from samtrain.data.prepare.segmentations import to_rle, whole_number
from samtrain.data.shards import Record, expand_urls, index_tar, is_remote, read_record
from samtrain.files import digest, printable
from samtrain.ops.rle import rle_area

log = logging.getLogger(__name__)

IMPORT = "import"  # the annotator of imported masks


@dataclass
class Imported:
    """What came into the store; `refused` counts the images and masks that were left out, by their reason."""

    images: int = 0
    masks: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left_out = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.refused.items())) or "nothing"
        return f"{self.images} images with {self.masks} masks; left out: {left_out}"


def import_masks(store: Store, config: PrepareConfig) -> Imported:
    """Adds the images of a folder with their masks, which people may then correct; again, it adds only what is new.

    The forms are those of `data=folder`: a JSON beside each image, COCO with RLE or polygons, label maps, a mask per object.
    Images and masks that cannot be used are left out, logged and counted, or are an error if `config.strict`.
    """
    source, found = mask_source(config), Imported()
    for entry in source.entries():
        try:
            checked = check_record(
                entry.image, source.read(entry), crowds_are_objects=config.crowds == "objects", empty_images=True
            )
        except Refused as error:
            if config.strict:
                raise ValueError(f"{entry.name}: {error}: correct it, or set data.strict=false to leave it out") from error
            log.warning("Refused %s: %s", printable(entry.name), printable(str(error)))
            found.refused[error.reason] += 1
            continue
        for refused in checked.refused:
            log.info("Refused an object of %s: %s", printable(entry.name), printable(str(refused)))
            found.refused[refused.reason] += 1
        path = os.path.realpath(entry.image)
        image = NewImage(
            key=path, name=entry.name, source=path,
            width=checked.image["width"], height=checked.image["height"], digest=digest(path),
        )  # fmt: skip
        _add(store, image, checked.annotations, found)
    return found


def import_shards(store: Store, shards: str | Sequence[str], key: str = "annotate.review") -> Imported:
    """Adds the records of local shards in SA-1B's form with their masks; again, it adds only what is new.

    Raises ValueError for URLs, and for masks that do not fit their image; `key` is the config key that it then names.
    """
    found = Imported()
    for tar in map(os.path.abspath, _local(shards, key)):
        index = index_tar(tar)
        for number in range(len(index)):
            record = read_record(index, number)
            about = record.annotation["image"]
            image = NewImage(
                key=record.key, name=record.key, source=f"{tar}#{number}", width=about["width"], height=about["height"]
            )
            _add(store, image, _checked(record, found), found)
    return found


def _local(shards: str | Sequence[str], key: str) -> list[str]:
    found = expand_urls(shards, key)
    if remote := [tar for tar in found if is_remote(tar)]:
        raise ValueError(f"{key} names {remote[0]}, but people's images are read by number: copy the tars to a disk")
    return found


def _checked(record: Record, found: Imported) -> list[dict[str, Any]]:
    """Returns the annotations with their masks as RLE; an empty mask is counted and left out."""
    size = record.annotation["image"]["height"], record.annotation["image"]["width"]
    kept = []
    for each in record.annotation["annotations"]:
        try:
            rle = to_rle(each["segmentation"], size)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"annotation {each.get('id')} of {record.name} has a mask that cannot be used ({error}): correct the shard"
            ) from error
        if rle_area(rle):
            kept.append({**each, "segmentation": rle})
        else:
            found.refused["empty mask"] += 1
    return kept


def _add(store: Store, image: NewImage, annotations: Iterable[dict[str, Any]], found: Imported) -> None:
    """Adds an image, and its masks unless they are there already."""
    (row,) = store.add_images([image])
    if row.source != image.source:
        raise ValueError(
            f"{image.source} has the key {image.key!r}, which {row.source} in the store {store.database} has, too: rename one "
            "of the two images, or give annotate.store another file"
        )
    masks = [_mask(each, number) for number, each in enumerate(annotations)]
    store.add_masks(row.id, IMPORT, masks)
    found.images += 1
    found.masks += len(masks)


def _mask(each: dict[str, Any], number: int) -> NewMask:
    """Returns an annotation in SA-1B's form as a mask of the store; what its model said of it comes with it."""
    own = whole_number(each.get("id"))
    is_number = isinstance(own, int) and not isinstance(own, bool)
    predicted_iou, stability_score = _score(each.get("predicted_iou")), _score(each.get("stability_score"))
    scored = predicted_iou is not None and stability_score is not None  # SA-1B's masks, which say no source
    automatic = each.get("source", "automatic" if scored else "assisted") == "automatic"
    name = each.get("label") or each.get("category_name")
    points, labels = _points(each)
    return NewMask(
        segmentation=each["segmentation"],
        point_coords=points,
        point_labels=labels,
        origin="imported",
        source="automatic" if automatic else "assisted",
        model=str(each["model"])[:MAX_TEXT] if each.get("model") else None,
        label=str(name)[:MAX_TEXT] if name else None,
        object_id=own if is_number else None,
        story=[] if is_number or own is None else [{"id": str(own)[:MAX_TEXT]}],
        request=f"import {number}",
        predicted_iou=predicted_iou,
        stability_score=stability_score,
    )


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _points(each: dict[str, Any]) -> tuple[list[list[float]], list[int]]:
    """Returns the clicks; SA-1B has one point per mask and no labels, and it is foreground."""
    coords, labels = each.get("point_coords"), each.get("point_labels")
    if not isinstance(coords, list) or not all(isinstance(point, list) and len(point) == 2 for point in coords):
        return [], []
    labels = [1] * len(coords) if labels is None else labels
    fits = isinstance(labels, list) and len(labels) == len(coords) and all(each in (0, 1) for each in labels)
    if not fits or any(_score(value) is None for point in coords for value in point):
        return [], []
    return coords, [int(each) for each in labels]

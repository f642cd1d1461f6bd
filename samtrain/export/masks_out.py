"""Writes the masks of shards for other tools: COCO's JSON, SA-1B's files, label maps."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtrain.data.shards import Record, expand_urls, index_tar, read_record
from samtrain.files import atomic_path, explain_full_disk, write_bytes, write_text
from samtrain.modeling.checkpoints import EXPORT_CURE
from samtrain.ops.rle import RLE, decode_rle, encode_labels, rle_area, rle_to_box_xywh
from samtrain.terminal import counted

log = logging.getLogger(__name__)

IMAGES = "images"
COCO_KEYS = ("iscrowd", "category_id", "predicted_iou", "stability_score")  # what an object keeps besides its mask


def write_masks(dataset: str | Sequence[str], formats: Sequence[str], folder: Path) -> None:
    """Writes the images of shards to `images/`, and their masks in each format; reads each mask back.

    Args:
        dataset: shards, as `expand_urls` takes them.
        formats: of `MASK_FORMATS`.
        folder: the folder for the files.

    Raises:
        ValueError: for shards that cannot be read, and for a mask that did not come back.
    """
    records = list(_records(dataset))
    for record in records:
        write_bytes(folder / IMAGES / f"{record.key}.{record.ext}", record.image_bytes, EXPORT_CURE)
    for name in formats:
        MASK_FORMATS[name](records, folder)
        log.info("Wrote the masks of %s to %s as %s.", counted(len(records), "image"), folder, name)


def _records(dataset: str | Sequence[str]) -> Iterator[Record]:
    for path in expand_urls(dataset, "export.dataset"):
        index = index_tar(path)
        for i in range(len(index)):
            yield read_record(index, i)


def _objects(record: Record) -> list[dict[str, Any]]:
    """Returns the objects of an image, those that only count in evaluation included."""
    return [*record.annotation["annotations"], *record.annotation.get("evaluation_only", [])]


def write_coco(records: Sequence[Record], folder: Path) -> None:
    """Writes `instances.json`: COCO's, with compressed run lengths; scores and categories are kept."""
    names: dict[Any, str] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        size = record.annotation["image"]
        file_name = f"{record.key}.{record.ext}"
        images.append({"id": number, "file_name": file_name, "width": size["width"], "height": size["height"]})
        for each in _objects(record):
            category = each.get("category_id", 1)
            names.setdefault(category, each.get("category_name", "object"))
            rle = each["segmentation"]
            kept = {key: each[key] for key in COCO_KEYS if key in each}
            annotations.append(
                {
                    "iscrowd": 0,
                    **kept,
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": rle,
                    "area": rle_area(rle),
                    "bbox": rle_to_box_xywh(rle),
                }
            )
    categories = [{"id": number, "name": name} for number, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "instances.json", json.dumps(content) + "\n", EXPORT_CURE)


def write_sa1b(records: Sequence[Record], folder: Path) -> None:
    """Writes SA-1B's JSON beside each image."""
    for record in records:
        write_text(folder / IMAGES / f"{record.key}.json", json.dumps(record.annotation) + "\n", EXPORT_CURE)


def write_label_maps(records: Sequence[Record], folder: Path) -> None:
    """Writes `labels/<image>.tif`: one value per object, and a further page where objects overlap.

    The values fit into 8 bits where there are few objects, else into 16 or 32. Raises ValueError for a mask that the map does
    not give back.
    """
    for record in records:
        size = record.annotation["image"]
        rles = [each["segmentation"] for each in _objects(record)]
        pages = label_pages(rles, (size["height"], size["width"]))
        path = folder / "labels" / f"{record.key}.tif"
        images = [Image.fromarray(page) for page in pages]
        with explain_full_disk(path, EXPORT_CURE), atomic_path(path) as temporary:
            images[0].save(temporary, "tiff", save_all=True, append_images=images[1:], compression="tiff_adobe_deflate")
        _check_labels(path, pages, rles)


def label_pages(rles: Sequence[RLE], size: tuple[int, int]) -> list[np.ndarray]:
    """Returns label maps (H, W) of the smallest type, with the value i + 1 for object i; objects that overlap get pages."""
    kind = next(kind for kind in (np.uint8, np.uint16, np.int32) if len(rles) <= np.iinfo(kind).max)
    pages = [np.zeros(size, kind)]
    for value, rle in enumerate(rles, start=1):
        mask = decode_rle(rle).astype(bool)
        page = next((page for page in pages if not page[mask].any()), None)
        if page is None:
            pages.append(page := np.zeros(size, kind))
        page[mask] = value
    return pages


def _check_labels(path: Path, pages: Sequence[np.ndarray], rles: Sequence[RLE]) -> None:
    """Raises ValueError unless the stored maps hold each mask."""
    found: dict[int, RLE] = {}
    with Image.open(path) as image:
        for number in range(len(pages)):
            image.seek(number)
            found |= {value: rle for value, rle in encode_labels(np.asarray(image)).items() if value}
    for value, rle in enumerate(rles, start=1):
        if rle_area(rle) and (value not in found or found[value]["counts"] != rle["counts"]):
            raise ValueError(f"{path} does not give back object {value} (export.formats): write coco or sa1b, which do")


MASK_FORMATS: dict[str, Callable[[Sequence[Record], Path], None]] = {
    "coco": write_coco,
    "sa1b": write_sa1b,
    "label_maps": write_label_maps,
}

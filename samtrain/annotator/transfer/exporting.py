"""Writes the store's accepted masks as COCO, SA-1B or label maps.

Equal stores give equal bytes, and an export is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtrain.annotator.sources import is_record, read_source
from samtrain.annotator.store import ImageRow, MaskRow, Store
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.record_checks import storable_bytes
from samtrain.data.shards import ShardWriter, safe_key
from samtrain.files import explain_full_disk, publish, write_text
from samtrain.ops.polygons import mask_to_polygons
from samtrain.ops.rle import decode_rle

PAGE = 500  # images read from the store at a time
IMAGES_PER_SHARD = 1000
CURE = "free some disk space, then export again"
MADE_BY = {"description": "masks of people, exported by samtrain"}
MARK = ".exported_by_samtrain"  # in each folder: only such a folder is replaced by the next export
NO_LABEL = "object"  # COCO needs a category, and the paper asks for no names


@dataclass
class Exported:
    """What an export wrote.

    overlapping_masks, overlapping_pixels: masks and pixels that a label map gives to another mask, because a pixel of it
                                           belongs to one mask only
    hidden_masks:                          masks of which nothing is left there
    """

    path: Path
    images: int = 0
    masks: int = 0
    overlapping_masks: int = 0
    overlapping_pixels: int = 0
    hidden_masks: int = 0

    def __str__(self) -> str:
        words = f"{self.path}: {self.images} images with {self.masks} masks"
        if self.overlapping_masks:
            words += (
                f"; {self.overlapping_masks} masks lost {self.overlapping_pixels} pixels to smaller masks on top of them, and "
                f"{self.hidden_masks} of them everything, because a pixel of a label map belongs to one mask only"
            )
        return words


def check_formats(formats: Sequence[str]) -> None:
    """Raises ValueError for a format that is not one of FORMATS."""
    if unknown := [each for each in formats if each not in FORMATS]:
        raise ValueError(f"annotate.export holds {', '.join(map(str, unknown))}: choose from {', '.join(FORMATS)}")


def export_store(store: Store, folder: Path, formats: Sequence[str]) -> list[Exported]:
    """Writes the accepted masks into `folder`, in each of the FORMATS named; an earlier export there is replaced.

    coco:           coco.json with RLE masks
    coco_polygons:  coco_polygons.json; drawn again, its polygons are the same masks to the pixel
    sa1b:           a folder sa1b/ with each image and its JSON
    shards:         a folder shards/ with SA-1B's tars, which samtrain trains on
    label_maps:     a folder label_maps/ with a 16-bit PNG for each image, in its subfolder: 0 is background, n the n-th mask

    An image is exported if it is done or has a mask. Raises ValueError for an unknown format, an image that cannot be read,
    and a disk that is full.
    """
    check_formats(formats)
    folder.mkdir(parents=True, exist_ok=True)
    return [FORMATS[each](store, folder) for each in formats]


def exported_images(store: Store) -> Iterator[tuple[ImageRow, list[MaskRow]]]:
    """Yields the images that are done or have a mask, with their accepted masks of the first opinion, in a fixed order."""
    offset = 0
    while rows := store.images(limit=PAGE, offset=offset):
        for row in rows:
            if row.masks or row.state == "done":
                yield row, store.masks(row.id)
        offset += len(rows)


# ---- COCO


def coco_text(store: Store, *, polygons: bool = False) -> str:
    """Returns COCO's instance JSON; the categories are the labels that people gave, or "object"."""
    return _coco(store, polygons, Exported(Path()))


def _export_coco(store: Store, folder: Path, polygons: bool = False) -> Exported:
    found = Exported(folder / ("coco_polygons.json" if polygons else "coco.json"))
    check_ours(found.path)
    write_text(found.path, _coco(store, polygons, found), CURE)
    return found


def _coco(store: Store, polygons: bool, found: Exported) -> str:
    images, annotations = [], []
    for row, masks in exported_images(store):
        images.append({"id": row.id, "file_name": row.name, "width": row.width, "height": row.height})
        for mask in masks:
            segmentation: Any = mask.segmentation
            if polygons:
                segmentation = mask_to_polygons(decode_rle(mask.segmentation, row.size))
            about = {"image_id": row.id, "category_id": mask.label or NO_LABEL, "iscrowd": 0, "segmentation": segmentation}
            annotations.append({"id": mask.id, **about, "area": mask.area, "bbox": mask.bbox, **_story(mask)})
        found.images += 1
        found.masks += len(masks)
    names = sorted({each["category_id"] for each in annotations} | {NO_LABEL}, key=lambda name: (name != NO_LABEL, name))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    for each in annotations:
        each["category_id"] = numbers[each["category_id"]]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"info": MADE_BY, "images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


# ---- SA-1B


def to_annotation(mask: MaskRow, size: tuple[int, int]) -> dict[str, Any]:
    """Returns a mask as SA-1B writes it, with who made it and how; a mask without a model's scores has none."""
    scores = {"predicted_iou": mask.predicted_iou, "stability_score": mask.stability_score}
    annotation = {"id": mask.id, "segmentation": mask.segmentation, "bbox": mask.bbox, "area": mask.area}
    annotation |= {name: score for name, score in scores.items() if score is not None}
    annotation |= {"crop_box": [0.0, 0.0, float(size[1]), float(size[0])]}
    annotation |= {"point_coords": mask.point_coords, "point_labels": mask.point_labels}
    return annotation | _story(mask) | ({} if mask.label is None else {"label": mask.label})


def _story(mask: MaskRow) -> dict[str, Any]:
    """Returns what a person did for a mask, and the id that it had where it was imported from."""
    story: dict[str, Any] = {"source": mask.source, "origin": mask.origin, "annotator": mask.annotator, "model": mask.model}
    story |= {"clicks": len(mask.point_labels), "strokes": len(mask.strokes), "seconds": mask.seconds}
    return {key: value for key, value in (story | {"imported_id": mask.object_id}).items() if value is not None}


def _records(store: Store, found: Exported) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
    """Yields key, image bytes, extension and JSON of each image; an image of a format that few read becomes a PNG."""
    names = _Names()
    for row, masks in exported_images(store):
        try:
            data, extension = storable_bytes(read_source(row.source).data, (row.width, row.height), row.name)
        except (OSError, IndexError, Refused) as error:
            raise ValueError(f"image {row.name} cannot be exported ({error}): put its file {row.source} back") from error
        about = {"image_id": row.id, "width": row.width, "height": row.height, "source_name": row.name, "split": row.split}
        found.images += 1
        found.masks += len(masks)
        yield names.of(row), data, extension, {"image": about, "annotations": [to_annotation(each, row.size) for each in masks]}


def _export_sa1b(store: Store, folder: Path) -> Exported:
    found = Exported(folder / "sa1b")
    with _replaced(found.path) as partial:
        for key, data, extension, content in _records(store, found):
            content["image"]["file_name"] = f"{key}.{extension}"
            (partial / f"{key}.{extension}").write_bytes(data)
            (partial / f"{key}.json").write_text(json.dumps(content, separators=(",", ":"), allow_nan=False))
    return found


def _export_shards(store: Store, folder: Path) -> Exported:
    found = Exported(folder / "shards")
    with _replaced(found.path) as partial, ShardWriter(partial, "annotated", max_count=IMAGES_PER_SHARD) as writer:
        for record in _records(store, found):
            writer.write(*record)
        writer.close()
    return found


# ---- label maps


def _export_label_maps(store: Store, folder: Path) -> Exported:
    found, names = Exported(folder / "label_maps"), _Names()
    with _replaced(found.path) as partial:
        for row, masks in exported_images(store):
            labels = label_map(masks, row.size, found)
            path = partial / f"{names.path_of(row)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
            found.images += 1
            found.masks += len(masks)
    return found


def label_map(masks: Sequence[MaskRow], size: tuple[int, int], found: Exported) -> np.ndarray:
    """Returns (H, W) uint16 with 0 for background and n for the n-th mask; where masks overlap, the smallest is on top."""
    if len(masks) > 65535:
        raise ValueError(f"image {masks[0].image_id} has {len(masks)} masks, and a 16-bit label map holds 65535")
    labels = np.zeros(size, dtype=np.uint16)
    for number in sorted(range(len(masks)), key=lambda n: -masks[n].area):
        labels[decode_rle(masks[number].segmentation, size)] = number + 1
    left = np.bincount(labels.ravel(), minlength=len(masks) + 1)[1:]
    lost = np.array([mask.area for mask in masks], dtype=np.int64) - left
    found.overlapping_masks += int((lost > 0).sum())
    found.overlapping_pixels += int(lost.sum())
    found.hidden_masks += int((left == 0).sum())
    return labels


FORMATS: dict[str, Callable[[Store, Path], Exported]] = {
    "coco": _export_coco,
    "coco_polygons": lambda store, folder: _export_coco(store, folder, polygons=True),
    "sa1b": _export_sa1b,
    "shards": _export_shards,
    "label_maps": _export_label_maps,
}


# ---- names and folders


class _Names:
    """Gives each image a file name that stays in the folder, that all readers accept, and that no other image has."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, row: ImageRow) -> str:
        """Returns a name without folders."""
        return self._own(row, safe_key(_stem(row)).replace("/", "__") or f"image_{row.id}")

    def path_of(self, row: ImageRow) -> str:
        """Returns the image's own path below its folder, by which masks find their images, or `of` if it is unusual."""
        stem = _stem(row)
        usual = all(part.strip(". ") == part != "" and len(part.encode()) < 200 for part in stem.split("/"))
        return self._own(row, stem) if usual and stem.isprintable() and "\\" not in stem else self.of(row)

    def _own(self, row: ImageRow, name: str) -> str:
        if name.casefold() in self._taken:  # some disks do not tell upper from lower case
            name = f"{name.encode()[:70].decode(errors='ignore')}_{hashlib.sha256(row.key.encode()).hexdigest()[:12]}"
        self._taken.add(name.casefold())
        return name


def _stem(row: ImageRow) -> str:
    return row.name if is_record(row.source) else os.path.splitext(row.name)[0]


def check_ours(path: Path) -> None:
    """Raises ValueError if a JSON file is there that no export has written."""
    if path.exists():
        with open(path, "rb") as file:
            if MADE_BY["description"].encode() not in file.read(200):
                raise ValueError(f"{path} is there and was not written by an export: give annotate.output another folder")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place when the block ends without an error."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    if folder.exists() and not (folder / MARK).is_file():
        raise ValueError(f"{folder} is there and was not written by an export: give annotate.output another folder")
    partial.mkdir(parents=True)
    (partial / MARK).touch()
    try:
        with explain_full_disk(folder, CURE):
            yield partial
            if folder.exists():
                folder.rename(old)
            publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

"""Checks whether a data set is valid SA-1B, record by record and as a whole: tars or a folder, Meta's own or any other.

Stage 3 of the data engine writes more than masks: scores, clicks, and ids that are numbers and unique over the set. Where no
mask has any scores or clicks, such as in what `task=prepare` writes, these checks are left out, and a note says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.data.decode import decode_samples
from samtrain.data.prepare.formats import Entry, Sa1bFolder
from samtrain.data.shards import Record, expand_urls, index_tar, parse_annotation, read_record
from samtrain.ops.rle import rle_area, rle_to_box_xywh, to_compressed

KEYS = ("id", "segmentation", "bbox", "area")
KEYS_OF_STAGE_3 = ("predicted_iou", "stability_score", "crop_box", "point_coords")
PREDICTED_IOU = (0.0, 1.5)  # the IoU head has no sigmoid and sometimes predicts a little more than 1
BOX_TOLERANCE = 1  # pixels: segment_anything's boxes end at the last pixel, COCO's one pixel later


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, which is counted, the file and record in which it is, and details.

    of_stage_3: it is none in a set that was not made by stage 3
    """

    kind: str
    where: str
    detail: str = ""
    of_stage_3: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Verdict:
    """The result of a validation; `notes` are worth knowing but are not faults."""

    images: int = 0
    masks: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.faults and self.images > 0

    def counts(self) -> dict[str, int]:
        """Returns the number of faults by kind, the most frequent first."""
        kinds = [fault.kind for fault in self.faults]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))}


def validate(dataset: str | Sequence[str]) -> Verdict:
    """Checks every record of shards, or of a folder of images with a JSON each.

    Raises ValueError if there is neither.
    """
    verdict, duplicates, of_stage_3 = Verdict(), _Duplicates(), False
    for found in _records(dataset):
        if isinstance(found, Fault):
            verdict.faults.append(found)
            continue
        verdict.images += 1
        masks = found.annotation["annotations"]
        verdict.masks += len(masks)
        of_stage_3 = of_stage_3 or any(key in each for each in masks for key in KEYS_OF_STAGE_3)
        verdict.faults += _record_faults(found)
        duplicates.add(found)
    verdict.faults += duplicates.faults()
    verdict.notes = duplicates.same_images()
    if verdict.masks and not of_stage_3:
        verdict.faults = [fault for fault in verdict.faults if not fault.of_stage_3]
        missing = f"no mask has {', '.join(KEYS_OF_STAGE_3)}; ids may be text, and the same in two images"
        verdict.notes.append(Fault("the checks that are for masks of stage 3 alone were left out", str(dataset), missing))
    return verdict


def _records(dataset: str | Sequence[str]) -> Iterator[Record | Fault]:
    """Yields every record, or the fault because of which it cannot be read."""
    if isinstance(dataset, str) and (Path(dataset) / "prepare.json").is_file():
        dataset = [str(path) for path in sorted(Path(dataset).glob("*/*.tar"))]  # all splits of a prepared set
    if isinstance(dataset, str) and Path(dataset).is_dir() and not list(Path(dataset).glob("*.tar")):
        source = Sa1bFolder(Path(dataset))
        entries = source.entries()
        if not entries:
            raise ValueError(f"validate.dataset is {dataset!r}: give a folder with tars, or with images and a JSON each")
        for entry in entries:
            yield _read_entry(entry)
        return
    for url in expand_urls(dataset, "validate.dataset"):
        index = index_tar(url, on_error="skip")
        for problem in index.problems:
            yield Fault("the tar is damaged", url, problem)
        for i in range(len(index)):
            try:
                yield read_record(index, i)
            except ValueError as error:
                yield Fault("the record cannot be read", f"{url}, record {index.key(i)}", str(error))


def _read_entry(entry: Entry) -> Record | Fault:
    if not entry.evidence:
        return Fault("no JSON beside the image", str(entry.image))
    if not entry.image.is_file():
        return Fault("no image beside the JSON", str(entry.evidence[0]))
    try:
        annotation = parse_annotation(entry.evidence[0].read_bytes(), entry.name)
    except ValueError as error:
        return Fault("the record cannot be read", str(entry.evidence[0]), str(error))
    image = entry.image
    return Record(image.stem, image.suffix[1:], image.read_bytes(), annotation, str(image.parent))


def _record_faults(record: Record) -> Iterator[Fault]:
    """Yields the faults of one image and its masks."""
    # the image
    image = record.annotation["image"]
    W, H = image["width"], image["height"]
    try:
        decode_samples(record.image_bytes, W, H, record.name)
    except ValueError as error:
        yield Fault("the image does not fit its JSON", record.name, str(error).removeprefix(f"{record.name}: "))
    if not _is_id(given := image.get("image_id")):
        yield Fault("image_id is not an integer of 0 or more", record.name, repr(given), of_stage_3=_is_text(given))
    name = f"{Path(record.key).name}.{record.ext}"
    if Path(str(image.get("file_name"))).name.lower() != name.lower():
        yield Fault("file_name is that of another file", record.name, f"{image.get('file_name')!r}, the image is {name}")

    # its masks
    yield from _without_scores(record)
    seen: dict[Any, int] = {}
    for number, each in enumerate(record.annotation["annotations"]):
        where = f"{record.name}, annotation {each.get('id', f'number {number}')}"
        yield from _annotation_faults(each, (H, W), where)
        text = str(each["segmentation"].get("counts") if isinstance(each["segmentation"], dict) else number)
        text += f" {each.get('category_id')}"  # in LVIS one mask may belong to two categories
        if text in seen:
            yield Fault("the same mask twice in an image", where, f"also annotation number {seen[text]}")
        seen.setdefault(text, number)


def _without_scores(record: Record) -> Iterator[Fault]:
    """Yields one fault for all masks of an image that have no key of stage 3."""
    bare = [each for each in record.annotation["annotations"] if not any(key in each for key in KEYS_OF_STAGE_3)]
    if bare:
        missing = f"{', '.join(KEYS_OF_STAGE_3)} in {len(bare)} masks"
        yield Fault("keys are missing", record.name, missing, of_stage_3=True)


def _annotation_faults(each: dict[str, Any], size: tuple[int, int], where: str) -> Iterator[Fault]:
    """Yields the faults of one annotation."""
    # keys and id
    H, W = size
    scored = any(key in each for key in KEYS_OF_STAGE_3)
    if missing := [key for key in (*KEYS, *(KEYS_OF_STAGE_3 if scored else ())) if key not in each]:
        yield Fault("keys are missing", where, ", ".join(missing))
    if "id" in each and not _is_id(each["id"]):
        yield Fault("id is not an integer of 0 or more", where, repr(each["id"]), of_stage_3=_is_text(each["id"]))

    # the mask, its box and its area
    try:
        rle = to_compressed(each["segmentation"], size)
    except ValueError as error:
        yield Fault("the RLE does not fit the image", where, str(error))
        return
    area, box = rle_area(rle), rle_to_box_xywh(rle)
    if area == 0:
        yield Fault("the mask is empty", where)
    else:
        if "bbox" in each and not _is_near(each["bbox"], box):
            yield Fault("bbox does not fit the mask", where, f"{each['bbox']}, the mask's is {box}")
        if "area" in each and each["area"] != area:
            yield Fault("area does not fit the mask", where, f"{each['area']}, the mask has {area} pixels")

    # the scores, the crop and the click
    for key, (low, high) in (("predicted_iou", PREDICTED_IOU), ("stability_score", (0.0, 1.0))):
        if key in each and not (_is_number(each[key]) and low <= each[key] <= high):
            yield Fault(f"{key} is out of range", where, f"{each[key]!r}, allowed is {low:g} to {high:g}")
    if "crop_box" in each and not _is_inside(each["crop_box"], (0, 0, W, H)):
        yield Fault("crop_box is not inside the image", where, repr(each["crop_box"]))
    elif "point_coords" in each and "crop_box" in each and not _are_points(each["point_coords"], each["crop_box"]):
        yield Fault("point_coords are not inside the crop", where, repr(each["point_coords"])[:80])


class _Duplicates:
    """Collects ids and images over all records, to find those that occur twice."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.image_ids: list[Any] = []
        self.keys: list[str] = []
        self.digests: list[bytes] = []
        self.ids: list[np.ndarray] = []

    def add(self, record: Record) -> None:
        self.names.append(record.name)
        image_id = record.annotation["image"].get("image_id")
        self.image_ids.append(image_id if _is_id(image_id) else None)
        self.keys.append(Path(record.key).name)
        self.digests.append(hashlib.sha256(record.image_bytes).digest())
        ids = [each.get("id") for each in record.annotation["annotations"]]
        self.ids.append(np.array([i for i in ids if _is_id(i)], dtype=np.int64))

    def faults(self) -> Iterator[Fault]:
        """Yields ids and names that occur twice."""
        yield from self._twice(self.image_ids, "another image has the same image_id")
        yield from self._twice(self.keys, "another image has the same name")
        ids = np.concatenate(self.ids) if self.ids else np.zeros(0, dtype=np.int64)
        owner = np.repeat(np.arange(len(self.ids)), [len(each) for each in self.ids])
        order = np.argsort(ids, kind="stable")
        for place in np.flatnonzero(np.diff(ids[order]) == 0):
            first, second = order[place], order[place + 1]
            where = f"{self.names[owner[second]]}, annotation {ids[second]}"
            apart = bool(owner[first] != owner[second])
            yield Fault("another mask has the same id", where, f"in {self.names[owner[first]]}", of_stage_3=apart)

    def same_images(self) -> list[Fault]:
        """Returns a note for each image with the same bytes as another one."""
        return list(self._twice(self.digests, "another image has the same bytes"))

    def _twice(self, values: Sequence[Any], kind: str) -> Iterator[Fault]:
        seen: dict[Any, str] = {}
        for name, value in zip(self.names, values, strict=True):
            if value is not None and value in seen:
                shown = f"{value}, in {seen[value]}" if not isinstance(value, bytes) else seen[value]
                yield Fault(kind, name, shown)
            seen.setdefault(value, name)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_is_number(value) for value in values)


def _is_near(box: Any, other: Sequence[float]) -> bool:
    return _are_numbers(box, 4) and all(abs(a - b) <= BOX_TOLERANCE for a, b in zip(box, other, strict=True))


def _is_inside(box: Any, image: tuple[float, float, float, float]) -> bool:
    """Returns whether an xywh box has an area and is inside the image."""
    if not _are_numbers(box, 4) or min(box[2:]) <= 0:
        return False
    return min(box[:2]) >= 0 and all(box[i] + box[i + 2] <= image[i + 2] + 1e-6 for i in (0, 1))


def _are_points(points: Any, box: Any) -> bool:
    """Returns whether these are one or more [x, y] inside an xywh box."""
    if not isinstance(points, list) or not points or not all(_are_numbers(point, 2) for point in points):
        return False
    return all(box[i] <= point[i] <= box[i] + box[i + 2] for point in points for i in (0, 1))



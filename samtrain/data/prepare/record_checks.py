"""Checks a record before it goes into a shard: the image decodes, and its masks fit and are not empty."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from samtrain.data.coco_fields import is_crowd
from samtrain.data.contents import content_digest
from samtrain.data.decode import EXIF_ORIENTATION, UNREADABLE, decode_samples, to_rgb
from samtrain.data.prepare.formats import RawAnnotations
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.segmentations import to_rle, whole_number
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh

# PIL's names of the formats that every reader of SA-1B's form knows; MPO is a phone's JPEG followed by a second image
KEPT_AS_THEY_ARE = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
CANNOT_BE_READ = "the image cannot be read"
NO_OBJECTS, ONLY_CROWDS = "no objects", "only crowd regions"


@dataclass(frozen=True)
class Checked:
    """A checked record without its image's bytes, and the objects that were left out of it.

    content:         the digest of the image's pixels
    evaluation_only: what COCO's and LVIS' AP count and training never sees: crowd regions, and of objects with a category
                     also empty masks and masks that occur twice
    """

    content: str
    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    evaluation_only: list[dict[str, Any]]
    refused: list[Refused]


def check_record(
    image: Path, raw: RawAnnotations, *, crowds_are_objects: bool = False, empty_images: bool = False
) -> Checked:
    """Returns the record with every mask as RLE of the image's size, and `bbox` and `area` recomputed; raises Refused.

    An image is turned by its EXIF orientation, unless only the stored pixels have the JSON's width and height. Crowd
    regions become objects with `crowds_are_objects`. An image without objects is refused unless `empty_images` is true.
    """
    if not image.is_file():
        raise Refused("the image is missing", str(image))
    # the image
    width, height = _json_size(raw.image) or shown_size(image)
    data, _ = image_bytes(image, (width, height))
    content = content_digest(_decoded(data, (width, height), image.name))
    # its masks
    sorted_out = _sort_objects(raw.objects, (height, width), crowds_are_objects)
    if not sorted_out.annotations:
        _refuse_without_objects(sorted_out, empty_images)
    return Checked(content, {**raw.image, "width": width, "height": height}, **vars(sorted_out))


def _refuse_without_objects(found: _Objects, empty_images: bool) -> None:
    """Raises Refused for an image in which no object is left, unless it has none and `empty_images` is true."""
    kept_for_evaluation = [each for each in found.evaluation_only if "iscrowd" not in each]
    if len(found.refused) > (len(kept_for_evaluation) if empty_images else 0):
        first = {each.reason: str(each) for each in reversed(found.refused)}  # one example of each reason
        raise Refused("no usable mask", "; ".join(first[reason] for reason in sorted(first)))
    if found.evaluation_only and not empty_images:
        raise Refused(ONLY_CROWDS, f"{len(found.evaluation_only)} with iscrowd 1")
    if not empty_images:
        raise Refused(NO_OBJECTS, "data.empty_images=true keeps it")


def _json_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """Returns (width, height), or None if neither is given."""
    width, height = whole_number(image.get("width")), whole_number(image.get("height"))
    if width is None and height is None:
        return None
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise Refused("width and height are no sizes", f"they are {width!r} and {height!r} in the JSON")
    return width, height


def shown_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the image as a viewer shows it, turned by EXIF."""
    try:
        with Image.open(path) as image:
            image.load()  # PIL turns a TIFF while loading it and drops the tag
            return ImageOps.exif_transpose(image).size
    except UNREADABLE as error:
        raise Refused(CANNOT_BE_READ, f"{path.name}: {error}") from error


def image_bytes(image: Path, size: tuple[int, int]) -> tuple[bytes, str]:
    """Reads a file and returns `storable_bytes` of it."""
    try:
        data = image.read_bytes()
    except OSError as error:
        raise Refused(CANNOT_BE_READ, f"{image.name}: {error}") from error
    return storable_bytes(data, size, image.name)


def storable_bytes(data: bytes, size: tuple[int, int], name: str) -> tuple[bytes, str]:
    """Returns the bytes to store and their extension: JPEG and PNG unchanged unless they have to be turned, others as PNG.

    `size` is the (width, height) that the image must have. An image with an EXIF orientation is stored as PNG without one,
    turned as `decode_samples` turns it: some readers of SA-1B's form follow EXIF and others do not, and now all see the pixels
    that the masks fit. Grey images keep 16 bits. Raises Refused.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kept, stored_size = KEPT_AS_THEY_ARE.get(image.format or ""), image.size
            is_turned = image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
            pages = 1 if kept else getattr(image, "n_frames", 1)
    except UNREADABLE as error:
        raise Refused(CANNOT_BE_READ, f"{name}: {error}") from error
    # JPEG and PNG of the right size stay as they are
    if kept and size == stored_size and not is_turned:
        return data, kept
    if not kept and pages > 1:
        raise Refused("the image is a stack", f"{name} has {pages} pages; save the one to use")
    # all others become PNG
    stream = io.BytesIO()
    Image.fromarray(_storable(_decoded(data, size, name), name)).save(stream, "png")
    return stream.getvalue(), "png"


def _decoded(data: bytes, size: tuple[int, int], name: str) -> np.ndarray:
    """Returns the samples at their full depth; raises Refused."""
    try:
        return decode_samples(data, *size, name)
    except ValueError as error:
        reason = CANNOT_BE_READ if "cannot be read" in str(error) else "the image does not have its JSON's size"
        raise Refused(reason, str(error)) from error


def _storable(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns samples that PIL can write as PNG: 8 bits, or 16-bit grey to which other grey values are scaled."""
    if samples.dtype == np.uint8:
        return samples
    if samples.ndim == 3:
        return to_rgb(samples, name)
    values = np.nan_to_num(samples.astype(np.float64))
    if samples.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        values = (values - values.min()) * (65535 / max(np.ptp(values), 1e-12))
    return np.rint(values).astype(np.uint16)


@dataclass(frozen=True)
class _Objects:
    """The objects of an image, sorted as `Checked` has them."""

    annotations: list[dict[str, Any]]
    evaluation_only: list[dict[str, Any]]
    refused: list[Refused]


def _sort_objects(objects: Sequence[dict[str, Any]], size: tuple[int, int], crowds_are_objects: bool) -> _Objects:
    """Returns the objects with a valid mask, those for evaluation only, and a refusal for each that training does not see."""
    found = _Objects([], [], [])
    seen: set[tuple[Any, Any]] = set()
    for number, each in enumerate(objects):
        try:
            crowd, rle = _is_crowd(each) and not crowds_are_objects, _object_rle(each, size)
            annotation = _annotation(each, number + 1, rle)
            if crowd:
                found.evaluation_only.append({**annotation, "iscrowd": 1})
                continue
            if reason := _not_trained(rle, mask := (rle["counts"], each.get("category_id")), seen):
                if "category_id" in each:
                    found.evaluation_only.append(annotation)
                raise Refused(reason)
        except Refused as error:
            found.refused.append(Refused(error.reason, f"object {each.get('id', number)} {error.detail}".strip()))
            continue
        seen.add(mask)
        found.annotations.append(annotation)
    return found


def _not_trained(rle: RLE, mask: tuple[Any, Any], seen: set[tuple[Any, Any]]) -> str:
    """Returns why a valid mask is of no use in training, or "". One mask may belong to two categories, as in LVIS."""
    if rle_area(rle) == 0:
        return "empty mask"
    return "the same mask twice" if mask in seen else ""


def _annotation(each: dict[str, Any], number: int, rle: RLE) -> dict[str, Any]:
    """Returns the annotation of a mask; COCO's AP by size goes by the JSON's own area, which polygons do not meet exactly."""
    fields = {key: value for key, value in each.items() if key not in ("image_id", "iscrowd")}
    area = rle_area(rle)
    given = each.get("area")
    if "category_id" in each and isinstance(given, (int, float)) and given > 0 and given != area:
        fields["source_area"] = given
    return {"id": number, **fields, "segmentation": rle, "bbox": rle_to_box_xywh(rle), "area": area}


def _is_crowd(each: dict[str, Any]) -> bool:
    try:
        return is_crowd(each)
    except ValueError as error:
        raise Refused("iscrowd is neither 0 nor 1", str(error)) from error


def _object_rle(each: dict[str, Any], size: tuple[int, int]) -> RLE:
    """Returns the mask as RLE with text counts; raises Refused."""
    try:
        return to_rle(each.get("segmentation"), size)
    except (ValueError, TypeError, OverflowError) as error:  # the last two: sizes or counts of the wrong type
        reason = "RLE of the wrong size" if "RLE has size" in str(error) else "no valid RLE or polygon"
        raise Refused(reason, str(error)) from error

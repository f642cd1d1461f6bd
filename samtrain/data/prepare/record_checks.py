"""Checks a record before it goes into a shard: the image decodes, and its masks fit and are not empty."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtrain.data import tiff
from samtrain.data.coco_fields import is_crowd
from samtrain.data.contents import content_digest
from samtrain.data.decode import EXIF_ORIENTATION, UNREADABLE, WrongSize, decode_samples, to_rgb
from samtrain.data.opening import TooLarge, needs_tifffile, num_frames, open_image, reason_of, stack_text
from samtrain.data.prepare.formats import RawAnnotations
from samtrain.data.prepare.label_maps import Note
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.segmentations import to_rle, whole_number
from samtrain.data.stretch import shows_little
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh

# PIL's names of the formats that every reader of SA-1B's form knows; MPO is a phone's JPEG followed by a second image
KEPT_AS_THEY_ARE = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
CANNOT_BE_READ, TOO_LARGE = "the image cannot be read", "the image is too large"
LOOKED_AT = 1_000_000  # values of an image, to count its grey levels
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
    notes: tuple[Note, ...] = ()


def check_record(
    image: Path, raw: RawAnnotations, *, crowds_are_objects: bool = False, empty_images: bool = False
) -> Checked:
    """Returns the record with every mask as RLE of the image's size, and `bbox` and `area` recomputed; raises Refused.

    An image is turned by its EXIF orientation, unless only the stored pixels have the JSON's width and height. Crowd
    regions become objects with `crowds_are_objects`. An image without objects is refused unless `empty_images` is true.
    """
    if not image.is_file():
        raise _missing(image)
    # the image
    width, height = _json_size(raw.image) or shown_size(image)
    samples = _stored_samples(_bytes_of(image), (width, height), image.name, raw.sized_by)
    content, flat = content_digest(samples), _flat(samples, image.name)
    # its masks
    sorted_out = _sort_objects(raw.objects, (height, width), crowds_are_objects)
    if not sorted_out.annotations:
        _refuse_without_objects(sorted_out, empty_images)
    size = {**raw.image, "width": width, "height": height}
    return Checked(content, size, **vars(sorted_out), notes=(*flat, *raw.notes))


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


def _flat(samples: np.ndarray, name: str) -> list[Note]:
    """Returns a note if the image shows next to nothing in 8 bits."""
    pixels = to_rgb(samples, name).ravel()
    pixels = pixels[:: pixels.size // LOOKED_AT + 1]
    if not shows_little(pixels):
        return []
    return [("the image has next to no grey levels", f"{len(np.unique(pixels))} of 256")]


def _missing(image: Path) -> Refused:
    """Returns the refusal of a file that is not there, or that has a format which is not read."""
    beside = [path.name for path in image.parent.glob(f"{escape(image.name)}.*") if path.suffix != ".json"]
    if not image.suffix and beside:
        return Refused("the image's format is not read", f"{beside[0]}: save it as PNG or JPEG")
    return Refused("the image is missing", str(image))


def _json_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """Returns (width, height), or None if neither is given."""
    width, height = whole_number(image.get("width")), whole_number(image.get("height"))
    if width is None and height is None:
        return None
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise Refused("width and height are no sizes", f"they are {width!r} and {height!r} in the JSON")
    return width, height


def shown_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the image as a viewer shows it, turned by EXIF, from its header."""
    data = _bytes_of(path)
    try:
        if tiff.is_tiff(data):
            tags = tiff.tags_of(data)
            size, orientation = tiff.stored_size(tags), tags.get(EXIF_ORIENTATION, 1)
        else:
            with open_image(data) as image:
                size, orientation = image.size, image.getexif().get(EXIF_ORIENTATION, 1)
    except UNREADABLE as error:
        raise _unreadable(error, data, path.name) from error
    return size if orientation not in (5, 6, 7, 8) else size[::-1]


def image_bytes(image: Path, size: tuple[int, int]) -> tuple[bytes, str]:
    """Reads a file and returns `storable_bytes` of it."""
    return storable_bytes(_bytes_of(image), size, image.name)


def _bytes_of(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise Refused(CANNOT_BE_READ, f"{image.name}: {error}") from error


def _unreadable(error: Exception, data: bytes, name: str) -> Refused:
    return Refused(TOO_LARGE if isinstance(error, TooLarge) else CANNOT_BE_READ, f"{name}: {reason_of(error, data)}")


def storable_bytes(data: bytes, size: tuple[int, int], name: str) -> tuple[bytes, str]:
    """Returns the bytes to store and their extension: JPEG and PNG unchanged unless they have to be turned, others as PNG.

    `size` is the (width, height) that the image must have. An image with an EXIF orientation is stored as PNG without one,
    turned as `decode_samples` turns it: some readers of SA-1B's form follow EXIF and others do not, and now all see the pixels
    that the masks fit. Grey images of 16 bits keep them; others of more than 8 bits are stretched to 8 as they would be for
    training. Raises Refused.
    """
    if kept := _kept_extension(data, size, name):
        return data, kept
    stream = io.BytesIO()
    Image.fromarray(_storable(_decoded(data, size, name), name)).save(stream, "png")
    return stream.getvalue(), "png"


def _stored_samples(data: bytes, size: tuple[int, int], name: str, sized_by: str) -> np.ndarray:
    """Returns the samples of what `storable_bytes` stores, without writing a PNG to read it again; raises Refused."""
    kept = _kept_extension(data, size, name)
    samples = _decoded(data, size, name, sized_by)
    return samples if kept else _storable(samples, name)


def _kept_extension(data: bytes, size: tuple[int, int], name: str) -> str | None:
    """Returns the extension of a JPEG or PNG that is stored as it is, None for an image that becomes a PNG; raises Refused."""
    try:
        if needs_tifffile(data):
            return None
        with open_image(data) as image:
            kept, stored_size, pages = KEPT_AS_THEY_ARE.get(image.format or ""), image.size, num_frames(image)
            is_turned = image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
    except UNREADABLE as error:
        raise _unreadable(error, data, name) from error
    if pages > 1:
        raise Refused("the image is a stack", f"{name}: {stack_text(pages, data)}")
    return kept if size == stored_size and not is_turned else None


def _decoded(data: bytes, size: tuple[int, int], name: str, sized_by: str = "its JSON") -> np.ndarray:
    """Returns the samples at their full depth; raises Refused, which says that `sized_by` gives `size` (width, height)."""
    try:
        return decode_samples(data, *size, name)
    except WrongSize as error:
        reason = f"the image does not have {'its JSON' if sized_by == 'its JSON' else 'its mask file'}'s size"
        found, wanted = (f"{width} x {height}" for width, height in (error.size, size))
        raise Refused(reason, f"{name} is {found} (width x height) and {sized_by} says {wanted}") from error
    except ValueError as error:
        raise Refused(TOO_LARGE if isinstance(error, TooLarge) else CANNOT_BE_READ, str(error)) from error


def _storable(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns samples that PIL can write as PNG: 8 bits, or 16-bit grey."""
    if samples.dtype == np.uint8 or samples.dtype == np.uint16 and samples.ndim == 2:
        return samples
    return to_rgb(samples, name) if samples.ndim == 3 else to_rgb(samples, name)[..., 0]


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
            _check_category(each)
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


def _check_category(each: dict[str, Any]) -> None:
    if not isinstance(each.get("category_id"), (int, float, str, type(None))):
        raise Refused("category_id is neither a number nor a text", repr(each["category_id"]))


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

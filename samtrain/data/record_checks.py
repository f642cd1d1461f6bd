"""What a record has to pass before it goes into a shard: a picture that decodes, masks that fit and are not empty."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from samtrain.data.decode import decode_image
from samtrain.data.formats import RawAnnotations
from samtrain.data.mask_files import Refused
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh, to_compressed

# PIL's name of a format that every reader of SA-1B's form knows -> extension; MPO: a phone's JPEG with a second behind
KEPT_AS_THEY_ARE = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
ORIENTATION = 0x0112  # EXIF 2.3
# from what a viewer shows to what is stored: the inverse of EXIF's orientations
BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
UNREADABLE = "the picture cannot be read"


@dataclass(frozen=True)
class Checked:
    """A sound record without its picture's bytes, and the objects that were left out of it."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    refused: list[Refused]


def check_record(picture: Path, raw: RawAnnotations) -> Checked:
    """The record with every mask in RLE of the picture's size, `bbox` and `area` computed anew; raises Refused.

    The JSON's width and height decide how an EXIF-rotated picture lies; without them it lies as its EXIF says.
    """
    if not picture.is_file():
        raise Refused("the picture is missing", str(picture))
    width, height = _json_size(raw.image) or shown_size(picture)
    data, _ = picture_bytes(picture, (width, height))
    try:
        decode_image(data, width, height, picture.name)
    except ValueError as error:
        reason = UNREADABLE if "cannot be read" in str(error) else "the picture is not of its JSON's size"
        raise Refused(reason, str(error)) from error
    annotations, refused = _checked_objects(raw.objects, (height, width))
    if not annotations:
        reasons = ", ".join(sorted({each.reason for each in refused})) or "none came"
        raise Refused("no usable mask", reasons)
    return Checked({**raw.image, "width": width, "height": height}, annotations, refused)


def _json_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) if both are given."""
    width, height = image.get("width"), image.get("height")
    if width is None and height is None:
        return None
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise Refused("the JSON is not in SA-1B's form", f"width, height are {width}, {height}")
    return width, height


def _open(picture: Path) -> Image.Image:
    try:
        return Image.open(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(UNREADABLE, str(error)) from error


def shown_size(picture: Path) -> tuple[int, int]:
    """(width, height) as a viewer shows the picture, EXIF obeyed."""
    with _open(picture) as image:
        return _shown(image, picture).size


def picture_bytes(picture: Path, size: tuple[int, int]) -> tuple[bytes, str]:
    """The bytes to store and their extension: JPEG and PNG untouched, all else as PNG, 16 bits kept.

    `size` is the (width, height) that it shall have. Raises Refused.
    """
    with _open(picture) as image:
        if image.format in KEPT_AS_THEY_ARE:
            return picture.read_bytes(), KEPT_AS_THEY_ARE[image.format]
        if getattr(image, "n_frames", 1) > 1:
            detail = f"{picture.name} has {image.n_frames} pages; save the one that counts"
            raise Refused("the picture is a stack", detail)
        # a PNG carries no EXIF: lay the pixels themselves as `decode_image` would, turned only if the size asks for it
        orientation = image.getexif().get(ORIENTATION, 1)
        pixels = _shown(image, picture)
        stored_size = pixels.size[::-1] if orientation >= 5 else pixels.size  # 5 to 8 exchange width and height
        if orientation in BACK and size == stored_size:
            pixels = pixels.transpose(BACK[orientation])
        stream = io.BytesIO()
        _storable(pixels).save(stream, "png")
        return stream.getvalue(), "png"


def _shown(image: Image.Image, picture: Path) -> Image.Image:
    """The pixels as a viewer shows them; PIL itself turns a TIFF while it loads it, and drops the tag."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused(UNREADABLE, f"{picture.name}: {error}") from error


def _storable(image: Image.Image) -> Image.Image:
    """A mode that PNG knows; more than 16 bits and fractions are scaled to 16."""
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            values = (values - values.min()) * (65535 / max(np.ptp(values), 1e-12))
        return Image.fromarray(np.rint(values).astype(np.uint16))
    return image.convert("RGB")


def _checked_objects(
    objects: Sequence[dict[str, Any]], size: tuple[int, int]
) -> tuple[list[dict[str, Any]], list[Refused]]:
    """Objects with a sound mask, and why the others are none."""
    kept, refused, seen = [], [], set()
    for number, each in enumerate(objects):
        try:
            rle = _object_rle(each, size)
            if (counts := rle["counts"]) in seen:
                raise Refused("the same mask twice")
        except Refused as error:
            refused.append(Refused(error.reason, f"object {each.get('id', number)} {error.detail}".strip()))
            continue
        seen.add(counts)
        fields = {key: value for key, value in each.items() if key not in ("image_id", "iscrowd")}
        box, area = rle_to_box_xywh(rle), rle_area(rle)
        kept.append({"id": number + 1, **fields, "segmentation": rle, "bbox": box, "area": area})
    return kept, refused


def _object_rle(each: dict[str, Any], size: tuple[int, int]) -> RLE:
    """The mask as RLE with text counts; raises Refused."""
    if each.get("iscrowd"):
        raise Refused("a crowd", "iscrowd is set: many objects in one mask")
    try:
        rle = to_rle(each.get("segmentation"), size)
    except (ValueError, TypeError, OverflowError) as error:  # the latter two: sizes or counts of a wrong kind
        reason = "RLE of the wrong size" if "RLE has size" in str(error) else "no valid RLE or polygon"
        raise Refused(reason, str(error)) from error
    if rle_area(rle) == 0:
        raise Refused("mask of zero area")
    return rle


def to_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """RLE with text counts of a COCO `segmentation` of any form: polygons, runs as a list, compressed runs.

    Raises ValueError for anything else, and for runs that do not fill `size` (H, W).
    """
    if isinstance(segmentation, list):
        polygons = [_polygon(each) for each in segmentation]
        if not polygons:
            raise ValueError("the list of polygons is empty")
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    else:
        rle = to_compressed(segmentation, size)
    counts = rle["counts"]
    return {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _polygon(values: Any) -> list[float]:
    """x, y, x, y, ... of at least three corners; pycocotools would take two for a box."""
    numbers = isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)
    if not numbers or len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError(f"a polygon is a list of x, y, x, y, ... of three corners or more, got {str(values)[:60]}")
    return values

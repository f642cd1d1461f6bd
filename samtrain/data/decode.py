"""Decodes image files of any valid kind to RGB; a file that cannot be read is a ValueError that names the record."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from samtrain.data import tiff
from samtrain.data.opening import TooLarge, check_pixels, needs_tifffile, num_frames, open_image, reason_of, stack_text
from samtrain.data.stretch import stretch

EXIF_ORIENTATION = 0x0112  # EXIF 2.3, tag "Orientation"
# the errors that PIL raises, found by damaging files of all formats at random
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError)
# EXIF's orientations: how the stored pixels are turned to be shown
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
BACK = {**TURNS, 6: TURNS[8], 8: TURNS[6]}  # the other orientations are their own inverse
# the last letter of PIL's 16-bit raw modes is the byte order: big-endian, little-endian, or native
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class StoredImage:
    """Holds an image that is not decoded yet, so that a small version can be decoded without the large one."""

    def __init__(self, data: bytes, width: int, height: int, name: str) -> None:
        self.data, self.width, self.height, self.name = data, width, height, name

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3

    def decode(self, scale: float) -> tuple[np.ndarray, int]:
        """Returns the RGB image with its sides divided by r and rounded up, and r.

        r is the largest of 8, 4, 2 and 1 that keeps at least `scale` of the sides. libjpeg computes a JPEG's smaller image from
        fewer coefficients, in a fraction of the time, with slightly different pixels from a resize. Other formats are decoded
        at full size. Raises the same errors as `decode_image`.
        """
        reduction = next((r for r in (8, 4, 2) if r * scale <= 1), 1)
        if reduction > 1:
            image = _decode_reduced(self.data, self.width, self.height, reduction)
            if image is not None:
                return image, reduction
        return decode_image(self.data, self.width, self.height, self.name), 1


def _decode_reduced(data: bytes, width: int, height: int, reduction: int) -> np.ndarray | None:
    """Returns None unless this is a sound RGB or grey JPEG of this size; `decode_image` then says what is wrong."""
    size = math.ceil(width / reduction), math.ceil(height / reduction)
    try:
        with open_image(data) as image:
            if image.format != "JPEG" or image.size != (width, height) or image.mode not in ("RGB", "L"):
                return None
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                return None
            image.draft(image.mode, (width // reduction, height // reduction))
            return np.asarray(image.convert("RGB")) if image.size == size else None
    except UNREADABLE:
        return None


def decode_image(data: bytes, width: int, height: int, name: str) -> np.ndarray:
    """Returns the (height, width, 3) uint8 RGB image in the size that its JSON gives.

    Grey, palette, CMYK and 16-bit images become RGB; 16-bit images are stretched between percentiles, which is logged. Alpha
    is dropped and the colours under it stay. The image is turned by its EXIF orientation, unless only the stored pixels have
    the JSON's size. Raises ValueError that begins with `name` if it cannot be decoded or has another size.
    """
    return to_rgb(decode_samples(data, width, height, name), name)


def decode_shown(data: bytes, name: str) -> np.ndarray:
    """Returns the (H, W, 3) uint8 RGB image as a viewer shows it, turned by EXIF; raises the errors of `decode_image`."""
    return to_rgb(_decode(data, name)[1], name)


class WrongSize(ValueError):
    """Raised for an image that can be read, but has another size than its masks: `size` is its (width, height)."""

    def __init__(self, message: str, size: tuple[int, int]) -> None:
        super().__init__(message)
        self.size = size


def decode_samples(data: bytes, width: int, height: int, name: str) -> np.ndarray:
    """Returns (height, width) grey or (height, width, 3) RGB samples at full depth; raises as `decode_image` does.

    Samples that the file declares to be no data (GDAL's tag) are NaN, and then all are floats.
    """
    stored, shown = _decode(data, name)
    for samples in (shown, stored):  # of equal sizes, what a viewer shows, because people and models saw that
        if samples.shape[:2] == (height, width):
            return np.ascontiguousarray(samples)
    raise WrongSize(
        f"{name}: its image is {stored.shape[1]} x {stored.shape[0]} (width x height) and its JSON says "
        f"{width} x {height}: correct the JSON and its masks, or set data.on_error=skip",
        (stored.shape[1], stored.shape[0]),
    )


def _decode(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples as the file stores them, and as its EXIF orientation shows them."""
    try:
        if needs_tifffile(data):
            return _decode_other_tiff(data)
        return _decode_by_pil(data)
    except TooLarge as error:
        raise TooLarge(f"{name}: {error}") from error
    except UNREADABLE as error:
        raise ValueError(
            f"{name}: its image cannot be read ({reason_of(error, data)}): replace it, or set data.on_error=skip"
        ) from error


def _decode_by_pil(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    with open_image(data) as image:
        if (frames := num_frames(image)) > 1:
            raise ValueError(stack_text(frames, data))
        tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else {}
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        samples = _decode_deep(image, data) if _is_deep(image, data) else _decode_8_bits(image)
    if isinstance(image, TiffImageFile):  # PIL turns a TIFF while loading it
        samples = tiff.without_nodata(samples, tags)
        return BACK.get(orientation, TURNS[1])(samples), samples
    return samples, TURNS.get(orientation, TURNS[1])(samples)


def _decode_other_tiff(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a TIFF that PIL does not know, or misreads."""
    tags = tiff.tags_of(data)
    check_pixels(tiff.stored_size(tags))
    samples = tiff.without_nodata(tiff.read_colours(data), tags)
    return samples, TURNS.get(tags.get(EXIF_ORIENTATION, 1), TURNS[1])(samples)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Returns whether a sample has more than 8 bits or a sign, by the file's header, because PIL opens both as 8-bit."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    if isinstance(image, TiffImageFile):
        if image.mode == "L":
            return tiff.is_signed(dict(image.tag_v2))
        return image.mode in ("RGB", "RGBA") and max(image.tag_v2.get(tiff.BITS, (8,))) == 16
    return image.format == "PNG" and data[24] == 16


def _decode_8_bits(image: Image.Image) -> np.ndarray:
    """Returns (H, W) for a grey image and (H, W, 3) RGB for any other."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns if this is converted to RGB directly
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _decode_deep(image: Image.Image, data: bytes) -> np.ndarray:
    """Returns (H, W) or (H, W, 3) samples at their full depth."""
    if image.mode in ("I", "F", "L") or image.mode.startswith("I;"):
        samples = np.array(image)
        if image.format == "PNG":
            return samples.astype(np.uint16)
        # in the machine's byte order
        return tiff.with_declared_type(samples.astype(samples.dtype.newbyteorder("=")), dict(getattr(image, "tag_v2", {})))
    # of a colour's two bytes PIL reads the high one, or the low one if the byte order is declared the other way round
    with open_image(data) as unread:
        rawmode = _rawmode(unread.tile[0][3])
    if rawmode == "LA;16B":  # grey and alpha, two bytes each: read them as RGBA bytes
        high_low = _read_as(data, "RGBA").astype(np.uint16)
        return high_low[..., 0] << 8 | high_low[..., 1]
    high, low = _read_as(data, rawmode), _read_as(data, rawmode[:-1] + OTHER_ORDER[rawmode[-1]])
    return (high.astype(np.uint16) << 8 | low)[..., :3]


def _read_as(data: bytes, rawmode: str) -> np.ndarray:
    """Returns (H, W, channels) uint8 by unpacking the bytes of an image in PIL's `rawmode`."""
    with open_image(data) as image:
        image.tile = [ImageFile._Tile(t[0], t[1], t[2], _with_rawmode(t[3], rawmode)) for t in image.tile]
        return np.array(image)


def _rawmode(args: Any) -> str:
    """Returns the raw mode among a tile's arguments: the only one for PNG, the first of several for TIFF."""
    return args if isinstance(args, str) else args[0]


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return rawmode if isinstance(args, str) else (rawmode, *args[1:])


def to_rgb(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns (H, W, 3) uint8 for grey or RGB samples; more than 8 bits are stretched between percentiles, and logged."""
    pixels = samples if samples.dtype == np.uint8 else stretch(samples, name)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))

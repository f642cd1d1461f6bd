"""Picture bytes to RGB: every valid oddity is read, what cannot be read is a ValueError that names the record."""

from __future__ import annotations

import io
import logging
from functools import lru_cache

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

STRETCH_PERCENTILES = (0.175, 99.825)  # 0.35 % of the pixels saturate: ImageJ's default of "Enhance Contrast"
EXIF_ORIENTATION = 0x0112  # EXIF 2.3, tag "Orientation"
# the orientations that exchange width and height, and what shows the picture upright
TURNS = {
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def decode_image(data: bytes, width: int, height: int, name: str) -> np.ndarray:
    """The (height, width, 3) uint8 RGB picture, sized as its JSON says.

    Grey, palette, CMYK and 16-bit pictures become RGB, the last stretched between percentiles and logged. Alpha is
    dropped, the colours under it stay. A picture whose EXIF orientation turns it is turned if that, and only that,
    gives the JSON's size. Raises ValueError beginning with `name` for what is no picture or has another size.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            orientation = _turn_needed(picture, (width, height), name)
            if _has_16_bits(picture, data):
                pixels = _stretch(_decode_16_bits(picture, data), name)
            else:
                pixels = np.array(_to_rgb(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL's ways to say no
        raise ValueError(
            f"{name}: its picture cannot be read ({error}); replace it, or set data.on_error=skip"
        ) from error
    return np.ascontiguousarray(TURNS[orientation](pixels)) if orientation else pixels


def _turn_needed(picture: Image.Image, size: tuple[int, int], name: str) -> int | None:
    """The EXIF orientation if the JSON's (width, height) mean the picture as it is shown, not as it is stored."""
    if picture.size == size:
        return None
    orientation = picture.getexif().get(EXIF_ORIENTATION)
    if picture.size[::-1] == size and orientation in TURNS:
        return orientation
    raise ValueError(
        f"{name}: its picture is {picture.size[0]} x {picture.size[1]} (width x height), its JSON says "
        f"{size[0]} x {size[1]}; correct the JSON and its masks, or set data.on_error=skip"
    )


def _has_16_bits(picture: Image.Image, data: bytes) -> bool:
    """True for more than 8 bits a sample; PIL opens 16-bit colour PNGs as 8-bit, so their header is asked."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;") or (picture.format == "PNG" and data[24] == 16)


def _decode_16_bits(picture: Image.Image, data: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3) samples at their full depth."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return np.asarray(picture)
    # colour PNG, of whose big-endian samples PIL reads the first byte; called little-endian, it reads the second
    with Image.open(io.BytesIO(data)) as unread:
        rawmode = unread.tile[0][3]
    if rawmode == "LA;16B":  # grey, alpha: four bytes a pixel, which PIL reads as if they were colours
        high_low = _read_as(data, "RGBA").astype(np.uint16)
        return high_low[..., 0] << 8 | high_low[..., 1]
    high, low = (_read_as(data, rawmode.replace("16B", order)) for order in ("16B", "16L"))
    return (high.astype(np.uint16) << 8 | low)[..., :3]


def _read_as(data: bytes, rawmode: str) -> np.ndarray:
    """(H, W, channels) uint8 of a PNG whose bytes are unpacked in PIL's `rawmode`."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.tile = [(*picture.tile[0][:3], rawmode)]
        return np.array(picture)


def _stretch(samples: np.ndarray, name: str) -> np.ndarray:
    """(H, W, 3) uint8 with the percentiles of all samples at 0 and 255, so that colours keep their relations."""
    values = np.nan_to_num(samples.astype(np.float32))
    low, high = np.percentile(values, STRETCH_PERCENTILES)
    _say_stretched(name, float(low), float(high))
    stretched = np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255)
    grey_or_rgb = np.rint(stretched).astype(np.uint8)
    return grey_or_rgb if grey_or_rgb.ndim == 3 else np.repeat(grey_or_rgb[:, :, None], 3, axis=2)


@lru_cache(maxsize=4096)
def _say_stretched(name: str, low: float, high: float) -> None:
    """Log once for each picture, not once for each time it is read."""
    logger.info("%s: more than 8 bits a sample, stretched from [%g, %g] to [0, 255]", name, low, high)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, PIL would warn
    return picture.convert("RGB")

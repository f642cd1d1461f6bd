"""Opens image files with one limit on their pixels, counts their pages, and says in words why one cannot be read."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from threading import Lock

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from samtrain.data import tiff
from samtrain.data.channels import chosen_channels

MAX_PIXELS = 178_956_970  # PIL's own limit, against small files that fill the memory
# the limit is kept here because the processes that load data inherit the environment, however they are started
VARIABLE = "SAMTRAIN_MAX_IMAGE_PIXELS"
_pil_limit = Lock()


class TooLarge(ValueError):
    """Raised before an image is decoded that has more pixels than `limit_pixels` allows."""


def limit_pixels(pixels: int) -> None:
    """Sets the most pixels that an image may have, in this process and in those that it starts."""
    os.environ[VARIABLE] = str(pixels)


def check_pixels(size: tuple[int, int]) -> None:
    """Raises TooLarge if an image of `size` (width, height) has more pixels than allowed."""
    pixels, limit = size[0] * size[1], int(os.environ.get(VARIABLE, MAX_PIXELS))
    if pixels > limit:
        raise TooLarge(
            f"its image has {size[0]} x {size[1]} pixels, and max_image_pixels is {limit}: set max_image_pixels={pixels} to "
            f"decode it, which takes about {8 * pixels / 1e9:.1f} GB of memory, or cut it into smaller images"
        )


def open_image(source: bytes | Path) -> Image.Image:
    """Opens an image without decoding it; raises TooLarge and the errors of PIL."""
    with _pil_limit:  # PIL's limit cannot be set for one call
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        finally:
            Image.MAX_IMAGE_PIXELS = kept
    try:
        check_pixels(image.size)
    except TooLarge:
        image.close()
        raise
    return image


def needs_tifffile(data: bytes) -> bool:
    """Returns whether this is a TIFF that PIL does not know or misreads, or of which channels are taken; raises TooLarge."""
    if not tiff.is_tiff(data):
        return False
    try:
        with open_image(data) as image:
            if not isinstance(image, TiffImageFile):
                return False
            tags, chosen = dict(image.tag_v2), chosen_channels()
            if chosen and (tiff.has_choice(tags.get(tiff.SAMPLES, 1), chosen) or tiff.num_pages(image) > 1):
                return True
            return tiff.misread_by_pil(tags)
    except UnidentifiedImageError:
        return True


def stack_text(frames: int, data: bytes) -> str:
    """Returns why an image of several pages or frames is not read, and what to do."""
    return tiff.stack_text(frames) if tiff.is_tiff(data) else f"it has {frames} frames: save the one to use"


def num_frames(image: Image.Image) -> int:
    """Returns the number of pages or frames; the images in a phone's JPEG and the sizes in a TIFF are versions of one."""
    if isinstance(image, TiffImageFile):
        return tiff.num_pages(image)
    return 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)


def reason_of(error: Exception, data: bytes) -> str:
    """Returns why these bytes cannot be read, in words that are the same in every run."""
    if not data:
        return "the file is empty"
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: git lfs pull fetches the file itself"
    if data[4:8] == b"ftyp":
        return "it is HEIC or AVIF, which is not read: save it as JPEG or PNG"
    if isinstance(error, UnidentifiedImageError):
        return "PIL does not know this format"
    return re.sub(r" at 0x[0-9a-f]+", "", str(error))  # the address of an object differs from run to run

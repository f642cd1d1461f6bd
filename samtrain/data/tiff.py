"""Reads TIFFs that PIL does not know (64-bit or half floats, colour floats, many bands, 64-bit integers) with tifffile.

tifffile is optional: without it these files are refused, and the error says what to install.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from samtrain.data.channels import chosen_channels, take_channels

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0 and BigTIFF, in both byte orders
# tags of TIFF 6.0, and GDAL's own
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 262, 270
SAMPLES, PLANES, SAMPLE_FORMAT, GDAL_NODATA = 277, 284, 339, 42113
WHITE_IS_ZERO, RGB = 0, 2  # values of PHOTOMETRIC
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT
KINDS = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", 3: "floats"}


def is_tiff(data: bytes) -> bool:
    return data[:4] in MAGIC


def tags_of(data: bytes) -> dict[int, Any]:
    """Returns the tags of a TIFF's first page, read without decoding it; raises the errors of PIL."""
    stream = io.BytesIO(data)
    tags = ImageFileDirectory_v2(stream.read(16 if data[:4] in MAGIC[2:] else 8))
    stream.seek(tags.next)
    tags.load(stream)
    found = dict(tags)
    if not all(isinstance(found.get(side), int) and found[side] > 0 for side in (WIDTH, HEIGHT)):
        raise ValueError("the TIFF does not say its size")
    return found


def stored_size(tags: dict[int, Any]) -> tuple[int, int]:
    """Returns (width, height) of the stored pixels, which newer versions of PIL turn by the orientation."""
    return tags[WIDTH], tags[HEIGHT]


def misread_by_pil(tags: dict[int, Any]) -> bool:
    """Returns whether these are 16-bit colours in separate planes, of which PIL takes some bytes for others."""
    return max(_all(tags.get(BITS, 1))) == 16 and tags.get(SAMPLES, 1) > 1 and tags.get(PLANES, 1) == 2


def with_declared_type(samples: np.ndarray, tags: dict[int, Any]) -> np.ndarray:
    """Returns PIL's samples with the sign that the file declares: PIL reads int8 as uint8 and uint32 as int32."""
    if samples.dtype == np.uint8 and is_signed(tags):
        return samples.view(np.int8)
    unsigned = samples.dtype == np.int32 and _all(tags.get(SAMPLE_FORMAT, 1))[0] == UNSIGNED
    return samples.view(np.uint32) if unsigned else samples


def is_signed(tags: dict[int, Any]) -> bool:
    return _all(tags.get(SAMPLE_FORMAT, 1))[0] == SIGNED


def without_nodata(samples: np.ndarray, tags: dict[int, Any]) -> np.ndarray:
    """Returns floats in which the value of GDAL's tag is NaN, or the same samples if none has it; 8 bits stay as they are."""
    try:
        value = float(str(tags[GDAL_NODATA]).strip("\0 "))
    except (KeyError, ValueError):
        return samples
    # the tag's text may be shorter than a float32
    empty = np.isclose(samples, value, rtol=1e-6, atol=0) if samples.dtype.kind == "f" else samples == value
    if samples.dtype == np.uint8 or not empty.any():
        return samples
    return np.where(empty, np.nan, samples.astype(np.float64 if samples.dtype.itemsize > 2 else np.float32))


def describe(tags: dict[int, Any]) -> str:
    """Returns the kind of samples for a message, such as "3 bands of 32-bit floats"."""
    kind = KINDS.get(_all(tags.get(SAMPLE_FORMAT, 1))[0], "samples")
    bands = tags.get(SAMPLES, 1)
    return f"{bands} {'band' if bands == 1 else 'bands'} of {_all(tags.get(BITS, 1))[0]}-bit {kind}"


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def num_pages(image: TiffImageFile) -> int:
    """Returns the number of pages without thumbnails and smaller versions; `image` is at its first page afterwards.

    ImageJ and tifffile may store many pages behind a single header, and tell their number in the description.
    """
    full = 0
    for number in range(image.n_frames):
        image.seek(number)
        full += not image.tag_v2.get(SUBFILE, 0) & 1  # the lowest bit means "a reduced version of another page"
    image.seek(0)
    text = str(image.tag_v2.get(DESCRIPTION, ""))
    if image.n_frames == 1 and (counted := re.match(r"ImageJ\b.*?\bimages\W(\d+)", text, re.DOTALL)):
        return int(counted[1])
    if image.n_frames == 1 and '"truncated": true' in text and (shape := re.search(r'"shape": \[([\d, ]+)\]', text)):
        sides = [int(side) for side in shape[1].split(",")]
        return int(np.prod(sides)) // (image.width * image.height * image.tag_v2.get(SAMPLES, 1))
    return max(full, 1)


def read_pages(data: bytes) -> list[np.ndarray]:
    """Returns each page as stored, (H, W) or (H, W, bands), without smaller versions; raises ValueError."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(
            f"PIL does not know this kind of TIFF, which holds {describe(tags_of(data))}: "
            "python -m pip install 'samtrain[tiff]' adds tifffile, which reads it"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            full = [series for series in tiff.series if not series.keyframe.is_reduced]
            return [page for series in full for page in _pages(series.asarray(), series.axes)]
    except Exception as error:  # a damaged file raises almost anything in tifffile
        raise ValueError(f"tifffile cannot read this TIFF of {describe(tags_of(data))}: {error}") from error


def _pages(samples: np.ndarray, axes: str) -> list[np.ndarray]:
    """Returns the pages of a tifffile series; its axes name height Y, width X and bands S, and all others count pages."""
    if "S" in axes:
        samples, axes = np.moveaxis(samples, axes.index("S"), -1), axes.replace("S", "") + "S"
    shape = samples.shape[-3:] if "S" in axes else samples.shape[-2:]
    return list(samples.reshape(-1, *shape))


def read_colours(data: bytes) -> np.ndarray:
    """Returns the (H, W) grey or (H, W, 3) RGB samples of an image as stored; raises ValueError for stacks and odd bands.

    Of bands without names and of pages it takes those that `choose_channels` has set.
    """
    pages, chosen = read_pages(data), chosen_channels()
    if chosen and _are_channels(pages):
        return take_channels(np.stack(pages, axis=2), chosen)
    if len(pages) > 1:
        raise ValueError(stack_text(len(pages)))
    samples = pages[0]
    if samples.ndim == 2 or samples.shape[2] == 1:
        return samples.reshape(samples.shape[:2])
    if chosen and has_choice(samples.shape[2], chosen):
        return take_channels(samples, chosen)
    if samples.shape[2] != 3 and tags_of(data).get(PHOTOMETRIC) != RGB:
        raise ValueError(
            f"it has {samples.shape[2]} bands and does not say which are red, green and blue: set image_channels to the "
            "numbers of those three, counted from 0, such as [0,1,2], or of one for grey, such as [0]"
        )
    return samples[..., :3]


def _are_channels(pages: list[np.ndarray]) -> bool:
    """Returns whether several pages can be the channels of one image: each is grey, and all have one size."""
    return len(pages) > 1 and all(page.ndim == 2 and page.shape == pages[0].shape for page in pages)


def has_choice(bands: int, chosen: tuple[int, ...]) -> bool:
    """Returns whether `chosen` picks from so many bands; one band and three colours are read as they are.

    Of two bands the second may be alpha, so only a choice that they have counts.
    """
    return bands > 3 or (bands == 2 and max(chosen) < 2)


def stack_text(pages: int) -> str:
    """Returns why a TIFF of several pages is not read as an image, and what to do."""
    return (
        f"it has {pages} pages: save the one to use, or, if they are the channels of one image, set image_channels to the "
        "numbers of red, green and blue, counted from 0, such as [0,1,2]"
    )

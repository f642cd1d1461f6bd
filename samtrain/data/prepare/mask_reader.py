"""Reads mask files: every page, with the values as the file stores them and not as a viewer shows them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from samtrain.data import tiff
from samtrain.data.decode import UNREADABLE
from samtrain.data.opening import TooLarge, check_pixels, needs_tifffile, num_frames, open_image, reason_of
from samtrain.data.prepare.mask_files import Refused

COMPRESSION, JPEG_IN_TIFF = 259, (6, 7)  # a tag of TIFF 6.0 and two of its values
MOST_COLOURS = 16  # a mask file with more of them, most in single pixels, is no map of objects
MOST_CHANNELS = 4  # red, green, blue, alpha


def read_pages(path: Path, *, labels: bool) -> list[np.ndarray]:
    """Returns the (H, W) integers of each page of a mask file; raises Refused.

    labels: the values are numbers of objects: each colour becomes the number 0xRRGGBB, and JPEG is refused, because it changes
            values. Otherwise they are brightness, and a colour becomes its brightest channel.
    """
    data = path.read_bytes() if path.is_file() else b""
    try:
        pages = _array_pages(path, labels) if path.suffix.lower() == ".npy" else _image_pages(data, path.name, labels)
    except TooLarge as error:
        raise Refused("the mask file is too large", f"{path.name}: {error}") from error
    except (*UNREADABLE, zipfile.BadZipFile) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("the mask file cannot be read", f"{path.name}: {reason_of(error, data)}") from error
    # a copy of one channel lets go of the others
    return [np.ascontiguousarray(_integers(_one_channel(page, path.name, labels), path.name)) for page in pages]


def _array_pages(path: Path, labels: bool) -> list[np.ndarray]:
    """Returns the pages of an array (H, W), (pages, H, W) or (H, W, channels)."""
    values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray) or not values.size:
        raise Refused("the mask file cannot be read", f"{path.name}: it holds no array of pixels")
    while values.ndim > 3 and 1 in values.shape:
        values = np.squeeze(values, axis=values.shape.index(1))
    if values.ndim not in (2, 3):
        raise Refused("the mask file has several channels", f"{path.name}: shape {values.shape}, expected (H, W)")
    if values.ndim == 3 and values.shape[2] <= MOST_CHANNELS < values.shape[0]:
        return [values if labels else _equal_channels(values, path.name)]
    return [values] if values.ndim == 2 else list(values)


def _equal_channels(values: np.ndarray, name: str) -> np.ndarray:
    """Returns the array, after checking that it does not hold a mask in each channel: only one could be read of them."""
    if values.ndim == 3 and (values[..., :1] != values[..., 1:]).any():
        raise Refused(
            "the mask file has several channels",
            f"{name}: shape {values.shape} with channels that differ; save each mask as a file, or as a page (masks, H, W)",
        )
    return values


def _image_pages(data: bytes, name: str, labels: bool) -> list[np.ndarray]:
    if needs_tifffile(data):
        tags = tiff.tags_of(data)
        check_pixels(tiff.stored_size(tags))
        pages = tiff.read_pages(data)
        return pages if tags.get(tiff.PHOTOMETRIC) == tiff.RGB else [_equal_channels(page, name) for page in pages]
    with open_image(data) as image:
        is_tiff = isinstance(image, TiffImageFile)
        if labels and (image.format in ("JPEG", "MPO") or is_tiff and image.tag_v2.get(COMPRESSION) in JPEG_IN_TIFF):
            raise Refused(
                "the label map is a JPEG",
                f"{name}: JPEG changes values near edges, so save it as PNG or TIFF, or for black and white masks set "
                "data.form=binary_masks",
            )
        frames = num_frames(image)
        if isinstance(image, TiffImageFile):
            return tiff.read_pages(data) if frames > image.n_frames else _tiff_pages(image, name)
        if frames > 1:
            raise Refused("the mask file is a stack", f"{name} has {frames} frames; save each as a file or a page of a TIFF")
        depth = data[24] if image.format == "PNG" else 8
        return [_values(image, name, depth)]


def _tiff_pages(image: TiffImageFile, name: str) -> list[np.ndarray]:
    """Returns all pages but those that are smaller versions of another."""
    pages = []
    for number in range(image.n_frames):
        image.seek(number)
        tags = dict(image.tag_v2)
        if tags.get(tiff.SUBFILE, 0) & 1 and image.n_frames > 1:
            continue
        values = _values(image, name, max(np.ravel(tags.get(tiff.BITS, 1))))
        if tags.get(tiff.SAMPLES, 1) > (values.shape[2] if values.ndim == 3 else 1):
            raise Refused("the mask file has several channels", f"{name} has {tags[tiff.SAMPLES]} bands, expected one")
        # PIL inverts these for display
        if tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO and values.dtype in (bool, np.uint8):
            values = values ^ values.dtype.type(np.iinfo(np.uint8).max >> (8 - min(tags.get(tiff.BITS, (1,))[0], 8)))
        pages.append(tiff.with_declared_type(values, tags))
    return pages


def _values(image: Image.Image, name: str, depth: int) -> np.ndarray:
    """Returns the values of the page at hand; of a palette they are the indices."""
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.array(image)
    if values.ndim == 3 and depth > 8:
        raise Refused("the mask file has several channels", f"{name} has {depth}-bit colours, expected one channel")
    if image.mode == "L" and depth in (2, 4):  # PIL scales these to 0 to 255
        values //= 255 // (2**depth - 1)
    return values


def _one_channel(values: np.ndarray, name: str, labels: bool) -> np.ndarray:
    """Returns (H, W): the grey of grey images that are saved as colours, alpha if it alone varies, or a number per colour."""
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    if channels in (2, 4) and np.ptp(values[..., -1]) and not np.ptp(values[..., :-1], axis=(0, 1)).any():
        return values[..., -1]  # the mask is in alpha
    colours = values[..., : channels - 1 + channels % 2]  # without alpha
    if colours.shape[2] == 1 or (colours[..., :1] == colours[..., 1:]).all():
        return colours[..., 0]
    if channels > MOST_CHANNELS or values.dtype != np.uint8:
        raise Refused("the mask file has several channels", f"{name}: shape {values.shape}, expected (H, W)")
    if not labels:
        return colours.max(2)
    red, green, blue = np.moveaxis(colours.astype(np.int32), 2, 0)
    numbers = red << 16 | green << 8 | blue
    areas = np.unique(numbers, return_counts=True)[1]
    if len(areas) > MOST_COLOURS and np.median(areas) <= 2:  # as in photographs
        raise Refused(
            "the mask file has several channels",
            f"{name}: {len(areas)} colours, most of them in single pixels, expected one colour for each object",
        )
    return numbers


def _integers(values: np.ndarray, name: str) -> np.ndarray:
    """Returns the values as integers, also if they are stored as floats; raises Refused for fractions."""
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)) and float(np.abs(values).max(initial=0)) < 2**53:
        values = values.astype(np.int64)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise Refused("the mask file holds fractions", f"{name}: {values.dtype} with fractions or NaN, expected whole numbers")
    return values

"""A window: the part of an image that becomes the network's input, and how image and masks are brought into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from samtrain.ops.rle import RLE, rle_runs, rle_to_box_xywh, to_compressed

Box = tuple[int, int, int, int]  # xyxy, the lower right corner exclusive


@dataclass(frozen=True)
class Window:
    """`box` (xyxy, original pixels, fractions allowed, lower right exclusive) seen at `size` (H, W) input pixels."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) input pixels for one original pixel."""
        x0, y0, x1, y1 = self.box
        return self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)

    @property
    def is_native(self) -> bool:
        """True where input pixels are original pixels."""
        return self.scale == (1.0, 1.0) and all(float(edge).is_integer() for edge in self.box)


def render_image(image: np.ndarray, window: Window, reduction: int = 1) -> np.ndarray:
    """The (h, w, 3) uint8 image in the window: PIL's bilinear filter with antialias, as SAM resizes.

    `image` may be the image at 1/`reduction` of its sides, rounded up.
    """
    if window.is_native and reduction == 1:
        x0, y0, x1, y1 = (int(edge) for edge in window.box)
        return image[y0:y1, x0:x1]
    limits = (image.shape[1], image.shape[0]) * 2
    box = tuple(min(edge / reduction, limit) for edge, limit in zip(window.box, limits, strict=True))
    resized = Image.fromarray(image).resize(window.size[::-1], Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


@dataclass(frozen=True)
class MaskPatch:
    """A mask in a window: its pixels (h, w) bool and where in the window their top left corner lies."""

    pixels: np.ndarray
    top: int
    left: int

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))


def render_mask(rle: RLE, size: tuple[int, int], window: Window) -> MaskPatch:
    """A mask in the window, cut to its own extent; only what the window shows of it is decoded.

    An input pixel belongs to the mask where the mask covers half of it. A mask of which the window shows anything keeps
    at least one pixel. Raises ValueError for an RLE that is not `size` (H, W) of the image, is broken, or is empty.
    """
    rle = to_compressed(rle, size)
    x, y, width, height = rle_to_box_xywh(rle)
    if width == 0 or height == 0:
        raise ValueError("its mask has no pixels")
    left, top, right, bottom = target = _target_box((x, y, x + width, y + height), window)
    if left >= right or top >= bottom:
        return MaskPatch(np.zeros((0, 0), dtype=bool), 0, 0)
    # what the window's pixels see of the image, and the whole pixels that hold it
    source = _source_box(target, window)
    x0, y0, x1, y1 = math.floor(source[0]), math.floor(source[1]), math.ceil(source[2]), math.ceil(source[3])
    part = decode_rle_box(rle, (x0, y0, min(x1, size[1]), min(y1, size[0])))
    if window.is_native:
        return MaskPatch(part, top, left)
    pixels = _resize(part, source, (x0, y0), (bottom - top, right - left))
    if not pixels.any():
        _keep_one_pixel(pixels, part, (x0, y0), source)
    return MaskPatch(pixels, top, left)


def _target_box(box: tuple[float, float, float, float], window: Window) -> Box:
    """The input pixels that a box (xyxy, original pixels) touches."""
    (scale_x, scale_y), (height, width) = window.scale, window.size
    left, top = (box[0] - window.box[0]) * scale_x, (box[1] - window.box[1]) * scale_y
    right, bottom = (box[2] - window.box[0]) * scale_x, (box[3] - window.box[1]) * scale_y
    return (
        max(math.floor(left), 0),
        max(math.floor(top), 0),
        min(math.ceil(right), width),
        min(math.ceil(bottom), height),
    )


def _source_box(target: Box, window: Window) -> tuple[float, float, float, float]:
    """What input pixels see, in original pixels."""
    (scale_x, scale_y), (x0, y0) = window.scale, window.box[:2]
    return x0 + target[0] / scale_x, y0 + target[1] / scale_y, x0 + target[2] / scale_x, y0 + target[3] / scale_y


def _resize(
    part: np.ndarray, source: tuple[float, float, float, float], corner: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The decoded part (top left at `corner`) at `size`: shares of area when shrinking, else bilinear, cut at half."""
    x0, y0 = corner
    box = (
        max(source[0] - x0, 0.0),
        max(source[1] - y0, 0.0),
        min(source[2] - x0, part.shape[1]),
        min(source[3] - y0, part.shape[0]),
    )
    shrinks = size[1] < source[2] - source[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(part.astype(np.uint8) * 255).resize(size[::-1], method, box=box)) >= 128


def _keep_one_pixel(
    pixels: np.ndarray, part: np.ndarray, corner: tuple[int, int], source: tuple[float, float, float, float]
) -> None:
    """Set the input pixel in which the middle one of the visible mask pixels lies, if any is visible."""
    rows, columns = np.nonzero(part)
    x, y = corner[0] + columns + 0.5, corner[1] + rows + 0.5
    seen = np.flatnonzero((source[0] <= x) & (x < source[2]) & (source[1] <= y) & (y < source[3]))
    if len(seen):
        middle = seen[len(seen) // 2]
        row = (y[middle] - source[1]) / (source[3] - source[1]) * pixels.shape[0]
        column = (x[middle] - source[0]) / (source[2] - source[0]) * pixels.shape[1]
        pixels[int(row), int(column)] = True


def decode_rle_box(rle: RLE, box: Box) -> np.ndarray:
    """The pixels of a compressed RLE inside a box (xyxy of whole pixels, inside the image), (h, w) bool.

    RLE runs down the columns, so the columns of the box are one stretch of runs; a whole SA-1B mask takes pycocotools
    3 ms, a box of 60 columns takes 0.1 ms here. The RLE has to be `to_compressed`'s: checked, counts as bytes.
    """
    x0, y0, x1, y1 = box
    height = rle["size"][0]
    ends = np.cumsum(rle_runs(rle["counts"]))
    # the stretch of the columns, cut out of the runs
    first, last = x0 * height, x1 * height
    lengths = np.diff(np.clip(ends, first, last), prepend=first)
    values = np.arange(len(lengths)) % 2 == 1
    seen = lengths > 0
    return np.repeat(values[seen], lengths[seen]).reshape(x1 - x0, height).T[y0:y1]

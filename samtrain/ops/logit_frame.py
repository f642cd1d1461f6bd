"""Renders low-resolution mask logits in the frame of the image, but only the rectangle that is needed.

Two bilinear interpolations lead from a mask's logits to the image: up to the network input, where the padding is cut off, then
to the image. Each is a weighted mean along rows and along columns. Together they are one matrix for rows and one for columns,
so any rectangle of the result is two small matrix products. Because each pixel is a mean, it lies between the least and the
greatest logit that it is computed from. This bounds counts of pixels without rendering one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BLOCK = 512  # rows that are rendered together
ROUNDING = 1e-4  # of logits; far above the rounding error of their means in float32


class Axis:
    """Describes one axis of a frame: pixel p is a mean of the logits `first[p]` to `last[p]`, at most three of them.

    Neighbouring pixels that are computed from the same logits form a group; `group_first`, `group_last` and `group_sizes` (the
    number of pixels) are (num_groups,), and `group_of` is the group of each pixel.
    """

    def __init__(self, matrix_Ph: np.ndarray) -> None:
        used = matrix_Ph != 0
        self.matrix_Ph = torch.from_numpy(matrix_Ph.astype(np.float32))
        self.first = used.argmax(axis=1)
        self.last = matrix_Ph.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        assert (self.last - self.first <= 2).all()
        begins = np.flatnonzero(np.diff(self.first, prepend=-1) | np.diff(self.last, prepend=-1))
        self.group_of = np.cumsum(np.isin(np.arange(len(self.first)), begins)) - 1
        self.group_first, self.group_last = self.first[begins], self.last[begins]
        self.group_sizes = torch.from_numpy(np.diff(begins, append=len(self.first)).astype(np.float32))

    def to(self, device: torch.device) -> Axis:
        """Moves the matrix to another device and returns the axis."""
        self.matrix_Ph, self.group_sizes = self.matrix_Ph.to(device), self.group_sizes.to(device)
        return self

    def pixels(self, first: int, last: int) -> slice:
        """Returns the pixels that depend on any of the logits `first` to `last`."""
        return slice(int(np.searchsorted(self.last, first)), int(np.searchsorted(self.first, last, side="right")))

    def logits(self, pixels: slice) -> slice:
        """Returns the logits that the pixels depend on."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)

    def extremes(self, logits_h: Tensor, offset: int, pixels: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the least and the greatest logit of each group of pixels along the last axis, and the groups' sizes.

        The last axis of `logits_h` begins with logit `offset`.
        """
        groups = slice(self.group_of[pixels.start], self.group_of[pixels.stop - 1] + 1)
        first = torch.from_numpy(self.group_first[groups] - offset).to(logits_h.device)
        last = torch.from_numpy(self.group_last[groups] - offset).to(logits_h.device)
        parts = [logits_h.index_select(-1, i) for i in (first, torch.minimum(first + 1, last), last)]
        low, high = torch.minimum(parts[0], parts[1]), torch.maximum(parts[0], parts[1])
        return torch.minimum(low, parts[2]), torch.maximum(high, parts[2]), self.group_sizes[groups]


@lru_cache(maxsize=256)
def axis_of(
    crop: tuple[int, int], image: tuple[int, int], input_length: int, image_size: int, mask_size: int, device: torch.device
) -> tuple[int, Axis]:
    """Returns the first pixel and the `Axis` of a crop in the frame of an image, along rows or along columns.

    crop:          the crop's first pixel and one past its last, in the image
    image:         the image's number of pixels along this axis, and that of the frame: equal, or smaller for a smaller frame
    input_length:  the crop's number of pixels in the network input
    image_size:    side of the network input
    mask_size:     side of the logits
    """
    length, pixels = image
    # pixels of the frame with their centres in the crop, and the places of these centres in the crop
    begin, end = (int(np.ceil(edge * pixels / length - 0.5)) for edge in crop)
    places = (np.arange(begin, end) + 0.5) * (length / pixels) - crop[0]
    assert crop[1] > crop[0], "a crop has pixels"

    # interpolate between pixels of the network input, and each of these between logits
    near, far, share = _neighbours(places * (input_length / (crop[1] - crop[0])), input_length)
    low, high, upper = _neighbours((np.arange(image_size) + 0.5) * (mask_size / image_size), mask_size)

    # multiply the two into one matrix from logits to pixels
    matrix = np.zeros((len(places), mask_size))
    rows = np.arange(len(places))
    for pixel, weight in ((near, 1 - share), (far, share)):
        np.add.at(matrix, (rows, low[pixel]), weight * (1 - upper[pixel]))
        np.add.at(matrix, (rows, high[pixel]), weight * upper[pixel])
    return begin, Axis(matrix).to(device)


def _neighbours(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and after each place (0 is the edge of the first), and the weight of the one after."""
    centred = np.maximum(places - 0.5, 0)
    before = np.minimum(centred.astype(np.int64), length - 1)
    return before, np.minimum(before + 1, length - 1), centred - before


class LogitFrame:
    """Maps the low-resolution logits of one crop to the frame of its image."""

    def __init__(self, rows: tuple[int, Axis], columns: tuple[int, Axis]) -> None:
        self.top, self.rows = rows
        self.left, self.columns = columns

    def reach(self, cells: tuple[int, int, int, int]) -> tuple[slice, slice]:
        """Returns the rows and columns of the crop that depend on the logits in the rectangle (top, bottom, left, right)."""
        return self.rows.pixels(cells[0], cells[1]), self.columns.pixels(cells[2], cells[3])

    def render(self, logits_hw: Tensor, reach: tuple[slice, slice]) -> Tensor:
        """Returns (W', H') logits of the rectangle, column by column, the order of run-length codes."""
        rows, columns = self.rows.logits(reach[0]), self.columns.logits(reach[1])
        along_columns = self.columns.matrix_Ph[reach[1], columns] @ logits_hw[rows, columns].T
        # a block of rows depends on few logits, so of a large rectangle most products would be with zeros
        blocks = []
        for start in range(reach[0].start, reach[0].stop, BLOCK):
            block = slice(start, min(start + BLOCK, reach[0].stop))
            own = self.rows.logits(block)
            part = along_columns[:, own.start - rows.start : own.stop - rows.start]
            blocks.append(part @ self.rows.matrix_Ph[block, own].T)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def render_whole(self, logits_nhw: Tensor) -> Tensor:
        """Returns (n, W, H) logits of the whole frame, column by column."""
        return self.columns.matrix_Ph @ logits_nhw.transpose(1, 2) @ self.rows.matrix_Ph.T

    def bounds(self, logits_hw: Tensor, reach: tuple[slice, slice], threshold: float, offset: float) -> Tensor:
        """Returns two bounds (2,) on the pixels of the rectangle.

        At most the first number of pixels exceed threshold + offset, and at least the second exceed threshold - offset.
        """
        rows, columns = self.rows.logits(reach[0]), self.columns.logits(reach[1])
        least, greatest, widths = self.columns.extremes(logits_hw[rows, columns], columns.start, reach[1])
        least = self.rows.extremes(least.T, rows.start, reach[0])[0]
        _, greatest, heights = self.rows.extremes(greatest.T, rows.start, reach[0])
        most = widths @ ((greatest > threshold + offset - ROUNDING).float() @ heights)
        fewest = widths @ ((least > threshold - offset + ROUNDING).float() @ heights)
        return torch.stack([most, fewest])

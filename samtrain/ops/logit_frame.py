"""Low-resolution mask logits as they look in a frame of many more pixels, of which only those that matter are made.

What a mask's logits become in the image are two bilinear interpolations (up to the network input, the padding cut off, then
to the image), each a weighted mean along rows and along columns. Both together are one matrix for rows and one for columns,
so any rectangle of the result is two small matrix products. And as means they stay between the least and the greatest logit
that they are made of, which bounds counts of pixels without making one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-4  # of logits, far above what float32 loses in the means of them


class Axis:
    """One axis of a frame: how pixel p is made of the logits `first[p]` to `last[p]`, at most three of them.

    groups:  neighbouring pixels that are made of the same logits; all three arrays are (num_groups,), `sizes` their pixels
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
        """The same with its matrix on another device."""
        self.matrix_Ph, self.group_sizes = self.matrix_Ph.to(device), self.group_sizes.to(device)
        return self

    def pixels(self, first: int, last: int) -> slice:
        """Those that any of the logits `first` to `last` takes part in."""
        return slice(int(np.searchsorted(self.last, first)), int(np.searchsorted(self.first, last, side="right")))

    def logits(self, pixels: slice) -> slice:
        """Those that take part in the pixels."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)

    def extremes(self, logits_h: Tensor, offset: int, pixels: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Least and greatest logit of each group along the last axis, which begins with logit `offset`; the groups' sizes."""
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
    """The first pixel and the `Axis` of a crop in an image, along rows or along columns.

    crop:          first pixel and one past the last, in the image that was cut
    image:       that image's pixels, and the pixels it has in the frame: (n, n), or fewer where the frame is smaller
    input_length:  the crop's pixels in the network input of side `image_size`; mask_size: the logits' side
    """
    length, pixels = image
    # pixels of the frame whose centre lies in the crop, where it lies there
    begin, end = (int(np.ceil(edge * pixels / length - 0.5)) for edge in crop)
    places = (np.arange(begin, end) + 0.5) * (length / pixels) - crop[0]
    # from there to the input's pixels, and on to the logits
    assert crop[1] > crop[0], "a crop has pixels"
    near, far, share = _neighbours(places * (input_length / (crop[1] - crop[0])), input_length)
    low, high, upper = _neighbours((np.arange(image_size) + 0.5) * (mask_size / image_size), mask_size)
    matrix = np.zeros((len(places), mask_size))
    rows = np.arange(len(places))
    for pixel, weight in ((near, 1 - share), (far, share)):
        np.add.at(matrix, (rows, low[pixel]), weight * (1 - upper[pixel]))
        np.add.at(matrix, (rows, high[pixel]), weight * upper[pixel])
    return begin, Axis(matrix).to(device)


def _neighbours(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each place (0 is the first one's edge), and the share of the one after."""
    centred = np.maximum(places - 0.5, 0)
    before = np.minimum(centred.astype(np.int64), length - 1)
    return before, np.minimum(before + 1, length - 1), centred - before


class LogitFrame:
    """Low-resolution logits of one crop in the frame of its image."""

    def __init__(self, rows: tuple[int, Axis], columns: tuple[int, Axis]) -> None:
        self.top, self.rows = rows
        self.left, self.columns = columns

    def reach(self, cells: tuple[int, int, int, int]) -> tuple[slice, slice]:
        """Rows and columns of the crop, counted in it, that logits in the rectangle (top, bottom, left, right) take part in."""
        return self.rows.pixels(cells[0], cells[1]), self.columns.pixels(cells[2], cells[3])

    def render(self, logits_hw: Tensor, reach: tuple[slice, slice]) -> Tensor:
        """(W', H') logits of the rectangle, column by column as run-length codes go through a mask."""
        rows, columns = self.rows.logits(reach[0]), self.columns.logits(reach[1])
        along_columns = self.columns.matrix_Ph[reach[1], columns] @ logits_hw[rows, columns].T
        return along_columns @ self.rows.matrix_Ph[reach[0], rows].T

    def bounds(self, logits_hw: Tensor, reach: tuple[slice, slice], threshold: float, offset: float) -> Tensor:
        """(2,) of the rectangle: at most so many pixels exceed threshold + offset, at least so many threshold - offset."""
        rows, columns = self.rows.logits(reach[0]), self.columns.logits(reach[1])
        least, greatest, widths = self.columns.extremes(logits_hw[rows, columns], columns.start, reach[1])
        least = self.rows.extremes(least.T, rows.start, reach[0])[0]
        _, greatest, heights = self.rows.extremes(greatest.T, rows.start, reach[0])
        most = widths @ ((greatest > threshold + offset - ROUNDING).float() @ heights)
        fewest = widths @ ((least > threshold - offset + ROUNDING).float() @ heights)
        return torch.stack([most, fewest])

"""Measures the areas and boxes of many RLE masks at once, from their runs and without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samtrain.ops.rle import to_compressed


def rle_extents(rles: Sequence[Any], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,) int64 areas in pixels and (N, 4) int64 tight boxes (xyxy, ends exclusive) of masks of `size` (H, W).

    An empty mask has area 0 and a box of zeros. All runs are checked; for masks that do not pass, the error of
    `to_compressed` is raised as ValueError with the mask's number as second argument. A hundred masks of SA-1B take 3 ms.
    """
    if not len(rles):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64)
    texts = [_text(rle, size, number) for number, rle in enumerate(rles)]
    runs = _runs(texts) if all(texts) else None
    if runs is None or not _fill(*runs, size):
        for number, rle in enumerate(rles):  # slower, but it knows which mask is wrong and why
            _checked(rle, size, number)
        raise AssertionError("a mask failed the quick check of runs and passed the slow one")
    return _measure(*runs, size)


def _checked(rle: Any, size: tuple[int, int], number: int) -> bytes:
    try:
        return to_compressed(rle, size)["counts"]
    except (ValueError, TypeError) as error:
        raise ValueError(str(error), number) from error


def _text(rle: Any, size: tuple[int, int], number: int) -> bytes:
    """Returns the compressed counts of a mask; those that are text already are checked later, all at once."""
    if isinstance(rle, dict) and isinstance(rle.get("counts"), str) and rle.get("size") == list(size):
        return rle["counts"].encode("latin-1", "replace")
    return _checked(rle, size, number)


def _runs(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (R,) run lengths of all masks in a row and (N,) the first run of each, or None for text that is no code.

    This is `rle_runs` for many masks: see there for the code.
    """
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    text_ends = np.cumsum([len(text) for text in texts])
    if codes.min() < 0 or codes.max() > 63 or (codes[text_ends - 1] & 32).any():
        return None
    # add up each number's characters, five bits per place, and extend the sign
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    # undo the differences: in each mask, runs 1, 3, 5, ... are a cumulative sum, and so are 2, 4, 6, ...
    last = np.searchsorted(ends, text_ends - 1)
    first = np.concatenate([[0], last[:-1] + 1])
    mask = np.repeat(np.arange(len(texts)), last - first + 1)
    number = np.arange(len(values)) - first[mask]
    for rest in (1, 0):
        chosen = np.flatnonzero((number % 2 == rest) & (number > 0))
        values[chosen] = _cumulative(values[chosen], mask[chosen])
    return values, first


def _cumulative(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the cumulative sum of the values within each mask."""
    total = np.cumsum(values)
    begins = np.flatnonzero(np.diff(mask, prepend=-1))
    before = total[begins] - values[begins]
    return total - np.repeat(before, np.diff(begins, append=len(values)))


def _fill(runs: np.ndarray, first: np.ndarray, size: tuple[int, int]) -> bool:
    """Returns whether no run is negative and the runs of every mask fill the image."""
    return bool(runs.min() >= 0 and (np.add.reduceat(runs, first) == size[0] * size[1]).all())


def _measure(runs: np.ndarray, first: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns areas and boxes from runs that `_fill` the image."""
    height = size[0]
    mask = np.repeat(np.arange(len(first)), np.diff(first, append=len(runs)))
    inside = np.flatnonzero(((np.arange(len(runs)) - first[mask]) % 2 == 1) & (runs > 0))
    areas, boxes = np.zeros(len(first), dtype=np.int64), np.zeros((len(first), 4), dtype=np.int64)
    if not len(inside):
        return areas, boxes
    # the first and last pixel of each run, counted down the columns from the mask's first pixel
    ends = np.cumsum(runs) - mask * (height * size[1])
    low, high = (ends - runs)[inside], ends[inside] - 1
    left, right = low // height, high // height
    whole = left < right  # a run that goes on in the next column touches the last row and the first
    top, bottom = np.where(whole, 0, low % height), np.where(whole, height - 1, high % height)
    # the extreme of each mask that has pixels
    begins = np.flatnonzero(np.diff(mask[inside], prepend=-1))
    shown = mask[inside][begins]
    areas[shown] = np.add.reduceat(runs[inside], begins)
    sides = (np.minimum, left, 0), (np.minimum, top, 0), (np.maximum, right, 1), (np.maximum, bottom, 1)
    boxes[shown] = np.stack([extreme.reduceat(values, begins) + more for extreme, values, more in sides], axis=1)
    return areas, boxes

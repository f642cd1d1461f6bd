"""Encodes, decodes and measures run-length encoded masks in COCO's format, as SA-1B stores them (with pycocotools)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

RLE = dict[str, Any]  # {"size": [H, W], "counts": str}


def encode_mask(mask_HW: np.ndarray) -> RLE:
    """Returns a (H, W) bool or 0/1 mask as compressed RLE with text counts, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def encode_labels(labels_HW: np.ndarray) -> dict[int, RLE]:
    """Returns the RLE of the pixels of each value of an (H, W) integer map, in ascending order of the values.

    The texts equal those of `encode_mask(labels_HW == value)`, but all are made in one pass over the map.
    """
    flat = labels_HW.T.ravel()  # COCO's runs go down the columns
    if flat.size == 0:
        return {}
    # find the runs of equal values
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    # sort them by value; the runs of one value stay in order
    order = np.argsort(flat[starts], kind="stable")
    values, firsts = np.unique(flat[starts][order], return_index=True)
    borders = np.stack([starts, ends], axis=1)[order]
    # write a run of other values before each run
    found = {}
    for value, changes in zip(values.tolist(), np.split(borders, firsts[1:]), strict=True):
        runs = np.diff(changes.ravel(), prepend=0, append=flat.size)
        counts = runs_to_counts(runs[:-1] if runs[-1] == 0 else runs)
        found[int(value)] = {"size": list(labels_HW.shape), "counts": counts}
    return found


def decode_rle(rle: RLE, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the (H, W) bool mask of a compressed or uncompressed RLE.

    Raises ValueError if `size` (H, W) is given and differs, if keys are missing, or if the runs do not fill the size.
    """
    return coco_mask.decode(to_compressed(rle, size)).astype(bool)


def rle_area(rle: RLE) -> int:
    """Returns the number of pixels of the mask, without decoding it."""
    return int(coco_mask.area(to_compressed(rle)))


def rle_to_box_xywh(rle: RLE) -> list[float]:
    """Returns the tight (x, y, width, height) box of the mask, without decoding it."""
    return [float(value) for value in coco_mask.toBbox(to_compressed(rle))]


def rle_iou(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """Returns (N, P) float64 IoUs of all pairs of masks, without decoding them; raises ValueError if sizes differ."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    a, b = [to_compressed(r) for r in a], [to_compressed(r) for r in b]
    if len(sizes := {tuple(r["size"]) for r in (*a, *b)}) > 1:
        raise ValueError(f"masks of different sizes (H, W) have no IoU: {sorted(sizes)}")
    return np.asarray(coco_mask.iou(a, b, [0] * len(b)))


def to_compressed(rle: RLE, size: tuple[int, int] | None = None) -> RLE:
    """Returns the form that pycocotools takes (counts as bytes), after checking the runs; raises as `decode_rle` does."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError(f"an RLE is a mapping with 'size' and 'counts', got {str(rle)[:80]}")
    height, width = _sides(rle["size"])
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"RLE has size {(height, width)}, but the image has {tuple(size)} (H, W)")
    counts = rle["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, (int, np.integer)) and run >= 0 for run in counts):
            raise ValueError(f"RLE runs are whole numbers from 0, got {str(counts)[:80]}")
        total = sum(counts)
    elif isinstance(counts, (str, bytes)):
        data = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
        total = int(rle_runs(data).sum())
    else:
        raise ValueError(f"RLE counts are a text or a list of runs, got {str(counts)[:80]}")
    if total != height * width:
        raise ValueError(f"RLE runs sum to {total}, but the size {(height, width)} holds {height * width} pixels")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": data}


def _sides(size: Any) -> tuple[int, int]:
    """Returns height and width; raises ValueError if they are not two whole numbers."""
    whole = isinstance(size, (list, tuple)) and all(isinstance(side, (int, np.integer)) and side >= 0 for side in size)
    if not whole or len(size) != 2 or size[0] * size[1] >= 1 << 31:  # pycocotools counts pixels with 32 bits
        raise ValueError(f"an RLE's size is [height, width] in pixels, got {str(size)[:80]}")
    return int(size[0]), int(size[1])


def runs_of(mask_WH: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Returns (R,) int64 run lengths, background first, of an (H, W) mask that is empty outside a rectangle.

    mask_WH:  bool, the rectangle with its columns as rows, because COCO's runs go down the columns
    corner:   (row, column) of the rectangle's first pixel
    size:     (H, W) of the whole mask
    """
    width, height = mask_WH.shape
    # find where the value changes; an empty pixel after each column keeps runs within their column
    padded = np.zeros(width * (height + 1) + 1, dtype=bool)
    padded[1:].reshape(width, height + 1)[:, :height] = mask_WH
    return _runs_between(np.flatnonzero(padded[1:] != padded[:-1]), height, corner, size)


def runs_of_many(masks_nWH: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> list[np.ndarray]:
    """Returns the run lengths of n masks in the same rectangle, as `runs_of` does, with one transfer from the masks' device."""
    n, width, height = masks_nWH.shape
    padded = F.pad(F.pad(masks_nWH, (0, 1)).flatten(1), (1, 0))
    owner, changes = (padded[:, 1:] != padded[:, :-1]).nonzero().cpu().numpy().T
    borders = np.searchsorted(owner, np.arange(1, n))
    return [_runs_between(part, height, corner, size) for part in np.split(changes, borders)]


def _runs_between(changes: np.ndarray, height: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Returns the runs between the places where a mask begins and ends, in columns of `height` and one empty pixel."""
    (top, left), (H, W) = corner, size
    changes = (changes // (height + 1) + left) * H + changes % (height + 1) + top
    # join runs where a column is full to the mask's last row and the next is full from the first
    ends_and_begins = changes[1:-1].reshape(-1, 2)
    continues = ends_and_begins[:, 0] == ends_and_begins[:, 1]
    if continues.any():
        changes = np.concatenate([changes[:1], ends_and_begins[~continues].ravel(), changes[-1:]])
    runs = np.diff(changes, prepend=0, append=H * W)
    return runs[:-1] if runs[-1] == 0 and len(runs) > 1 else runs


def runs_to_mask(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the (H, W) bool mask of run lengths, background first."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T


def runs_to_counts(runs: np.ndarray) -> str:
    """Returns COCO's compressed text of run lengths, as pycocotools would write it; the inverse of `rle_runs`."""
    values = np.asarray(runs, dtype=np.int64).copy()
    # from the fourth run on, store the difference to the run two places before
    values[3:] -= runs[1:-2]
    # use as many characters as hold the value and its sign, five bits each
    count = np.ones(len(values), dtype=np.int64)
    for bits in range(4, 34, 5):
        count += (values >= 1 << bits) | (values < -(1 << bits))
    ends = np.cumsum(count)
    # write the five bits of each place, and a sixth bit on all but a number's last character
    place = np.arange(ends[-1]) - np.repeat(ends - count, count)
    codes = (np.repeat(values, count) >> (5 * place)) & 31
    codes[place + 1 < np.repeat(count, count)] |= 32
    return (codes + 48).astype(np.uint8).tobytes().decode("ascii")


def rle_runs(data: bytes) -> np.ndarray:
    """Returns (R,) int64 run lengths of a compressed RLE, background first; raises ValueError if the text is not COCO's code.

    A character holds six bits, offset by 48: five bits of value and one that says that more follow. Numbers are sign-extended.
    From the fourth run on the stored number is the difference to the run two places before (cocoapi, maskApi.c). The runs are
    checked here because pycocotools writes past its buffer if they overshoot the size.
    """
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("RLE counts hold a character outside COCO's code, or end in the middle of a number")
    # add up each number's characters, five bits per place
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("RLE counts hold a number of more than 7 characters")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    # extend the sign
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    # undo the differences: runs 1, 3, 5, ... are a cumulative sum, and so are 2, 4, 6, ...; run 0 stands alone
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise ValueError("RLE counts hold a negative run")
    return runs


def rle_difference(rle: RLE, others: Sequence[RLE]) -> RLE:
    """Returns the pixels of a mask that are in none of the other masks, without decoding them; raises as `to_compressed`."""
    mine = to_compressed(rle)
    size = (mine["size"][0], mine["size"][1])
    if others:
        covered = coco_mask.merge([to_compressed(other, size) for other in others], intersect=False)
        mine = coco_mask.merge([mine, to_compressed(_inverted(covered))], intersect=True)
    return {"size": list(size), "counts": mine["counts"].decode("ascii")}


def rle_union(rles: Sequence[RLE]) -> RLE:
    """Returns the pixels that are in any of the masks, without decoding them; raises as `to_compressed`."""
    first = to_compressed(rles[0])
    size = (first["size"][0], first["size"][1])
    joined = coco_mask.merge([to_compressed(each, size) for each in rles], intersect=False)
    return {"size": list(size), "counts": joined["counts"].decode("ascii")}


def _inverted(rle: RLE) -> RLE:
    """Returns the mask of all pixels that are not in this one."""
    runs = rle_runs(rle["counts"])
    return {**rle, "counts": runs_to_counts(runs[1:] if runs[0] == 0 and len(runs) > 1 else np.concatenate([[0], runs]))}

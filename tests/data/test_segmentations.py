"""COCO's segmentations: every way of writing one mask gives that mask, and nothing large is handed to C."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from samtrain.data.prepare import segmentations
from samtrain.data.prepare.segmentations import to_rle, whole_number
from samtrain.ops.rle import decode_rle, encode_mask

H, W = 24, 32
BOX = [1.0, 2.0, 7.0, 2.0, 7.0, 9.0, 1.0, 9.0]
CORNERS = [[1, 2], [7, 2], [7, 9], [1, 9]]


def rectangle() -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[2:9, 1:7] = True
    return mask


def runs() -> list[int]:
    edges = np.flatnonzero(np.diff(np.r_[False, rectangle().T.ravel(), False]))
    return np.diff(np.r_[0, edges, H * W]).tolist()


RLE = encode_mask(rectangle())
WRITTEN = {
    "polygon": [BOX],
    "flat polygon": BOX,
    "text": [[str(value) for value in BOX]],
    "flat text": [str(value) for value in BOX],
    "corners": CORNERS,
    "corners in a list": [CORNERS],
    "named corners": [{"x": x, "y": y} for x, y in CORNERS],
    "named corners in a list": [[{"x": str(x), "y": y} for x, y in CORNERS]],
    "rle": RLE,
    "rle in a list": [RLE],
    "bytes": {**RLE, "counts": repr(RLE["counts"].encode())},
    "sizes as text": {**RLE, "size": [str(H), str(W)]},
    "sizes as floats": {**RLE, "size": [float(H), float(W)]},
    "runs": {"size": [H, W], "counts": runs()},
    "runs as floats": {"size": [H, W], "counts": [float(run) for run in runs()]},
    "runs as text": {"size": [H, W], "counts": [str(run) for run in runs()]},
    "text of a polygon": json.dumps([BOX]),
    "text of an rle": json.dumps(RLE),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_way_of_writing_a_mask_gives_it(name: str) -> None:
    assert np.array_equal(decode_rle(to_rle(WRITTEN[name], (H, W)), (H, W)), rectangle())


def test_a_backslash_in_counts_that_python_has_shown_is_kept() -> None:
    mask = np.zeros((60, 60), bool)
    mask[:44, ::2] = True  # runs of 44 pixels are written with a backslash
    rle = encode_mask(mask)
    assert "\\" in rle["counts"]
    assert to_rle({**rle, "counts": repr(rle["counts"].encode())}, (60, 60)) == rle


@pytest.mark.parametrize(
    "bad",
    [
        [[0, 0, 1e12, 0, 1e12, 1e12, 0, 1e12]],
        [[0, 0, -1e300, 0, 5, 5]],
        [[1e9, 1e9, 1e9 + 1, 1e9, 1e9, 1e9 + 1]],
        [[0, 0, 10**400, 0, 5, 5]],
        [[0, 0, W, H, W, 0] * 40_000],
        {"size": [2**40, 2**40], "counts": [2**80]},
        {"size": [H, W], "counts": "b'" + "x" * 10},
        {"size": [H, W], "counts": "b'\\xff'"},
    ],
)
def test_nothing_large_is_handed_to_c(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentations.coco_mask, "frPyObjects", lambda *_: pytest.fail("this was handed to C"))
    with pytest.raises(ValueError):
        to_rle(bad, (H, W))


def test_a_polygon_that_leaves_the_image_is_cut_there() -> None:
    mask = decode_rle(to_rle([[-50, -50, 1000, -50, 1000, 12, -50, 12]], (H, W)), (H, W))
    assert mask[:12].all() and not mask[12:].any()


def test_corners_in_shares_of_the_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1: multiply"):
        to_rle([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], (H, W))


def test_memory_follows_the_outline_not_the_numbers() -> None:
    tracemalloc.start()
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="1e\\+12"):
                to_rle([[0, 0, 1e12, 0, 1e12, 1e12, 0, 1e12]], (H, W))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("given", "want"), [(80.0, 80), ("80", 80), ("80.0", 80), (80, 80)])
def test_whole_numbers_as_tools_write_them(given: Any, want: int) -> None:
    assert whole_number(given) == want and type(whole_number(given)) is int


@pytest.mark.parametrize("given", [80.5, "80 px", True, None, [80], "inf", float("nan")])
def test_other_values_are_not_taken_for_numbers(given: Any) -> None:
    assert whole_number(given) is given

"""Tests that RLE round trips, and that broken ones are refused before they reach pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samtrain.ops.rle import (
    decode_rle,
    encode_labels,
    encode_mask,
    rle_area,
    rle_difference,
    rle_iou,
    rle_runs,
    rle_to_box_xywh,
    runs_of,
    runs_to_counts,
    runs_to_mask,
)  # fmt: skip


def _mask(shape: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 48), (300, 201), (1, 4000)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_round_trip_through_json(shape, density):
    mask = _mask(shape, density)
    rle = json.loads(json.dumps(encode_mask(mask)))
    decoded = decode_rle(rle, shape)
    assert decoded.dtype == bool and np.array_equal(decoded, mask)
    assert rle_area(rle) == mask.sum()


def test_large_blobs_round_trip():
    """Runs of many thousand pixels take several characters each."""
    mask = np.zeros((900, 1200), dtype=bool)
    mask[100:850, 3:1190] = True
    mask[300:301, 400] = False
    assert np.array_equal(decode_rle(encode_mask(mask)), mask)


def test_uncompressed_counts_run_down_the_columns():
    assert decode_rle({"size": [2, 3], "counts": [1, 3, 2]}).astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]
    assert rle_area({"size": [2, 3], "counts": [0, 6]}) == 6


def test_box_without_decoding():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:9, 5:17] = True
    assert rle_to_box_xywh(encode_mask(mask)) == [5, 3, 12, 6]


GOOD = encode_mask(_mask((10, 12), 0.4))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, "mapping with 'size' and 'counts'"),
        ({"size": [10, 12]}, "mapping with 'size' and 'counts'"),
        ({"size": [10, 13], "counts": GOOD["counts"]}, "holds 130 pixels"),
        ({"size": [10, 11], "counts": GOOD["counts"]}, "holds 110 pixels"),
        ({"size": [10, 12], "counts": [100, 10]}, "runs sum to 110"),
        ({"size": [10, 12], "counts": ""}, "runs sum to 0"),
        ({"size": [10, 12], "counts": [130, -10]}, "whole numbers from 0"),
        ({"size": [10, 12], "counts": [60.0, 60.0]}, "whole numbers from 0"),
        ({"size": [10, 12], "counts": None}, "a text or a list of runs"),
        ({"size": None, "counts": GOOD["counts"]}, r"size is \[height, width\]"),
        ({"size": [10, 12.0], "counts": GOOD["counts"]}, r"size is \[height, width\]"),
        ({"size": [-10, -12], "counts": GOOD["counts"]}, r"size is \[height, width\]"),
        ({"size": [10, 12], "counts": "é" * 8}, "outside COCO's code"),
        ({"size": [10, 12], "counts": GOOD["counts"][:-1] + "\x7f"}, "outside COCO's code"),
        ({"size": [10, 12], "counts": GOOD["counts"] + "P"}, "middle of a number"),
        ({"size": [10, 12], "counts": "oooooooooooo0"}, "more than 7 characters"),
    ],
)
def test_broken_runs_are_refused(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(rle)


def test_another_image_size_is_refused():
    assert decode_rle(GOOD, (10, 12)).shape == (10, 12)
    with pytest.raises(ValueError, match=r"RLE has size \(10, 12\), but the image has \(12, 10\)"):
        decode_rle(GOOD, (12, 10))


def test_random_text_is_refused_or_decoded():
    """Any text either is refused or decodes to its size."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(chr(c) for c in draw.integers(48, 112, draw.integers(1, 12)))
        try:
            assert decode_rle({"size": [9, 9], "counts": text}).shape == (9, 9)
        except ValueError as error:
            assert str(error)


def test_iou_of_all_pairs_without_decoding() -> None:
    masks = [_mask((31, 17), density, seed) for seed, density in enumerate((0.2, 0.5, 0.9, 0.0))]
    a, b = masks[:2], masks[1:]
    ious = rle_iou([encode_mask(mask) for mask in a], [encode_mask(mask) for mask in b])
    expected = [[(m & n).sum() / (m | n).sum() for n in b] for m in a]
    assert ious.shape == (2, 3) and np.allclose(ious, expected)
    assert rle_iou([], [encode_mask(masks[0])]).shape == (0, 1) and rle_iou([encode_mask(masks[0])], []).shape == (1, 0)


@pytest.mark.parametrize("seed", range(300))
def test_run_lengths_of_a_rectangle(seed: int) -> None:
    """For a rectangle in an empty image, runs, text and mask equal those of pycocotools, also at the edges."""
    rng = np.random.default_rng(seed)
    H, W = (int(side) for side in rng.integers(1, 30, 2))
    h, w = int(rng.integers(1, H + 1)), int(rng.integers(1, W + 1))
    top, left = int(rng.integers(0, H - h + 1)), int(rng.integers(0, W - w + 1))
    part = rng.random((w, h)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
    mask = np.zeros((H, W), bool)
    mask[top : top + h, left : left + w] = part.T
    runs = runs_of(part, (top, left), (H, W))
    assert runs_to_counts(runs) == encode_mask(mask)["counts"]
    assert (runs_to_mask(runs, (H, W)) == mask).all()


@pytest.mark.parametrize("runs", [[5], [0, 1], [0, 2**20, 3, 2**25, 1], [1, 15, 1, 16, 500, 17, 511, 512, 2**24]])
def test_counts_of_long_runs(runs: list[int]) -> None:
    text = runs_to_counts(np.array(runs))
    assert rle_runs(text.encode()).tolist() == runs
    assert text == coco_mask.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)["counts"].decode()


def test_masks_of_different_sizes_have_no_iou():
    """pycocotools says -1 and nothing else."""
    with pytest.raises(ValueError, match="different sizes"):
        rle_iou([encode_mask(_mask((3, 4), 0.5))], [encode_mask(_mask((4, 3), 0.5))])


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_the_values_of_a_map_are_encoded_at_once_as_one_by_one(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (9, 1), (5, 7), (30, 20)):
        labels = rng.integers(0, 4, shape).astype(dtype)
        labels = labels - 2 if dtype == "int64" else labels
        assert encode_labels(labels) == {int(value): encode_mask(labels == value) for value in np.unique(labels)}
    assert encode_labels(np.zeros((0, 3), int)) == {}


def test_a_difference_leaves_out_the_pixels_of_all_others() -> None:
    rng = np.random.default_rng(0)
    mine, *others = (rng.random((9, 11)) < 0.5 for _ in range(4))
    for chosen in ([], others[:1], others, [np.ones((9, 11), bool)], [np.zeros((9, 11), bool)], [mine]):
        want = mine & ~np.any(chosen, axis=0) if chosen else mine
        assert rle_difference(encode_mask(mine), [encode_mask(other) for other in chosen]) == encode_mask(want)
    with pytest.raises(ValueError, match="the image has"):
        rle_difference(encode_mask(mine), [encode_mask(np.ones((2, 2), bool))])

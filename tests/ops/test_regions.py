"""Compares holes and islands with drawings, and with segment_anything if OpenCV is installed."""

from __future__ import annotations

import numpy as np
import pytest

from samtrain.ops.regions import fill_small_holes, remove_small_islands


def drawn(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def test_a_small_hole_is_filled_and_a_large_one_stays() -> None:
    mask = drawn("""
        #######
        #.###..
        #####..
        #######""")
    filled, changed = fill_small_holes(mask, 3)
    assert changed and filled[1, 1] and not filled[1, 5]
    same, changed = fill_small_holes(mask, 1)
    assert not changed and (same == mask).all()


def test_islands_touch_by_corners() -> None:
    mask = drawn("""
        ##....
        ##....
        ..#...
        .....#""")
    kept, changed, largest = remove_small_islands(mask, 3)
    assert changed and largest == 5 and kept.sum() == 5 and not kept[3, 5]


def test_if_all_are_small_the_first_of_the_largest_stays() -> None:
    mask = drawn("##..## ...... ..#...".replace(" ", "\n"))
    kept, changed, largest = remove_small_islands(mask, 10)
    assert changed and largest == 2 and kept.sum() == 2 and kept[0, 0]


def test_empty_and_full() -> None:
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert remove_small_islands(empty, 3)[1:] == (False, 0)
    assert fill_small_holes(full, 3)[1] is False
    assert remove_small_islands(full, 3)[1:] == (False, 20)


@pytest.mark.parametrize("seed", range(30))
def test_regions_equal_those_of_segment_anything(seed: int) -> None:
    pytest.importorskip("cv2", reason="segment_anything's clean-up needs OpenCV: pip install 'samtrain[release]'")
    amg = pytest.importorskip("segment_anything.utils.amg", reason="needs the reference: pip install segment-anything")
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 23)) < rng.choice([0.3, 0.5, 0.6, 0.8])
    area = int(rng.integers(1, 30))
    theirs, changed = amg.remove_small_regions(mask, area, mode="holes")
    ours, also = fill_small_holes(mask, area)
    assert changed == also and (theirs == ours).all()
    theirs, changed = amg.remove_small_regions(mask, area, mode="islands")
    ours, also, _ = remove_small_islands(mask, area)
    assert changed == also and (theirs == ours).all()

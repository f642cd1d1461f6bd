"""The brush: it converges, it is never exact, and its strokes have a length."""

from __future__ import annotations

import numpy as np
import pytest
from pretend_predictor import disc
from scipy.ndimage import binary_dilation, binary_erosion

from samtrain.data_engine.brush import Brush


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def paint(mask: np.ndarray, target: np.ndarray, strokes: int, brush: Brush, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    for _ in range(strokes):
        painted, _ = brush.paint(mask, target, rng)
        if iou(painted, target) > iou(mask, target):
            mask = painted
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_a_few_strokes_make_an_object_from_nothing(seed: int) -> None:
    ring = disc(80, 80, 40, 40, 30) & ~disc(80, 80, 44, 36, 14)
    drawn = paint(np.zeros_like(ring), ring, 12, Brush(), seed)
    assert iou(drawn, ring) > 0.85
    assert (drawn != ring).any(), "a hand is never exact"


def test_it_adds_what_is_missing_and_erases_what_is_too_large() -> None:
    target = disc(60, 60, 30, 30, 18)
    other = disc(60, 60, 12, 50, 6)
    small, large = binary_erosion(target, iterations=5), target | other
    assert paint(small, target, 1, Brush()).sum() > small.sum()
    assert paint(large, target, 1, Brush()).sum() < large.sum()


def test_a_steady_hand_stays_inside_a_disc() -> None:
    target = disc(50, 50, 25, 25, 12)
    painted, length = Brush(unsteadiness=0).paint(np.zeros_like(target), target, np.random.default_rng(0))
    assert not (painted & ~binary_dilation(target)).any()
    assert iou(painted, target) > 0.9
    assert length >= 1


def test_longer_errors_take_longer_strokes_up_to_a_limit() -> None:
    strip = np.zeros((20, 200), dtype=bool)
    strip[8:13, 5:60] = True
    longer = strip.copy()
    longer[8:13, 5:195] = True
    brush, empty = Brush(max_widths=12), np.zeros_like(strip)
    short, long = (brush.paint(empty, t, np.random.default_rng(0))[1] for t in (strip, longer))
    assert 2 < short <= long <= 12 * 2


def test_the_largest_error_comes_first() -> None:
    target = disc(60, 60, 15, 15, 5) | disc(60, 60, 40, 40, 12)
    painted, _ = Brush().paint(np.zeros_like(target), target, np.random.default_rng(0))
    assert painted[40, 40] and not painted[15, 15]


def test_a_perfect_mask_and_a_single_pixel() -> None:
    target = disc(20, 20, 10, 10, 4)
    painted, length = Brush().paint(target, target, np.random.default_rng(0))
    assert (painted == target).all() and length == 0
    dot = np.zeros((9, 9), dtype=bool)
    dot[4, 4] = True
    assert paint(np.zeros_like(dot), dot, 8, Brush()).sum() >= 1


def test_the_given_mask_is_not_changed() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    Brush().paint(mask, disc(20, 20, 10, 10, 4), np.random.default_rng(0))
    assert not mask.any()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="annotator.brush.unsteadiness is -1: give 0 or more"):
        Brush(unsteadiness=-1)

"""Prominence: what stands out comes first."""

from __future__ import annotations

import numpy as np
from pretend_predictor import disc

from samtrain.data_engine.prominence import prominence

GREY = np.full((100, 120, 3), 90, np.uint8)


def coloured(mask: np.ndarray, value: int) -> np.ndarray:
    image = GREY.copy()
    image[mask] = value
    return image


def test_large_before_small_central_before_marginal_bright_before_dull() -> None:
    middle, corner = disc(100, 120, 50, 60, 10), disc(100, 120, 15, 15, 10)
    assert prominence(GREY, disc(100, 120, 50, 60, 20)) > prominence(GREY, middle)
    assert prominence(GREY, middle) > prominence(GREY, corner)
    assert prominence(coloured(middle, 255), middle) > prominence(coloured(middle, 100), middle)


def test_size_leads() -> None:
    large, small = disc(100, 120, 40, 40, 30), disc(100, 120, 50, 60, 3)
    assert prominence(GREY, large) > prominence(coloured(small, 255), small)


def test_nothing_and_everything() -> None:
    assert prominence(GREY, np.zeros((100, 120), dtype=bool)) == 0
    assert 0 < prominence(GREY, np.ones((100, 120), dtype=bool)) <= 1

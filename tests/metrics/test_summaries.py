"""Clicks until a mask is good, intervals and means over sets, with answers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samtrain.metrics.summaries import clicks_until, mean_over_sets, mean_with_interval


def test_clicks_until_an_iou() -> None:
    ious = np.full((5, 20), 0.5)
    ious[0, 0] = 0.95  # at once, and then worse again
    ious[1, 2:] = 0.90  # exactly the level counts
    ious[2, 19] = 0.91  # at the last click: no failure
    ious[4, :3], ious[4, 3:] = 0.92, math.nan  # stopped early
    clicks, never = clicks_until(ious, 0.90)
    assert clicks.tolist() == [1, 3, 20, 20, 1]
    assert never.tolist() == [False, False, False, True, False]
    clicks, never = clicks_until(ious, 0.5)
    assert clicks.tolist() == [1] * 5 and not never.any()


def test_an_interval_counts_images_not_objects() -> None:
    values, images = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    mean, low, high = mean_with_interval(values, images)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two images cannot say more
    mean, low, high = mean_with_interval(values, list(range(20)))
    assert mean == 0.5 and 0.2 < low < 0.4 and 0.6 < high < 0.8
    with pytest.raises(ValueError, match="no value"):
        mean_with_interval([], [])


def test_the_mean_over_sets_has_equal_weights() -> None:
    one, two = ({"miou_1": value, "failures_80": 3.0, "miou_1_low": 0.0} for value in (0.2, 0.6))
    assert mean_over_sets([one, two]) == {"miou_1": pytest.approx(0.4), "failures_80": 6.0}

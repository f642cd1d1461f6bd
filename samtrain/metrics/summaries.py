"""From one number an object to the numbers of a table: means with intervals, and clicks until a mask is good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_CLICKS = 20  # after which an object counts as failed (interactive segmentation's convention, and RITM's)
RESAMPLES = 1000


def clicks_until(ious_NK: np.ndarray, level: float, max_clicks: int = MAX_CLICKS) -> tuple[np.ndarray, np.ndarray]:
    """(N,) clicks until the IoU is at least `level`, `max_clicks` where it never is, and (N,) bool where it never is.

    ious: after 1 to K clicks; K below `max_clicks` only where all objects got there. Reached exactly at the last click is
    reached. NaN, an interaction that was not needed any more, reaches nothing.
    """
    reached = ious_NK[:, :max_clicks] >= level
    never = np.logical_not(reached.any(axis=1))
    return np.where(never, max_clicks, reached.argmax(axis=1) + 1), np.asarray(never)


def mean_with_interval(values: Sequence[float], groups: Sequence[object], seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by a bootstrap over groups: the objects of one image are alike.

    Raises ValueError where there is no value.
    """
    if not len(values):
        raise ValueError("there is no value to take a mean of")
    _, place = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    sums, counts = np.bincount(place, weights=np.asarray(values, dtype=float)), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)

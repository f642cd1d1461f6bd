"""Turns one number per object into the numbers of a table: means with intervals, and clicks until a mask is good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_CLICKS = 20  # an object that needs more counts as failed: the convention of interactive segmentation (RITM)
RESAMPLES = 1000


def clicks_until(ious_NK: np.ndarray, level: float, max_clicks: int = MAX_CLICKS) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clicks until the IoU is at least `level`, (N,) with `max_clicks` for failures, and (N,) bool failures.

    `ious_NK` holds the IoU after 1 to K clicks; K may be below `max_clicks` only if all objects reached the level. An
    object that reaches it exactly at the last click has not failed. NaN stands for a click that was no longer needed.
    """
    reached = ious_NK[:, :max_clicks] >= level
    never = np.logical_not(reached.any(axis=1))
    return np.where(never, max_clicks, reached.argmax(axis=1) + 1), np.asarray(never)


def mean_with_interval(values: Sequence[float], groups: Sequence[object], seed: int = 0) -> tuple[float, float, float]:
    """Returns the mean and both ends of its 95 % interval.

    The interval is a bootstrap over groups, because the objects of one image are alike. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("there is no value to compute a mean of")
    # sums and counts per group
    _, place = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    sums, counts = np.bincount(place, weights=np.asarray(values, dtype=float)), np.bincount(place)
    # means of groups that are drawn with replacement
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def mean_over_sets(sets: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean over data sets of each metric that all of them have, with equal weights (the paper's top line).

    Counts are summed: of objects, of images, and of objects that failed.
    """
    names = [name for name in sets[0] if not name.endswith(("_low", "_high")) and all(name in each for each in sets)]
    return {name: float((np.sum if _is_count(name) else np.mean)([each[name] for each in sets])) for name in names}


def _is_count(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last in ("objects", "images", "ungrouped") or last.startswith("failures_")

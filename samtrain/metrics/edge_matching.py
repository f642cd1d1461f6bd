"""Measures edges as BSDS500 does: one-to-one matches within a tolerance; ODS, OIS, AP and R50 (Arbelaez et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from samtrain.metrics.thinning import thin

TOLERANCE = 0.0075  # of the image's diagonal (BSDS500's benchmark)
LEAST_RECALL = 1e-3  # thresholds that find less are left out of R50 (the plots of BSDS500's results)
THRESHOLDS = np.arange(1, 100) / 100  # on the strength of an edge


@dataclass(frozen=True)
class EdgeCounts:
    """Counts of one image at each of T thresholds, all (T,).

    found:              pixels that were found
    found_matched:      those of them that match the edge of any annotator
    annotated:          pixels of all annotators together
    annotated_matched:  those of them that match a found pixel
    """

    found: np.ndarray
    found_matched: np.ndarray
    annotated: np.ndarray
    annotated_matched: np.ndarray


def read_boundaries(path: str | Path) -> list[np.ndarray]:
    """Returns the (H, W) bool boundaries of each annotator from a `.mat` file of BSDS500.

    Raises ValueError that names the file if it has another content.
    """
    try:
        cells = loadmat(str(path))["groundTruth"]
        return [np.asarray(cells[0, i]["Boundaries"][0, 0]) > 0 for i in range(cells.shape[1])]
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise ValueError(
            f"{path} is not a ground truth file of BSDS500, because it has no groundTruth{{i}}.Boundaries ({error}): "
            "give the archive's own groundTruth folder"
        ) from error


def match(found_HW: np.ndarray, annotated_HW: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns two (H, W) bool: the found and the annotated pixels that have a partner in the other.

    Partners are at most `tolerance` pixels apart, and each pixel has at most one. There are as many pairs as possible: a
    maximum matching of the graph of near pixels.
    """
    matched = np.zeros_like(found_HW), np.zeros_like(annotated_HW)
    a, b = np.argwhere(found_HW), np.argwhere(annotated_HW)
    if not len(a) or not len(b):
        return matched
    pairs = cKDTree(a).sparse_distance_matrix(cKDTree(b), tolerance, output_type="ndarray")
    graph = csr_matrix((np.ones(len(pairs), dtype=np.int8), (pairs["i"], pairs["j"])), shape=(len(a), len(b)))
    partner = maximum_bipartite_matching(graph, perm_type="column")
    matched[0][tuple(a[partner >= 0].T)] = True
    matched[1][tuple(b[partner[partner >= 0]].T)] = True
    return matched


def count_edges(strength_HW: np.ndarray, annotators: Sequence[np.ndarray], thresholds: np.ndarray = THRESHOLDS) -> EdgeCounts:
    """Matches edges of strength 0 to 1 with those of every annotator, at each threshold.

    The pixels that reach a threshold are thinned before they are matched. A found pixel is right if it matches any annotator;
    recall counts the pixels of all annotators. Raises ValueError if the sizes differ.
    """
    if any(each.shape != strength_HW.shape for each in annotators):
        raise ValueError(
            f"the edges have size {strength_HW.shape} and the annotations {[each.shape for each in annotators]} (H, W): "
            "give the annotations of the same image"
        )
    tolerance = TOLERANCE * float(np.hypot(*strength_HW.shape))
    counts = np.zeros((4, len(thresholds)))
    last: tuple[bytes, np.ndarray] | None = None
    for t, threshold in enumerate(thresholds):
        above = strength_HW >= threshold
        if last is not None and last[0] == above.tobytes():  # the same pixels as at the threshold before
            counts[:, t] = last[1]
            continue
        found = thin(above)
        right = np.zeros_like(found)
        annotated = annotated_matched = 0
        for each in annotators:
            of_found, of_annotated = match(found, each, tolerance)
            right |= of_found
            annotated += int(each.sum())
            annotated_matched += int(of_annotated.sum())
        counts[:, t] = found.sum(), right.sum(), annotated, annotated_matched
        last = above.tobytes(), counts[:, t].copy()
    return EdgeCounts(*counts)


def edge_metrics(images: Sequence[EdgeCounts]) -> dict[str, float]:
    """Returns the four metrics of BSDS500 over all images; raises ValueError without images.

    ods:  F at the one threshold that is best for all images, interpolated between thresholds
    ois:  F at the best threshold of each image
    ap:   mean precision over recall 0 to 1, in steps of 0.01
    r50:  recall at a precision of 50 %, interpolated between thresholds; 0 if no precision is as high
    """
    if not images:
        raise ValueError("there is no image to measure edges on")
    names = ("found", "found_matched", "annotated", "annotated_matched")
    images = [EdgeCounts(*(np.asarray(getattr(image, name)) for name in names)) for image in images]
    # one threshold for all images
    total = [np.sum([getattr(image, name) for image in images], axis=0) for name in names]
    precision, recall = _rates(*total)
    # the best threshold of each image
    best = [int(_f(*_rates(*(getattr(image, name) for name in names))).argmax()) for image in images]
    chosen = [
        np.array([sum(getattr(image, name)[t] for image, t in zip(images, best, strict=True))]) for name in names
    ]
    return {
        "ods": _best_f(precision, recall),
        "ois": float(_f(*_rates(*chosen))[0]),
        "ap": _average_precision(precision, recall),
        "r50": _recall_at_half(precision, recall),
    }


def _rates(
    found: np.ndarray, found_matched: np.ndarray, annotated: np.ndarray, annotated_matched: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision and recall, both 0 if nothing was found."""
    return found_matched / np.maximum(found, 1), annotated_matched / np.maximum(annotated, 1)


def _f(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Returns the harmonic mean of both, 0 where both are 0."""
    both = precision + recall
    return np.where(both > 0, 2 * precision * recall / np.maximum(both, 1e-12), 0.0)


def _best_f(precision: np.ndarray, recall: np.ndarray) -> float:
    """Returns the highest F on the lines between neighbouring thresholds, at 100 places of each."""
    share = np.linspace(0, 1, 100)[:, None]
    between = [share * each[1:] + (1 - share) * each[:-1] for each in (precision, recall)]
    return float(max(_f(precision, recall).max(), _f(*between).max(initial=0.0)))


def _recall_at_half(precision: np.ndarray, recall: np.ndarray) -> float:
    """Returns the recall at a precision of 0.5, or at the lowest precision if that is higher."""
    found = recall >= LEAST_RECALL
    if not found.any() or precision[found].max() < 0.5:
        return 0.0
    precisions, recalls = _highest(precision[found], recall[found])
    return float(np.interp(max(0.5, precisions[0]), precisions, recalls))


def _average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Returns the area under the curve between the recalls that were reached; 0 for a single one."""
    recalls, precisions = _highest(recall, precision)
    levels = np.arange(101) / 100
    inside = (levels >= recalls[0]) & (levels <= recalls[-1])
    return float(np.interp(levels[inside], recalls, precisions).sum() / 100) if len(recalls) > 1 else 0.0


def _highest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values of x in ascending order, and the highest y of each."""
    order = np.argsort(x, kind="stable")
    distinct, first = np.unique(x[order], return_index=True)
    return distinct, np.array([part.max() for part in np.split(y[order], first[1:])])

"""Edge matches equal an optimal assignment, ODS and the others are computed by hand, and BSDS500's `.mat` files are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from samtrain.metrics.edge_matching import EdgeCounts, count_edges, edge_metrics, match, read_boundaries


@pytest.mark.parametrize("seed", range(40))
def test_as_many_matches_as_an_optimal_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((14, 17)) < rng.choice([0.03, 0.1, 0.3]) for _ in range(2))
    tolerance = float(rng.choice([0.5, 1.0, 1.5, 3.0]))
    of_a, of_b = match(a, b, tolerance)
    distance = cdist(np.argwhere(a), np.argwhere(b))
    far = (distance > tolerance).astype(float)
    rows, columns = linear_sum_assignment(far)
    most = int((far[rows, columns] == 0).sum())
    assert of_a.sum() == of_b.sum() == most
    assert not (of_a & ~a).any() and not (of_b & ~b).any()


def test_matches_are_one_to_one_and_as_many_as_possible() -> None:
    """Two found and two annotated pixels in a row: pairing the nearest first would leave two unmatched."""
    found, annotated = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    found[0, [2, 4]], annotated[0, [3, 5]] = True, True
    assert match(found, annotated, 1.0)[0].sum() == 2
    annotated[0, 5] = False
    assert match(found, annotated, 1.0)[0].sum() == 1  # of two pixels near one, one matches
    assert match(found, np.zeros_like(found), 1.0)[0].sum() == 0


def counts(found, right, annotated, matched) -> EdgeCounts:
    return EdgeCounts(*(np.array(each, dtype=float) for each in (found, right, annotated, matched)))


def test_ods_and_ois_by_hand() -> None:
    """Two images, two thresholds. Sums: 20 found, 12 right, 20 annotated, 12 matched at the first: F 0.6; 10, 9, 20, 9 at
    the second: P 0.9, R 0.45, F 0.6. Between them P and R are linear, with the best F near the middle. Each at its best: one
    image at the first (F 0.9), the other at the second (F 4/7)."""
    one = counts([10, 4], [9, 4], [10, 10], [9, 4])
    two = counts([10, 6], [3, 5], [10, 10], [3, 5])
    found = edge_metrics([one, two])
    middle = np.linspace(0, 1, 100)
    p, r = 0.6 + 0.3 * middle, 0.6 - 0.15 * middle
    assert found["ods"] == pytest.approx((2 * p * r / (p + r)).max()) and found["ods"] > 0.617
    precision, recall = (9 + 5) / (10 + 6), (9 + 5) / 20
    assert found["ois"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["r50"] == pytest.approx(0.6)
    # between recall 0.45 and 0.60 precision falls linearly from 0.9 to 0.6: sixteen levels of 0.01
    assert found["ap"] == pytest.approx(np.interp(np.arange(45, 61) / 100, [0.45, 0.6], [0.9, 0.6]).sum() / 100)


def test_a_perfect_detector_and_one_that_finds_nothing() -> None:
    edges = np.zeros((40, 50), bool)
    edges[20] = True
    perfect = edge_metrics([count_edges(edges.astype(float), [edges, edges])])
    assert perfect["ods"] == perfect["ois"] == perfect["r50"] == 1
    nothing = edge_metrics([count_edges(np.zeros((40, 50)), [edges])])
    assert nothing["ods"] == nothing["ois"] == nothing["ap"] == nothing["r50"] == 0


def test_precision_needs_any_annotator_and_recall_needs_all() -> None:
    one, other = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    one[10], other[50] = True, True
    found = count_edges(one.astype(float), [one, other], thresholds=np.array([0.5]))
    assert found.found_matched == found.found == 60
    assert found.annotated == 120 and found.annotated_matched == 60
    with pytest.raises(ValueError, match="edges have size"):
        count_edges(np.zeros((3, 3)), [one])


def test_the_format_of_bsds500_is_read(tmp_path: Path) -> None:
    cells = np.empty((1, 3), dtype=object)
    expected = []
    for i in range(3):
        boundary = np.random.default_rng(i).random((12, 9)) < 0.2
        record = np.zeros((1, 1), dtype=[("Segmentation", object), ("Boundaries", object)])
        record[0, 0] = (np.ones((12, 9), np.uint16), boundary.astype(np.uint8))
        cells[0, i] = record
        expected.append(boundary)
    savemat(tmp_path / "2018.mat", {"groundTruth": cells})
    found = read_boundaries(tmp_path / "2018.mat")
    assert len(found) == 3 and all((a == b).all() for a, b in zip(found, expected, strict=True))
    (tmp_path / "no.mat").write_bytes(b"nothing")
    savemat(tmp_path / "other.mat", {"x": 1})
    for name in ("no.mat", "other.mat"):
        with pytest.raises(ValueError, match=name):
            read_boundaries(tmp_path / name)


def test_r50_is_interpolated() -> None:
    """Precision 0.6 at recall 0.375 and 0.4 at recall 0.5: half of the way between them it is 0.5."""
    one = counts([100, 50], [40, 30], [80, 80], [40, 30])
    assert edge_metrics([one])["r50"] == pytest.approx(0.4375)
    never = counts([100, 100], [40, 30], [80, 80], [40, 30])
    assert edge_metrics([never])["r50"] == 0
    always = counts([40, 30], [40, 30], [80, 80], [40, 24])  # of equal precision the higher recall
    assert edge_metrics([always])["r50"] == pytest.approx(0.5)


def test_edges_are_thinned_at_each_threshold() -> None:
    """A line that is three pixels wide above 0.3 and one pixel wide above 0.6 finds the same edge at both."""
    truth = np.zeros((60, 80), bool)
    truth[30, 10:70] = True
    strength = np.where(truth, 0.9, 0.0)
    strength[29, 10:70] = strength[31, 10:70] = 0.5
    found = count_edges(strength, [truth], thresholds=np.array([0.3, 0.6]))
    assert found.found[1] == found.found_matched[1] == 60
    assert 56 <= found.found[0] <= 60 and found.found_matched[0] == found.found[0]

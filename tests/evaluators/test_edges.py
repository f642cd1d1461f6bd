"""Edges from masks: thin lines, outer boundaries, and a square that is found by colour."""

from __future__ import annotations

import numpy as np
import pytest

from samtrain.evaluators.edges import edge_strength, outer_boundary, thin_edges
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.metrics.edge_matching import count_edges, edge_metrics
from tests.colour_sam import ColourSam


def test_a_thick_ramp_becomes_a_thin_line() -> None:
    x = np.arange(41)[None, :].repeat(31, axis=0)
    ridge = np.exp(-((x - 20) ** 2) / 8.0)
    thin = thin_edges(ridge)
    assert (np.flatnonzero(thin[15]) == [20]).all()
    assert (np.flatnonzero(thin_edges(ridge.T)[:, 15]) == [20]).all()
    slanted = np.exp(-((x + np.arange(31)[:, None] - 35) ** 2) / 8.0)
    assert 1 <= (thin_edges(slanted)[15] > 0).sum() <= 2


def test_only_the_outer_boundary_counts() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    mask[12:18, 12:18] = False
    boundary = outer_boundary(mask)
    assert boundary[4, 10] and boundary[5, 10] and not boundary[7, 10] and not boundary[11:19, 11:19].any()


def test_the_edges_of_a_square_are_found() -> None:
    """They are found where they are, by a model that segments by colour."""
    image = np.full((256, 256, 3), 60, np.uint8)
    image[64:192, 96:192] = 200
    settings = {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    strength = edge_strength(SamAutomaticMaskGenerator(ColourSam().eval(), **settings), image)
    truth = np.zeros((256, 256), bool)
    truth[64:192, [96, 191]], truth[[64, 191], 96:192] = True, True
    found = edge_metrics([count_edges(strength, [truth])])
    assert strength.max() == 1 and found["ods"] > 0.9
    rows, columns = np.nonzero(strength > 0.3)
    inside = (np.abs(rows - 127.5) < 58) & (np.abs(columns - 143.5) < 42)
    assert not inside.any()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("seed", range(3))
def test_of_two_equal_rows_one_stays_everywhere(turns: int, seed: int) -> None:
    """The direction across an edge has no sign, so rounding must not decide which of two equal pixels stays."""
    strength = np.zeros((40, 50))
    strength[20:22] = 1.0
    strength += np.random.default_rng(seed).normal(size=strength.shape) * 1e-9
    strength = np.rot90(np.clip(strength, 0, None), turns)
    thin = np.rot90(thin_edges(strength), -turns)
    rows = (thin[:, 5:45] > 0.5).sum(axis=0)
    assert (rows == 1).all()
    assert len({int(row) for row in thin[:, 5:45].argmax(axis=0)}) == 1

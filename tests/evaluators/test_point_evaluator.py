"""Clicks on a predictor with known answers: rows and summary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pretend_predictor import PretendPredictor, eroded

from samtrain.evaluators import Points
from samtrain.types import PointLabel
from tests.evaluators.records import record


def points(answer) -> Points:
    evaluator = Points()
    evaluator.predictor = PretendPredictor(answer)
    return evaluator


def test_rows_and_summary_of_a_model_that_needs_three_clicks() -> None:
    """Each click removes a pixel less of the mask's border; the third is perfect."""
    evaluator = points(eroded(2))
    rows = evaluator.rows(record())
    assert len(rows) == 4 and evaluator.predictor.encoded == 1
    for row in rows:
        assert row["iou_1"] < row["iou_2"] < row["iou_3"] == 1 == row["iou_9"]
        assert math.isnan(row["iou_10"])  # all were at 90 % by then
        assert row["random_iou_3"] == 1 and row["click_seconds"] > 0
    found = evaluator.summary(rows)
    assert found["miou_3"] == 1 and found["miou_1"] == pytest.approx(np.mean([row["iou_1"] for row in rows]))
    expected = [next(k for k in (1, 2, 3) if row[f"iou_{k}"] >= 0.9) for row in rows]
    assert found["noc_90"] == np.mean(expected) and found["failures_90"] == 0
    assert found["objects"] == 4 and found["images"] == 1
    assert found["miou_1_low"] <= found["miou_1"] <= found["miou_1_high"]


def test_objects_that_20_clicks_do_not_solve_are_failures() -> None:
    evaluator = points(lambda whole, clicks: np.zeros_like(whole))
    rows = evaluator.rows(record())
    found = evaluator.summary(rows)
    assert found["noc_80"] == 20 and found["failures_80"] == 4 and found["miou_9"] == 0
    assert not math.isnan(rows[0]["iou_20"])


def test_clicks_that_are_counted_never_meet_a_clicked_pixel() -> None:
    """A model whose answer depends on the number of different clicks: five different ones give a good mask."""

    def answer(whole: np.ndarray, clicks: int) -> np.ndarray:
        return whole if len(set(predictor.clicks[-clicks:])) >= 5 else np.zeros_like(whole)

    predictor = ClickReader(answer)
    evaluator = Points()
    evaluator.predictor = predictor
    rows = evaluator.rows(record())
    found = evaluator.summary(rows)
    assert found["noc_90"] == 5 and found["failures_90"] == 0
    assert found["miou_9"] == 0  # the paper's protocol clicks the same pixel again


class ClickReader(PretendPredictor):
    """Remembers the pixels of all clicks on the object that it answers for."""

    def _place_on_object(self, coords, labels):
        self.clicks = [tuple(place) for place in coords[labels != PointLabel.PADDING].tolist()]
        return super()._place_on_object(coords, labels)

"""The time model: the paper's seconds, and the order of its times."""

from __future__ import annotations

import pytest

from samtrain.data_engine.time_model import TimeModel


def test_the_paper_s_times_are_five_and_thirteen_clicks() -> None:
    assert TimeModel().clicks(5) == pytest.approx(14.0)
    assert TimeModel().clicks(13) == pytest.approx(34.0)


def test_every_action_takes_time_and_a_longer_stroke_takes_more() -> None:
    model = TimeModel()
    assert model.clicks(1) < model.clicks(2)
    assert model.brush_stroke(1, first=False) < model.brush_stroke(9, first=False) < model.brush_stroke(9, first=True)


def test_negative_seconds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="annotator.time_model.judge is -1"):
        TimeModel(judge=-1)

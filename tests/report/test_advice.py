"""The report says in words when a model listens to clicks no longer, has not become better, or has forgotten."""

from __future__ import annotations

import re

import pytest

from samtrain.report.advice import advice

GOOD = {
    "test/start_miou_1": 0.5, "test/miou_1": 0.6, "test/miou_5": 0.8, "general/start_miou_1": 0.7, "general/miou_1": 0.69,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"test/miou_5": 0.6}, r"deaf to further clicks: on the test images .* 0.600 after 1 click and 0.600 after 5"),
        ({"test/miou_1": 0.97, "test/miou_5": 0.97}, None),  # nothing is left to correct
        ({"test/miou_1": 0.49}, r"not made the model better: .* was 0.500 before and is 0.490"),
        ({"general/miou_1": 0.66}, r"has forgotten: .*evaluator.general .* was 0.700 before the training and is 0.660"),
        ({"general/miou_1": None}, None),
        ({"test/miou_5": None, "val/miou_1": 0.6, "val/miou_5": 0.5}, "on the validation images .* 0.600 after 1 click"),
    ],
)
def test_what_is_wrong_is_said(changed: dict, said: str | None) -> None:
    found = advice(GOOD | changed)
    if said is None:
        assert found == []
    else:
        (sentence,) = found
        assert re.search(said, sentence)


def test_a_run_without_numbers_gets_no_advice() -> None:
    assert advice({}) == []

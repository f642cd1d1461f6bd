"""Proposals are ranked and cut."""

from __future__ import annotations

import pytest

from samtrain.evaluators import Proposals
from samtrain.evaluators.clicks import read_image
from samtrain.inference.generator import SamAutomaticMaskGenerator
from tests.evaluators.records import record


def test_proposals_are_ranked_by_the_mean_of_both_scores(sam, monkeypatch) -> None:
    monkeypatch.setattr("samtrain.evaluators.proposals.MAX_PROPOSALS", 3)
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.99}
    generator = SamAutomaticMaskGenerator(sam, **settings, output_mode="coco_rle")
    proposals = Proposals(make_generator=lambda sam: generator)
    proposals.load(sam)
    (row,) = proposals.rows(record())
    assert len(row["found"]) == 3 and row["scores"] == sorted(row["scores"], reverse=True)
    assert len(row["objects"]) == 4 and row["crowd"] == [False] * 4
    means = sorted((r["predicted_iou"] + r["stability_score"]) / 2 for r in generator.generate(read_image(record())))
    assert row["scores"] == pytest.approx(means[::-1][:3])

"""The charts of the rounds: one function per chart, each of which copes with values that the ledger lacks."""

from __future__ import annotations

import json
import re

import pytest
from demo_run import write_demo

from samtrain.report import round_charts
from samtrain.report.round_charts import Rounds, probe_pieces, promoted_values

CHARTS = {
    "quality_chart": "Quality by round",
    "seconds_chart": "Time per mask",
    "masks_per_image_chart": "Masks per image",
    "coverage_chart": "Objects that have a mask, by size",
    "work_chart": "Work per mask",
    "mask_quality_chart": "Drawn masks against the ground truth",
    "computing_time_chart": "Computing time by phase",
}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    run_dir = write_demo(tmp_path_factory.mktemp("demo") / "run", rounds=8)
    return Rounds([json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()])


@pytest.mark.parametrize(("name", "title"), CHARTS.items())
def test_each_chart_has_its_title_and_a_point_per_round(rounds: Rounds, name: str, title: str) -> None:
    figure = getattr(round_charts, name)(rounds)
    assert f"<figcaption>{title}</figcaption>" in figure
    found = set(re.findall(r"<title>[^<]*round (\d+)", figure))
    assert found == set("12345678")


def test_stage_2_is_marked_and_its_pieces_begin_with_the_model_before(rounds: Rounds) -> None:
    assert rounds.has_stage_2 and rounds.marks.places == [(6.5, "stage 2")]
    first, second = probe_pieces(rounds.lines, "seconds_per_mask")
    assert [x for x, _ in first] == [0, 1, 2, 3, 4, 5, 6] and second[0] == (6.0, 18.8)


def test_missing_values_leave_gaps(rounds: Rounds) -> None:
    bare = [{**line, "seconds_per_mask": None, "probe_seconds_per_mask": None, "probe_before": {}} for line in rounds.lines]
    assert round_charts.seconds_chart(Rounds(bare)) == ""
    assert promoted_values(rounds.lines, "no such metric") == []

"""Charts of IoU against clicks, on the images of a run and on zero-shot sets."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from samtrain.report import write_report
from samtrain.report.clicks import click_points, clicks_charts, zero_shot_clicks
from samtrain.report.run_files import RunFiles

CLICKS = (1, 2, 3, 5, 9)


def run_of(metrics: dict[str, float | None], task: str = "fit") -> RunFiles:
    return RunFiles(Path("run"), config={"task": task}, metrics=metrics)


def of_set(name: str, first: float = 0.5) -> dict[str, float]:
    more = {f"{name}/{key}": 0.99 for key in ("oracle_miou_1", "box_miou", "random_miou_1", "miou_1_low", "noc_90")}
    return {f"{name}/miou_{clicks}": first + 0.03 * clicks for clicks in CLICKS} | more


def places(figure: str) -> list[str]:
    return re.findall(r"<title>([^<]*)</title>", figure)


def test_points_come_only_from_metrics_by_clicks_in_order() -> None:
    metrics = {"a/miou_9": 0.9, **of_set("a"), "a/start_miou_1": 0.1, "b/miou_1": 0.2}
    assert [x for x, _ in click_points(metrics, "a/")] == list(CLICKS)
    assert click_points(metrics, "a/start_") == [(1.0, 0.1)]
    assert click_points({"a/miou_1": None, "a/miou_2": math.nan, "a/miou_3": 0.3}, "a/") == [(3.0, 0.3)]


def test_test_validation_and_the_start() -> None:
    start = {f"test/start_miou_{clicks}": 0.3 for clicks in (1, 3)}
    (figure,) = clicks_charts(run_of({**of_set("test"), **start, "val/miou_1": 0.4, "val/miou_5": 0.6}))
    assert all(f"</i>{name}</span>" in figure for name in ("test", "test, before this run", "validation"))
    found = places(figure)
    assert len(found) == 5 + 2 + 2 and "test, clicks 9: 0.77" in found and not any("0.99" in each for each in found)
    ticks = re.findall(r'<tspan x="[^"]*" dy="0">(\d)</tspan>', figure)
    assert ticks == ["1", "2", "3", "5", "9"] and ">clicks</text>" in figure and ">mean IoU</text>" in figure


@pytest.mark.parametrize("metrics", [{}, {"test/miou_1": 0.5, "val/miou_1": 0.4}, {"test/box_miou": 0.5}])
def test_one_number_of_clicks_gives_no_chart(metrics: dict[str, float | None]) -> None:
    assert clicks_charts(run_of(metrics)) == [] and zero_shot_clicks(run_of(metrics, "zero_shot")) == []


@pytest.mark.parametrize(("sets", "drawn"), [(1, 1), (2, 2), (5, 5), (6, 1)])
def test_a_line_per_set_or_the_mean_of_many(sets: int, drawn: int) -> None:
    metrics = {key: value for n in range(sets) for key, value in of_set(f"set{n}", 0.1 * n).items()}
    metrics |= of_set("mean", 0.35) if sets > 1 else {}
    run = run_of(metrics, "zero_shot")
    (figure,) = zero_shot_clicks(run)
    assert len(places(figure)) == drawn * len(CLICKS)
    assert ("The mean over 6 sets" in figure) == (sets == 6) == ("mean, clicks 1" in figure)
    assert clicks_charts(run) == [], "the sets have their own section"


def test_the_chart_is_in_its_section_of_the_page(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"task": "zero_shot", "zero_shot": {"protocol": "points"}}))
    (tmp_path / "metrics.json").write_text(json.dumps(of_set("one") | of_set("two", 0.4)))
    page = write_report(tmp_path).read_text()
    assert page.count("<figcaption>IoU against clicks") == 1 and page.index("Zero-shot") < page.index("IoU against clicks")

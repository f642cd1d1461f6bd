"""Comparing runs: the best value is marked if that is known, differing settings are listed, lines are distinct."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_run import write_demo
from test_page import check

from samtrain.report.compare import comparison_page
from samtrain.report.compare_tables import better, flat
from samtrain.report.run_files import RunFiles, read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFiles]:
    """Returns a run with 3 rounds, one with 7, one that has not ended, and a single training."""
    folder = tmp_path_factory.mktemp("runs")
    demos = [write_demo(folder / name, rounds=n) for name, n in (("one", 3), ("two", 7))]
    write_demo(folder / "going", rounds=1, finished=False)
    shutil.copytree(demos[0] / "pretrain", folder / "fit")
    return [read_run(folder / name) for name in ("one", "two", "going", "fit")]


def made_up(metrics: dict[str, float | None], **config: Any) -> RunFiles:
    return RunFiles(Path("run"), config={"name": "x", **config}, metrics=metrics)


def row(page: str, name: str) -> list[str]:
    """Returns the cells beside a name, as HTML."""
    found = re.search(rf"<tr><td><code>{re.escape(name)}</code>.*?</tr>", page, re.S)
    return re.findall(r"<td>(.*?)</td>", found[0])[1:] if found else []


@pytest.mark.parametrize(
    ("names", "way"),
    [
        ("test/miou_1 val/oracle_miou_1 coco/mask_ap coco/mask_ap50 lvis/mask_ar_1000_small bsds/ods bsds/r50", 1),
        ("automatic/precision coverage/all detector/ap generated/ar_100 generated/precision_75 test/box_miou panoptic/pq", 1),
        ("time/seconds one/click_seconds one/noc_90 mean/failures_90", -1),
        ("memory/peak_gb generated/masks one/objects test/ceiling_miou_1 test/flood_fill_miou_1 test/start_miou_1", 0),
        ("coverage/start_all generated/images_per_second marcap/arches", 0),
    ],
)
def test_whether_higher_or_lower_is_better(names: str, way: int) -> None:
    assert {name: better(name) for name in names.split()} == dict.fromkeys(names.split(), way)


def test_the_best_of_a_row_is_marked() -> None:
    first = {"test/miou_1": 0.5, "time/seconds": 100.0, "val/miou_1": 0.1234, "val/miou_3": 0.4, "memory/peak_gb": 1.5}
    second = {"test/miou_1": 0.6, "time/seconds": 90.5, "val/miou_1": 0.1231, "val/miou_3": math.inf, "memory/peak_gb": 1.0}
    page = comparison_page([made_up(first), made_up(second), made_up({})])
    best = '<b class="good">{}</b>'.format
    assert row(page, "test/miou_1") == ["0.500", best("0.600"), "–"]
    assert row(page, "time/seconds") == ["100", best("90.5"), "–"]
    assert row(page, "val/miou_1") == ["0.123", "0.123", "–"], "the displayed values do not differ"
    assert row(page, "val/miou_3") == ["0.400", "–", "–"]
    assert row(page, "memory/peak_gb") == ["1.500", "1.000", "–"]
    assert page.index("test/miou_1") < page.index("val/miou_1") < page.index("time/seconds") < page.index("other numbers (1)")


def test_intervals_are_in_the_cell_of_their_number() -> None:
    metrics = {"one/miou_1": 0.5, "one/miou_1_low": 0.45, "one/miou_1_high": 0.55}
    page = comparison_page([made_up(metrics), made_up({"one/miou_1": 0.4})])
    assert row(page, "one/miou_1") == ['<b class="good">0.500</b> (0.450 to 0.550)', "0.400"]
    assert "one/miou_1_low" not in page


def test_settings_that_differ() -> None:
    one = made_up({}, run_dir="a", hydra={"job": 1}, optim={"lr": 0.1, "betas": [0.9, 0.999]}, data="<b>", scale={"steps": 1})
    two = made_up({}, run_dir="b", hydra={"job": 2}, optim={"lr": 0.1, "betas": [0.9, 0.95]}, scale={"steps": 2}, more={})
    page = comparison_page([one, two])
    assert row(page, "optim.betas") == ["<code>[0.9, 0.999]</code>", "<code>[0.9, 0.95]</code>"]
    assert row(page, "data") == ["<code>&lt;b&gt;</code>", "not set"] and row(page, "more") == ["not set", "<code>{}</code>"]
    assert page.index("numbers of the scale (1)") < page.index("scale.steps")
    assert not any(row(page, key) for key in ("run_dir", "hydra.job", "optim.lr", "name"))
    page = comparison_page([one, replace(one), RunFiles(Path("bare"))])
    assert "All settings are the same." in page and "The settings of C are not stored." in page
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_a_page_of_runs_in_all_states(runs: list[RunFiles]) -> None:
    page = comparison_page(runs, "python -m samtrain <x>")
    text = check(page)
    for words in (
        "4 runs side by side", "C and D have not ended", "A stage1 (made-up numbers)", "D fit", "0123456789, changed",
        "2 CPU cores", "python -m samtrain <x>", "IoU against clicks, test", "Validation, 1 click", "Training loss",
        "val/miou_1, model in use", "modelled seconds per mask", "images seen", "The settings of D are not stored.",
    ):  # fmt: skip
        assert words in text, words
    charts = re.findall(r'<figure class="chart">.*?</figure>', page, re.S)
    assert len(charts) == 6 and all(chart.count('<text class="name"') == 2 for chart in charts)
    assert ["D fit" in chart for chart in charts] == [False, True, True, False, False, False]
    learning = charts[2]
    assert len(re.findall("<path", learning)) == 4, "one line a run, rounds joined"


def test_rounds_are_compared_if_several_runs_have_them(runs: list[RunFiles]) -> None:
    assert "Rounds of the data engine" not in comparison_page([runs[0], runs[3]])
    other = [{**line, "promote_metric": "val/miou_3"} for line in runs[1].ledger]
    assert "the metric that promotes, model in use" in comparison_page([runs[0], replace(runs[1], ledger=other)])


@pytest.mark.parametrize(("number", "dashed"), [(5, 0), (6, 1), (10, 5)])
def test_with_more_runs_than_colours_lines_are_dashed(number: int, dashed: int) -> None:
    page = comparison_page([made_up({"test/miou_1": 0.1 * n, "test/miou_3": 0.5}) for n in range(number)])
    (chart,) = re.findall(r'<figure class="chart">.*?</figure>', page, re.S)
    assert chart.count("stroke-dasharray") == chart.count("dashed") == dashed
    kinds = re.findall(r'<i class="(key k\d \w+)">', chart)
    assert len(set(kinds)) == number, "all lines can be told apart"
    assert (">A x<" in chart) == (number == 5) and ("A</span>" in chart) == (number > 5)


def test_runs_that_did_not_count_images_are_named(runs: list[RunFiles], tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/miou_1\n1,2.0,\n2,1.5,0.3\n3,1.5,0.4\n")
    plain = read_run(tmp_path)
    page = comparison_page([runs[3], plain])
    assert "Without B, because no images were counted." in page
    page = comparison_page([plain, plain])
    assert ">steps</text>" in page and "Without" not in page


def test_zero_shot_runs_are_compared_by_their_mean() -> None:
    def of(*names: str) -> dict[str, float | None]:
        return {f"{name}/miou_{clicks}": 0.1 * clicks for name in names for clicks in (1, 3)}

    def titles(*metrics: dict[str, float | None]) -> list[str]:
        page = comparison_page([made_up(each) for each in metrics])
        return re.findall(r"<figcaption>IoU against clicks, (.*?)</figcaption>", page)

    assert titles(of("a", "b", "mean"), of("a", "b", "mean")) == ["mean over sets"]
    assert titles(of("a"), of("a")) == ["a"]
    assert titles(of("test"), {**of("val"), "test/start_miou_1": 0.1}) == ["test"]


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    text = check(comparison_page([read_run(tmp_path)]))
    assert "One run" in text and "A has not ended" in text and "Settings that differ The settings of" in text

"""`task=compare`: what it writes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain import tasks
from samtrain.tasks.compare import CompareConfig
from tests.report.small_run import make_run

CONF = Path(__file__).resolve().parents[2] / "conf"


def compare(run_dir: Path, runs: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=["task=compare", f"run_dir={run_dir}", f"compare.runs={runs}"]))
    run_dir.mkdir(parents=True, exist_ok=True)
    assert tasks.run(config, run_dir) is None


def test_it_writes_a_page_and_the_metrics_by_run(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"test/miou_1": 0.5, "test/miou_3": 0.6}, seed=0)
    two = make_run(tmp_path / "two", {"test/miou_1": 0.7, "test/miou_3": 0.8}, seed=1)
    going = make_run(tmp_path / "going")
    compare(tmp_path / "out", f"[{one},{two},{going}]")
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == {
        str(one): {"test/miou_1": 0.5, "test/miou_3": 0.6}, str(two): {"test/miou_1": 0.7, "test/miou_3": 0.8}, str(going): {},
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 runs side by side" in page and "C has not ended" in page and '<b class="good">0.700</b>' in page
    assert str(two) in page and "<code>seed</code>" in page
    compare(tmp_path / "out", f"[{one}]")  # the same directory again


@pytest.mark.parametrize(
    ("runs", "paths"), [(None, []), ([], []), ("", []), ("a", ["a"]), (0, ["0"]), (["a", 1], ["a", "1"])]
)
def test_runs_are_one_or_several(runs: Any, paths: list[str]) -> None:
    assert CompareConfig(runs=runs).paths() == paths


def test_more_runs_than_the_charts_can_show(tmp_path: Path) -> None:
    for number in range(28):
        make_run(tmp_path / str(number), {"test/miou_1": 0.5 + number / 1000})
    compare(tmp_path / "out", f"'{tmp_path}/*'")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "28 runs side by side" in page and '<b class="good">0.527</b>' in page and "AB 27" in page
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())) == 28


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "broken" / "run")
    (tmp_path / "broken" / "run" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json cannot be parsed as JSON"):
        compare(tmp_path / "out", str(tmp_path / "broken" / "run"))

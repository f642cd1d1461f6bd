"""`task=compare`: which runs are meant, what is written, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain import tasks
from samtrain.tasks.compare import directories

CONF = Path(__file__).resolve().parents[2] / "conf"


def make_run(folder: Path, metrics: dict[str, float] | None = None, **config: Any) -> Path:
    """A run that has begun, and that has ended where it has metrics."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "task": "fit", **config}))
    (folder / "metrics.csv").write_text("step,images_seen,train/loss,val/miou_1\n1,4,2.0,0.2\n2,8,1.5,0.3\n")
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


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


def test_a_glob_takes_runs_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        make_run(tmp_path / f"run_{number}")
    make_run(tmp_path / "run_11", task="compare")
    (tmp_path / "run_2").mkdir()
    (tmp_path / "run_3").write_text("a file")
    assert [path.name for path in directories(str(tmp_path / "run_*"))] == ["run_1", "run_9", "run_10"]
    twice = directories([str(tmp_path / "run_9"), str(tmp_path / "run_*")])
    assert [path.name for path in twice] == ["run_9", "run_1", "run_10"], "each once, as the list has them"


def test_a_directory_may_have_a_name_like_a_glob(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lr=[1e-3]")
    assert directories([str(run)]) == directories(str(run)) == [run]


@pytest.mark.parametrize("runs", [None, [], ""])
def test_no_runs(runs: Any) -> None:
    with pytest.raises(ValueError, match=r"compare.runs is empty.*\[RUN,RUN\]"):
        directories(runs)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compare.runs: '.*none' is no directory"):
        directories([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="compare.runs: .* is no run, none of .hydra/config.yaml.* is in it: give run"):
        directories([str(tmp_path)])
    with pytest.raises(ValueError, match=r"compare.runs: '.*\*' matches 0 paths and no run"):
        directories(str(tmp_path / "*"))
    make_run(tmp_path / "a")
    with pytest.raises(ValueError, match=r"is no run.*it holds 1 runs, compare.runs='.*/\*' takes them all"):
        directories(str(tmp_path))
    comparison = make_run(tmp_path / "b", task="compare")
    with pytest.raises(ValueError, match="is no run, but a comparison"):
        directories([str(comparison)])


def test_more_runs_than_lines(tmp_path: Path) -> None:
    for number in range(11):
        make_run(tmp_path / str(number))
    with pytest.raises(ValueError, match="compare.runs has 11 runs, and the charts tell 10 apart: name fewer"):
        compare(tmp_path / "out", f"'{tmp_path}/*'")
    make_run(tmp_path / "broken" / "run")
    (tmp_path / "broken" / "run" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is no JSON"):
        compare(tmp_path / "out", str(tmp_path / "broken" / "run"))

"""Which run directories are found, and errors that say what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from samtrain.report.find_runs import find_runs
from tests.report.small_run import make_run


def test_a_glob_finds_runs_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        make_run(tmp_path / f"run_{number}")
    make_run(tmp_path / "run_11", task="compare")
    (tmp_path / "run_2").mkdir()
    (make_run(tmp_path / "run_4") / "metrics.csv").unlink()  # it was refused, or has just begun
    (tmp_path / "run_3").write_text("a file")
    assert [path.name for path in find_runs([str(tmp_path / "run_*")])] == ["run_1", "run_9", "run_10"]
    twice = find_runs([str(tmp_path / "run_9"), str(tmp_path / "run_*")])
    assert [path.name for path in twice] == ["run_9", "run_1", "run_10"], "each once, as the list has them"


def test_a_directory_may_have_a_name_like_a_glob(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lr=[1e-3]")
    assert find_runs([str(run)]) == [run]


def test_no_runs() -> None:
    with pytest.raises(ValueError, match=r"compare.runs is empty.*\[RUN,RUN\]"):
        find_runs([])


def test_a_path_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compare.runs: '.*none' is not a directory"):
        find_runs([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="is not a run, it has none of .hydra/config.yaml.*: set compare.runs"):
        find_runs([str(tmp_path)])
    with pytest.raises(ValueError, match=r"compare.runs: '.*\*' matches 0 paths, but no run"):
        find_runs([str(tmp_path / "*")])
    make_run(tmp_path / "a")
    with pytest.raises(ValueError, match=r"is not a run.*it holds 1 runs, compare.runs='.*/\*' compares them all"):
        find_runs([str(tmp_path)])
    comparison = make_run(tmp_path / "b", task="compare")
    with pytest.raises(ValueError, match="is not a run, it is a comparison"):
        find_runs([str(comparison)])

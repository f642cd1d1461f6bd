"""What people type becomes what Hydra reads: paths with special characters, `~`, a run directory alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.arguments import readable, resumed, understood

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", "epoch=3-step=10.ckpt"),
        ("checkpoint", "modèle.ckpt"),
        ("checkpoint", "runs/a = b/best.ckpt"),
        ("checkpoint", "it's.ckpt"),
        ("checkpoint", "images(1)/model.pth"),
        ("checkpoint", "{half.pth"),
        ("data_dir", "one,two"),
        ("data_dir", "2024"),
        ("data_dir", "007"),
        ("data_dir", "C:\\data"),
        ("data_dir", "a b"),
    ],
)
def test_a_path_arrives_as_it_was_typed(key: str, value: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", overrides=understood([f"{key}={value}"]))[key] == value


@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint=null", "seed=3", "optim.trainable=[mask_decoder.*]", "tune.space={a:{low:1,high:2}}", "name='a=b'", "-m",
        "data.masks='{stem}.png'", "~rounds.6", "checkpoint=${name}.ckpt", "run_dir=experiments/runs/${name}", "optim.x=a,b",
    ],
)  # fmt: skip
def test_what_can_be_read_stays(argument: str) -> None:
    assert readable(argument) == argument


def test_the_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert readable("data.root=~/images") == "data.root=/home/me/images"
    assert readable("run_dir=~/a=b") == "run_dir='/home/me/a=b'"


def test_values_of_a_sweep_are_read_one_by_one() -> None:
    assert readable("checkpoint=a=1.ckpt,b.ckpt", multirun=True) == "checkpoint='a=1.ckpt',b.ckpt"
    assert readable("seed=0,1", multirun=True) == "seed=0,1"
    assert understood(["-m", "data_dir=a,b"]) == ["-m", "data_dir=a,b"]


def test_an_option_that_does_not_exist_is_refused_with_what_to_type() -> None:
    with pytest.raises(ValueError, match=r"--experiment is no option: .* as in \+experiment=stage1"):
        understood(["--experiment=stage1"])
    with pytest.raises(ValueError, match=r"--seed is no option: .* as in seed=VALUE"):
        understood(["--seed", "3"])
    assert understood(["--cfg", "job", "--config-dir", "a=b", "experiment=stage1"])[-2:] == ["a=b", "+experiment=stage1"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    hydra = tmp_path / "a run" / ".hydra"
    hydra.mkdir(parents=True)
    (tmp_path / "there").mkdir()
    (hydra / "config.yaml").write_text("seed: 0\n")
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(["+experiment=finetune", "checkpoint=x.pth", "run_dir='a run'"]))
    started = {"command": "python -m samtrain --config-dir mine +experiment=finetune", "folder": str(tmp_path / "there")}
    (hydra / "environment.json").write_text(json.dumps(started))
    return hydra.parent


def test_a_run_directory_alone_resumes_with_what_is_stored(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_dir.parent)
    found = understood(["run_dir=a run", "loader.num_workers=2"])
    stored = ["--config-dir", "mine", "+experiment=finetune", "checkpoint=x.pth"]
    assert found == [*stored, "loader.num_workers=2", f"run_dir='{run_dir}'"]
    assert Path.cwd() == run_dir.parent / "there", "paths of the run may be relative to where it was started"


@pytest.mark.parametrize("more", [["task=evaluate"], ["+experiment=stage1"], ["--cfg", "job"]])
def test_a_command_with_a_task_stays_as_it_is(run_dir: Path, more: list[str]) -> None:
    given = [f"run_dir={run_dir}", *more]
    before = os.getcwd()
    assert resumed(given) == given and os.getcwd() == before


def test_a_command_that_is_typed_again_is_not_doubled(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra refuses a setting with a plus sign that stands there twice."""
    monkeypatch.chdir(run_dir)
    stored = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    given = [each for each in stored if not each.startswith(("task=", "+experiment=", "run_dir="))]
    (run_dir / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*given, "+trainer.extra.profiler=simple"]))
    again = resumed([*given, "+trainer.extra.profiler=simple", f"run_dir={run_dir}"])
    assert again.count("+trainer.extra.profiler=simple") == 1 and len(again) == len(set(again))


def test_a_stored_command_without_quotes_is_read(run_dir: Path) -> None:
    """Older versions joined the words of a command with spaces."""
    before = os.getcwd()
    (run_dir / ".hydra" / "environment.json").write_text(json.dumps({"command": "samtrain data.root=it's"}))
    assert resumed([f"run_dir={run_dir}"])[-1] == f"run_dir='{run_dir}'" and os.getcwd() == before


def test_a_new_directory_has_nothing_to_resume(tmp_path: Path) -> None:
    assert resumed([f"run_dir={tmp_path}"]) == [f"run_dir={tmp_path}"]

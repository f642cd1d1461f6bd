"""Tests that a checkpoint is measured on the data that the command names, or on those of its run, and never on a default."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from samtrain.run.measured_data import find_run_config, with_measured_data

SYNTHETIC = {"kind": "synthetic", "frame": "resize"}
FOLDER = {"kind": "folder", "root": "images", "frame": "auto"}


def write_run(folder: Path, overrides: list[str], **config: object) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return write_run(tmp_path / "trained", ["data=folder"], task="fit", data=FOLDER, data_dir="elsewhere")


@pytest.mark.parametrize("place", ["checkpoints", "rounds/6/fit/checkpoints"])
def test_the_data_of_the_checkpoints_run_are_measured(
    tmp_path: Path, trained: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = {"checkpoint": str(trained / place / "best.ckpt"), "data": SYNTHETIC, "data_dir": "data/shards", "seed": 3}
    run_dir = write_run(tmp_path / "run", ["task=evaluate", f"checkpoint={config['checkpoint']}", "seed=3"])
    found = with_measured_data(config, run_dir)
    assert found == {**config, "data": FOLDER, "data_dir": "elsewhere"}
    assert "The command names no data, so the test images of the run that made the checkpoint are measured." in caplog.text


@pytest.mark.parametrize("override", ["data=synthetic", "data.seed=4", "+data.splits.test=8", "data@public=folder"])
def test_data_that_the_command_names_stay(tmp_path: Path, trained: Path, override: str) -> None:
    config = {"checkpoint": str(trained / "checkpoints" / "best.ckpt"), "data": SYNTHETIC, "data_dir": "data/shards"}
    named = override.lstrip("+") != "data@public=folder"  # that is the data of a first model
    found = with_measured_data(config, write_run(tmp_path / "run", ["task=evaluate", override]))
    assert found["data"] == (SYNTHETIC if named else FOLDER)


def test_data_of_an_experiment_stay(tmp_path: Path, trained: Path) -> None:
    config = {"checkpoint": str(trained / "checkpoints" / "best.ckpt"), "data": FOLDER | {"root": "others"}, "data_dir": "d"}
    assert with_measured_data(config, write_run(tmp_path / "run", ["+experiment=sa1b", "task=evaluate"])) is config


def test_weights_from_elsewhere_need_data(tmp_path: Path) -> None:
    config = {"checkpoint": str(tmp_path / "sam_vit_b.pth"), "data": SYNTHETIC, "data_dir": "data/shards"}
    assert find_run_config(Path("sam_vit_b.pth")) is None
    with pytest.raises(ValueError, match=r"data is not set, and .*sam_vit_b.pth is not in a run directory .*: set the images"):
        with_measured_data(config, write_run(tmp_path / "run", ["task=evaluate"]))


def test_an_exported_model_has_no_data_of_its_own(tmp_path: Path) -> None:
    """Its run directory is that of the export, with conf/'s default data."""
    exported = write_run(tmp_path / "exported", ["task=export"], task="export", data=SYNTHETIC, data_dir="data/shards")
    config = {"checkpoint": str(exported / "model.pth"), "data": SYNTHETIC, "data_dir": "data/shards"}
    with pytest.raises(ValueError, match="is not in a run directory that says what it was trained on"):
        with_measured_data(config, write_run(tmp_path / "run", ["task=evaluate"]))


def test_a_folder_of_shards_that_the_command_names_is_used(tmp_path: Path, trained: Path) -> None:
    config = {"checkpoint": str(trained / "checkpoints" / "best.ckpt"), "data": SYNTHETIC, "data_dir": "/mnt/shards"}
    found = with_measured_data(config, write_run(tmp_path / "run", ["task=evaluate", "data_dir=/mnt/shards"]))
    assert found["data"] == FOLDER and found["data_dir"] == "/mnt/shards"

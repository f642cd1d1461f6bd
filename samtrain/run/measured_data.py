"""Chooses the images on which a checkpoint is measured: those that the command names, or those of the checkpoint's own run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from samtrain.data.image_set import ImageSet, count_records
from samtrain.run.settings import Config

log = logging.getLogger(__name__)

MAX_LEVELS = 5  # from a checkpoint up to its run directory: RUN/rounds/6/fit/checkpoints/best.ckpt
TRAINING = ("fit", "rounds", "tune")  # tasks that make checkpoints of the images in `data`
NAMING = ("kind", "root", "annotations", "masks", "train", "test")  # settings of `data` that tell one set from another


def with_measured_data(config: Config, run_dir: Path) -> Config:
    """Returns the config with the data on which its checkpoint is to be measured.

    If the command does not name any data, the config has conf/'s default, painted scenes, which say nothing about a model of
    other images. Then the data are those of the run that made the checkpoint. Raises ValueError if the checkpoint is not in a
    run directory.
    """
    overrides = run_dir / ".hydra" / "overrides.yaml"
    if config["checkpoint"] is None or config["data"].get("kind") != "synthetic" or not overrides.is_file():
        return config
    typed = yaml.safe_load(overrides.read_text()) or []
    if _name_data(typed):
        return config
    of_run = find_run_config(Path(config["checkpoint"]))
    if of_run is None:
        raise ValueError(
            f"data is not set, and {config['checkpoint']} is not in a run directory that says what it was trained on: set the "
            "images to measure, for example data=folder data.root=IMAGES"
        )
    log.info("The command names no data, so the test images of the run that made the checkpoint are measured.")
    keeps_dir = any(each.lstrip("+").startswith("data_dir=") for each in typed)
    return {**config, "data": of_run["data"], "data_dir": config["data_dir"] if keeps_dir else of_run["data_dir"]}


def find_run_config(checkpoint: Path) -> Config | None:
    """Returns the config of the run directory that a checkpoint is in and that has trained it, or None."""
    for folder in list(checkpoint.absolute().parents)[:MAX_LEVELS]:
        if (path := folder / ".hydra" / "config.yaml").is_file():
            config = yaml.safe_load(path.read_text())
            return config if config.get("task") in TRAINING else None  # task=export writes models, too
    return None


def log_measured(config: Config, images: ImageSet) -> None:
    """Logs which images are measured: the settings that name them, and how many there are."""
    node: dict[str, Any] = config["data"]
    named = ", ".join(f"data.{key}={node[key]}" for key in NAMING if node.get(key) is not None)
    measured = config["checkpoint"] or "the run"
    log.info("Measuring %s on %d test images of %s.", measured, count_records(images.test), named or node.get("_target_"))


def _name_data(overrides: list[str]) -> bool:
    """Returns whether one of the overrides of a command is about the data."""
    names = [each.lstrip("+~").partition("=")[0] for each in overrides]
    return any(name == "data" or name.startswith("data.") for name in names)

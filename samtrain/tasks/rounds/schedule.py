"""What the config says of rounds, read and refused before any time is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from samtrain.data_engine.ledger import promoted, read_ledger, take_over
from samtrain.modeling.build import load_sam, sam_config
from samtrain.run.build import Config, check_growth, sam_config_of
from samtrain.run.directory import differing, num_ranks

STAGES = ("assisted_manual", "semi_automatic")  # in their order
SEMI_AUTOMATIC = STAGES[1]  # a detector and the model fill in before the annotator looks
# what stage 2 has to share with the run of stage 1 that it goes on with, and what of it may be another
SAME = ("data.", "prompts.", "loader.max_val_masks", "trainer.val_resolution", "engine.promote_metric", "model.image_size")
MAY_DIFFER = ("data.splits.crowded", "data.on_error")


def rounds_of(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """The rounds by their names in the order of these; ValueError for a name or a number that none can have."""
    rounds = config["rounds"]
    if not rounds:
        raise ValueError("rounds is empty: leave at least one round in, with its stage, model, images and steps")
    if wrong := [name for name in rounds if not str(name).isdigit()]:
        raise ValueError(f"rounds.{wrong[0]}: rounds are named by numbers, which give their order")
    for name, each in rounds.items():
        if each.get("stage") not in STAGES:
            raise ValueError(f"rounds.{name}.stage is {each.get('stage')!r}: take one of {', '.join(STAGES)}")
        for key in ("images", "steps", *(["detector_steps"] if each["stage"] == SEMI_AUTOMATIC else [])):
            if not isinstance(each.get(key), int) or each[key] < 1:
                said = each.get(key)
                raise ValueError(f"rounds.{name}.{key} is {said}: take 1 or more, or leave the round out, ~rounds.{name}")
    ordered = sorted(rounds.items(), key=lambda item: int(item[0]))
    stages = [STAGES.index(each["stage"]) for _, each in ordered]
    if stages != sorted(stages):
        raise ValueError(f"rounds: a round of {STAGES[0]} comes after one of {STAGES[1]}: number them in the order of stages")
    return ordered


def with_stage_1(config: Config, run_dir: Path) -> Config:
    """The config of rounds that go on with `stage1_run`: its ledger begins ours, its model is the `checkpoint`.

    Unchanged where that is null. Raises ValueError for a run that cannot be gone on with.
    """
    stages = [each["stage"] for _, each in rounds_of(config)]
    if config["stage1_run"] is None:
        if stages[0] == SEMI_AUTOMATIC:
            raise ValueError(
                "stage1_run is null, and semi-automatic rounds go on with what assisted-manual ones left: set stage1_run to "
                "the run directory of +experiment=stage1, or take +experiment=data_engine for both"
            )
        return config
    if config["checkpoint"] is not None:
        raise ValueError("checkpoint and stage1_run are both set: the model of stage1_run is gone on with, set checkpoint=null")
    earlier = stage_1_of(config)
    ledger = read_ledger(earlier)
    if stages[0] != SEMI_AUTOMATIC or any(line.stage == SEMI_AUTOMATIC for line in ledger):
        raise ValueError(
            f"stage1_run={earlier} goes before semi-automatic rounds and holds none: take +experiment=stage2, and the run of "
            "+experiment=stage1"
        )
    _check_same_images(config, earlier)
    take_over(run_dir, earlier)
    return {**config, "checkpoint": str(earlier / promoted(ledger).model.checkpoint)}


def stage_1_of(config: Config) -> Path:
    """The directory that `stage1_run` names; ValueError where there is none, or its run has not ended."""
    earlier = Path(config["stage1_run"])
    if not earlier.is_dir():
        raise ValueError(f"there is no run directory {earlier} (stage1_run): give the one that +experiment=stage1 wrote")
    if not (earlier / "metrics.json").is_file():
        raise ValueError(f"the run in {earlier} has not ended (stage1_run): run it to its end first, with run_dir={earlier}")
    return earlier


def _check_same_images(config: Config, earlier: Path) -> None:
    """Models are compared on one validation, and what stage 1 has trained on must not be tested on."""
    stored = yaml.safe_load((earlier / ".hydra" / "config.yaml").read_text())
    differences = [
        f"{key}: {there} there, {here} now"
        for key, here, there in differing(config, stored)
        if key.startswith(SAME) and not key.startswith(MAY_DIFFER)
    ]
    if differences:
        raise ValueError(
            f"{earlier} was run on other images or measured otherwise (stage1_run): {'; '.join(differences)}. Give the same "
            "settings, or run stage 1 with these"
        )


def first_round(config: Config) -> int:
    """The number of the first round that is this run's own."""
    return len(read_ledger(Path(config["stage1_run"]))) if config["stage1_run"] else 1


def check_growth_of_rounds(config: Config) -> None:
    """Raises ValueError, before any time is spent, for a round whose model cannot come of one that it may find in use."""
    first = sam_config_of(config)
    if config["checkpoint"] is not None:
        first = load_sam(config["checkpoint"]).config
        if first.image_size != (wanted := config["model"]["image_size"] or first.image_size):
            raise ValueError(
                f"{config['checkpoint']} is a model of {first.image_size} pixels and model.image_size is {wanted}: rounds are "
                f"compared at one size, set model.image_size={first.image_size}"
            )
    in_use = [first]
    for name, each in rounds_of(config):
        child = sam_config(each["model"], image_size=first.image_size)
        for parent in in_use:
            check_growth(config, parent, child, key=f"rounds.{name}.model")
        in_use.append(child)


def check_processes(config: Config) -> None:
    """The rounds are one process, which starts others for its trainings; ValueError where that cannot be."""
    if (ranks := num_ranks()) > 1:
        raise ValueError(
            f"task=rounds was launched {ranks} times side by side: launch it once, it starts its trainings itself; on "
            "several nodes by trainer.launcher, e.g. trainer.launcher=srun"
        )
    nodes, launcher = config["trainer"]["num_nodes"], config["trainer"]["launcher"]
    if nodes > 1 and launcher is None:
        raise ValueError(
            f"trainer.num_nodes is {nodes} and trainer.launcher null: say what starts a training on all nodes, e.g. "
            "trainer.launcher=srun, or set trainer.num_nodes=1"
        )

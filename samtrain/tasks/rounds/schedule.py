"""Reads the rounds of the config, and refuses those that cannot run before any time is spent on them."""

from __future__ import annotations

from pathlib import Path

import yaml

from samtrain.data_engine.ledger import promoted, read_ledger, take_over
from samtrain.data_engine.stages import SEMI_AUTOMATIC, STAGES, RoundConfig, read_round
from samtrain.modeling.build import checkpoint_config, sam_config
from samtrain.plain import differences
from samtrain.run.build import check_growth, sam_config_of
from samtrain.run.directory import num_ranks
from samtrain.run.environment import resume_command
from samtrain.run.settings import Config, ModelConfig, read
from samtrain.training.config import TrainerConfig

# the settings that stage 2 has to share with the run of stage 1 that it continues, and those among them that may differ
SAME = (
    "data.", "annotate.val", "annotate.test", "prompts.", "loader.max_val_masks", "trainer.val_resolution",
    "engine.promote_metric", "model.image_size",
)  # fmt: skip
MAY_DIFFER = ("data.splits.crowded", "data.on_error")


def rounds_of(config: Config) -> list[RoundConfig]:
    """Returns the rounds in the order of their numbers; raises ValueError if the order of their stages is wrong."""
    if not config["rounds"]:
        raise ValueError("rounds is empty: keep at least one round, with its stage, model, images and steps")
    rounds = [read_round(node, f"rounds.{number}") for number, node in config["rounds"].items()]
    rounds.sort(key=lambda each: int(each.number))
    stages = [STAGES.index(each.stage) for each in rounds]
    if stages != sorted(stages):
        raise ValueError(f"rounds: a round of {STAGES[0]} comes after one of {STAGES[1]}: number them in the order of stages")
    return rounds


def with_stage_1(config: Config, run_dir: Path) -> Config:
    """Returns the config of rounds that continue `stage1_run`: its ledger begins ours, and its model is the `checkpoint`.

    The config is unchanged if `stage1_run` is null. Raises ValueError for a run that cannot be continued.
    """
    first = rounds_of(config)[0].stage
    if config["stage1_run"] is None:
        if first == SEMI_AUTOMATIC:
            raise ValueError(
                "stage1_run is null, but semi-automatic rounds continue a run of assisted-manual ones: set stage1_run to the "
                "run directory of +experiment=stage1, or choose +experiment=data_engine for both stages"
            )
        return config
    if config["checkpoint"] is not None:
        raise ValueError("checkpoint and stage1_run are both set, but stage1_run brings its model: set checkpoint=null")
    earlier = stage_1_of(config)
    ledger = read_ledger(earlier)
    if first != SEMI_AUTOMATIC or any(line.stage == SEMI_AUTOMATIC for line in ledger):
        raise ValueError(
            f"stage1_run={earlier} has to be a run without semi-automatic rounds, followed by semi-automatic rounds only: "
            "choose +experiment=stage2, and a run of +experiment=stage1"
        )
    _check_same_images(config, earlier)
    take_over(run_dir, earlier)
    return {**config, "checkpoint": str(earlier / promoted(ledger).model.checkpoint)}


def stage_1_of(config: Config) -> Path:
    """Returns the directory `stage1_run`; raises ValueError if it does not exist or its run has not ended."""
    earlier = Path(config["stage1_run"])
    if not earlier.is_dir():
        raise ValueError(f"there is no run directory {earlier} (stage1_run): give the one that +experiment=stage1 wrote")
    if not (earlier / "metrics.json").is_file():
        raise ValueError(f"the run in {earlier} has not ended (stage1_run): finish it first: {resume_command(earlier)}")
    return earlier


def _check_same_images(config: Config, earlier: Path) -> None:
    """Raises ValueError for other images than in stage 1.

    Models are compared by the same validation, and images that stage 1 has trained on must not be tested on.
    """
    stored = yaml.safe_load((earlier / ".hydra" / "config.yaml").read_text())
    found = [
        f"{key}: {there} there, {here} now"
        for key, here, there in differences(config, stored)
        if key.startswith(SAME) and not key.startswith(MAY_DIFFER)
    ]
    if found:
        raise ValueError(
            f"{earlier} was run on other images or measured otherwise (stage1_run): {'; '.join(found)}. Give the same "
            "settings, or run stage 1 with these"
        )


def first_round(config: Config) -> int:
    """Returns the number of the first round that this run itself runs."""
    return len(read_ledger(Path(config["stage1_run"]))) if config["stage1_run"] else 1


def check_growth_of_rounds(config: Config) -> None:
    """Raises ValueError for a round with a model that cannot grow out of one that may be promoted before it."""
    first = sam_config_of(config)
    if config["checkpoint"] is not None:
        first = checkpoint_config(config["checkpoint"])
        wanted = read(ModelConfig, config, "model").image_size or first.image_size
        if first.image_size != wanted:
            raise ValueError(
                f"{config['checkpoint']} is a model for {first.image_size} pixels, but model.image_size is {wanted}; rounds "
                f"are compared at one size: set model.image_size={first.image_size}"
            )
    candidates = [first]  # every round may leave any of the models before it in use
    for each in rounds_of(config):
        child = sam_config(each.model, image_size=first.image_size, decoder_depth=first.decoder_depth)
        for parent in candidates:
            check_growth(config, parent, child, key=f"rounds.{each.number}.model")
        candidates.append(child)


def check_processes(config: Config) -> None:
    """Raises ValueError unless the rounds run in one process, which starts other processes for its trainings."""
    if (ranks := num_ranks()) > 1:
        raise ValueError(
            f"task=rounds was launched {ranks} times side by side: launch it once, because it starts its trainings itself; for "
            "several nodes set trainer.launcher, such as trainer.launcher=srun"
        )
    trainer = read(TrainerConfig, config, "trainer")
    if trainer.num_nodes > 1 and trainer.launcher is None:
        raise ValueError(
            f"trainer.num_nodes is {trainer.num_nodes}, but trainer.launcher is null: name the command that starts a training "
            "on all nodes, such as trainer.launcher=srun, or set trainer.num_nodes=1"
        )

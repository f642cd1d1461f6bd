"""Nothing in the config is dropped silently: every node refuses a key that it does not know, with the choices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from test_configs import EXPERIMENTS, MISSING, config_of, experiment_of, overrides_of

from samtrain import tasks
from samtrain.run.settings import NODES, check_config, recipe_of
from samtrain.tasks import NODES as TASK_NODES

# nodes where the user or another package chooses the names: sets of shards, keys to search, recipes, rounds, ...
FREE = {
    "clip_training.model", "data.train", "zero_shot.sets", "tune.space", "recipes", "rounds", "scale.rounds",
    "logger.tensorboard",
}  # fmt: skip
EXTRA = {"trainer.extra", "logger.wandb.extra"}  # tested below
NEEDS_OPTUNA = ("tune.sampler", "tune.pruner")  # Optuna's classes


def nodes_of(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every node below."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}"
            yield from nodes_of(value, f"{prefix}{key}.")


def config_with_unknown(config: dict[str, Any], node: str) -> dict[str, Any]:
    """Returns the config with one more key in a node; what is changed is copied."""
    first, _, rest = node.partition(".")
    inner = config.get(first)
    assert isinstance(inner, dict)
    return {**config, first: config_with_unknown(inner, rest) if rest else {**inner, "no_such_key": 1}}


FULL = experiment_of("data_engine", "laptop", "logger=wandb")
OPEN = ("tune.space.", "clip_training.model.")
ALL_NODES = [name for name in nodes_of(FULL) if name not in FREE | EXTRA and not name.startswith(OPEN)]


@pytest.mark.parametrize("name", ALL_NODES)
def test_every_node_refuses_what_it_does_not_know(name: str) -> None:
    if name.startswith(NEEDS_OPTUNA):
        pytest.importorskip("optuna", reason="needs the sweep extra")
    with pytest.raises(ValueError, match=r"no_such_key.*(not a setting|choose from )"):
        check_config(config_with_unknown(FULL, name), TASK_NODES)


@pytest.mark.parametrize("key", FULL["tune"]["space"])
def test_the_values_of_a_searched_key_refuse_what_they_do_not_know(key: str) -> None:
    """The names of these nodes have dots."""
    space = {**FULL["tune"]["space"], key: {**FULL["tune"]["space"][key], "no_such_key": 1}}
    with pytest.raises(ValueError, match=rf"tune.space.{re.escape(key)}.no_such_key is not a setting"):
        check_config({**FULL, "tune": {**FULL["tune"], "space": space}}, TASK_NODES)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_refuses_an_unknown_key_before_it_begins(task: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"trainers is not a setting \(did you mean trainer\?\); the config has task"):
        tasks.run({**config_of(f"task={task}"), "trainers": {}}, tmp_path)
    with pytest.raises(ValueError, match=r"optim.x is not a setting; optim has betas, "):
        tasks.run(config_of(f"task={task}", "+optim.x=1"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["laptop", "single_gpu", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_accepted(experiment: str, scale: str) -> None:
    check_config(experiment_of(experiment, scale), TASK_NODES)


@pytest.mark.parametrize("override", overrides_of("data", "prompts", "loss", "logger", "annotator", "generator", "tune"))
def test_every_option_is_accepted(override: str) -> None:
    check_config(config_of(override, *MISSING.get(override, [])), TASK_NODES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.profiler=simple", r"trainer.profiler is .*set \+trainer.extra.profiler=.*; trainer has .*max_steps"),
        ("+trainer.extra.max_epochs=3", r"trainer.extra.max_epochs is set by samtrain itself: set trainer.max_steps"),
        ("+trainer.extra.profilr=simple", r"trainer.extra.profilr is no argument of Lightning's Trainer: .*profiler"),
        ("+callbacks.panel=3", r"callbacks.panel is not a setting \(did you mean panels\?\); callbacks has monitor"),
        ("+loader.workers=3", r"loader.workers is not a setting.*; loader has batch_size"),
        ("+model.depth=3", r"model.depth is not a setting.*; model has name"),
        ("trainer.strategy=fsdp1", r"trainer.strategy is 'fsdp1': give one of auto, ddp, fsdp"),
        ("trainer.precision=bf17", r"trainer.precision is 'bf17': give one of 32-true"),
        ("scale.precision=bf17", r"trainer.precision is 'bf17'"),
        ("trainer.devices=auto", r"trainer.devices is 'auto': give a number of devices"),
        ("trainer.max_steps=0", r"trainer.max_steps is 0: give 1 or more"),
        ("loader.batch_size=many", r"loader.batch_size is 'many': give a whole number"),
        ("loader.flip_probability=2", r"loader.flip_probability is 2: give a number from 0 to 1"),
        ("callbacks.checkpoint_every_steps=0", r"callbacks.checkpoint_every_steps is 0: give 1 or more"),
        ("optim.schedule=linear", r"optim.schedule is 'linear': give one of step, cosine, constant"),
        ("prompts._target_=samtrain.prompts.NoSuch", r"prompts._target_ is .*cannot be imported"),
        ("+loss.gamma=2", r"loss.gamma is not a setting of samtrain.losses.SamLoss; loss has focal_weight"),
        ("+annotator.brush.color=red", r"annotator.brush.color is not a setting of .*Brush; annotator.brush has "),
        ("+scale.batch=3", r"scale.batch is not a setting \(did you mean batch_size\?\)"),
        ("+scale.pretrain.lr=3", r"scale.pretrain.lr is not a setting.*; scale.pretrain has model"),
        ("callbacks.monitor=val/iou", r"callbacks.monitor is 'val/iou', which validation does not measure: .*val/miou_1, "),
        ("engine.promote_metric=miou_1", r"engine.promote_metric is 'miou_1', which validation does not measure"),
        ("predict.points=[100,100]", r"predict.points is \[100, 100\]: give a list of points, each \[x, y, 1\] on"),
        ("predict.points=[[1,2,true]]", r"predict.points is .*: give a list of points"),
        ("predict.box=[9,9,1,1]", r"predict.box is \[9, 9, 1, 1\]: give the left upper corner first"),
        ("recipes.vit_tiny.max_steps=0", r"recipes.<model>.max_steps is 0: give 1 or more"),
        ("recipes.vit_tiny.images_per_step=0", r"recipes.<model>.images_per_step is 0: give 1 or more"),
        ("detector.val_every_steps=0", r"detector.val_every_steps is 0: give a number above 0"),
        ("loader.val_batch_size=0", r"loader.val_batch_size is 0: give 1 or more"),
        ("model.image_size=0", r"model.image_size is 0: give 1 or more"),
        ("seed=-1", r"seed is -1: give 0 or more"),
        ("size_limits=[9,1]", r"size_limits is \[9, 1\]: give two ascending areas"),
        ("+recipes.vit_tiny.lr=1", r"recipes.vit_tiny.lr is not a setting"),
    ],
)
def test_errors_name_the_key_and_the_choices(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(config_of(override), TASK_NODES)


def test_a_model_without_a_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_x.*has no recipe: choose one of vit_tiny, .*\+recipe@recipes.vit_x=vit_b"):
        recipe_of(config_of(), "vit_x")


def test_every_node_of_the_config_has_one_reader() -> None:
    assert not set(NODES) & set(TASK_NODES)


def test_a_forgotten_checkpoint_is_refused_before_anything_is_prepared() -> None:
    """A decoder would be trained on an encoder that nobody has trained."""
    with pytest.raises(ValueError, match=r"optim.trainable is .*mask_decoder.* and checkpoint is null.*set checkpoint=FILE"):
        tasks.check(config_of("+experiment=finetune", "model.name=vit_tiny"))
    with pytest.raises(ValueError, match="there is no file nowhere.pth .checkpoint."):
        tasks.check(config_of("+experiment=pretrain", "checkpoint=nowhere.pth"))
    tasks.check(config_of("+experiment=pretrain"))

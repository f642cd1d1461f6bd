"""The settings of a run: each node of the config has a reader, and what no reader knows is refused before any work begins.

To give a node a dataclass (or a new node):
  1. write a frozen, keyword-only dataclass that checks its ranges in `__post_init__`, in the room that uses it;
  2. name it in NODES below; one that lives in `tasks/` goes into `samtrain.tasks.NODES` as "module:Class" instead;
  3. read it with `read(Kind, config, "node")` in `run/` or `tasks/`, and pass the dataclass down.
A node with a `_target_` is read by `target`, and made by `samtrain.run.targets.build`. tests/run/test_settings.py adds an
unknown key to every node and expects an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from samtrain.data.channels import check_channels
from samtrain.data.opening import MAX_PIXELS
from samtrain.data_engine.prefill import PrefillConfig
from samtrain.data_engine.stages import EngineConfig, read_round
from samtrain.detector import DetectorRecipe
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.modeling.timm_encoder import is_timm
from samtrain.plain import from_plain, suggestion
from samtrain.run.image_sets import data_config
from samtrain.run.targets import check_target
from samtrain.text.config import TextConfig
from samtrain.training.clip_training import ClipRecipe
from samtrain.training.config import CallbacksConfig, LoaderConfig, TrainerConfig, is_trainer_argument
from samtrain.training.lit_sam import METRICS
from samtrain.training.lit_text import TEXT_METRICS
from samtrain.training.loggers import LoggerConfig
from samtrain.training.optim import OptimConfig, Recipe
from samtrain.training.plan import PlanConfig
from samtrain.tuning.config import TuneConfig
from samtrain.tuning.space import check_values

T = TypeVar("T")
Config = dict[str, Any]
Reader = Callable[[Any, str], Any]  # takes a node and its dotted name, raises ValueError that names a wrong key


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings at the top of the config, outside all nodes."""

    task: str
    name: str
    seed: int
    run_dir: str
    data_dir: str
    max_image_pixels: int = MAX_PIXELS  # a run that was stored before this key existed has the default
    image_channels: tuple[int, ...] | None = None
    size_limits: tuple[float, float]
    stage1_run: str | None
    checkpoint: str | None
    clip: str | None = None  # a run that was stored before this key existed has none

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: give 0 or more")
        if self.max_image_pixels < 1:
            raise ValueError(f"max_image_pixels is {self.max_image_pixels}: give 1 or more")
        if self.image_channels is not None:
            check_channels(self.image_channels)
        if not 0 < self.size_limits[0] < self.size_limits[1]:
            raise ValueError(f"size_limits is {list(self.size_limits)}: give two ascending areas in pixels: [500, 1000]")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model` node: a size by name, and what is changed of it; None leaves it to the checkpoint or the size."""

    name: str | None = None
    image_size: int | None = None
    decoder_depth: int | None = None
    mae: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "decoder_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} is {value}: give 1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """The `evaluator` node: how `test/*` are measured, and on which `general` shards a fine-tuned model is, too."""

    num_points: int = 5
    max_masks: int | None = None
    general: str | list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("num_points", "max_masks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluator.{name} is {value}: give 1 or more")


def read(kind: type[T], config: Config, name: str) -> T:
    """Returns a node of the config as its dataclass."""
    return from_plain(kind, config[name], name)


def recipe_of(config: Config, model: str) -> Recipe:
    """Returns what a model size trains with; raises ValueError for a size without a recipe."""
    recipes = config["recipes"]
    if is_timm(model) and model not in recipes:
        return from_plain(Recipe, recipes["timm"], "recipes.timm")
    if model not in recipes:
        raise ValueError(
            f"{model!r} has no recipe: choose one of {', '.join(recipes)} (model.name), or let it train as one of these does "
            f"with +recipe@recipes.{model}=vit_b"
        )
    return from_plain(Recipe, recipes[model], f"recipes.{model}")


def check_config(config: Config, task_nodes: Mapping[str, str]) -> None:
    """Raises ValueError for the first key that no part of samtrain knows, and for values out of range.

    task_nodes: {node: "module:Class"} for the nodes that belong to one task
    """
    readers = NODES | {name: _lazy(place) for name, place in task_nodes.items()}
    top = [field.name for field in fields(RunConfig)]
    for name in config:
        if name not in readers and name not in top:
            known = [*top, *readers]
            raise ValueError(f"{name} is not a setting{suggestion(name, known)}; the config has {', '.join(known)}")
    from_plain(RunConfig, {name: config[name] for name in top if name in config}, "")
    for name, reader in readers.items():
        if name in config:
            reader(config[name], name)


def plain(kind: type[Any]) -> Reader:
    """Returns the reader of a node that is a dataclass."""
    return partial(from_plain, kind)


def target(*supplied: str) -> Reader:
    """Returns the reader of a node with a `_target_`; `supplied` are arguments that samtrain adds when it makes the object."""
    return partial(check_target, supplied=supplied)


def each(reader: Reader) -> Reader:
    """Returns the reader of a node whose keys are chosen by the user and whose values are all read alike."""

    def read_each(node: Any, name: str) -> None:
        for key, value in (node or {}).items():
            reader(value, f"{name}.{key}")

    return read_each


def keys(*known: str, **inner: Reader) -> Reader:
    """Returns a reader that checks only the names of keys, for nodes without a dataclass; `inner` reads the nodes inside."""
    names = [*known, *inner]

    def check(node: Any, name: str) -> None:
        for key, value in (node or {}).items():
            if key not in names:
                raise ValueError(f"{name}.{key} is not a setting{suggestion(str(key), names)}; {name} has {', '.join(names)}")
            if key in inner:
                inner[key](value, f"{name}.{key}")

    return check


def _lazy(place: str) -> Reader:
    """Returns the reader of "module:Class", which is imported when it is needed."""
    module, _, kind = place.partition(":")
    return lambda node, name: from_plain(getattr(import_module(module), kind), node, name)


def _read_trainer(node: Any, name: str) -> TrainerConfig:
    """Reads the `trainer` node; an argument of Lightning's that stands beside ours is told its place."""
    if isinstance(node, dict):
        ours = {field.name for field in fields(TrainerConfig)}
        for key in node:
            if key not in ours and is_trainer_argument(key):
                raise ValueError(
                    f"{name}.{key} is not a setting of samtrain, but an argument of Lightning's Trainer: set "
                    f"+trainer.extra.{key}=...; {name} has {', '.join(sorted(ours))}"
                )
    return from_plain(TrainerConfig, node, name)


def _read_callbacks(node: Any, name: str) -> CallbacksConfig:
    """Reads the `callbacks` node; a metric that validation does not measure is refused, unless a user's callback may."""
    settings = from_plain(CallbacksConfig, node, name)
    if not settings.extra:
        _check_metric(f"{name}.monitor", settings.monitor, TEXT_METRICS)
    return settings


def _read_engine(node: Any, name: str) -> EngineConfig:
    settings = from_plain(EngineConfig, node, name)
    _check_metric(f"{name}.promote_metric", settings.promote_metric, METRICS)
    return settings


def _read_tune(node: Any, name: str) -> TuneConfig:
    """Reads the `tune` node; its sampler and pruner are checked where Optuna, an optional package, is installed."""
    settings = from_plain(TuneConfig, node, name)
    for key, values in settings.space.items():
        check_values(f"{name}.space.{key}", values)
    if find_spec("optuna") is not None:
        check_target(settings.sampler, f"{name}.sampler")
        if settings.pruner is not None:
            check_target(settings.pruner, f"{name}.pruner")
    return settings


def _check_metric(key: str, metric: str, known: tuple[str, ...]) -> None:
    if metric not in known:
        raise ValueError(f"{key} is {metric!r}, which validation does not measure: choose one of {', '.join(known)}")


_TRAINING = keys("model", "steps", "learning_rate_factor")
_SYNTHETIC = keys("size", "public", "pool", "val", "test", "crowded")
_ROUND = ("model", "images", "steps", "learning_rate_factor", "detector_steps")

NODES: dict[str, Reader] = {
    "model": plain(ModelConfig),
    "optim": plain(OptimConfig),
    "recipes": each(plain(Recipe)),
    "loader": plain(LoaderConfig),
    "trainer": _read_trainer,
    "callbacks": _read_callbacks,
    "logger": plain(LoggerConfig),
    "evaluator": plain(EvaluatorConfig),
    "detector": plain(DetectorRecipe),
    "clip_training": plain(ClipRecipe),
    "text": plain(TextConfig),
    "plan": plain(PlanConfig),
    "prompts": target(),
    "loss": target(),
    "annotator": target(),
    "prefill": plain(PrefillConfig),
    "data": data_config,
    "public": data_config,
    "engine": _read_engine,
    "rounds": each(read_round),
    "zero_shot": plain(ZeroShotConfig),
    "tune": _read_tune,
    "generator": target(),
    # defaults that the nodes above refer to; a setting is given to its node, and to `scale` only for all nodes at once
    "scale": keys(
        "image_size", "mae", "batch_size", "images_per_step", "max_masks", "precision", "activation_checkpointing", "devices",
        "num_nodes", "num_workers", "cache_images", "num_points", "num_mask_only", "loss_resolution", "supervise_all_iou",
        "schedule", "val_every_steps", "val_batch_size", "checkpoint_every_steps", "log_every_steps", "max_val_masks",
        "large_scale_jitter", "flip_probability", "size_limits", "max_clicks", "probe_images", "probe_images_stage_2",
        **dict.fromkeys(("pretrain", "sa1b", "generator_model"), _TRAINING),
        text=keys(
            "model", "steps", "learning_rate_factor", "batch_size", "images_per_step", "large_scale_jitter", "min_mask_area",
            "num_points", "num_mask_only", "text_probability", "click_and_text_probability", "trainable",
        ),
        finetune=keys("steps", "learning_rate_factor", "val_every_steps"),
        overfit=keys("model", "steps", "learning_rate_factor", "num_points", "flip_probability"),
        rounds=each(keys(*_ROUND)),
        prefill=keys("box_score_thresh", "pred_iou_thresh", "stability_score_thresh"),
        synthetic=_SYNTHETIC,
        detector=keys("name", "image_size", "batch_size", "steps", "learning_rate", "warmup_steps", "val_every_steps"),
    ),
}  # fmt: skip

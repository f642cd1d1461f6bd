"""The verbs of `python -m samtrain task=...`: modules with a `run` that takes the plain config and a run directory."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

# a task is imported only when it runs, because it brings torch and Lightning
TASKS = {
    "fit": "Train one model",
    "rounds": "Run the data engine: annotate, retrain, measure and promote",
    "detector": "Train and measure the detector of the semi-automatic stage",
    "clip": "Train a small CLIP on the captions of the synthetic scenes",
    "prepare": "Turn images with masks into shards",
    "plan": "Estimate the GPU memory and the hours that a training needs",
    "preview": "Draw a contact sheet of images, masks and simulated prompts",
    "evaluate": "Measure a checkpoint on the test images",
    "tune": "Search for better settings of a training experiment with Optuna",
    "zero_shot": "Run a zero-shot experiment of the paper on any datasets",
    "predict": "Predict masks for clicks on one image",
    "embed": "Encode images ahead of time, so that clicks on them need no wait",
    "annotate": "Annotate images in the browser with the help of any SAM",
    "generate": "Make masks of everything in a folder of images, as SA-1B's tars",
    "validate_dataset": "Check that shards or a folder are valid SA-1B (if not, exit 1)",
    "audit": "Measure automatic masks against corrected ones",
    "compare": "Put several runs side by side on one page",
    "dashboard": "Write the W&B dashboard of these runs and save it on the server",
    "export": "Write a checkpoint for other programs, and check it in them",
}


# nodes of the config that belong to one task, and the dataclass that checks each: "module:Class" (see samtrain.run.settings)
NODES = {
    "generate": "samtrain.data_engine.automatic.config:GenerateConfig",
    "annotate": "samtrain.annotator.config:AnnotateConfig",
    "audit": "samtrain.data_engine.automatic.config:AuditConfig",
    "preview": "samtrain.tasks.preview:PreviewConfig",
    "predict": "samtrain.tasks.predict:PredictConfig",
    "embed": "samtrain.tasks.embed:EmbedConfig",
    "validate": "samtrain.tasks.validate_dataset:ValidateConfig",
    "compare": "samtrain.tasks.compare:CompareConfig",
    "dashboard": "samtrain.tasks.dashboard:DashboardConfig",
    "export": "samtrain.export.config:ExportConfig",
}


def resolve(config: DictConfig) -> dict[str, Any]:
    """Returns the config as plain dicts, lists and numbers; nothing below this function knows OmegaConf.

    `~` at the begin of a text is expanded, because paths are often written so.
    Raises MissingMandatoryValue if a setting is still `???`.
    """
    from omegaconf import OmegaConf

    register_resolvers()
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): expanded(value) for key, value in values.items()}


def register_resolvers() -> None:
    """Makes the functions that conf/ refers to known to OmegaConf: `${by_checkpoint:key}`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("by_checkpoint", _by_checkpoint, replace=True)


def _by_checkpoint(key: str, *, _root_: DictConfig) -> Any:
    """Returns the value of `${by_checkpoint:key}` in conf/."""
    from samtrain.__main__ import conf_dir
    from samtrain.run.by_checkpoint import value_by_checkpoint

    checkpoint = _root_.checkpoint if "checkpoint" in _root_ else None
    return value_by_checkpoint(
        key,
        checkpoint=expanded(checkpoint),
        scale=_root_.scale,
        scales=conf_dir() / "scale",
        accelerator=_root_.trainer.accelerator,
    )


def run(config: dict[str, Any], run_dir: Path) -> dict[str, float | None] | None:
    """Runs the task of the config in `run_dir` and returns its metrics, or None if it has none."""
    from samtrain.data.channels import choose_channels
    from samtrain.data.opening import MAX_PIXELS, limit_pixels

    check(config)
    limit_pixels(config.get("max_image_pixels", MAX_PIXELS))
    choose_channels(config.get("image_channels"))
    module = import_module(f"samtrain.tasks.{config['task']}")
    if hasattr(module, "__path__"):  # a verb of several files is a folder
        module = import_module(f"{module.__name__}.task")
    return module.run(config, run_dir)


def check(config: dict[str, Any]) -> None:
    """Raises ValueError for settings that are unknown or out of range, before a run directory or anything else is made."""
    from samtrain.run.settings import check_config

    check_task(config["task"])
    check_config(config, NODES)
    _check_checkpoint(config)
    if config["stage1_run"] is not None and config["task"] not in ("rounds", "detector"):
        raise ValueError(
            f"stage1_run is set, but only task=rounds and task=detector use it, and the task is {config['task']}: "
            "set stage1_run=null"
        )


def _check_checkpoint(config: dict[str, Any]) -> None:
    """Raises ValueError for a checkpoint that does not exist or was forgotten, before images are prepared for it."""
    checkpoint = config["checkpoint"]
    if checkpoint is not None and not Path(checkpoint).exists():
        raise ValueError(f"there is no file {checkpoint} (checkpoint): set the path of a .pth, .ckpt or .safetensors file")
    trainable = config["optim"]["trainable"]
    if config["task"] == "fit" and trainable is not None and checkpoint is None and not config["model"]["mae"]:
        raise ValueError(
            f"optim.trainable is {trainable} and checkpoint is null, so the rest of the model would keep random weights: set "
            "checkpoint=FILE to fine-tune it, or optim.trainable=null to train all of a new model"
        )


def expanded(value: Any) -> Any:
    """Returns a setting with `~` at the begin of its texts replaced by the home directory; lists and dicts along."""
    if isinstance(value, dict):
        return {key: expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [expanded(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and (value == "~" or value.startswith("~/")) else value


def check_task(task: str) -> None:
    """Raises ValueError with the list of tasks if there is none with this name."""
    if task not in TASKS:
        known = "\n".join(f"  {name:16} {line}" for name, line in TASKS.items())
        raise ValueError(
            f"task is {task!r}, which does not exist. Set task= to one of\n{known}\n"
            "or choose an experiment with +experiment=..."
        )

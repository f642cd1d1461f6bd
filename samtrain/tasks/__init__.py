"""The verbs of `python -m samtrain task=...`: modules whose `run` takes the plain config and a run directory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

# importing a task brings torch and Lightning, so only the one that is asked for is
TASKS = {
    "fit": "train one model",
    "rounds": "the data engine: annotate, retrain, measure, promote, again and again",
    "detector": "train and measure the object detector of the semi-automatic stage",
    "prepare": "make shards of images with masks",
    "plan": "what fits into a GPU's memory, and how many hours a training takes",
    "preview": "a contact sheet of images, masks and simulated prompts",
    "evaluate": "the test metrics of a checkpoint",
    "tune": "a sweep over settings by Optuna, of an experiment that trains",
    "zero_shot": "the paper's zero-shot experiments, on any number of sets",
    "predict": "masks for clicks on one image",
    "embed": "encode images beforehand, for clicks that do not wait",
    "generate": "masks of everything in a folder of images, written as SA-1B's tars",
    "validate_dataset": "whether shards or a folder are sound SA-1B; exit status 1 where they are not",
    "audit": "how good automatic masks are, beside corrected ones",
    "compare": "several runs side by side on one page",
    "dashboard": "the W&B dashboard of these runs, as a file and on the server",
    "export": "write a checkpoint in the official layout, or as safetensors",
}


def resolve(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and numbers, nothing missing; nothing below this line knows OmegaConf."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run(config: dict[str, Any], run_dir: Path) -> dict[str, float | None] | None:
    """Do `config["task"]` in `run_dir` and return its numbers, where it has some."""
    check_task(config["task"])
    if config["stage1_run"] is not None and config["task"] not in ("rounds", "detector"):
        raise ValueError(f"stage1_run is for task=rounds and task=detector, task is {config['task']}: set stage1_run=null")
    module = import_module(f"samtrain.tasks.{config['task']}")
    if hasattr(module, "__path__"):  # a verb of several files is a folder
        module = import_module(f"{module.__name__}.task")
    return module.run(config, run_dir)


def check_task(task: str) -> None:
    """Raises ValueError that lists the tasks if there is none of that name."""
    if task not in TASKS:
        known = "\n".join(f"  {name:16} {line}" for name, line in TASKS.items())
        raise ValueError(f"task is {task!r}, which is none of\n{known}\nset task=... or an experiment, +experiment=...")

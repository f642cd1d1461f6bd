"""Chooses settings of a training by the size of the checkpoint that it starts from.

The laptop's settings (two interactions, the IoU of all masks, mirrored images) teach a small model in minutes. A model of the
paper was made for nine clicks, and they would spoil it without a word: it goes on with the paper's settings at any scale.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from samtrain.modeling.build import checkpoint_config
from samtrain.modeling.sam import PAPER_MODELS, SamConfig

log = logging.getLogger(__name__)

PAPER_SIDE = 512  # pixels; our small models see 96 to 256, the paper's 1024
CHOSEN = {  # what follows the checkpoint: the key of the scale, and the setting
    "num_points": "prompts.num_points",
    "num_mask_only": "prompts.num_mask_only",
    "loss_resolution": "loss.resolution",
    "supervise_all_iou": "loss.supervise_all_iou",
    "flip_probability": "loader.flip_probability",
    "schedule": "optim.schedule",
    "precision": "trainer.precision",
}


def is_paper_size(config: SamConfig) -> bool:
    """Returns whether a model is one of the paper's, or sees images about as large as they do."""
    return config.model in PAPER_MODELS or config.image_size >= PAPER_SIDE


def value_by_checkpoint(
    key: str, *, checkpoint: str | None, scale: Mapping[str, Any], scales: Path, accelerator: str = "auto"
) -> Any:
    """Returns a number of the chosen scale, or that of scale=single_gpu for a checkpoint of the paper's size.

    A scale for models of the paper's size keeps its own numbers. Without a readable checkpoint the chosen scale counts, and
    whoever loads the checkpoint says what is wrong with it.

    key:         a key of `CHOSEN`
    scales:      the folder of the scales' YAML files
    accelerator: `trainer.accelerator`
    """
    config = _config_of(checkpoint)
    if scale["image_size"] >= PAPER_SIDE or config is None or not is_paper_size(config):
        return scale[key]
    if key == "precision" and (accelerator == "cpu" or not torch.cuda.is_available()):
        return scale[key]  # a CPU gains nothing by bfloat16
    return _single_gpu(scales)[key]


def say_what_follows(config: Mapping[str, Any], model: SamConfig) -> None:
    """Logs the settings that follow the checkpoint, and warns if a model of the paper trains with a laptop's."""
    values = {setting: _at(config, setting) for setting in CHOSEN.values()}
    listed = ", ".join(f"{setting}={value}" for setting, value in values.items())
    kind = "one of the paper's size" if is_paper_size(model) else "a small one"
    log.info("The checkpoint is a %s of %d pixels, %s: it trains with %s.", model.model, model.image_size, kind, listed)
    points = values["prompts.num_points"]
    if is_paper_size(model) and isinstance(points, int) and points < 8:
        log.warning(
            "A model of the paper's size was made for 9 clicks, and with prompts.num_points=%d it forgets how to use more than "
            "%d: use +experiment=finetune, which takes the paper's settings, or set prompts.num_points=8 and "
            "prompts.num_mask_only=2.",
            points,
            points + 1,
        )


def _config_of(checkpoint: str | None) -> SamConfig | None:
    """Returns the sizes of a checkpoint, or None if there is none that can be read."""
    try:
        return None if checkpoint is None else checkpoint_config(checkpoint)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def _single_gpu(scales: Path) -> dict[str, Any]:
    return yaml.safe_load((scales / "single_gpu.yaml").read_text(encoding="utf-8"))


def _at(config: Mapping[str, Any], setting: str) -> Any:
    """Returns the value of a dotted key, or None if the node has no such key (a class of the user's own)."""
    node, _, key = setting.partition(".")
    return config[node].get(key)

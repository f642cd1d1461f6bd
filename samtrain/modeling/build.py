"""From a name or a file to a model."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtrain.modeling.checkpoints import Weights, read_weights
from samtrain.modeling.sam import SAM_CONFIGS, Sam, SamConfig
from samtrain.modeling.timm_encoder import is_timm, timm_sizes
from samtrain.modeling.weights import StateDict, config_differences, infer_config, resize_positions


def build_sam(
    model: str, *, checkpoint: str | Path | None = None, image_size: int | None = None, **overrides: Any
) -> Sam:
    """A SAM by name, in evaluation mode: from a checkpoint, or with random weights.

    `model` is one of SAM_CONFIGS; `image_size` defaults to the model's own (1024 for vit_b, vit_l and vit_h), positions
    of a checkpoint of another size are resized; `overrides` are other fields of SamConfig. Raises ValueError for an
    unknown model or field, and for a checkpoint that is not exactly this model.
    """
    config = sam_config(model, image_size=image_size, **overrides)
    if checkpoint is None:
        return Sam(config).eval()
    weights = read_weights(checkpoint)
    found = _config_of(weights, config)
    if differences := config_differences(found, config):
        raise ValueError(
            f"{weights.path} is a checkpoint of {_describe(found)}, asked for was {_describe(config)}: it has "
            f"{', '.join(differences)}. Set the model to fit the file, or give another checkpoint; load_sam takes the "
            "model from the file"
        )
    return _fill(config, weights)


def load_sam(path: str | Path, *, image_size: int | None = None) -> Sam:
    """The SAM that a file holds, in evaluation mode; its sizes come from the file's config, or from its shapes.

    `image_size` defaults to the file's own; for another one positions are resized. Raises ValueError for a file that is
    no SAM.
    """
    weights = read_weights(path)
    config = _config_of(weights)
    return _fill(replace(config, image_size=image_size or config.image_size), weights)


def sam_config(model: str, *, image_size: int | None = None, **overrides: Any) -> SamConfig:
    """The sizes of a named model with some of them set anew; ValueError names what is unknown and what there is."""
    if model not in SAM_CONFIGS and not is_timm(model):
        raise ValueError(f"unknown model {model!r}: take one of {', '.join(sorted(SAM_CONFIGS))} (model), or timm/NAME")
    known = [field.name for field in fields(SamConfig) if field.name != "model"]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"unknown model settings {', '.join(unknown)}: there are {', '.join(known)} (model.*)")
    config = SamConfig(model=model, **timm_sizes(model)) if is_timm(model) else SAM_CONFIGS[model]
    return replace(config, image_size=image_size or config.image_size, **overrides)


def _config_of(weights: Weights, asked: SamConfig | None = None) -> SamConfig:
    if weights.config is not None:
        return weights.config
    try:
        return infer_config(weights.state_dict, asked)
    except ValueError as error:
        raise ValueError(f"{weights.path} (checkpoint): {error}") from error


def _describe(config: SamConfig) -> str:
    return f"{config.model} ({config.encoder_depth} blocks of width {config.encoder_dim}, patch {config.patch_size})"


def _fill(config: SamConfig, weights: Weights) -> Sam:
    """A model that takes the file's tensors as its own: no random numbers are drawn, no second copy is held."""
    with torch.device("meta"):
        sam = Sam(config)
    sam.register_constants()
    state = resize_positions({key: _aligned(value.float()) for key, value in weights.state_dict.items()}, config)
    check_state_dict(sam, state, str(weights.path))
    sam.load_state_dict(state, assign=True)
    return sam.eval()


def _aligned(weight: Tensor) -> Tensor:
    """Returns the tensor, copied if its memory does not begin at a multiple of 16 bytes.

    The tensors of a safetensors file stay where the file has them, often at an odd multiple of 8 bytes. There MKL multiplies a
    matrix with a single vector in another order of sums, so the same weights would give other last bits than from a `.pth`.
    """
    return weight.clone() if weight.data_ptr() % 16 else weight


def check_state_dict(module: torch.nn.Module, state: StateDict, source: str) -> None:
    """Raises ValueError that names the missing and the unexpected keys, and the tensors of another shape."""
    wanted = module.state_dict()
    problems = {
        "missing": sorted(set(wanted) - set(state)),
        "unexpected": sorted(set(state) - set(wanted)),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in sorted(set(wanted) & set(state))
            if state[key].shape != wanted[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model (checkpoint): {found}")


def _listed(keys: list[str], limit: int = 20) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")

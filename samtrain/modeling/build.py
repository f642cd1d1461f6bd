"""Builds a model from its name or loads it from a file."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtrain.modeling.checkpoints import Weights, read_weights
from samtrain.modeling.foreign_files import file_of_folder
from samtrain.modeling.relatives import relative
from samtrain.modeling.sam import INPUT_FIELDS, MOBILE_SAM, SAM_CONFIGS, Sam, SamConfig
from samtrain.modeling.timm_encoder import is_timm, timm_sizes
from samtrain.modeling.weights import StateDict, config_differences, infer_config, resize_positions

log = logging.getLogger(__name__)


def build_sam(
    model: str, *, checkpoint: str | Path | None = None, image_size: int | None = None, **overrides: Any
) -> Sam:
    """Builds a SAM by name, with the weights of a checkpoint or with random ones.

    Args:
        model: a name from `SAM_CONFIGS`: "vit_b", "vit_l", "vit_h" (paper, section 3), or our own "vit_tiny" and "vit_small".
        checkpoint: a file that `load_sam` reads; None initialises the weights at random.
        image_size: side of the network input in pixels. None takes the model's own, 1024 for the paper's models. The positions
            of a checkpoint of another size are resized.
        **overrides: other fields of `SamConfig`, for example `decoder_depth=3`.

    Returns:
        The model on the CPU, in evaluation mode, in float32.

    Raises:
        ValueError: for an unknown model or field, for sizes that do not fit together, for a file that cannot be read, and for a
            checkpoint of another model.
    """
    config = sam_config(model, image_size=image_size, **overrides)
    if checkpoint is None:
        return Sam(config).eval()
    weights = read_weights(checkpoint)
    found = _config_of(weights, config)
    if differences := config_differences(found, config):
        raise ValueError(
            f"{weights.path} is a checkpoint of {_describe(found)}, but the model is {_describe(config)}: the checkpoint has "
            f"{', '.join(differences)}. Set the model that fits the file, or another checkpoint. load_sam takes the "
            "model from the file"
        )
    # how images are shown, and whether texts prompt, is not asked for by the model's name, so it is the file's
    shown = {name: getattr(found, name) for name in (*INPUT_FIELDS, "text_dim") if name not in overrides}
    return _fill(replace(config, **shown), weights)


def load_sam(path: str | Path, *, image_size: int | None = None) -> Sam:
    """Loads the SAM that a file holds; no model name is needed.

    The sizes come from the config in the file, or from the shapes of its tensors. The config also says how images must be
    shown to the model (`sam.config.frame`), which `SamPredictor` and the generator follow; a file without one is shown images
    as in the paper, resized. No code in the file is ever executed.

    Args:
        path: Meta's `.pth`, a Lightning `.ckpt` of ours, `.safetensors` under our or Meta's names, or a folder of transformers'
            SamModel.
        image_size: side of the network input in pixels; None takes the file's own. For another size positions are resized.

    Returns:
        The model on the CPU, in evaluation mode, in float32.

    Raises:
        ValueError: for a file that is missing, cut short, would execute code, or does not hold a SAM.
    """
    weights = read_weights(path)
    config = _config_of(weights)
    return _fill(replace(config, image_size=config.image_size if image_size is None else image_size), weights)


def checkpoint_config(path: str | Path) -> SamConfig:
    """Returns the sizes of the SAM that a file holds, without building it; raises ValueError as `load_sam` does."""
    file = file_of_folder(Path(path))
    status = file.stat() if file.is_file() else None
    return _checkpoint_config(str(path), status and (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)  # several parts of a run ask for them, and a ViT-H's file takes seconds to read
def _checkpoint_config(path: str, _stamp: tuple[int, int] | None) -> SamConfig:
    return _config_of(read_weights(path))


def sam_config(model: str, *, image_size: int | None = None, **overrides: Any) -> SamConfig:
    """Returns the sizes of a named model, some of them overridden; raises ValueError for an unknown model or field."""
    if model not in (*SAM_CONFIGS, MOBILE_SAM.model) and not is_timm(model):
        raise ValueError(f"{model!r} is not a model (model.name): choose from {', '.join(sorted(SAM_CONFIGS))}, or timm/NAME")
    known = [field.name for field in fields(SamConfig) if field.name != "model"]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"a model has no settings named {', '.join(unknown)}: choose from {', '.join(known)}")
    known_sizes = SAM_CONFIGS | {MOBILE_SAM.model: MOBILE_SAM}
    config = SamConfig(model=model, **timm_sizes(model)) if is_timm(model) else known_sizes[model]
    return replace(config, image_size=config.image_size if image_size is None else image_size, **overrides)


def _config_of(weights: Weights, asked: SamConfig | None = None) -> SamConfig:
    """Returns the config that the file carries, or the one that its tensors' shapes imply."""
    if weights.config is not None:
        return weights.config
    try:
        config = replace(infer_config(weights.state_dict, asked), **weights.hints)
        mean = weights.normalisation.get("pixel_mean", config.pixel_mean)
        std = weights.normalisation.get("pixel_std", config.pixel_std)
        if (mean, std) != (config.pixel_mean, config.pixel_std):
            log.warning("%s has its own normalisation of pixels, which is used: mean %s, std %s.", weights.path, mean, std)
        return replace(config, pixel_mean=mean, pixel_std=std)
    except ValueError as error:
        kind = relative(weights.state_dict)
        raise ValueError(f"{weights.path} (checkpoint): {error}{kind and f'. They look like those of {kind}'}") from error


def _describe(config: SamConfig) -> str:
    return f"{config.model} ({config.encoder_depth} blocks of width {config.encoder_dim}, patch {config.patch_size})"


def _fill(config: SamConfig, weights: Weights) -> Sam:
    """Returns a model whose parameters are the file's tensors: no random numbers are drawn and nothing is held twice."""
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
    """Raises ValueError if keys are missing or unexpected, or if tensors have another shape; the message lists them."""
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
        kind = relative(state)
        raise ValueError(f"{source} does not fit the model (checkpoint): {found}{kind and f'. It looks like {kind}'}")


def _listed(keys: list[str], limit: int = 20) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")

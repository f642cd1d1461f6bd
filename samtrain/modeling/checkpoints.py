"""Files of weights: read without executing anything from them, written whole or not at all."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samtrain.files import atomic_path
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.modeling.weights import StateDict, official_state_dict, to_our_layout

log = logging.getLogger(__name__)

CONFIG_KEY = "sam_config"  # where a file of ours carries its SamConfig.to_dict()
LIT_PREFIX = "sam."  # the model's name in our LightningModule


@dataclass
class Weights:
    """The tensors of a file in our layout, and the config where the file carries one."""

    path: Path
    state_dict: StateDict
    config: SamConfig | None


def read_weights(path: str | Path) -> Weights:
    """Whatever a file holds: official `.pth` (flat or under "model"), our Lightning `.ckpt`, `.safetensors`.

    Raises ValueError for a file that is missing, cut, holds no tensors, or would run code on loading (it never does).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path} (checkpoint): give the path of a .pth, .ckpt or .safetensors file")
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # the length of a JSON header, then the header
    state, config = _read_safetensors(path) if is_safetensors else _read_torch(path)
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile's mark
    if any(key.startswith(LIT_PREFIX) for key in state):
        state = {key.removeprefix(LIT_PREFIX): v for key, v in state.items() if key.startswith(LIT_PREFIX)}
    if not state:
        raise ValueError(f"{path} holds no tensors (checkpoint): give a file with a SAM's state_dict")
    return Weights(path, to_our_layout(state), _sam_config(path, config) if config else None)


def _sam_config(path: Path, values: Any) -> SamConfig:
    try:
        return SamConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} carries a {CONFIG_KEY} that is not one of this version's (checkpoint): {error}. "
            "Update samtrain, or export the weights with the version that wrote them: task=export export.path=FILE.pth"
        ) from error


def _read_safetensors(path: Path) -> tuple[StateDict, dict | None]:
    try:
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get(CONFIG_KEY)
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(config) if config else None  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(_unreadable(path, error)) from error


def _read_torch(path: Path) -> tuple[StateDict, dict | None]:
    content = load_without_code(path)
    config = getattr(content, CONFIG_KEY, None)
    if isinstance(content, dict):
        config = content.get(CONFIG_KEY, config)
        for wrapper in ("state_dict", "model"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} (checkpoint): give a file with a SAM's state_dict")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}, config


def load_without_code(path: str | Path, key: str = "checkpoint") -> Any:
    """What `torch.save` wrote, on the CPU, as long as it is tensors and plain Python values.

    Raises ValueError that names the config's `key` for anything else, before anything of it has run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} was refused and nothing in it was executed ({key}): "
            + (f"it names {name[1]}, code that would run on loading. " if name else "it is no plain file of tensors. ")
            + "Weights need tensors only: save model.state_dict() alone, or safetensors, where its source is trusted"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, error, key)) from error


def _unreadable(path: str | Path, error: Exception, key: str = "checkpoint") -> str:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"{path} cannot be read as weights ({key}): cut short, or no such file? Fetch it again. ({reason})"


def save_official(sam: Sam, path: str | Path) -> Path:
    """Writes the flat file of `segment_anything`: same names, float32, loadable by its strict loader.

    Sizes that shapes do not tell travel as an attribute of the dictionary, which `segment_anything` does not look at.
    Raises ValueError for a decoder that it cannot build.
    """
    state = OrderedDict(official_state_dict(sam))
    setattr(state, CONFIG_KEY, sam.config.to_dict())
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    return Path(path)


def save_safetensors(sam: Sam, path: str | Path) -> Path:
    """Writes our own names with the config in the metadata; any model of ours fits."""
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={CONFIG_KEY: json.dumps(sam.config.to_dict()), "format": "pt"})
    return Path(path)

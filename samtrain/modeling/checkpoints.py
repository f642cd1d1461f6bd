"""Reads and writes files of weights; reading executes nothing in them, and writing is atomic."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from samtrain.files import atomic_path, explain_full_disk, write_bytes
from samtrain.modeling.foreign_files import (
    WRAPPERS,
    check_finite,
    check_is_file_of_weights,
    describe,
    file_of_folder,
    plain_globals,
    pop_normalisation,
    unwrap,
    without_prefix,
)
from samtrain.modeling.relatives import without_extras
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.modeling.trained_on import KEY as TRAINED_ON
from samtrain.modeling.trained_on import digests_to_tensor
from samtrain.modeling.transformers_folder import INDEX, folder_hints, read_shards
from samtrain.modeling.weights import StateDict, official_state_dict, to_our_layout

log = logging.getLogger(__name__)

CONFIG_KEY = "sam_config"  # our files carry SamConfig.to_dict() under this key
EXPORT_CURE = "free some disk space, or write to another disk with export.path"


@dataclass
class Weights:
    """Holds the tensors of a file in our layout, and the config if the file carries one.

    normalisation: `pixel_mean` and `pixel_std`, where the file has them as tensors
    hints: fields of the config that a folder of transformers sets and no tensor shows
    """

    path: Path
    state_dict: StateDict
    config: SamConfig | None
    normalisation: dict[str, tuple[float, ...]] = field(default_factory=dict)
    hints: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """Reads an official `.pth`, our Lightning `.ckpt`, or `.safetensors`, and files that other programs made of them.

    Those may hold the weights under `model`, `state_dict` or any other key, with `module.` or another prefix before their
    names, and with plain values beside them. Raises ValueError for a file that is missing, cut short, not
    finite or without tensors, and for one that would execute code if it were loaded by other programs; nothing in it is
    executed here.
    """
    hints = folder_hints(Path(path)) if Path(path).is_dir() else {}
    path = file_of_folder(Path(path))
    if not path.is_file():
        raise ValueError(f"there is no file {path} (checkpoint): set the path of a .pth, .ckpt or .safetensors file")
    check_is_file_of_weights(path)
    state, config = _read_tensors(path)
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # added by torch.compile
    if not state:
        raise ValueError(f"{path} holds no tensors (checkpoint): set a file that holds a SAM's state_dict")
    state = without_prefix(state, str(path))
    check_finite(state, str(path))
    normalisation = pop_normalisation(state)
    state = without_extras(state, str(path))
    return Weights(path, to_our_layout(state), _sam_config(path, config) if config else None, normalisation, hints)


def _read_tensors(path: Path) -> tuple[StateDict, dict | None]:
    """Returns the tensors of a file of any kind, and the config that it carries."""
    if path.name == INDEX:
        return read_shards(path), None
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header
    return _read_safetensors(path) if is_safetensors else _read_torch(path)


def _sam_config(path: Path, values: Any) -> SamConfig:
    try:
        return SamConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} carries a {CONFIG_KEY} of another version (checkpoint): {error}. "
            "Update samtrain, or export the weights with the version that wrote them (task=export export.path=FILE.pth)"
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
    state = unwrap(content, str(path))
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors but {describe(content)} (checkpoint): set a file that holds a SAM's state_dict, by "
            f"itself or under {', '.join(WRAPPERS[:4])}"
        )
    return tensors, config


def load_without_code(path: str | Path, key: str = "checkpoint") -> Any:
    """Returns what `torch.save` wrote, on the CPU, if it consists of tensors and plain values of Python and NumPy.

    Raises ValueError for anything else before any code in the file has run; the message names the config's `key`.
    """
    try:
        with plain_globals():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} was refused and nothing in it was executed ({key}): "
            + (f"it names {name[1]}, code that would run on loading. " if name else "it is not a plain file of tensors. ")
            + "Weights need nothing but tensors: where you trust the file, save model.state_dict() alone, or safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, error, key)) from error


def _unreadable(path: str | Path, error: Exception, key: str = "checkpoint") -> str:
    """Returns the message for a file that could not be read."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"{path} cannot be read as weights ({key}). It may be cut short or of another kind: download it again. ({reason})"


def save_official(sam: Sam, path: str | Path, *, trained_on: Collection[str] = ()) -> Path:
    """Writes Meta's format: a flat `.pth` with the names of `segment_anything`, which its own strict loader reads.

    The tensors are float32 on the CPU. Sizes that their shapes do not show are stored as an attribute of the dictionary, which
    `segment_anything` ignores. The file is written completely or not at all.

    Args:
        sam: the model, in any precision and on any device.
        path: the file to write.
        trained_on: digests of the images that the model was trained on (`images_trained_on`), stored as the sizes are.

    Returns:
        The path.

    Raises:
        ValueError: for a decoder that `segment_anything` cannot build (`decoder_depth` other than 2).
    """
    state = OrderedDict(official_state_dict(sam))
    setattr(state, CONFIG_KEY, replace(sam.config, text_dim=0).to_dict())  # the layout has no place for text prompts
    if trained_on:
        setattr(state, TRAINED_ON, digests_to_tensor(trained_on))
    with explain_full_disk(Path(path), EXPORT_CURE, (RuntimeError,)), atomic_path(path) as temporary:
        torch.save(state, temporary)
    return Path(path)


def save_safetensors(sam: Sam, path: str | Path, *, trained_on: Collection[str] = ()) -> Path:
    """Writes a `.safetensors` file with our names and the model's config in its metadata; it takes any model of ours.

    The tensors keep their precision. The file is written completely or not at all.

    Args:
        sam: the model, on any device.
        path: the file to write.
        trained_on: digests of the images that the model was trained on (`images_trained_on`), stored in the metadata.

    Returns:
        The path.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    # written by Python, because save_file does not notice every full disk
    metadata = {CONFIG_KEY: json.dumps(sam.config.to_dict()), "format": "pt"}
    if trained_on:
        metadata[TRAINED_ON] = " ".join(sorted(trained_on))
    content = save(state, metadata=metadata)
    write_bytes(Path(path), content, EXPORT_CURE)
    return Path(path)

"""Reads what a folder of transformers' SamModel says beside its weights: sizes that no tensor shows, and the normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"  # of weights in several files
# SamConfig's defaults, which the file may leave out
_VISION = {"window_size": 14, "global_attn_indexes": [2, 5, 8, 11], "hidden_act": "gelu", "use_rel_pos": True, "qkv_bias": True}
_DECODER = {"num_attention_heads": 8, "hidden_act": "relu", "attention_downsample_rate": 2, "num_multimask_outputs": 3}
_FIXED = ("hidden_act", "use_rel_pos", "qkv_bias", "attention_downsample_rate", "num_multimask_outputs")
_RESCALE = 1 / 255  # of the image processor, where the file leaves it out


def folder_hints(folder: Path) -> dict[str, Any]:
    """Returns the fields of `SamConfig` that a folder's config.json and processor files set; {} without them.

    Raises ValueError for the model of another kind, and for settings that a SAM does not have.
    """
    path = folder / CONFIG
    config = _read_json(path) if path.is_file() else {}
    if not config:
        return {}
    kind = config.get("model_type", "sam")
    if kind not in ("sam", "sam_hq"):
        raise ValueError(
            f"{path} is for a model of the kind {kind!r} (checkpoint): samtrain reads SamModel, with the model_type 'sam'"
        )
    vision, decoder = _VISION | config.get("vision_config", {}), _DECODER | config.get("mask_decoder_config", {})
    for given, usual in ((vision, _VISION), (decoder, _DECODER)):
        if other := [f"{key} {given[key]!r}" for key in _FIXED if key in usual and given[key] != usual[key]]:
            raise ValueError(f"{path} sets {', '.join(other)} (checkpoint), which no SAM of samtrain has: take another model")
    sizes = {
        "decoder_heads": decoder["num_attention_heads"],
        "global_attn_indexes": tuple(vision["global_attn_indexes"]),
        "window_size": vision["window_size"],
    }
    return sizes | _normalisation(folder)


def _normalisation(folder: Path) -> dict[str, Any]:
    """Returns pixel_mean and pixel_std for pixels of 0 to 255, from the files of the image processor."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = _read_json(folder / name)
            values = values.get("image_processor", values)
            if {"image_mean", "image_std"} <= values.keys():
                scale = values.get("rescale_factor", _RESCALE) if values.get("do_rescale", True) else 1.0
                return {
                    ours: tuple(float(f"{number / scale:.6g}") for number in values[theirs])
                    for ours, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std"))
                }
    return {}


def read_shards(index: Path) -> dict[str, Tensor]:
    """Returns the tensors of weights in several safetensors files; raises ValueError if one is missing."""
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    if gone := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index} names {gone[0]}, which is not there (checkpoint): download all files of the folder")
    return {key: value for name in names for key, value in load_file(index.parent / name).items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON (checkpoint): download it again ({error})") from error
    return content if isinstance(content, dict) else {}

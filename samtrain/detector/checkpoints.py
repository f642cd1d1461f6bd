"""Detectors as files: plain tensors beside the detector's config, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtrain.detector.model import Detector, DetectorConfig
from samtrain.files import atomic_path, explain_full_disk
from samtrain.modeling.checkpoints import load_without_code

CONFIG_KEY = "detector_config"  # the key of DetectorConfig.to_dict() in a file
LIT_PREFIX = "detector."  # the detector's name in our LightningModule


def save_detector(detector: Detector, path: str | Path) -> Path:
    """Writes `{"detector_config": ..., "state_dict": ...}`; returns the path.

    The file is complete or absent, and equal weights give equal bytes.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    # pass a file object, not a name: torch would write the temporary name into the file
    with (
        explain_full_disk(Path(path), of_libraries=(RuntimeError,)),
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save({CONFIG_KEY: detector.config.to_dict(), "state_dict": state}, file)
    return Path(path)


def load_detector(path: str | Path) -> Detector:
    """Returns the detector in a file of `save_detector` or in a checkpoint of its training, on the CPU and in evaluation mode.

    Raises ValueError for a file that does not exist, is truncated, holds something else, or would run code if it were loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist (detector.init): give the path of a detector.pth or of a .ckpt")
    content = load_without_code(path, key="detector.init")
    config, state = read_detector(content, path)

    # compare all shapes before any memory is filled
    with torch.device("meta"):
        empty = Detector(config)
    shapes = {key: value.shape for key, value in empty.state_dict().items()}
    if wrong := sorted(shapes.keys() ^ state.keys()) or sorted(k for k in shapes if shapes[k] != state[k].shape):
        raise ValueError(f"{path} is damaged (detector.init): {wrong[0]} does not fit its config; train or fetch it again")
    detector = Detector(config)
    detector.load_state_dict(state)
    return detector.eval()


def read_detector(content: Any, path: Path) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """Returns the config and the tensors in the content of `path`."""
    if not isinstance(content, dict) or CONFIG_KEY not in content or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} holds no detector (detector.init): give a file written by task=detector or save_detector")
    try:
        config = DetectorConfig.from_dict(content[CONFIG_KEY])
    except ValueError as error:
        raise ValueError(f"{path} was written by another version (detector.init): {error}; train it again") from error
    return config, {key.removeprefix(LIT_PREFIX): value for key, value in content["state_dict"].items()}

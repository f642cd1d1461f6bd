"""Recognises what other programs put into files of weights: prefixes, wrappers, plain values beside them, or no weights."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path, PosixPath, WindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.modeling.transformers_folder import INDEX

log = logging.getLogger(__name__)

# keys under which programs store the weights, beside an optimiser or a number of epochs; where several hold a SAM, such as an
# average of the weights under model_ema, the first of these is taken
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "sam", "weights")
# the first part of each of a SAM's names, in our layout and in that of transformers
_PARTS = "image_encoder|vision_encoder|prompt_encoder|mask_decoder|shared_image_embedding"
_PREFIX = re.compile(rf"^(|.*?\.)(?:{_PARTS})\.")
MAX_DEPTH = 4  # dictionaries inside of one another; a file may also hold one that contains itself
LFS_POINTER = b"version https://git-lfs"


def plain_globals() -> AbstractContextManager[Any]:
    """Allows `torch.load(weights_only=True)` to read numbers of NumPy, parsed arguments and paths; none of them runs code."""
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    numbers: list[Any] = []
    for name in ("scalar", "_reconstruct"):  # stored under another module by NumPy 1 and by NumPy 2
        function = getattr(multiarray, name)
        numbers += [(function, f"numpy.core.multiarray.{name}"), (function, f"numpy._core.multiarray.{name}")]
    types = [kind for _, kind in inspect.getmembers(np.dtypes, inspect.isclass)]
    paths = [PosixPath, WindowsPath, (PosixPath, "pathlib._local.PosixPath"), (WindowsPath, "pathlib._local.WindowsPath")]
    return torch.serialization.safe_globals([*numbers, np.ndarray, np.dtype, *types, argparse.Namespace, *paths])


def check_is_file_of_weights(path: Path) -> None:
    """Raises ValueError for what is often stored in place of weights: a pointer of git-lfs, or a web page."""
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if start.startswith(LFS_POINTER):
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the weights themselves (checkpoint): fetch them with `git lfs pull`, or "
            "download the file from the page of the repository"
        )
    if start[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is a web page, not weights (checkpoint): download the file itself")


def file_of_folder(path: Path) -> Path:
    """Returns the weights in a folder as transformers writes it, or the path itself; raises ValueError for other folders."""
    if not path.is_dir():
        return path
    for name in ("model.safetensors", INDEX, "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} is a folder without model.safetensors (checkpoint), it holds {found}: set the path of a file")


def unwrap(content: Any, source: str) -> Any:
    """Returns the innermost dictionary of weights, such as that in {"model": {...}, "epoch": 3}, under whichever key it is.

    Raises ValueError if several keys hold a SAM and none of them is one of `WRAPPERS`.
    """
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict) or _names_sam(content):
            return content
        inner = {key: each for key, each in content.items() if isinstance(each, dict)}
        found = [key for key, each in inner.items() if _holds_sam(each)]
        if usual := [key for key in WRAPPERS if key in (found or inner)]:
            if others := [str(key) for key in found if key != usual[0]]:
                log.warning("%s holds weights under %s, too; those under %r are read.", source, _quoted(others), usual[0])
            content = inner[usual[0]]
        elif len(found) > 1:
            raise ValueError(
                f"{source} holds {len(found)} models, {_quoted(list(map(str, found)))} (checkpoint): save the state_dict of "
                "one of them"
            )
        elif found:
            content = inner[found[0]]
        else:
            return content
    return content


def _names_sam(state: dict[Any, Any]) -> bool:
    return any(isinstance(key, str) and _PREFIX.match(key) for key in state)


def _holds_sam(content: dict[Any, Any], depth: int = MAX_DEPTH) -> bool:
    """Returns whether there are names of a SAM's weights in a dictionary or in those inside it."""
    inner = [each for each in content.values() if isinstance(each, dict)] if depth else []
    return _names_sam(content) or any(_holds_sam(each, depth - 1) for each in inner)


def without_prefix(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the tensors of a SAM without what other programs put before their names: `module.`, `model.`, `sam.`.

    Tensors beside the SAM, such as those of a loss, are left out. Weights that are not a SAM's are returned as they are. Raises
    ValueError if there are several SAMs.
    """
    prefixes = Counter(match[1] for key in state if (match := _PREFIX.match(key)))
    if not prefixes:
        return state
    complete = [prefix for prefix in prefixes if _has_all(state, prefix)] or [prefixes.most_common(1)[0][0]]
    if len(complete) > 1:
        raise ValueError(
            f"{source} holds {len(complete)} models, {_quoted(complete)} (checkpoint): save the state_dict of one of them"
        )
    (prefix,) = complete
    if not prefix:
        return state
    if beside := [key for key in state if not key.startswith(prefix)]:
        log.warning("%s holds more than a SAM. Left out: %s.", source, _quoted(beside))
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _has_all(state: Iterable[str], prefix: str) -> bool:
    """Returns whether there is an encoder of images and a decoder of masks behind the prefix."""
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    return all(any(key.startswith(part) for key in keys) for part in (("image_encoder.", "vision_encoder."), "mask_decoder."))


def pop_normalisation(state: dict[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """Removes the buffers `pixel_mean` and `pixel_std`, which some programs store, and returns their numbers."""
    found = {name: state.pop(name) for name in ("pixel_mean", "pixel_std") if name in state}
    return {name: tuple(float(f"{number:.6g}") for number in value.flatten().tolist()) for name, value in found.items()}


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Raises ValueError that names the first tensor with NaN or infinity."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(
            f"{source} holds NaN or infinity in {len(bad)} of {len(state)} tensors, first in {bad[0]} (checkpoint): the "
            "training that wrote it had diverged; take an earlier checkpoint"
        )


def describe(content: Any) -> str:
    """Returns what a file holds in a few words, for errors."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return f"a dictionary with the keys {_quoted([str(key) for key in content])}" if content else "an empty dictionary"


def _quoted(names: list[str], limit: int = 6) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")

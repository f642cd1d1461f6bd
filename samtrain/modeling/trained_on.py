"""Reads which images a file's weights were trained on, as digests of their pixels, so that they are not taken for new ones."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

KEY = "trained_on"  # an entry of a .ckpt, an attribute of the dictionary in a .pth, the metadata of a .safetensors


def digests_to_tensor(digests: Iterable[str]) -> Tensor:
    """Returns digests of 16 hex digits (`content_digest`) as (N,) int64 in ascending order of the unsigned numbers."""
    values = np.array(sorted(int(digest, 16) for digest in set(digests)), dtype=np.uint64)
    return torch.from_numpy(values.view(np.int64))


def images_trained_on(path: str | Path) -> set[str]:
    """Returns the digests of the images that the weights of a file or folder were trained on; none if it does not say.

    Only the digests are read from the disk. Files that cannot be read are the business of `load_sam`, which says why.
    """
    path = Path(path)
    if path.is_dir():
        path /= "model.safetensors"  # of transformers
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return set()
    return _as_digests(content.get(KEY, getattr(content, KEY, None)) if isinstance(content, dict) else None)


def _of_safetensors(path: str | Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set((file.metadata() or {}).get(KEY, "").split())
    except (OSError, SafetensorError):
        return set()


def _as_digests(found: Any) -> set[str]:
    if not isinstance(found, Tensor) or found.dtype != torch.int64:
        return set()
    return {f"{value:016x}" for value in found.numpy().view(np.uint64).tolist()}

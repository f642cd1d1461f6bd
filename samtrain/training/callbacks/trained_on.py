"""Stores in each checkpoint which images it was trained on, so that they are not taken for new ones later."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

KEY = "trained_on"


class TrainedOn(pl.Callback):
    """Adds the digests of the training images (`content_digest`) to each checkpoint, as (N,) int64 in ascending order."""

    def __init__(self, digests: Iterable[str]) -> None:
        values = np.array(sorted(int(digest, 16) for digest in set(digests)), dtype=np.uint64)
        self._digests = torch.from_numpy(values.view(np.int64))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._digests


def images_trained_on(path: str | Path) -> set[str]:
    """Returns the digests of the images that a checkpoint was trained on; none for files that do not say.

    Only the digests are read from the disk. Files that cannot be read are the business of `load_sam`, which says why.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return set()
    found = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(found, torch.Tensor) or found.dtype != torch.int64:
        return set()
    return {f"{value:016x}" for value in found.numpy().view(np.uint64).tolist()}

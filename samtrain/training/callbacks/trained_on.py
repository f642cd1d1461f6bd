"""Stores in each checkpoint which images it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl

from samtrain.modeling.trained_on import KEY, digests_to_tensor


class TrainedOn(pl.Callback):
    """Adds the digests of the training images (`content_digest`) to each checkpoint, as (N,) int64 in ascending order."""

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = digests_to_tensor(digests)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._digests

"""Where the engine stores its files, how the ledger names them, and what identifies a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.modeling.checkpoints import read_weights


@dataclass(frozen=True)
class Weights:
    """A model or a detector: its file, as the ledger names it, and its digest."""

    name: str
    digest: str


@dataclass(frozen=True)
class EngineFiles:
    """The files of a run of the data engine, below `run_dir`."""

    run_dir: Path

    @property
    def best(self) -> Path:
        """The checkpoint of the promoted model."""
        return self.run_dir / "checkpoints" / "best.ckpt"

    def folder(self, number: int) -> Path:
        """Returns the folder of a round."""
        return self.run_dir / "rounds" / str(number)

    def name(self, path: Path) -> str:
        """Returns a path relative to the run's directory if it is inside it, so that the run can be moved."""
        absolute, root = Path(os.path.abspath(path)), os.path.abspath(self.run_dir)
        return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)

    def path(self, name: str) -> Path:
        """Returns the file that the ledger calls `name`."""
        return self.run_dir / name  # joining keeps an absolute name as it is

    def shards(self, ledger: Sequence[LedgerLine]) -> list[Path]:
        """Returns the shards of all rounds of a ledger."""
        return [self.path(shard.path) for line in ledger for shard in line.shards]


def identify(checkpoint: Path) -> tuple[str, str]:
    """Returns the sha256 of the weights, and the name of the model's size.

    The digest is not that of the file, which also holds paths and times.
    """
    weights = read_weights(checkpoint)
    state = hashlib.sha256()
    for key, tensor in sorted(weights.state_dict.items()):
        state.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest(), weights.config.model if weights.config else "unknown"

"""Keeps numbers that are not finite out of checkpoints, because no run could resume from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor

from samtrain.training.optim import local_part

NAMED = 8  # image keys in a message


class LossWatch:
    """Remembers losses and image keys since the last check, and names the images of a loss that is not finite.

    Losses stay on their device until they are checked, so that a step need not wait for the GPU. `cure` names the settings that
    a message advises to change.
    """

    def __init__(self, *, cure: str) -> None:
        self.cure = cure
        self._seen: list[tuple[int, Tensor, list[str]]] = []

    def add(self, step: int, loss: Tensor, keys: Sequence[str]) -> None:
        """Remembers a micro-batch: its step, its loss (a scalar) and the keys of its images."""
        self._seen.append((step, loss.detach(), list(keys)))

    def check(self, module: pl.LightningModule, *, weights: bool = True) -> None:
        """Raises ValueError on all ranks if a loss since the last check, or a weight of the module, is not finite on one."""
        seen, self._seen = self._seen, []
        losses = torch.stack([loss for _, loss, _ in seen]).tolist() if seen else []
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        broken = _broken_weight(module) if weights else None
        if module.trainer.strategy.reduce_boolean_decision(bad is None and broken is None, all=True):
            return
        # the rank that saw the images names them, another one only stops
        if bad is not None:
            step, _, keys = seen[bad]
            fault = f"the loss is {losses[bad]} at step {step}, in the batch of the images {_listed(keys)}"
        elif broken is not None:
            keys = seen[-1][2] if seen else []
            fault = f"{broken} is not finite after step {module.trainer.global_step}"
            fault += f", the last step's images are {_listed(keys)}" if keys else ""
        else:
            fault = "the loss or a weight is not finite on another rank, as its message says"
        raise ValueError(
            f"{fault}. Nothing of it was saved, so the last checkpoint is still good: look at these images, {self.cure}, and "
            "start another run with checkpoint=<the last checkpoint>"
        )


def _broken_weight(module: pl.LightningModule) -> str | None:
    """Returns the name of the first parameter with a value that is not finite, looking at each rank's own part."""
    named = [(name, parameter.detach()) for name, parameter in module.named_parameters() if parameter.numel()]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(local_part(values)).all() for _, values in named]).tolist()
    return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more

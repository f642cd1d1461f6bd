"""Logs the norms of each part's parameters and gradients, to find where a training diverges."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from samtrain.training.optim import gradient_norm


class ParameterNorms(pl.Callback):
    """Logs `norms/param/<part>` and `norms/grad/<part>` (l2, before clipping) every `every_n_steps` steps.

    Parts are `patch_embed`, `block_00` and so on, `neck` of the encoder, `prompt_encoder`, `mask_decoder`. Frozen parts have
    no gradient norm. Under FSDP2 norms cover the shards of all ranks. The module must be a `LitSam`.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.norms_every_steps is {every_n_steps}: give 1 or more, or null for none")
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        step = trainer.global_step + 1
        if step % self.every_n_steps:
            return
        row = {}
        for name, parameters in parts_of(pl_module.sam).items():
            row[f"norms/param/{name}"] = float(_norm(parameters))
            if any(p.grad is not None for p in parameters):
                row[f"norms/grad/{name}"] = float(gradient_norm(parameters))
        pl_module.log_row(row, step)


def parts_of(sam: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns the parameters of each part, in the order of the forward pass."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in sam.named_parameters():
        first, second, third, *_ = [*name.replace("image_encoder.vit.", "image_encoder.").split("."), "", ""]
        if first != "image_encoder":
            part = first
        else:
            part = f"block_{int(third):02}" if second == "blocks" else "neck" if second == "neck" else "patch_embed"
        parts.setdefault(part, []).append(parameter)
    return parts


@torch.no_grad()
def _norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    total = sum((p.detach().float().square().sum() for p in parameters), torch.zeros(()))
    total = total.full_tensor() if hasattr(total, "full_tensor") else total
    return total.sqrt()

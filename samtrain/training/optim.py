"""The optimiser and its schedule: AdamW with layer decay, warm-up and milestones (paper, appendix A)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("step", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The `optim.lora` node: differences of this rank to the linear layers that globs name, counted `alpha / rank` times."""

    rank: int = 8
    alpha: float = 8.0
    layers: tuple[str, ...] = ("image_encoder.*.attn.qkv", "image_encoder.*.attn.proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"optim.lora has rank {self.rank}: give 1 or more, or optim.lora=null for no LoRA")
        if self.alpha <= 0:
            raise ValueError(f"optim.lora has alpha {self.alpha}: give a number above 0")
        if not self.layers:
            raise ValueError("optim.lora has no layers: give globs of linear layers, or optim.lora=null for no LoRA")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The `optim` node: what all model sizes share. The numbers of one size are in `Recipe`.

    learning_rate_factor: factor on the recipe's rate
    trainable:            globs of parameter names; None trains all
    ema_decay:            of an average of the weights; None: no average
    lora:                 differences of low rank that train beside `trainable`; None: none
    """

    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["step", "cosine", "constant"] = "step"
    gamma: float = 0.1
    learning_rate_factor: float = 1.0
    trainable: list[str] | None = None
    ema_decay: float | None = None
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.learning_rate_factor <= 0:
            raise ValueError(f"optim.learning_rate_factor is {self.learning_rate_factor}: give a number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {list(self.betas)}: give two numbers from 0 to below 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"optim.ema_decay is {self.ema_decay}: give a number from 0 to below 1, or null for no average")
        if self.lora is not None and self.ema_decay is not None:
            raise ValueError("optim.lora and optim.ema_decay are both set, but LoRA has no average: set one of them to null")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A `recipes.<model>` node: what one model size trains with. `mae` names weights for the encoder to start from."""

    learning_rate: float
    layer_decay: float
    drop_path: float
    dropout: float
    weight_decay: float
    images_per_step: int
    max_steps: int
    milestones: tuple[int, ...]
    warmup_steps: int
    mae: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("images_per_step", 1), ("max_steps", 1), ("warmup_steps", 0), ("weight_decay", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"recipes.<model>.{name} is {getattr(self, name)}: give {least} or more")
        if self.learning_rate <= 0:
            raise ValueError(f"recipes.<model>.learning_rate is {self.learning_rate}: give a number above 0")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"recipes.<model>.{name} is {getattr(self, name)}: give a share of at least 0, below 1")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW and its schedule for one training; the defaults are ViT-H's (paper, appendix A).

    `milestones` are steps of a recipe of `max_steps`; a run of another length passes them in the same proportion. The
    warm-up takes equally many steps in any run.
    """

    learning_rate: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    layer_decay: float = 0.8
    warmup_steps: int = 250
    schedule: str = "step"
    milestones: tuple[int, ...] = (60_000, 86_666)
    max_steps: int = 90_000
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule is {self.schedule!r}: give one of {', '.join(SCHEDULES)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"recipes.<model>.layer_decay is {self.layer_decay}: give a number above 0, up to 1 (no decay)")
        if list(self.milestones) != sorted(self.milestones) or any(m > self.max_steps for m in self.milestones):
            raise ValueError(
                f"recipes.<model>.milestones are {list(self.milestones)} and recipes.<model>.max_steps is {self.max_steps}: "
                "milestones must ascend and be no larger than max_steps"
            )

    @classmethod
    def of(cls, recipe: Recipe, optim: OptimConfig, learning_rate: float) -> AdamWConfig:
        """Returns the settings of one model size at this learning rate."""
        return cls(
            learning_rate=learning_rate,
            betas=optim.betas,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            warmup_steps=recipe.warmup_steps,
            schedule=optim.schedule,
            milestones=recipe.milestones,
            max_steps=recipe.max_steps,
            gamma=optim.gamma,
        )


def param_groups(sam: nn.Module, config: AdamWConfig) -> list[dict[str, Any]]:
    """Returns the trainable parameters grouped by rate and weight decay, the full rate first; each group has a `name`.

    Norms and biases, which have one axis, have no weight decay (SAM 2's config; ViTDet's exempts norms, but not biases), nor
    have absolute positions (ViTDet). Relative positions and the decoder's tokens decay as weights do (ViTDet, SAM 2). The paper
    is silent on all of this.
    """
    depth = len(list(sam.get_submodule("image_encoder.blocks").children()))
    tokens = ("pos_embed", "cls_token", "reg_token")
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in sam.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(tokens)
            groups[_layer(name, depth), decays].append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.learning_rate * config.layer_decay ** (depth + 1 - layer),
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": f"layer_{layer}_{'decay' if decays else 'no_decay'}",
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    ]


def _layer(name: str, depth: int) -> int:
    """Returns 0 for patch and position embedding, i + 1 for block i, depth + 1 for the rest (as BEiT and ViTDet count)."""
    name = name.replace("image_encoder.vit.", "image_encoder.")  # a ViT of timm
    if name.startswith(tuple(f"image_encoder.{part}" for part in ("patch_embed.", "pos_embed", "cls_token", "reg_token"))):
        return 0
    if name.startswith("image_encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def rate_factor(config: AdamWConfig, step: int, run_steps: int) -> float:
    """Returns the factor on the rate at step `step`, counted from 0, in a run of `run_steps`."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / run_steps)))
    if config.schedule == "step":
        return warmup * config.gamma ** bisect_right(run_milestones(config, run_steps), step)
    return warmup


def run_milestones(config: AdamWConfig, run_steps: int) -> list[int]:
    """Returns the recipe's milestones scaled to a run of another length."""
    return [round(milestone * run_steps / config.max_steps) for milestone in config.milestones]


def build_optimizer(sam: nn.Module, config: AdamWConfig, run_steps: int) -> tuple[AdamW, LambdaLR]:
    """Returns AdamW and its schedule, a function of the step alone, to be stepped after every optimiser step."""
    groups = param_groups(sam, config)
    # fused: one kernel per group in place of ten operations per tensor
    optimizer = AdamW(groups, betas=config.betas, fused=True)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(config, step, run_steps))


def adamw_with_cosine(
    module: nn.Module, *, learning_rate: float, weight_decay: float, warmup_steps: int, steps: int
) -> dict[str, Any]:
    """Returns what Lightning's `configure_optimizers` returns for a small model that is no SAM.

    That is AdamW, without weight decay on parameters with one axis (norms and biases), and a cosine schedule after a warm-up.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate, fused=True)
    shape = AdamWConfig(schedule="cosine", warmup_steps=warmup_steps)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(shape, step, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Returns the l2 norm of all gradients together, over all ranks for gradients that FSDP2 shards."""
    sharded, whole = ([p.grad for p in kind if p.grad is not None] for kind in _by_kind(parameters))
    if not sharded:
        return nn.utils.get_total_norm(whole)
    return nn.utils.get_total_norm([nn.utils.get_total_norm(sharded).full_tensor(), nn.utils.get_total_norm(whole)])


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scales the gradients so that their `gradient_norm` is at most `max_norm`."""
    norm = gradient_norm(parameters)
    for kind in _by_kind(parameters):
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)


def scale_gradients(parameters: list[nn.Parameter], factor: Tensor) -> None:
    """Multiplies all gradients by a scalar tensor, without waiting for its value."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)


def local_part(tensor: Tensor) -> Tensor:
    """Returns what this rank holds of a tensor that FSDP2 shards, or the whole tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _by_kind(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns sharded and whole parameters apart, because no list operation takes both."""
    return [p for p in parameters if isinstance(p, DTensor)], [p for p in parameters if not isinstance(p, DTensor)]

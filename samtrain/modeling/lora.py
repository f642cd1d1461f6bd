"""LoRA (Hu et al. 2021): learns a difference of low rank to a layer's frozen weights.

The difference is a parametrization of the layer's `weight`, so that all code that reads the weight sees it. The mask decoder
multiplies with weights directly, without calling the layer, and an adapter that wraps the layer's call would be unused there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from samtrain.files import write_bytes, write_text

ORIGINAL, INSIDE = "parametrizations.weight.original", "parametrizations.weight.0."
KEY = "lora"  # of a checkpoint: the differences, which the weights beside them already hold
CURE = "free some disk space, or set another run_dir"


class LowRank(nn.Module):
    """Adds B A times a factor to a weight (O, I): A is (rank, I) with random numbers, B (O, rank) begins with zeros."""

    def __init__(self, weight: Tensor, rank: int, factor: float, generator: torch.Generator) -> None:
        super().__init__()
        self.factor = factor
        bound = weight.shape[1] ** -0.5  # peft's, nn.init.kaiming_uniform_(a=sqrt(5))
        A = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator)
        self.lora_A, self.lora_B = nn.Parameter(A.to(weight)), nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight that the layer uses."""
        return torch.addmm(weight, self.lora_B, self.lora_A, alpha=self.factor)


def add_lora(model: nn.Module, layers: Sequence[str], *, rank: int, alpha: float, seed: int) -> list[str]:
    """Freezes the weights of the linear layers that the globs name, and adds a trainable difference of this rank to each.

    The difference counts `alpha / rank` times. Returns the layers' names; raises ValueError for a glob that names none.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for glob in layers:
        if not any(fnmatchcase(name, glob) for name in linear):
            raise ValueError(
                f"optim.lora has {glob!r} among its layers, which names no linear layer: give globs such as "
                "image_encoder.*.attn.qkv, image_encoder.*.mlp.* or mask_decoder.transformer.*"
            )
    chosen = [name for name in linear if any(fnmatchcase(name, glob) for glob in layers)]
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        layer = linear[name]
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha / rank, generator), unsafe=True)
    return chosen


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's state under the names of a model without LoRA, the differences added to the weights."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.endswith(ORIGINAL):
            layer = key.removesuffix(f".{ORIGINAL}")
            state[f"{layer}.weight"] = model.get_submodule(layer).weight.detach()
        elif INSIDE not in key:
            state[key] = value
    return state


def differences(model: nn.Module) -> dict[str, Tensor]:
    """Returns the A and B of each layer under peft's names, `<layer>.lora_A.weight`."""
    state = model.state_dict()
    return {f"{key.replace(INSIDE, '')}.weight": value.detach() for key, value in state.items() if INSIDE in key}


def unmerged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what `merged` returned under the names of this model, with its own weights where LoRA is added to them."""
    own = model.state_dict()
    return {key: own[key] if key.endswith(ORIGINAL) else state[key] for key in own if INSIDE not in key}


def from_differences(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what `differences` returned under the names of a model with LoRA."""
    return {key.replace(".lora_", f".{INSIDE}lora_").removesuffix(".weight"): value for key, value in found.items()}


def save_adapter(found: dict[str, Tensor], folder: Path, *, rank: int, alpha: float) -> None:
    """Writes `differences` as a folder that peft's `PeftModel.from_pretrained(sam, folder)` reads."""
    state = {f"base_model.model.{key}": value.cpu().contiguous() for key, value in found.items()}
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in found})
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
    }
    write_bytes(folder / "adapter_model.safetensors", save(state, metadata={"format": "pt"}), CURE)
    write_text(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n", CURE)

"""Grows the data engine's model from one round to the next (paper, section 4: ViT-B to ViT-H)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from samtrain.modeling.mae import load_mae
from samtrain.modeling.sam import Sam, SamConfig

# fields that growth by depth may change; all others must equal the parent's. The training decides about the frame
_MAY_GROW = ("model", "encoder_depth", "global_attn_indexes", "drop_path", "dropout", "frame")
# fields that decide the shapes of prompt encoder and mask decoder
_CARRIED = ("prompt_dim", "mask_in_chans", "decoder_depth", "decoder_heads", "decoder_mlp_dim", "iou_head_dim")


def next_model(
    parent: Sam, config: SamConfig, mae: str | Path | None = None, *, seed: int = 0, key: str = "data_engine.rounds"
) -> Sam:
    """Returns the model of the next round, in evaluation mode on the parent's device.

    Without `mae` the parent grows in depth (`grow`). With `mae` the encoder starts from MAE weights, while prompt encoder and
    mask decoder are the parent's. `seed` decides all new weights; `key` is the config key that errors name. Raises
    ValueError if the sizes do not allow it.
    """
    if mae is None:
        return grow(parent, config, seed=seed, key=key)
    child = _seeded(config, seed)
    load_mae(child, mae)
    carry_over(parent, child, key=key)
    return child.to(parent.device).eval()


def grow(parent: Sam, config: SamConfig, *, seed: int = 0, key: str = "model") -> Sam:
    """Returns a deeper model that computes exactly what its parent does, because its new blocks start as identities.

    The parent's blocks keep their order; windowed blocks stay windowed and global blocks global. An equal config gives a copy.
    Outputs are equal to the bit if the parent's weights begin at multiples of 16 bytes in memory, as those of built and loaded
    models do. Raises ValueError if more than the depth differs, or if the parent's blocks do not fit into the child's.
    """
    check_depth_growth(parent.config, config, key=key)
    places = _places(parent.config, config, key)
    child = _seeded(config, seed)

    # Copy everything outside the blocks
    state = {name: value for name, value in parent.state_dict().items() if not name.startswith("image_encoder.blocks.")}
    child.load_state_dict(state, strict=False)

    # Copy the parent's blocks to their places, and turn the other blocks into identities
    for place, block in zip(places, parent.image_encoder.blocks, strict=True):
        child.image_encoder.blocks[place].load_state_dict(block.state_dict())
    for place in set(range(config.encoder_depth)) - set(places):
        _make_identity(child.image_encoder.blocks[place])
    return child.to(parent.device).eval()


def check_depth_growth(parent: SamConfig, child: SamConfig, *, key: str = "model") -> None:
    """Raises ValueError if `grow` would refuse these sizes."""
    if differences := _differences(parent, child, [n for n in child.to_dict() if n not in _MAY_GROW]):
        raise ValueError(
            f"{key}: {parent.model} cannot grow into {child.model}, which changes {differences}. A model grows by depth alone: "
            f"take one of equal width, heads, patch and decoder, or set recipes.{child.model}.mae to weights for its encoder"
        )
    _places(parent, child, key)


def carry_over(parent: Sam, child: Sam, *, key: str = "model") -> None:
    """Copies prompt encoder (with its position encoding) and mask decoder; raises ValueError if their sizes differ."""
    if differences := _differences(parent.config, child.config, _CARRIED):
        raise ValueError(
            f"{key}: the decoder of {parent.config.model} does not fit {child.config.model}, which changes "
            f"{differences}: set these as the parent has them"
        )
    child.prompt_encoder.load_state_dict(parent.prompt_encoder.state_dict())
    child.mask_decoder.load_state_dict(parent.mask_decoder.state_dict())


def _differences(parent: SamConfig, child: SamConfig, names: Iterable[str]) -> str:
    """Returns the fields in which the configs differ, in words; empty if there is none."""
    a, b = parent.to_dict(), child.to_dict()
    return ", ".join(f"{name} {a[name]} to {b[name]}" for name in names if a[name] != b[name])


def _places(parent: SamConfig, child: SamConfig, key: str) -> list[int]:
    """Returns, for each block of the parent, the first free block of the child of the same kind (windowed or global)."""
    places: list[int] = []
    for block in range(parent.encoder_depth):
        kind = block in parent.global_attn_indexes
        free = range(places[-1] + 1 if places else 0, child.encoder_depth)
        place = next((i for i in free if (i in child.global_attn_indexes) == kind), None)
        if place is None:
            raise ValueError(
                f"{key}: block {block} of {parent.model} ({'global' if kind else 'windowed'}) finds no place in "
                f"{child.model}, where {len(child.global_attn_indexes)} of {child.encoder_depth} blocks are global (at "
                f"{child.global_attn_indexes}): "
                "set encoder_depth and global_attn_indexes so that the parent's blocks fit in order"
            )
        places.append(place)
    return places


def _make_identity(block: nn.Module) -> None:
    """Sets the last layer of both branches to zero, so that the block adds nothing, yet these layers have gradients."""
    for name in ("attn.proj", "mlp.fc2"):
        for parameter in block.get_submodule(name).parameters():
            nn.init.zeros_(parameter)


def _seeded(config: SamConfig, seed: int) -> Sam:
    """Returns a model with weights drawn from a seed; PyTorch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sam(config)


def with_text(parent: Sam, text_dim: int, *, seed: int = 0) -> Sam:
    """Returns the same model with a new map from embeddings of CLIP to tokens; `seed` decides its weights.

    A model with such a map for embeddings of this length is returned as it is. Raises ValueError for one of another length.
    """
    if parent.config.text_dim == text_dim:
        return parent
    if parent.config.text_dim:
        raise ValueError(
            f"the model was trained with a CLIP of {parent.config.text_dim} numbers per embedding, and this one has {text_dim} "
            "(clip): give the CLIP that it was trained with"
        )
    child = _seeded(replace(parent.config, text_dim=text_dim), seed)
    child.load_state_dict(parent.state_dict(), strict=False)
    return child.to(parent.device).train(parent.training)

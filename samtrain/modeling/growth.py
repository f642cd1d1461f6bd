"""How the data engine's model becomes larger from one round to the next (paper, section 4: ViT-B to ViT-H)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from samtrain.modeling.mae import load_mae
from samtrain.modeling.sam import Sam, SamConfig

# what growth by depth may change; all else must be the parent's
_MAY_GROW = ("model", "encoder_depth", "global_attn_indexes", "drop_path", "dropout")
# what decides the shapes of prompt encoder and mask decoder
_CARRIED = ("prompt_dim", "mask_in_chans", "decoder_depth", "decoder_heads", "decoder_mlp_dim", "iou_head_dim")


def next_model(
    parent: Sam, config: SamConfig, mae: str | Path | None = None, *, seed: int = 0, key: str = "data_engine.rounds"
) -> Sam:
    """The model of the next round: grown from the parent, or with an encoder from MAE weights and the parent's decoder.

    `seed` decides new weights, `key` is the config key that errors name. Raises ValueError where sizes do not allow it.
    """
    if mae is None:
        return grow(parent, config, seed=seed, key=key)
    child = _seeded(config, seed)
    load_mae(child, mae)
    carry_over(parent, child, key=key)
    return child.to(parent.device).eval()


def grow(parent: Sam, config: SamConfig, *, seed: int = 0, key: str = "model") -> Sam:
    """A deeper model that computes what its parent does, to the bit: its new blocks begin as identities.

    The parent's blocks keep their order, windowed ones stay windowed, global ones global. An equal config gives a copy.
    Raises ValueError where more than the depth differs, or where the parent's blocks do not fit into the child's.
    """
    check_depth_growth(parent.config, config, key=key)
    places = _places(parent.config, config, key)
    child = _seeded(config, seed)
    state = {
        name: value
        for name, value in parent.state_dict().items()
        if not name.startswith("image_encoder.blocks.")  # these find their places below
    }
    child.load_state_dict(state, strict=False)
    for place, block in zip(places, parent.image_encoder.blocks, strict=True):
        child.image_encoder.blocks[place].load_state_dict(block.state_dict())
    for place in set(range(config.encoder_depth)) - set(places):
        _make_identity(child.image_encoder.blocks[place])
    return child.to(parent.device).eval()


def check_depth_growth(parent: SamConfig, child: SamConfig, *, key: str = "model") -> None:
    """Raises ValueError where `grow` would, from the sizes alone."""
    if differences := _differences(parent, child, [n for n in child.to_dict() if n not in _MAY_GROW]):
        raise ValueError(
            f"{key}: {parent.model} cannot grow into {child.model}, which changes {differences}. A model grows by depth alone: "
            f"take one of equal width, heads, patch and decoder, or set recipes.{child.model}.mae to weights for its encoder"
        )
    _places(parent, child, key)


def carry_over(parent: Sam, child: Sam, *, key: str = "model") -> None:
    """Copies prompt encoder and mask decoder, position encoding included, into a child of any encoder."""
    if differences := _differences(parent.config, child.config, _CARRIED):
        raise ValueError(
            f"{key}: the decoder of {parent.config.model} does not fit {child.config.model}, which changes "
            f"{differences}: set these as the parent has them"
        )
    child.prompt_encoder.load_state_dict(parent.prompt_encoder.state_dict())
    child.mask_decoder.load_state_dict(parent.mask_decoder.state_dict())


def _differences(parent: SamConfig, child: SamConfig, names: Iterable[str]) -> str:
    a, b = parent.to_dict(), child.to_dict()
    return ", ".join(f"{name} {a[name]} to {b[name]}" for name in names if a[name] != b[name])


def _places(parent: SamConfig, child: SamConfig, key: str) -> list[int]:
    """For each block of the parent the first free block of the child that is of its kind."""
    places: list[int] = []
    for block in range(parent.encoder_depth):
        kind = block in parent.global_attn_indexes
        free = range(places[-1] + 1 if places else 0, child.encoder_depth)
        place = next((i for i in free if (i in child.global_attn_indexes) == kind), None)
        if place is None:
            raise ValueError(
                f"{key}: block {block} of {parent.model} ({'global' if kind else 'windowed'}) finds no place in "
                f"{child.model}, whose {child.encoder_depth} blocks are global at {child.global_attn_indexes}: "
                "set encoder_depth and global_attn_indexes so that the parent's blocks fit in order"
            )
        places.append(place)
    return places


def _make_identity(block: nn.Module) -> None:
    """Zero where the block's two branches end: it adds nothing, yet its last layers have gradients."""
    for name in ("attn.proj", "mlp.fc2"):
        for parameter in block.get_submodule(name).parameters():
            nn.init.zeros_(parameter)


def _seeded(config: SamConfig, seed: int) -> Sam:
    """New weights as a function of a seed; the process's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sam(config)

"""Initialises the image encoder from a masked autoencoder (MAE), as the paper does (section 3 and appendix A)."""

from __future__ import annotations

import logging
from pathlib import Path

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from samtrain.modeling.build import check_state_dict
from samtrain.modeling.checkpoints import read_weights
from samtrain.modeling.sam import Sam
from samtrain.modeling.weights import StateDict

log = logging.getLogger(__name__)

TIMM_PREFIX = "timm:"
# parts of an autoencoder that a SAM does not have: class token, last norm (SAM has a neck), head, MAE's own decoder
_IGNORED = ("cls_token", "norm.", "fc_norm.", "head.", "mask_token", "decoder_")


def load_mae(sam: Sam, source: str | Path) -> list[str]:
    """Sets the encoder's patches, positions and blocks from MAE weights, in place.

    Positions are resized to the model's grid and patches to its patch size (14 to 16 for the huge model). Relative positions
    become zero. Neck, prompt encoder and mask decoder stay as they are.

    Args:
        sam: the model to change.
        source: a file in the layout of timm's ViT, or "timm:<name>" to download the weights of that name.

    Returns:
        The keys of the file that were left out.

    Raises:
        ValueError: for keys that match nothing, for another width or depth, and for a download that fails.
    """
    state = _read(source)
    ignored = sorted(key for key in state if key.startswith(_IGNORED))
    state = {key: value.float() for key, value in state.items() if key not in ignored}
    for key in ("pos_embed", "patch_embed.proj.weight"):
        if key not in state:
            raise ValueError(f"{source} is not a masked autoencoder in timm's layout (recipes.<model>.mae): {key} is missing")

    # the width decides every other shape, so a wrong width is reported alone
    width, wanted = state["patch_embed.proj.weight"].shape[0], sam.config.encoder_dim
    if width != wanted:
        raise ValueError(
            f"{source} has width {width}, but the encoder of {sam.config.model} has {wanted}: "
            f"set recipes.{sam.config.model}.mae to weights of its size"
        )

    # an autoencoder has neither relative positions nor SAM's neck
    encoder = _to_grid(state, sam)
    for key, value in sam.image_encoder.state_dict().items():
        if ".rel_pos_" in key:
            encoder[key] = torch.zeros_like(value)
        elif key.startswith("neck."):
            encoder[key] = value
    check_state_dict(sam.image_encoder, encoder, str(source))
    sam.image_encoder.load_state_dict(encoder)
    log.info("The encoder of %s starts from %s. Left out: %s.", sam.config.model, source, ", ".join(ignored) or "nothing")
    return ignored


def _to_grid(state: StateDict, sam: Sam) -> StateDict:
    """Returns the tensors with patches resized to the patch size and positions, without the class token, to the grid."""
    grid, patch = sam.config.grid, sam.config.patch_size
    positions = resample_abs_pos_embed(state["pos_embed"], [grid, grid], num_prefix_tokens=1)
    patches = resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch])
    return state | {"pos_embed": positions[:, 1:].unflatten(1, (grid, grid)), "patch_embed.proj.weight": patches}


def _read(source: str | Path) -> StateDict:
    """Returns the tensors of a file, or of weights that timm downloads."""
    name = str(source)
    if not name.startswith(TIMM_PREFIX):
        return read_weights(source).state_dict
    name = name.removeprefix(TIMM_PREFIX)
    if name not in (known := timm.list_pretrained("vit_*.mae")):
        raise ValueError(f"timm has no weights named {name!r}: set recipes.<model>.mae to one of {', '.join(known)}")
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # the download may raise anything
        raise ValueError(f"{source} could not be downloaded ({error}): set recipes.<model>.mae to a local file") from error

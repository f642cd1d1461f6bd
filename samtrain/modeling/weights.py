"""Translates the names of SAM weights, infers a model's sizes from their shapes, and resizes positions.

Four layouts are known: ours (timm's names in the encoder: `mlp.fc1`), Meta's official one (`mlp.lin1`), that of transformers'
SamModel, and MobileSAM's. All functions except `to_our_layout` take ours.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor

from samtrain.modeling.sam import INPUT_FIELDS, MOBILE_SAM, SAM_CONFIGS, Sam, SamConfig
from samtrain.modeling.timm_encoder import is_timm, resize_timm_positions
from samtrain.modeling.tiny_vit_encoder import from_mobile_sam

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

_ENCODER_MLP = re.compile(r"^(image_encoder\.blocks\.\d+\.mlp)\.(fc|lin)([12])\.")

# patterns of transformers' names and their replacements, applied in this order
_TRANSFORMERS = [
    (r"^shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"layer_norm(\d|_final_attn)\.", r"norm\1."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"((?:mlps\.\d|iou_prediction_head)\.layers)\.0\.", r"\1.1."),
    (r"(mlps\.\d|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
]
_TRANSFORMERS_DUPLICATE = "prompt_encoder.shared_embedding.positional_embedding"  # the same as shared_image_embedding

# patterns of our names and transformers', applied in this order
_TO_TRANSFORMERS: list[tuple[str, Any]] = [
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"mlp\.fc([12])\.", r"mlp.lin\1."),
    (r"neck\.([02])\.", lambda found: f"neck.conv{int(found[1]) // 2 + 1}."),
    (r"neck\.([13])\.", lambda found: f"neck.layer_norm{int(found[1]) // 2 + 1}."),
    (r"mask_downscaling\.([036])\.", lambda found: f"mask_embed.conv{int(found[1]) // 3 + 1}."),
    (r"mask_downscaling\.([14])\.", lambda found: f"mask_embed.layer_norm{int(found[1]) // 3 + 1}."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"((?:mlps\.\d|iou_prediction_head)\.layers)\.1\.", r"\1.0."),
]


def to_our_layout(state: StateDict) -> StateDict:
    """Returns the same tensors under our names, from any of the four layouts."""
    if any(key.startswith("vision_encoder.") for key in state):
        state = {_from_transformers(key): value for key, value in state.items() if key != _TRANSFORMERS_DUPLICATE}
    return {_ENCODER_MLP.sub(r"\1.fc\3.", key): value for key, value in from_mobile_sam(state).items()}


def official_state_dict(sam: Sam) -> StateDict:
    """Returns the model's tensors under Meta's names, in float32 on the CPU.

    Raises ValueError for a decoder that `segment_anything` cannot build.
    """
    if not _has_official_encoder(sam.config):
        raise ValueError(
            f"the official layout has no place for the encoder {sam.config.model} (export.path): write a .safetensors file"
        )
    if sam.config.decoder_depth != 2:
        raise ValueError(
            f"the official layout knows decoders of 2 layers, this one has {sam.config.decoder_depth} "
            "(model.decoder_depth): segment_anything could not load it. Write it with save_safetensors instead"
        )
    return {_ENCODER_MLP.sub(r"\1.lin\3.", key): value for key, value in _without_text(sam, "The official layout").items()}


def transformers_state_dict(sam: Sam) -> StateDict:
    """Returns the model's tensors under the names of transformers' SamModel, in float32 on the CPU.

    Raises ValueError for an encoder that SamModel does not have.
    """
    if not _has_official_encoder(sam.config):
        raise ValueError(
            f"SamModel of transformers has no place for the encoder {sam.config.model} (export.formats): write safetensors, "
            "which keeps our own names, instead of huggingface"
        )
    return {_to_transformers(key): value for key, value in _without_text(sam, "SamModel of transformers").items()}


def _without_text(sam: Sam, layout: str) -> StateDict:
    """Returns the tensors in float32 on the CPU, without the map of text prompts, which the layout has no place for."""
    if sam.config.text_dim:
        log.warning("%s has no place for text prompts, so they are left out: safetensors under our names keep them.", layout)
    own = {key: value for key, value in sam.state_dict().items() if not key.startswith(TEXT)}
    return {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in own.items()}


def _has_official_encoder(config: SamConfig) -> bool:
    return not is_timm(config.model) and config.model != MOBILE_SAM.model


def _to_transformers(key: str) -> str:
    """Returns transformers' name for a name of ours."""
    for pattern, replacement in _TO_TRANSFORMERS:
        key = re.sub(pattern, replacement, key)
    return key


def _from_transformers(key: str) -> str:
    """Returns our name for a name of transformers' SamModel."""
    for pattern, replacement in _TRANSFORMERS:
        key = re.sub(pattern, replacement, key)
    return key


# settings in which a file may differ from the model: positions are resized, the others have no tensors
_FREE_FIELDS = ("model", "image_size", "drop_path", "dropout", "text_dim", *INPUT_FIELDS)
TEXT = "prompt_encoder.text_embedding."  # the map of text prompts, which only our layout has


def config_differences(found: SamConfig, asked: SamConfig) -> list[str]:
    """Returns the differences that keep the tensors of one model from fitting the other, in words."""
    a, b = found.to_dict(), asked.to_dict()
    return [f"{key} {a[key]} instead of {b[key]}" for key in a if key not in _FREE_FIELDS and a[key] != b[key]]


def infer_config(state: StateDict, asked: SamConfig | None = None) -> SamConfig:
    """Returns the sizes of the model that tensors in our layout belong to.

    Shapes do not show the number of the decoder's heads, nor a window as large as the grid. These come from `asked`, or from a
    model in `SAM_CONFIGS` with equal shapes; otherwise the heads are 8, as in all official models. Raises ValueError if the
    tensors are not those of a SAM.
    """
    if "image_encoder.stages.0.blocks.0.conv1.conv.weight" in state:
        return _mobile_config(state, asked)
    facts, image_size = _facts_of_tensors(state)
    text_dim = state[f"{TEXT}weight"].shape[1] if f"{TEXT}weight" in state else 0

    # a known model with equal shapes
    for config in [*([asked] if asked else []), *SAM_CONFIGS.values()]:
        if image_size % config.patch_size == 0:
            candidate = replace(config, image_size=image_size, text_dim=text_dim)
            if _facts_of_config(candidate) == facts:
                return candidate

    # an unknown model: the lengths of its position tables tell windowed from global blocks
    tables = facts.pop("relative_position_tables")
    grid = image_size // facts["patch_size"]
    windows = {length for length in tables if length != 2 * grid - 1}
    if len(windows) > 1:
        raise ValueError(f"blocks have windows of several sizes ({sorted(windows)} relative positions), which no SAM has")
    return SamConfig(
        model="custom",
        image_size=image_size,
        global_attn_indexes=tuple(i for i, length in enumerate(tables) if length not in windows),
        window_size=(windows.pop() + 1) // 2 if windows else grid,
        text_dim=text_dim,
        **facts,
    )


def _mobile_config(state: StateDict, asked: SamConfig | None) -> SamConfig:
    """Returns the sizes of a MobileSAM; no tensor shows the size of its input, which is MobileSAM's own unless asked for."""
    side = asked.image_size if asked and asked.model == MOBILE_SAM.model else MOBILE_SAM.image_size
    return replace(MOBILE_SAM, image_size=side, **_decoder_facts(state))


def _facts_of_config(config: SamConfig) -> dict:
    """Returns what `_facts_of_tensors` would read from a model of this config."""
    facts = {
        key: value
        for key, value in config.to_dict().items()
        if key not in (*_FREE_FIELDS, "global_attn_indexes", "window_size", "decoder_heads")
    }
    is_global = [i in config.global_attn_indexes for i in range(config.encoder_depth)]
    tables = [2 * (config.grid if each else config.window_size) - 1 for each in is_global]
    return facts | {"relative_position_tables": tables}


def _facts_of_tensors(state: StateDict) -> tuple[dict, int]:
    """Returns the sizes that the tensors' shapes show, and the image size."""
    depth = _count(state, r"^image_encoder\.blocks\.(\d+)\.")
    tables = [f"image_encoder.blocks.{i}.attn.rel_pos_h" for i in range(max(depth, 1))]
    dim, patch = _shape(state, "image_encoder.patch_embed.proj.weight", 0, 2)
    head_dim = _shape(state, tables[0], 1)[0]
    facts = {
        "encoder_dim": dim,
        "encoder_depth": depth,
        "encoder_heads": dim // head_dim,
        "patch_size": patch,
        **_decoder_facts(state),
        "relative_position_tables": [_shape(state, key, 0)[0] for key in tables],
    }
    return facts, _shape(state, "image_encoder.pos_embed", 1)[0] * patch


def _decoder_facts(state: StateDict) -> dict:
    """Returns the sizes of prompt encoder, mask decoder and the encoder's neck that the tensors' shapes show."""
    return {
        "prompt_dim": _shape(state, "image_encoder.neck.0.weight", 0)[0],
        "mask_in_chans": _shape(state, "prompt_encoder.mask_downscaling.3.weight", 0)[0],
        "decoder_depth": _count(state, r"^mask_decoder\.transformer\.layers\.(\d+)\."),
        "decoder_mlp_dim": _shape(state, "mask_decoder.transformer.layers.0.mlp.lin1.weight", 0)[0],
        "iou_head_dim": _shape(state, "mask_decoder.iou_prediction_head.layers.0.weight", 0)[0],
    }


def _count(state: StateDict, pattern: str) -> int:
    """Returns the number of numbered modules that match."""
    return 1 + max((int(match[1]) for match in (re.match(pattern, key) for key in state) if match), default=-1)


def _shape(state: StateDict, key: str, *axes: int) -> list[int]:
    """Returns the lengths of some axes of a tensor; raises ValueError if it is missing."""
    if key not in state:
        held = ", ".join(sorted(state)[:5])
        raise ValueError(f"these are not the weights of a SAM: {key} is missing among {len(state)} entries ({held}, ...)")
    return [state[key].shape[axis] for axis in axes]


def resize_positions(state: StateDict, config: SamConfig) -> StateDict:
    """Returns the tensors for another image size.

    Absolute positions are resized bicubically, the relative positions of global blocks linearly, as segment_anything does at
    run time. Windowed blocks stay as they are, because a window has the same number of positions at any image size.
    """
    state = resize_timm_positions(dict(state), config.grid)
    key = "image_encoder.pos_embed"
    if key in state:
        state[key] = resample_abs_pos_embed_nhwc(state[key], [config.grid, config.grid])
    for i in config.global_attn_indexes:
        for axis in "hw":
            key = f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"
            if key in state:
                state[key] = _resize_table(state[key], 2 * config.grid - 1)
    return state


def _resize_table(table_LC: Tensor, length: int) -> Tensor:
    """Returns (length, C), a table of relative positions resized linearly."""
    if len(table_LC) == length:
        return table_LC
    return F.interpolate(table_LC.T[None], size=length, mode="linear")[0].T.contiguous()

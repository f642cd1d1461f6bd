"""Reads a folder that transformers wrote of a CLIPModel, and gives its tensors open_clip's names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ACTIVATIONS = {"quick_gelu": True, "gelu": False}  # hidden_act, and whether it is QuickGELU
FILES = ("model.safetensors", "pytorch_model.bin")

# patterns of transformers' names and their replacements, applied in this order
NAMES = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # transformers spells it so
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def is_hugging_face(folder: Path) -> bool:
    """Returns whether the folder holds the config of a CLIPModel."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == "clip"


def to_open_clip(folder: Path, read: Callable[[Path], dict[str, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns open_clip's model_cfg and the tensors under open_clip's names; raises ValueError if a file is missing."""
    config = _config(json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {' nor '.join(FILES)} (clip): save the model with save_pretrained")
    return config, _state(read(path))


def _config(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns open_clip's model_cfg; what config.json leaves out has the default of transformers."""
    vision, text = values.get("vision_config") or {}, values.get("text_config") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise ValueError(
            f"{folder}/config.json has hidden_act {sorted(activations)} (clip), which is not known: give a CLIP with "
            f"{' or '.join(ACTIVATIONS)}"
        )
    width, text_width = vision.get("hidden_size", 768), text.get("hidden_size", 512)
    return {
        "embed_dim": values.get("projection_dim", 512),
        "quick_gelu": ACTIVATIONS[activations.pop()],
        "vision_cfg": {
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 32),
            "width": width,
            "layers": vision.get("num_hidden_layers", 12),
            "head_width": width // vision.get("num_attention_heads", 12),
            "mlp_ratio": vision.get("intermediate_size", 4 * width) / width,
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "width": text_width,
            "layers": text.get("num_hidden_layers", 12),
            "heads": text.get("num_attention_heads", 8),
            "mlp_ratio": text.get("intermediate_size", 4 * text_width) / text_width,
        },
    }


def _state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under open_clip's names: projections transposed, the three inputs of an attention in one."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith("position_ids"):
            continue
        name = key
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    for projection, name in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        if projection in found:
            found[name] = found.pop(projection).T.contiguous()
    for name in [key for key in found if ".attn.q_proj." in key]:
        parts = [found.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        found[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return found

"""A CLIP of a few thousand weights, with random values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("open_clip")

from samtrain.text import Clip  # noqa: E402
from samtrain.text.loading import new_clip, save_clip  # noqa: E402

TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tiny_clip(seed: int = 0) -> Clip:
    """A CLIP with random weights, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = new_clip(json.loads(json.dumps(TINY)))
    return clip.requires_grad_(False).eval()


def tiny_clip_folder(folder: Path, seed: int = 0) -> Path:
    """The folder of such a CLIP, as `load_clip` reads it."""
    return save_clip(tiny_clip(seed), TINY, folder)


def hugging_face_clip(folder: Path, activation: str = "quick_gelu") -> Any:
    """A CLIPModel of transformers with random weights, which is also written to the folder."""
    transformers = pytest.importorskip("transformers")
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": activation}
    vision = {"hidden_size": 32, "intermediate_size": 96, **layers, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 64, **layers, "max_position_embeddings": 16, "eos_token_id": 49407}
    torch.manual_seed(1)
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
    model.save_pretrained(folder)
    return model

"""Trains Segment Anything models from a config and runs SAM's data engine with them.

The names below are imported when first used, so that `import samtrain` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samtrain.embeddings import EmbeddingStore, load_embedding, save_embedding
    from samtrain.generator import SamAutomaticMaskGenerator
    from samtrain.modeling.build import build_sam, load_sam
    from samtrain.modeling.checkpoints import save_official, save_safetensors
    from samtrain.predictor import SamPredictor
    from samtrain.tiled import TiledPredictor

__all__ = [
    "EmbeddingStore",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "TiledPredictor",
    "build_sam",
    "load_embedding",
    "load_sam",
    "save_embedding",
    "save_official",
    "save_safetensors",
]

_HOMES = {
    "build_sam": "samtrain.modeling.build",
    "load_sam": "samtrain.modeling.build",
    "save_official": "samtrain.modeling.checkpoints",
    "save_safetensors": "samtrain.modeling.checkpoints",
    "SamAutomaticMaskGenerator": "samtrain.generator",
    "SamPredictor": "samtrain.predictor",
    "TiledPredictor": "samtrain.tiled",
    "EmbeddingStore": "samtrain.embeddings",
    "load_embedding": "samtrain.embeddings",
    "save_embedding": "samtrain.embeddings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"samtrain has no {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

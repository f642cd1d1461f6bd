"""Trains Segment Anything models from a config and runs SAM's data engine with them.

The names below are imported when they are first used, so that `import samtrain` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samtrain.export.huggingface import save_huggingface
    from samtrain.inference.embeddings import EmbeddingStore, load_embedding, save_embedding
    from samtrain.inference.generator import SamAutomaticMaskGenerator
    from samtrain.inference.predictor import SamPredictor
    from samtrain.inference.tiled import TiledPredictor
    from samtrain.modeling.build import build_sam, load_sam
    from samtrain.modeling.checkpoints import save_official, save_safetensors

__all__ = [
    "EmbeddingStore",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "SamTextGenerator",
    "TiledPredictor",
    "build_sam",
    "load_clip",
    "load_embedding",
    "load_sam",
    "save_embedding",
    "save_huggingface",
    "save_official",
    "save_safetensors",
]

_MODULES = {
    "build_sam": "samtrain.modeling.build",
    "load_sam": "samtrain.modeling.build",
    "save_official": "samtrain.modeling.checkpoints",
    "save_safetensors": "samtrain.modeling.checkpoints",
    "save_huggingface": "samtrain.export.huggingface",
    "SamAutomaticMaskGenerator": "samtrain.inference.generator",
    "SamPredictor": "samtrain.inference.predictor",
    "SamTextGenerator": "samtrain.inference.text_generator",
    "load_clip": "samtrain.text.loading",
    "TiledPredictor": "samtrain.inference.tiled",
    "EmbeddingStore": "samtrain.inference.embeddings",
    "load_embedding": "samtrain.inference.embeddings",
    "save_embedding": "samtrain.inference.embeddings",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used; `__version__` is that of the installed package."""
    if name == "__version__":
        return import_module("samtrain.version").version()
    if name not in _MODULES:
        raise AttributeError(f"samtrain has no {name!r}: use one of {', '.join(sorted(_MODULES))}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

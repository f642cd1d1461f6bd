"""CLIP: embeddings of crops, by which text prompts are trained, and of sentences, which prompt (paper, section 7.5)."""

from samtrain.text.clip import Clip
from samtrain.text.loading import load_clip

__all__ = ["Clip", "load_clip"]

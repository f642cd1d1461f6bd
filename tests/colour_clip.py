"""A CLIP that knows three colours, so that tests of text prompts can know what is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from samtrain.text import Clip
from tests.tiny_clip import tiny_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
PLACES = {"red": (4, 4), "green": (4, 60), "blue": (50, 30)}
SIDE, SIZE = 26, (90, 100)


class ColourClip(Clip):
    """A crop's embedding is its mean colour inside of the object, a sentence's the colour that it names."""

    def __init__(self) -> None:
        super().__init__(tiny_clip().model, lambda texts: torch.zeros(len(texts), 16, dtype=torch.int64))

    @property
    def dim(self) -> int:
        return 3

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        found = [[1.0 if colour in text else 0.0 for colour in COLOURS] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(found).reshape(-1, 3), dim=-1)

    def embed_crops(self, crops: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        assert inside is not None
        means = (crops * inside[:, None]).sum(dim=(2, 3)) / inside.sum(dim=(1, 2)).clamp(min=1)[:, None]
        centred = means - means.mean(dim=1, keepdim=True)
        return centred / (centred.norm(dim=1, keepdim=True) + 20)  # grey is like nothing


def image() -> np.ndarray:
    """A red, a green and a blue square on grey."""
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    for name, (y, x) in PLACES.items():
        pixels[y : y + SIDE, x : x + SIDE] = COLOURS[name]
    return pixels


def truth(name: str) -> np.ndarray:
    """The mask of a square."""
    mask = np.zeros(SIZE, bool)
    y, x = PLACES[name]
    mask[y : y + SIDE, x : x + SIDE] = True
    return mask

"""Says in words what the objects of a synthetic scene look like: "a red ellipse", "a blue band, part of an orange box"."""

from __future__ import annotations

from typing import Any

import numpy as np

from samtrain.data.scenes.scene import Scene
from samtrain.data.scenes.surfaces import COLD, WARM

WARM_NAMES = ("pink", "red", "orange", "yellow")  # equal parts of the warm hues, in their order on the circle
COLD_NAMES = ("green", "cyan", "blue", "violet")
LEADS = ("{}", "{}", "the {}", "a photo of {}", "an image of {}")  # how a caption of training begins


def hue_name(hue: float) -> str:
    """Returns the word for a hue on a circle of length 1; each word has an equal share of the warm or of the cold hues."""
    for names, (first, last) in ((WARM_NAMES, WARM), (COLD_NAMES, COLD)):
        place = (hue - first) % 1 / (last - first)
        if place <= 1:
            return names[min(int(place * len(names)), len(names) - 1)]
    raise ValueError(f"the hue {hue} is neither warm nor cold: objects have the hues {WARM} and {COLD}")


def describe(scene: Scene, number: int) -> str:
    """Returns the caption of an object: its hue, its shape, and what it is a part of."""
    own = _noun(hue_name(scene.hues[number]), scene.shapes[number])
    parent = scene.parents[number]
    return own if parent < 0 else f"{own}, part of {_noun(hue_name(scene.hues[parent]), scene.shapes[parent])}"


def vary(annotation: dict[str, Any], rng: np.random.Generator) -> str:
    """Returns one of many ways to say the caption of an annotation; half of them say all that it says.

    The others leave out the shape or what the object is a part of, so that short sentences are understood, too.
    """
    caption = str(annotation["caption"])
    own, _, owner = caption.partition(", part of ")
    draw = rng.random()
    if draw < 0.2:
        caption = own
    elif draw < 0.35:
        caption = _noun(str(annotation["hue"]), "object" if not owner else "part")
    elif draw < 0.5:
        caption = f"{_noun(str(annotation['hue']), 'part')} of {owner}" if owner else own
    lead = LEADS[rng.integers(len(LEADS))]
    return lead.format(caption.partition(" ")[2] if lead.startswith("the") else caption)


def _noun(hue: str, shape: str) -> str:
    return f"{'an' if hue == 'orange' else 'a'} {hue} {shape}"

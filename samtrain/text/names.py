"""What objects are called: the captions of the synthetic scenes, and the category names of other sets in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.text.clip import Clip


def name_of(annotation: dict[str, Any]) -> str | None:
    """Returns the caption of an object or the name of its category, or None; COCO and LVIS write names with underscores."""
    if caption := annotation.get("caption"):
        return str(caption)
    name = annotation.get("category_name")
    return None if name is None else str(name).replace("_", " ")


def unique_names(annotations: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Returns {index: name} of the objects that no other object of the image shares its name with."""
    names = [name_of(each) for each in annotations]
    counts = Counter(names)
    return {i: name for i, name in enumerate(names) if name is not None and counts[name] == 1}


def embed_names(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Returns (T, E) float32 of length 1: the mean over the templates of the embeddings of each name."""
    if not names:
        return clip.embed_texts([])
    sentences = [template.format(name) for name in names for template in templates]
    each_TE = clip.embed_texts(sentences).view(len(names), len(templates), -1)
    return F.normalize(each_TE.mean(dim=1), dim=-1)


def similarities(clip: Clip, image_3HW: Tensor, masks_NHW: Tensor, text_TE: Tensor) -> Tensor:
    """Returns (N, T) cosines of the crops of masks and texts; an empty mask is as unlike any text as can be, -1."""
    with torch.no_grad():
        found = clip.embed_objects(image_3HW, masks_NHW) @ text_TE.T
    return torch.where(masks_NHW.flatten(1).any(dim=1)[:, None], found, torch.full_like(found, -1.0))

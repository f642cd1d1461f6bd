"""Takes prompts as arrays, tensors or lists, checks them, and puts them into the order of tokens that the decoder expects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.types import PointLabel, Prompts


def as_array(given: Any, name: str) -> np.ndarray | None:
    """Returns a prompt as a float64 array, or None.

    Args:
        given: an array, a tensor on any device and of any type, a list of numbers, or None.
        name: the argument's name, for errors.

    Raises:
        ValueError: for anything that is not an array of finite numbers.
    """
    if given is None:
        return None
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.numpy() if given.is_complex() else given.to(torch.float64).numpy()
    try:
        if np.iscomplexobj(given):
            raise TypeError("it holds complex numbers")
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({error}): give an array, a tensor or a list of numbers") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity: give finite numbers")
    return array


def as_labels(given: Any) -> np.ndarray | None:
    """Returns the labels of clicks as whole numbers, or None; raises ValueError for fractions, which int() would round."""
    labels = as_array(given, "point_labels")
    if labels is not None and (labels != np.round(labels)).any():
        raise ValueError(f"labels are 1 foreground, 0 background, -1 padding, got {labels.flatten().tolist()}")
    return labels


def make_prompts(
    points: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    *,
    mask_size: int,
    mask_dtype: torch.dtype,
    device: torch.device,
) -> Prompts:
    """Returns prompts in one order of tokens: the clicks, then the box, or a padding token if there are only clicks.

    Raises ValueError for prompts of other shapes than `predict_torch` takes, for NaN and for unknown labels.
    """
    _check_prompts(points, labels, boxes, masks, mask_size)
    N = next((len(given) for given in (points, boxes, masks) if given is not None), 1)
    coords, kinds = [torch.zeros(N, 0, 2)], [torch.zeros(N, 0, dtype=torch.int64)]
    if points is not None and labels is not None:
        coords.append(points)
        kinds.append(labels)
    if boxes is not None:
        coords.append(boxes.reshape(N, 2, 2))
        kinds.append(torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]).expand(N, 2))
    elif points is not None:
        coords.append(torch.zeros(N, 1, 2))
        kinds.append(torch.full((N, 1), int(PointLabel.PADDING)))
    return Prompts(
        torch.cat([part.to(device, torch.float32) for part in coords], dim=1),
        torch.cat([part.to(device, torch.int64) for part in kinds], dim=1),
        None if masks is None else masks.to(device, mask_dtype).expand(N, -1, -1, -1),
    )


def _check_prompts(
    points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None, mask_size: int
) -> None:
    if (points is None) != (labels is None):
        missing = "point_coords" if points is None else "point_labels"
        raise ValueError(f"{missing} is missing: a click has a place (x, y) and a label, 1 foreground or 0 background")
    if points is not None and labels is not None:
        shapes = f"{tuple(points.shape[1:])} and {tuple(labels.shape[1:])}"
        if points.ndim != 3 or points.shape[2] != 2 or labels.shape != points.shape[:2]:
            raise ValueError(f"clicks are (K, 2) xy with K labels for each object, got {shapes}")
        if unknown := set(labels.flatten().tolist()) - {-1, 0, 1}:
            raise ValueError(f"labels are 1 foreground, 0 background, -1 padding, got {sorted(unknown)}")
    if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes are (N, 4) xyxy, got {tuple(boxes.shape)}")
    if masks is not None and (masks.ndim != 4 or masks.shape[1:] != (1, mask_size, mask_size)):
        raise ValueError(
            f"a mask input is the (1, {mask_size}, {mask_size}) low resolution logits that an earlier prediction "
            f"returned, got {tuple(masks.shape[1:])}"
        )
    for name, given in (("clicks", points), ("boxes", boxes), ("the mask input", masks)):
        if given is not None and not torch.isfinite(given).all():
            raise ValueError(f"{name} hold NaN or infinity: give finite numbers")
    counts = {len(given) for given in (points, boxes) if given is not None}
    if len(counts) > 1 or (masks is not None and counts and len(masks) not in (1, *counts)):
        raise ValueError("clicks, boxes and masks have different numbers of objects: give each the same number of rows")

"""Draws training samples for people: an image with its masks, then some of its objects with simulated prompts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.boxes import masks_to_boxes_xyxy
from samtrain.panels import draw_panel
from samtrain.prompts import POINT, Sampler
from samtrain.terminal import counted
from samtrain.types import Batch, Prompts

OBJECTS = 4  # per image that are drawn with prompts


def row_of(batch: Batch, sampler: Sampler, generator: torch.Generator) -> list[np.ndarray]:
    """Returns the tiles of a batch of one image: all masks together, then some objects with the prompts of a whole schedule."""
    # cut off the padding
    height, width = batch.input_sizes[0].tolist()
    image = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
    objects = batch.masks[batch.weights > 0]
    masks = objects[:, :height, :width].numpy()

    tiles = [draw_panel(image, masks, caption=f"{batch.keys[0]}, {counted(len(masks), 'mask')}")]
    if len(masks) == 0:
        return tiles
    valid = batch.valid().expand(len(objects), -1, -1)
    prompts = _prompts(objects, valid, sampler, generator)
    for i in range(min(OBJECTS, len(masks))):
        area = int(masks[i].sum())
        tiles.append(draw_panel(image, masks[i : i + 1], prompts.select(slice(i, i + 1)), caption=counted(area, "pixel")))
    return tiles


def _prompts(objects: Tensor, valid: Tensor, sampler: Sampler, generator: torch.Generator) -> Prompts:
    """Returns the prompts of a schedule in which every prediction is the left half of the object's box.

    Such a prediction is wrong on both sides of the object's edge, so that clicks fall on the object and off it.
    """
    predicted = torch.zeros(objects.shape)
    for mask, (x0, y0, x1, y1) in zip(predicted, masks_to_boxes_xyxy(objects).long().tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : (x0 + x1) // 2 + 1] = 1
    prompts = sampler.first(objects, valid, generator)
    for kind in sampler.schedule(generator):
        if kind == POINT:
            # 0.5 less, so that logits are negative outside the prediction
            prompts = sampler.next(prompts, objects, predicted - 0.5, valid, generator)
    return prompts

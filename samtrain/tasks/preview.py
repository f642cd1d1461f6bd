"""`task=preview`: what training sees: images as they come into the input, their masks, simulated prompts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samtrain.data.datasets import SamDataset, collate
from samtrain.ops.boxes import masks_to_boxes_xyxy
from samtrain.panels import draw_panel, tile_panels
from samtrain.prompts import POINT, Sampler, seeded_generator
from samtrain.run.build import Config, make_prompts, sam_config_of, transforms_of
from samtrain.run.image_sets import is_native, open_set
from samtrain.run.preflight import check_images
from samtrain.types import Batch, Prompts

log = logging.getLogger(__name__)

OBJECTS = 4  # of each image that are shown with prompts


def run(config: Config, run_dir: Path) -> None:
    """Write `preview.png`, a row an image."""
    images = open_set(config["data"], config["data_dir"])
    sam = sam_config_of(config)
    native, jitter = is_native(config["data"], images, sam), config["loader"]["large_scale_jitter"]
    check_images(config, images, image_size=sam.image_size, native=native)
    transform, _ = transforms_of(config, image_size=sam.image_size, native=native, jitter=jitter)
    dataset = SamDataset(
        images.train,
        transform,
        max_masks=config["loader"]["max_masks"],
        seed=config["seed"],
        on_error=config["data"]["on_error"],
    )
    count = min(config["preview"]["images"], len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
    sampler = make_prompts(config)
    rows = [_row(collate([dataset.get(0, i)]), sampler, seeded_generator("cpu", config["seed"], i)) for i in indices]
    path = run_dir / "preview.png"
    Image.fromarray(tile_panels(rows)).save(path)
    log.info("%d images in %s", count, path)


def _row(batch: Batch, sampler: Sampler, generator: torch.Generator) -> list[np.ndarray]:
    """The image with its masks, then some objects with the prompts of a whole schedule."""
    height, width = batch.input_sizes[0].tolist()
    image = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
    objects = batch.masks[batch.weights > 0]
    masks = objects[:, :height, :width].numpy()
    tiles = [draw_panel(image, masks, caption=f"{batch.keys[0]}, {len(masks)} masks")]
    if len(masks) == 0:
        return tiles
    valid = batch.valid().expand(len(objects), -1, -1)
    prompts = _prompts(objects, valid, sampler, generator)
    for i in range(min(OBJECTS, len(masks))):
        area = int(masks[i].sum())
        tiles.append(draw_panel(image, masks[i : i + 1], prompts.select(slice(i, i + 1)), caption=f"{area} pixels"))
    return tiles


def _prompts(objects: Tensor, valid: Tensor, sampler: Sampler, generator: torch.Generator) -> Prompts:
    """As if every prediction were the object's box: clicks fall off the object and on it."""
    predicted = torch.zeros(objects.shape)
    for mask, (x0, y0, x1, y1) in zip(predicted, masks_to_boxes_xyxy(objects).long().tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : (x0 + x1) // 2 + 1] = 1  # half of it
    prompts = sampler.first(objects, valid, generator)
    for kind in sampler.schedule(generator):
        if kind == POINT:
            prompts = sampler.next(prompts, objects, predicted - 0.5, valid, generator)
    return prompts

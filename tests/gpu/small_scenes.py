"""Synthetic scenes of 96 pixels in memory, and the loss of a training step on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from samtrain.data.datasets import collate
from samtrain.data.scenes import generate_scene
from samtrain.data.transforms import ResizeLongestSide, Sample
from samtrain.interact import interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.modeling.sam import Sam
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh
from samtrain.prompts import Sampler, seeded_generator
from samtrain.types import Batch

SIDE = 96


def scene_record(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns a synthetic scene and its annotations."""
    scene = generate_scene((7, seed), (SIDE, SIDE))
    rles = [encode_mask(mask) for mask in scene.masks]
    return scene.image, [
        {"id": i, "segmentation": rle, "area": rle_area(rle), "bbox": rle_to_box_xywh(rle)} for i, rle in enumerate(rles)
    ]


def scene_sample(seed: int) -> Sample:
    image, annotations = scene_record(seed)
    return ResizeLongestSide(image_size=SIDE)(image, annotations, 8, np.random.default_rng(seed))


def scenes(first: int, count: int = 4) -> Batch:
    """Returns a batch of synthetic scenes, on the CPU."""
    return collate([scene_sample(seed) for seed in range(first, first + count)])


def step_loss(sam: Sam, batch: Batch, sampler: Sampler, loss: SamLoss, seed: int = 0) -> Tensor:
    """Returns the loss of one training step, as `LitSam` computes it."""
    place = batch.images.device

    def losses(embeddings: Tensor) -> Any:
        return interaction_losses(
            sam,
            embeddings,
            batch,
            sampler,
            loss,
            schedule=sampler.schedule(seeded_generator("cpu", seed)),
            generator=seeded_generator(place, seed),
            num_objects=float(len(batch.masks)),
        )

    embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
    return loss_with_flat_memory(sam, embeddings, losses)[0]

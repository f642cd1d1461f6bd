"""Small images with shapes, and a model that makes masks of them without having learnt anything."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samtrain.modeling import build_sam
from samtrain.modeling.checkpoints import save_safetensors


def shapes(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """An image of a few rectangles."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
        h, w = rng.integers(8, 20, 2)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return image


def as_jpeg(image: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", **options)
    return stream.getvalue()


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"image_{i}.jpg").write_bytes(as_jpeg(shapes(i)))
    return folder


def write_model(path: Path, seed: int = 3) -> Path:
    """vit_tiny with random weights that are large enough for prompts to matter."""
    torch.manual_seed(seed)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    last.weight.data *= 0.05  # what is said of masks is near 0.7
    last.bias.data += 0.7
    for mlp in sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 30  # logits steep enough to be stable
    return save_safetensors(sam, path)

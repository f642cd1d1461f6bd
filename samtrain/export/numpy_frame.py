"""Shows an image to a model with NumPy and PIL alone, as a program without PyTorch does."""

from __future__ import annotations

import numpy as np
from PIL import Image

from samtrain.modeling.sam import SamConfig
from samtrain.ops.masks import longest_side_size


def resized_pixels(image: np.ndarray, config: SamConfig) -> np.ndarray:
    """Returns (h, w, 3) float32 pixels of 0 to 255: the (H, W, 3) uint8 image with its longest side resized to the input's."""
    height, width = longest_side_size(image.shape[:2], config.image_size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def network_input(image: np.ndarray, config: SamConfig) -> np.ndarray:
    """Returns (1, 3, S, S) float32: the image resized, normalised, and padded with zeros at the bottom and on the right."""
    pixels = resized_pixels(image, config)
    normalised = (pixels - np.array(config.pixel_mean, np.float32)) / np.array(config.pixel_std, np.float32)
    padded = np.zeros((config.image_size, config.image_size, 3), np.float32)
    padded[: pixels.shape[0], : pixels.shape[1]] = normalised
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])  # AOTInductor does not look at strides


def in_input_frame(points: np.ndarray, original_size: tuple[int, int], config: SamConfig) -> np.ndarray:
    """Returns (..., 2) float32 points (x, y) of the image in pixels of the network's input."""
    (height, width), (new_height, new_width) = original_size, longest_side_size(original_size, config.image_size)
    return np.ascontiguousarray(points * [new_width / width, new_height / height], np.float32)

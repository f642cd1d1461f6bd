"""Prepares images and prompts for the model: checks images, and converts both to the input frame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samtrain.modeling.sam import Sam
from samtrain.ops.masks import longest_side_size
from samtrain.types import Size


class ResizeLongestSide:
    """Converts images and prompts to the input frame, where the longest side has `target_length` pixels."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def size(self, original_size: Size) -> Size:
        """Returns (H, W) in the input frame."""
        return longest_side_size(original_size, self.target_length)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Returns the (H, W, 3) uint8 image resized with PIL's bilinear filter, as in training."""
        height, width = self.size(image.shape[:2])
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Returns (B, 3, H, W) float images resized on their device; close to `apply_image`, but not equal."""
        size = self.size((image.shape[2], image.shape[3]))
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords(self, coords: np.ndarray, original_size: Size) -> np.ndarray:
        """Returns (..., 2) float64 (x, y) in the input frame; each axis has its own scale, because sizes are rounded."""
        return np.asarray(coords, dtype=np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: np.ndarray, original_size: Size) -> np.ndarray:
        """Returns (N, 4) float64 xyxy in the input frame."""
        return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: Size) -> Tensor:
        """Returns (..., 2) float32 (x, y) in the input frame, equal to the bit to those of `predict`."""
        scaled = self.apply_coords(coords.cpu().numpy(), original_size)
        return torch.as_tensor(scaled, dtype=torch.float32, device=coords.device)

    def apply_boxes_torch(self, boxes: Tensor, original_size: Size) -> Tensor:
        """Returns (N, 4) float32 xyxy in the input frame."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def _scale(self, original_size: Size) -> np.ndarray:
        height, width = self.size(original_size)
        return np.array([width / original_size[1], height / original_size[0]])


def as_rgb(image: np.ndarray, image_format: str = "RGB") -> np.ndarray:
    """Returns the image as (H, W, 3) uint8 RGB; raises ValueError for any other array or format."""
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format is {image_format!r}: use 'RGB' or 'BGR'")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"set_image takes an (H, W, 3) uint8 image of 0 to 255, got {image.shape} {image.dtype}: "
            "np.asarray(PIL.Image.open(path).convert('RGB')) gives one"
        )
    return image if image_format == Sam.image_format else np.ascontiguousarray(image[..., ::-1])

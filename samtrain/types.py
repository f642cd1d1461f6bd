"""Read this page first: it declares the letters in shape names and the data that modules pass to one another.

The letters below are written into the names of tensors (``masks_NHW`` is N masks of H x W):

====== =========================================================================================
letter meaning
====== =========================================================================================
B      images of a batch
N      objects, each with one prompt; the objects of all images of a batch form one list
K      prompt tokens per object: clicks, the two corners of a box, a text, the padding token
M      masks per prompt: 3 for an ambiguous prompt, 1 otherwise
C      channels
E      length of an embedding of CLIP
S      side of the square network input, in pixels (1024 in the paper)
H W    height and width of the frame in question
h w    height and width of the decoder's own mask grid (256 x 256 in the paper)
g      side of the image embedding's grid (64 in the paper)
====== =========================================================================================

Points are ``(x, y)``, sizes ``(H, W)``. The *input frame* counts pixels of the S x S network input, the *original frame* counts
pixels of the image as stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]  # (H, W)


class PointLabel(IntEnum):
    """Names the kind of a prompt token; the numbers are those of Meta's ONNX model and of SAM 2."""

    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3
    TEXT = 4  # ours


@dataclass
class Prompts:
    """Holds the prompts of N objects, all with equally many tokens.

    A click is one token and a box is two. An object without a box carries a padding token, so that objects prompted by a click
    and objects prompted by a box have the same number of tokens and fit into one batch. A text takes the place of the padding.

    coords:       (N, K, 2) float32, (x, y) in the input frame
    labels:       (N, K) int64, `PointLabel`
    mask_logits:  (N, 1, h, w) float32, logits of an earlier prediction before any threshold, or None
    text:         (N, E) float32, an embedding of CLIP of length 1 for each object with a text token, or None if there is none
    """

    coords: Tensor
    labels: Tensor
    mask_logits: Tensor | None = None
    text: Tensor | None = None

    def __len__(self) -> int:
        return self.coords.shape[0]

    def with_point(self, coords_N2: Tensor, labels_N: Tensor) -> Prompts:
        """Returns the prompts with one more token per object, placed before the others so that a box stays at the end."""
        return replace(
            self,
            coords=torch.cat([coords_N2[:, None], self.coords], dim=1),
            labels=torch.cat([labels_N[:, None], self.labels], dim=1),
        )

    def with_mask(self, logits_N1hw: Tensor | None) -> Prompts:
        """Returns the same clicks and boxes together with the logits of an earlier prediction."""
        return replace(self, mask_logits=logits_N1hw)

    def with_text(self, text_NE: Tensor, rows_N: Tensor | None = None) -> Prompts:
        """Returns the prompts with a text in place of the first padding token of the objects in `rows_N` (bool, None: all).

        If one of them has no padding token, all objects get one more token.
        """
        rows_N = torch.ones_like(self.labels[:, 0], dtype=torch.bool) if rows_N is None else rows_N
        coords, labels = self.coords, self.labels
        if not bool(((labels == PointLabel.PADDING).any(dim=1) | ~rows_N).all()):
            coords = torch.cat([coords, torch.zeros_like(coords[:, :1])], dim=1)
            labels = torch.cat([labels, torch.full_like(labels[:, :1], PointLabel.PADDING)], dim=1)
        padding = labels == PointLabel.PADDING
        labels = labels.masked_fill(padding & (padding.cumsum(dim=1) == 1) & rows_N[:, None], int(PointLabel.TEXT))
        return replace(self, coords=coords, labels=labels, text=text_NE)

    def select(self, rows: Tensor | slice) -> Prompts:
        """Returns the prompts of the objects in `rows`."""
        mask, text = (None if each is None else each[rows] for each in (self.mask_logits, self.text))
        return Prompts(self.coords[rows], self.labels[rows], mask, text)


@dataclass
class Batch:
    """Holds B images and the N objects that were chosen in them.

    images:          (B, 3, S, S) uint8 RGB; resized, zero in the padding at the bottom and on the right
    masks:           (N, S, S) bool, the objects in the input frame
    image_index:     (N,) int64, ascending: the image that each object belongs to
    weights:         (N,) float32, 1 for an object, 0 for a placeholder that only fills the batch
    input_sizes:     (B, 2) int64, (H, W) of the part that is not padding
    original_sizes:  (B, 2) int64, (H, W) of the image as stored
    keys:            B names of the images, for logs and panels
    objects:         for each image the numbers of its objects among the annotations of its record; empty if nobody needs them
    """

    images: Tensor
    masks: Tensor
    image_index: Tensor
    weights: Tensor
    input_sizes: Tensor
    original_sizes: Tensor
    keys: list[str]
    objects: list[list[int]] = field(default_factory=list)

    def valid(self) -> Tensor:
        """Returns (B, S, S) bool, False in the padding of each image."""
        return valid_pixels(self.input_sizes, self.images.shape[-1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory; PyTorch's DataLoader calls this method."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns a batch with `function` applied to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        return Batch(**changed)


@dataclass
class SamOutput:
    """Holds what the mask decoder predicts for N prompts.

    low_res_logits:   (N, M, h, w); a pixel belongs to the mask where its logit is above 0
    iou_predictions:  (N, M), the estimated IoU of each mask with the object; unbounded, because no sigmoid is applied
    """

    low_res_logits: Tensor
    iou_predictions: Tensor

    def best(self) -> Tensor:
        """Returns (N,) int64, the index of the mask with the highest predicted IoU."""
        return self.iou_predictions.argmax(dim=1)


def valid_pixels(sizes_B2: Tensor, side: int) -> Tensor:
    """Returns (B, S, S) bool, True in the top left rectangle of each (H, W) in `sizes_B2`."""
    steps = torch.arange(side, device=sizes_B2.device)
    rows_BS, columns_BS = steps[None] < sizes_B2[:, :1], steps[None] < sizes_B2[:, 1:]
    return rows_BS[:, :, None] & columns_BS[:, None, :]

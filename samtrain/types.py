"""The page to read first: the letters in shape names, and the three things that modules hand to one another.

Shape legend, written into the names of tensors that are juggled (``masks_NHW``):

====== =========================================================================================
letter meaning
====== =========================================================================================
B      images of a batch
N      prompts, one an object; the objects of all images of a batch stand in one list
K      prompt tokens: clicks, the two corners of a box, the padding token
M      masks a prompt: 3 for an ambiguous prompt, 1 otherwise
C      channels
S      side of the square network input, in pixels (1024 in the paper)
H W    height and width of the frame at hand
h w    height and width of the decoder's own mask grid (256 x 256 in the paper)
g      side of the image embedding's grid (64 in the paper)
====== =========================================================================================

Points are ``(x, y)``, sizes ``(H, W)``. *Input frame* means pixels of the S x S network input, *original frame* pixels of the
image as stored.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

Size = tuple[int, int]  # (H, W)


class PointLabel(IntEnum):
    """What a prompt token is; the numbers are those of Meta's ONNX model and of SAM 2."""

    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3


@dataclass
class Prompts:
    """What is said about N objects.

    A click is one token, a box two; an object without a box carries a padding token, so objects begun by a click and by a box
    have equally many tokens and share a batch.

    coords:       (N, K, 2) float32, (x, y) in the input frame
    labels:       (N, K) int64, `PointLabel`
    mask_logits:  (N, 1, h, w) float32, unthresholded logits of an earlier prediction, or None
    """

    coords: Tensor
    labels: Tensor
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return self.coords.shape[0]

    def with_point(self, coords_N2: Tensor, labels_N: Tensor) -> Prompts:
        """One more token for each object, put before the others so that a box stays at the end."""
        return replace(
            self,
            coords=torch.cat([coords_N2[:, None], self.coords], dim=1),
            labels=torch.cat([labels_N[:, None], self.labels], dim=1),
        )

    def with_mask(self, logits_N1hw: Tensor | None) -> Prompts:
        """The same clicks beside the logits of an earlier prediction."""
        return replace(self, mask_logits=logits_N1hw)

    def select(self, rows: Tensor | slice) -> Prompts:
        """The prompts of some of the objects."""
        mask = None if self.mask_logits is None else self.mask_logits[rows]
        return Prompts(self.coords[rows], self.labels[rows], mask)


@dataclass
class Batch:
    """B images and the N objects chosen in them.

    images:          (B, 3, S, S) uint8 RGB; resized, zero in the padding at the bottom and on the right
    masks:           (N, S, S) bool, the objects in the input frame
    image_index:     (N,) int64, ascending: the image an object lies in
    weights:         (N,) float32, 1 for an object, 0 for one that only fills the batch
    input_sizes:     (B, 2) int64, (H, W) of the part that is not padding
    original_sizes:  (B, 2) int64, (H, W) of the image as stored
    keys:            B names, for logs and panels
    """

    images: Tensor
    masks: Tensor
    image_index: Tensor
    weights: Tensor
    input_sizes: Tensor
    original_sizes: Tensor
    keys: list[str]

    def valid(self) -> Tensor:
        """(B, S, S) bool, False where an image is padding."""
        return valid_pixels(self.input_sizes, self.images.shape[-1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; PyTorch's loader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: function(v) if isinstance(v, Tensor) else v for name, v in values.items()})


@dataclass
class SamOutput:
    """What the mask decoder says.

    low_res_logits:   (N, M, h, w), mask where above 0
    iou_predictions:  (N, M), estimated IoU of each mask with the object; unbounded, there is no sigmoid
    """

    low_res_logits: Tensor
    iou_predictions: Tensor

    def best(self) -> Tensor:
        """(N,) int64, the mask of highest predicted IoU."""
        return self.iou_predictions.argmax(dim=1)


def valid_pixels(sizes_B2: Tensor, side: int) -> Tensor:
    """(B, S, S) bool, True inside each (H, W) counted from the top left corner."""
    steps = torch.arange(side, device=sizes_B2.device)
    rows, columns = steps[None] < sizes_B2[:, :1], steps[None] < sizes_B2[:, 1:]
    return rows[:, :, None] & columns[:, None, :]

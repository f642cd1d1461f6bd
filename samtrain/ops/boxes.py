"""Converts and clips boxes. Names give the format; the last axis holds the coordinates.

Edges are pixel indices, the last one included, as in segment_anything.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masks_to_boxes_xyxy(masks_NHW: Tensor) -> Tensor:
    """Returns (N, 4) float32 boxes around (N, H, W) bool masks; zeros for an empty mask."""
    H, W = masks_NHW.shape[-2:]
    rows, columns = masks_NHW.any(dim=2).float(), masks_NHW.any(dim=1).float()
    # argmax finds the first row or column in use; from the other end it finds the last
    y0, x0 = rows.argmax(dim=1), columns.argmax(dim=1)
    y1, x1 = H - 1 - rows.flip(1).argmax(dim=1), W - 1 - columns.flip(1).argmax(dim=1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * rows.any(dim=1)[:, None]


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Returns (..., 4) xywh; sides are differences of coordinates, one pixel less than the extent, as in segment_anything."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Returns (..., 4) xyxy, the inverse of `xyxy_to_xywh`."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def clip_boxes_xyxy(boxes_N4: Tensor, sizes_N2: Tensor) -> Tensor:
    """Returns the xyxy boxes clipped to images of (H, W); coordinates end at the last pixel."""
    limits = (sizes_N2.flip(-1) - 1).repeat(1, 2).to(boxes_N4.dtype)
    return boxes_N4.clamp(min=0).minimum(limits)

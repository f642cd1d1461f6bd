"""Cuts square crops of objects out of images, as CLIP is shown them (paper, appendix D.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.ops.boxes import masks_to_boxes_xyxy


def object_crops(image_3HW: Tensor, masks_NHW: Tensor, side: int, scale_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a square crop around each object, resized to `side` pixels, and the object's mask in it.

    The square's centre is that of the object's box, and its side is the box's longer side times `scale_N`. What lies outside
    of the image is black.

    Args:
        image_3HW: uint8 RGB.
        masks_NHW: bool, the objects.
        side: pixels of the crops.
        scale_N: 1 for the tight square, 2 for twice its side.

    Returns:
        (N, 3, side, side) uint8 and (N, side, side) bool. An empty mask has a crop of the corner and an empty mask.
    """
    crops = image_3HW.new_zeros(len(masks_NHW), 3, side, side)
    inside = torch.zeros(len(masks_NHW), side, side, dtype=torch.bool, device=image_3HW.device)
    boxes = masks_to_boxes_xyxy(masks_NHW)
    squares = _squares(boxes, scale_N.to(boxes)).tolist()
    for i, (left, top, length) in enumerate(squares):
        window = torch.cat([image_3HW, masks_NHW[i][None].to(image_3HW.dtype)])
        patch = _cut(window, left, top, length).float()[None]
        resized = F.interpolate(patch[:, :3], (side, side), mode="bilinear", antialias=True)
        crops[i] = resized[0].round().clamp(0, 255).to(crops.dtype)
        inside[i] = F.interpolate(patch[:, 3:], (side, side), mode="area")[0, 0] > 0.5
    return crops, inside


def _squares(boxes_N4: Tensor, scale_N: Tensor) -> Tensor:
    """Returns (N, 3) int64: left, top and length of the square around each box, whose last pixels belong to it."""
    centres = (boxes_N4[:, :2] + boxes_N4[:, 2:] + 1) / 2
    length = ((boxes_N4[:, 2:] - boxes_N4[:, :2]).amax(dim=1) + 1) * scale_N
    length = length.round().clamp(min=1)
    corner = (centres - length[:, None] / 2).round()
    return torch.cat([corner, length[:, None]], dim=1).long()


def _cut(planes_CHW: Tensor, left: int, top: int, length: int) -> Tensor:
    """Returns (C, length, length), zero outside of the image."""
    height, width = planes_CHW.shape[-2:]
    rows, columns = slice(max(top, 0), min(top + length, height)), slice(max(left, 0), min(left + length, width))
    part = planes_CHW[:, rows, columns]
    out = planes_CHW.new_zeros(planes_CHW.shape[0], length, length)
    y, x = rows.start - top, columns.start - left
    out[:, y : y + part.shape[1], x : x + part.shape[2]] = part
    return out


def without_background(crops_N3ss: Tensor, inside_Nss: Tensor, zeroed_N: Tensor) -> Tensor:
    """Returns the crops with the pixels outside of the mask set to zero where `zeroed_N` is true."""
    keep = inside_Nss | ~zeroed_N[:, None, None]
    return crops_N3ss * keep[:, None].to(crops_N3ss.dtype)

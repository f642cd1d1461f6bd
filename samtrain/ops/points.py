"""Chooses points in masks: uniformly at random on the device, or at the centre."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def uniform_points(masks_NHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws a pixel uniformly from each mask: (N, 2) float32 (x, y), and (N,) bool, False for an empty mask.

    The pixel is found by its row and its place in the row, so there is no loop, no transfer to the host, and only N random
    numbers instead of N x H x W.
    """
    N, H, W = masks_NHW.shape
    device = masks_NHW.device
    per_row = masks_NHW.sum(dim=2).cumsum(dim=1)
    total = per_row[:, -1]

    # draw the k-th pixel of the mask, counted row by row; in float64 rand < 1 keeps k below the total
    uniform = torch.rand(N, generator=generator, device=device, dtype=torch.float64)
    k = torch.minimum((uniform * total).long(), (total - 1).clamp(min=0))

    # find its row, then its place among the pixels of the row
    y = torch.searchsorted(per_row, k[:, None], right=True).squeeze(1).clamp(max=H - 1)
    before = torch.where(y > 0, per_row.gather(1, (y - 1).clamp(min=0)[:, None]).squeeze(1), torch.zeros_like(y))
    row = masks_NHW[torch.arange(N, device=device), y].cumsum(dim=1)
    x = torch.searchsorted(row, (k - before)[:, None], right=True).squeeze(1).clamp(max=W - 1)
    return torch.stack([x, y], dim=1).float(), total > 0


def centre_points(masks_NHW: Tensor, excluded_NHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the pixel farthest from each mask's border, (N, 2) float32 (x, y), and its distance in pixels, (N,), 0 if empty.

    The image's edge is a border, too. Among equal pixels the first in row order is taken. Pixels of `excluded_NHW` (bool)
    belong to the mask but are not taken. SciPy computes this on the host, which is fast enough for evaluation.
    """
    excluded = [None] * len(masks_NHW) if excluded_NHW is None else excluded_NHW.cpu().numpy()
    found = [_centre(mask, no) for mask, no in zip(masks_NHW.cpu().numpy(), excluded, strict=True)]
    coords = torch.tensor([[x, y] for x, y, _ in found], dtype=torch.float32).reshape(-1, 2)
    distances = torch.tensor([distance for _, _, distance in found], dtype=torch.float32)
    return coords.to(masks_NHW.device), distances.to(masks_NHW.device)


def _centre(mask_HW: np.ndarray, excluded_HW: np.ndarray | None) -> tuple[int, int, float]:
    """Returns x, y and the distance to the border of one mask's centre."""
    # within the mask's box, padded by one pixel, distances are those in the whole image
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0.0
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    distance = distance_transform_edt(np.pad(mask_HW[box], 1))[1:-1, 1:-1]
    if excluded_HW is not None:
        distance = distance * ~excluded_HW[box]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x + columns[0]), int(y + rows[0]), float(distance[y, x])

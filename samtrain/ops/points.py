"""Points in masks: drawn uniformly on the device, or found at the centre."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def uniform_points(masks_NHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A pixel drawn uniformly from each mask: (N, 2) float32 (x, y), and (N,) bool, False where a mask is empty.

    First a row by its number of pixels, then a pixel of the row: no loop, no host round trip, no N x H x W random field.
    """
    N, H, W = masks_NHW.shape
    device = masks_NHW.device
    per_row = masks_NHW.sum(dim=2).cumsum(dim=1)
    total = per_row[:, -1]

    # the k-th pixel of the mask, counted row by row; rand < 1 in float64 keeps k below the total
    uniform = torch.rand(N, generator=generator, device=device, dtype=torch.float64)
    k = torch.minimum((uniform * total).long(), (total - 1).clamp(min=0))

    # its row, then how many pixels of the row stand before it
    y = torch.searchsorted(per_row, k[:, None], right=True).squeeze(1).clamp(max=H - 1)
    before = torch.where(y > 0, per_row.gather(1, (y - 1).clamp(min=0)[:, None]).squeeze(1), torch.zeros_like(y))
    row = masks_NHW[torch.arange(N, device=device), y].cumsum(dim=1)
    x = torch.searchsorted(row, (k - before)[:, None], right=True).squeeze(1).clamp(max=W - 1)
    return torch.stack([x, y], dim=1).float(), total > 0


def centre_points(masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel farthest from each mask's border: (N, 2) float32 (x, y), and (N,) its distance in pixels, 0 where empty.

    The image's edge is a border too. Of equal pixels the first in row order is taken. Runs on the host: for evaluation.
    """
    found = [_centre(mask) for mask in masks_NHW.cpu().numpy()]
    coords = torch.tensor([[x, y] for x, y, _ in found], dtype=torch.float32).reshape(-1, 2)
    distances = torch.tensor([distance for _, _, distance in found], dtype=torch.float32)
    return coords.to(masks_NHW.device), distances.to(masks_NHW.device)


def _centre(mask_HW: np.ndarray) -> tuple[int, int, float]:
    # the distance transform of the mask's own box is the whole image's, once a border of one pixel is put round it
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0.0
    box = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    distance = distance_transform_edt(np.pad(box, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x + columns[0]), int(y + rows[0]), float(distance[y, x])

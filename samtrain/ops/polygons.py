"""Turns masks into COCO's polygons without losing a pixel: drawing them again gives the same mask."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy import ndimage


def mask_to_polygons(mask_HW: np.ndarray) -> list[list[int]]:
    """Returns polygons x, y, x, y, ... of an (H, W) bool mask, one for each region of pixels that share an edge.

    The corners are those of pixels, so the outline runs between the pixels and no half pixel is lost or won. COCO has no
    holes: a hole is joined to its outline by a seam, a line that runs there and back and encloses nothing. An empty mask has
    no polygons.
    """
    labels, count = ndimage.label(mask_HW)  # regions of pixels that share an edge
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels, count), start=1):
        loops = _loops(labels[rows, columns] == number)
        outline = _joined(loops) + [columns.start, rows.start]
        if outline.max() <= 1 < max(mask_HW.shape) - 1:  # the first pixel alone would be read as shares of the sides
            outline = np.insert(outline, 1, [[2, 0], [1, 0]] if mask_HW.shape[1] > 2 else [[0, 2], [0, 0]], axis=0)
        found.append([int(value) for value in outline.ravel()])
    return found


def _loops(region_HW: np.ndarray) -> list[np.ndarray]:
    """Returns the closed outlines of a region as (N, 2) corners x, y: the outer one first, then those of its holes."""
    # a point between four pixels is a corner if an odd number of them is set, and two corners if two opposite ones are
    padded = np.pad(region_HW, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    odd, double = a ^ b ^ c ^ d, (a == d) & (b == c) & (a != b)
    rows, columns = np.nonzero(odd | double)
    again = double[rows, columns]
    y, x = np.repeat(rows, 1 + again), np.repeat(columns, 1 + again)
    # edges alternate: along its row, and along its column, each corner is joined to one other
    across, along = _partners(np.lexsort((x, y))), _partners(np.lexsort((y, x)))
    left = np.ones(len(x), dtype=bool)
    loops = []
    for start in range(len(x)):
        if not left[start]:
            continue
        loop = [start]
        while True:
            loop.append(int(across[loop[-1]]))
            following = int(along[loop[-1]])
            if following == start:
                break
            loop.append(following)
        left[loop] = False
        loops.append(np.stack([x[loop], y[loop]], axis=1))
    return loops


def _partners(order: np.ndarray) -> np.ndarray:
    """Returns for each corner the one that it forms an edge with: in this order, the first with the second, and so on."""
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _joined(loops: list[np.ndarray]) -> np.ndarray:
    """Returns one outline of all loops; each further loop is a detour from the corner of the first that is nearest to it."""
    outer, *holes = loops
    detours: dict[int, list[np.ndarray]] = defaultdict(list)
    for hole in holes:
        distances = np.abs(outer - hole[0]).sum(axis=1)
        detours[int(distances.argmin())] += [hole, hole[:1], outer[distances.argmin()][None]]
    parts = []
    for number, corner in enumerate(outer):
        parts += [corner[None], *detours.get(number, [])]
    return np.concatenate(parts)

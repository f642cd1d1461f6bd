"""Thins lines to a width of one pixel, as BSDS500's benchmark does before it matches edges."""

from __future__ import annotations

import numpy as np

# the neighbours x1 to x8 of a pixel, from the right one counter-clockwise: (row, column) in a window padded by one pixel
NEIGHBOURS = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))


def thin(lines_HW: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool: the lines of an (H, W) bool image, each thinned to one pixel; none is broken and none vanishes.

    Removes pixels from the border in turns from two sides until nothing changes (Guo and Hall 1989, in the form of Lam, Lee
    and Suen 1992, which is MATLAB's bwmorph(..., 'thin', inf)).
    """
    thinned = np.array(lines_HW, dtype=bool)
    while True:
        before = int(thinned.sum())
        for turn in (0, 1):
            thinned[_removable(thinned, turn)] = False
        if int(thinned.sum()) == before:
            return thinned


def _removable(lines_HW: np.ndarray, turn: int) -> np.ndarray:
    """Returns (H, W) bool, the pixels that can go without a change of shape: on the one side in turn 0, on the other in 1."""
    H, W = lines_HW.shape
    padded = np.pad(lines_HW, 1)
    x = [padded[row : row + H, column : column + W] for row, column in NEIGHBOURS]
    following = [*x[1:], x[0]]
    # the pixel joins nothing: one change from off to on around it
    crossings = sum((~x[i] & (x[i + 1] | following[i + 1])).astype(np.int8) for i in (0, 2, 4, 6))
    # it is neither the end of a line nor inside of an area
    pairs = [sum((x[i] | following[i]).astype(np.int8) for i in range(first, 8, 2)) for first in (0, 1)]
    fewer = np.minimum(*pairs)
    # it lies on this turn's side
    a, b, c, d = (x[1], x[2], x[7], x[0]) if turn == 0 else (x[5], x[6], x[3], x[4])
    return lines_HW & (crossings == 1) & (fewer >= 2) & (fewer <= 3) & ~((a | b | ~c) & d)

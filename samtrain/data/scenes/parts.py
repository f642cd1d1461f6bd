"""Paints parts of an object: along its outline, across it, or inside it."""

from __future__ import annotations

import numpy as np

from samtrain.data.scenes.canvas import Canvas, Patch, cropped
from samtrain.data.scenes.shapes import draw_shape
from samtrain.data.scenes.surfaces import Surface


def _inner(owner: Patch, inner: np.ndarray, surface: Surface, shape: str, radius: float | None = None) -> Patch:
    """Returns a part in its owner's window, clipped to the owner; its centre is the mean of its pixels."""
    inner = np.maximum(inner, owner.field)
    rows, columns = np.nonzero(inner < 0)
    centre = owner.centre
    if len(rows):
        centre = (columns.mean() + owner.columns.start, rows.mean() + owner.rows.start)
    return cropped(Patch(owner.rows, owner.columns, inner, centre, radius or owner.radius * 0.6, surface, shape), 1.0)


def core(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Returns the inside of an outline parallel to the owner's, like a plate's bottom or a screen."""
    depth = -owner.field.min() * canvas.rng.uniform(0.14, 0.3)
    return [_inner(owner, owner.field + depth, surface, "core")]


def cap(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Returns the part on one side of a straight cut, like a roof or a lid."""
    along = _along(canvas, owner)
    cut = np.quantile(along[owner.field < 0], canvas.rng.uniform(0.36, 0.5))
    return [_inner(owner, along - cut, surface, "cap")]


def band(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Returns a strip across the owner, like a belt or a label."""
    along, start = _along(canvas, owner), canvas.rng.uniform(0.05, 0.15)
    low, high = np.quantile(along[owner.field < 0], (start, start + canvas.rng.uniform(0.34, 0.46)))
    return [_inner(owner, np.maximum(low - along, along - high), surface, "band")]


def _along(canvas: Canvas, owner: Patch) -> np.ndarray:
    """Returns coordinates along a random direction in the owner's window."""
    angle = canvas.rng.uniform(0, 2 * np.pi)
    return canvas.x[owner.rows, owner.columns] * np.cos(angle) + canvas.y[owner.rows, owner.columns] * np.sin(angle)


def inset(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Returns one shape inside, like a nucleus, an eye or a door."""
    rng = canvas.rng
    depth = owner.field / owner.field.min()  # 0 at the outline, 1 at the middle
    rows, columns = np.nonzero((depth > 0.4) & (depth < 0.7))
    pick = rng.integers(len(rows))
    radius = -float(owner.field.min()) * rng.uniform(0.65, 0.85)
    kind = ("ellipse", "blob", "polygon", "box")[rng.integers(4)]
    return [_placed(canvas, owner, kind, (rows[pick], columns[pick]), radius, surface, rng.uniform(0, 2 * np.pi))]


def windows(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Returns up to three equal shapes on a lattice."""
    rng = canvas.rng
    radius = max(float(-owner.field.min()) * rng.uniform(0.3, 0.42), 4.2 * canvas.unit)
    angle, pitch = rng.uniform(0, np.pi), radius * 2.5
    x, y = canvas.x[owner.rows, owner.columns], canvas.y[owner.rows, owner.columns]
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / pitch, (y * np.cos(angle) - x * np.sin(angle)) / pitch
    # for each lattice point at which the shape fits, the nearest pixel
    off = np.hypot(u - np.rint(u), v - np.rint(v))
    rows, columns = np.nonzero((off < 0.71 / pitch) & (owner.field < -0.95 * radius))
    cells = np.stack([np.rint(u[rows, columns]), np.rint(v[rows, columns])], axis=1)
    _, first = np.unique(cells, axis=0, return_index=True)
    kind = ("ellipse", "box", "polygon")[rng.integers(3)]
    chosen = rng.permutation(first)[:3]
    return [_placed(canvas, owner, kind, (rows[i], columns[i]), radius, surface, angle) for i in chosen]


def _placed(
    canvas: Canvas, owner: Patch, kind: str, place: tuple[int, int], radius: float, surface: Surface, angle: float
) -> Patch:
    """Returns a shape around a pixel (row, column) of the owner's window, clipped one pixel inside the owner's outline."""
    x, y = canvas.x[owner.rows, owner.columns], canvas.y[owner.rows, owner.columns]
    inner = draw_shape(canvas.rng, kind, x - x[0, place[1]], y - y[place[0], 0], radius, angle=angle, stretch=1.0)
    return _inner(owner, np.maximum(inner, owner.field + canvas.unit).astype(np.float32), surface, kind, radius)


LAYOUTS = [core, cap, band, inset]  # these fit any object; windows need a large one

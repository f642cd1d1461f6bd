"""The canvas on which a scene is painted from back to front, with the full-size masks of its objects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from samtrain.data.scenes.shapes import REACH, draw_shape
from samtrain.data.scenes.surfaces import Surface, paint

MIN_AREA = 400.0  # pixels of a 128 x 128 scene, which are 56 cells of a 48 x 48 decoder grid
SHADOW = 8.0  # reach of a shadow in pixels of a 128 x 128 scene


@dataclass
class Patch:
    """One object while it is painted: its window on the canvas, its distance field there, and the name of its shape."""

    rows: slice
    columns: slice
    field: np.ndarray
    centre: tuple[float, float]
    radius: float
    surface: Surface
    shape: str


@dataclass
class Canvas:
    """Holds the float32 image painted so far, and the full-size masks of its objects.

    areas: pixels of each object before anything hid it
    shapes: the names of the objects' shapes
    hues:  the hues of their surfaces, from 0 to 1
    x, y:  (H, W) pixel coordinates
    unit:  pixels per pixel of a 128 x 128 scene
    """

    rng: np.random.Generator
    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    unit: float
    masks: list[np.ndarray] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    hues: list[float] = field(default_factory=list)

    @property
    def min_area(self) -> float:
        """Returns the visible pixels below which an object is not annotated."""
        return MIN_AREA * self.unit**2


def draw_patch(
    canvas: Canvas, kind: str, centre: tuple[float, float], radius: float, surface: Surface, *, angle: float
) -> Patch:
    """Returns a shape in the window around it."""
    (height, width), reach = canvas.x.shape, REACH * radius
    top, bottom = (int(np.clip(centre[1] + d, 0, height)) for d in (-reach, reach + 1))
    left, right = (int(np.clip(centre[0] + d, 0, width)) for d in (-reach, reach + 1))
    rows, columns = slice(top, bottom), slice(left, right)
    x, y = canvas.x[rows, columns] - centre[0], canvas.y[rows, columns] - centre[1]
    stretch = canvas.rng.uniform(1.0, 1.8)
    shape = draw_shape(canvas.rng, kind, x, y, radius, angle=angle, stretch=stretch)
    return cropped(Patch(rows, columns, shape.astype(np.float32), centre, radius, surface, str(kind)), SHADOW * canvas.unit)


def cropped(patch: Patch, margin: float) -> Patch:
    """Returns the same object in the smallest window that contains all pixels up to `margin` outside of its outline."""
    near = patch.field < margin
    y, x = np.flatnonzero(near.any(1)).tolist(), np.flatnonzero(near.any(0)).tolist()
    if not y:
        return patch
    top, left = patch.rows.start, patch.columns.start
    return replace(
        patch,
        rows=slice(top + y[0], top + y[-1] + 1),
        columns=slice(left + x[0], left + x[-1] + 1),
        field=patch.field[y[0] : y[-1] + 1, x[0] : x[-1] + 1],
    )


def put(canvas: Canvas, patch: Patch, parent: int) -> int:
    """Paints one object over everything painted so far; returns its index."""
    if parent < 0:
        _cast_shadow(canvas, patch)
    window = (patch.rows, patch.columns)
    alpha = np.clip(0.5 - patch.field, 0, 1)[..., None]
    canvas.image[window] += alpha * (_colours(canvas, patch) - canvas.image[window])
    canvas.shapes.append(patch.shape)
    canvas.hues.append(patch.surface.hue)
    return _add_mask(canvas, window, patch.field < 0, parent)


def _colours(canvas: Canvas, patch: Patch) -> np.ndarray:
    """Returns the lit surface of an object in its window: shaded from one side, sometimes with a dark contour."""
    rng = canvas.rng
    x, y = canvas.x[patch.rows, patch.columns], canvas.y[patch.rows, patch.columns]
    colours = paint(rng, patch.surface, x, y, canvas.unit)
    # light from one side
    angle, relief = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35) / patch.radius
    slope = (x - patch.centre[0]) * np.cos(angle) + (y - patch.centre[1]) * np.sin(angle)
    colours *= (1 + np.clip(relief * slope, -0.4, 0.4))[..., None]
    # a dark contour
    if rng.random() < 0.4:
        colours *= (1 - rng.uniform(0.3, 0.6) * np.clip(1.5 + patch.field / canvas.unit, 0, 1))[..., None]
    return colours


def _add_mask(canvas: Canvas, window: tuple[slice, slice], inside: np.ndarray, parent: int) -> int:
    """Adds the new object's mask, and removes its pixels from the masks of all objects that it is not a part of."""
    owners = []
    while parent >= 0:
        owners.append(parent)
        parent = canvas.parents[parent]
    # the new object hides everything that it is not a part of
    for index, mask in enumerate(canvas.masks):
        if index not in owners:
            mask[window] &= ~inside
    full = np.zeros(canvas.x.shape, bool)
    full[window] = inside
    canvas.masks.append(full)
    canvas.areas.append(int(inside.sum()))
    canvas.parents.append(owners[0] if owners else -1)
    canvas.levels.append(len(owners))
    return len(canvas.masks) - 1


def _cast_shadow(canvas: Canvas, patch: Patch) -> None:
    """Darkens the background along an object's outline, most on one side."""
    rng = canvas.rng
    strength, softness = rng.uniform(0.0, 0.5), rng.uniform(2, 6) * canvas.unit
    down, right = (int(v) for v in rng.integers(-3, 4, 2) * max(round(canvas.unit), 1))
    shadow = np.clip(0.5 - patch.field / softness, 0, 1)
    shadow = np.pad(shadow, ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))), mode="edge")
    height, width = patch.field.shape
    shadow = shadow[max(-down, 0) :, max(-right, 0) :][:height, :width]
    canvas.image[patch.rows, patch.columns] *= (1 - strength * shadow)[..., None]

"""Synthetic scenes: wholes, parts and subparts that hide one another, painted back to front.

A scene is what SA-1B's pictures are to a click: a place belongs to several things at once. A window is a window and a part of its
house, and both have a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from samtrain.data.shapes import REACH, SHAPES, draw_shape
from samtrain.data.surfaces import Surface, camera, draw_palette, draw_surface, light, paint

NATIVE_SIDE = 128  # sizes below are in pixels of a scene of this side; other sizes scale them
MIN_AREA = 40.0  # visible pixels below which an object is not annotated
MIN_VISIBLE = 0.4  # an object hidden beyond this share of its area is not annotated: a sliver cannot be told from its neighbours
MAX_SHARE = 0.8  # a part that covers more of what is visible of its whole would be its duplicate
WHOLE_RADIUS = (11.0, 28.0)
SHADOW = 8.0  # how far a shadow reaches
CONTRAST = 60.0  # RGB distance of an object's colour from its surroundings; 0 to 441


@dataclass
class Scene:
    """A picture and everything in it.

    image:    (H, W, 3) uint8 RGB
    masks:    one (H, W) bool an object, its visible pixels; a whole's mask includes its parts
    parents:  the index of the object that an object is a part of, -1 for wholes
    levels:   0 whole, 1 part, 2 subpart
    """

    image: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)


@dataclass
class Patch:
    """One object while it is painted: its window of the canvas and its field there."""

    rows: slice
    columns: slice
    field: np.ndarray
    centre: tuple[float, float]
    radius: float
    surface: Surface


@dataclass
class Canvas:
    """The picture so far, float32, and the full-size masks of the objects in it."""

    rng: np.random.Generator
    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    unit: float
    palette: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)


def generate_scene(
    seed: int | Sequence[int], size: tuple[int, int] = (NATIVE_SIDE, NATIVE_SIDE), *, num_wholes: tuple[int, int] = (5, 8)
) -> Scene:
    """One scene of `size` (H, W), a function of `seed` alone; `num_wholes` is the range of how many wholes are painted."""
    rng = np.random.default_rng(seed)
    canvas, ground = _background(rng, size)
    for centre, radius in _places(canvas, int(rng.integers(num_wholes[0], num_wholes[1] + 1))):
        whole = _whole(canvas, centre, radius, ground)
        index = _put(canvas, whole, parent=-1)
        _parts(canvas, whole, index)
    canvas.image *= light(rng, canvas.x, canvas.y)[..., None].astype(np.float32)
    return _visible(canvas)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Canvas, Surface]:
    """A canvas covered by one textured surface with large soft patches of a second colour."""
    y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in size), indexing="ij")
    unit, palette = min(size) / NATIVE_SIDE, draw_palette(rng)
    ground = draw_surface(rng, palette, palette[rng.integers(len(palette))], 0.0)
    image = paint(rng, ground, x, y, unit)
    return Canvas(rng, image, x, y, unit, palette), ground


def _places(canvas: Canvas, count: int) -> list[tuple[tuple[float, float], float]]:
    """Centres (x, y) and radii: the freest of five random places for most wholes, any place for the rest, which makes occlusion."""
    rng, (height, width) = canvas.rng, canvas.x.shape
    radii = np.sort(np.exp(rng.uniform(*np.log(WHOLE_RADIUS), count)) * canvas.unit)[::-1]  # large ones behind
    centres = np.zeros((count, 2))
    for i in range(count):
        tries = 1 if rng.random() < 0.2 else 6
        candidates = rng.uniform(0.08, 0.92, (tries, 2)) * (width, height)
        gaps = np.linalg.norm(candidates[:, None] - centres[None, :i], axis=2) - radii[:i] - radii[i]
        centres[i] = candidates[gaps.min(axis=1).argmax()] if i else candidates[0]
    return [((float(x), float(y)), float(radius)) for (x, y), radius in zip(centres, radii, strict=True)]


def _whole(canvas: Canvas, centre: tuple[float, float], radius: float, ground: Surface) -> Patch:
    """An object of any shape at one place."""
    rng = canvas.rng
    surface = draw_surface(rng, canvas.palette, ground.mean, CONTRAST)
    return _patch(canvas, rng.choice(list(SHAPES)), centre, radius, surface, angle=rng.uniform(0, 2 * np.pi))


def _patch(
    canvas: Canvas, kind: str, centre: tuple[float, float], radius: float, surface: Surface, *, angle: float
) -> Patch:
    """The window around a shape and its field there."""
    (height, width), reach = canvas.x.shape, REACH * radius
    top, bottom = (int(np.clip(centre[1] + d, 0, height)) for d in (-reach, reach + 1))
    left, right = (int(np.clip(centre[0] + d, 0, width)) for d in (-reach, reach + 1))
    rows, columns = slice(top, bottom), slice(left, right)
    x, y = canvas.x[rows, columns] - centre[0], canvas.y[rows, columns] - centre[1]
    stretch = canvas.rng.uniform(1.0, 1.8)
    shape = draw_shape(canvas.rng, kind, x, y, radius, angle=angle, stretch=stretch)
    return _cropped(Patch(rows, columns, shape.astype(np.float32), centre, radius, surface), SHADOW * canvas.unit)


def _cropped(patch: Patch, margin: float) -> Patch:
    """The same object in the smallest window that holds all pixels up to `margin` outside of its outline."""
    near = patch.field < margin
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return patch
    inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    top, left = patch.rows.start, patch.columns.start
    rows, columns = (slice(int(i.start + o), int(i.stop + o)) for i, o in zip(inner, (top, left), strict=True))
    return replace(patch, rows=rows, columns=columns, field=patch.field[inner])


def _put(canvas: Canvas, patch: Patch, parent: int) -> int:
    """Paints one object over all that is there; returns its index."""
    rng, window = canvas.rng, (patch.rows, patch.columns)
    if parent < 0:
        _cast_shadow(canvas, patch)
    # colour: the surface, rounded by light from one side and darker towards the edge
    x, y = canvas.x[window], canvas.y[window]
    colour = paint(rng, patch.surface, x, y, canvas.unit)
    angle, relief = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35) / patch.radius
    slope = (x - patch.centre[0]) * np.cos(angle) + (y - patch.centre[1]) * np.sin(angle)
    colour *= (1 + np.clip(relief * slope, -0.4, 0.4))[..., None]
    if rng.random() < 0.4:  # a contour line
        colour *= (1 - rng.uniform(0.3, 0.6) * np.clip(1.5 + patch.field / canvas.unit, 0, 1))[..., None]
    alpha = np.clip(0.5 - patch.field, 0, 1)[..., None]
    canvas.image[window] += alpha * (colour - canvas.image[window])
    # masks: this one, and what it leaves of those behind it
    inside = patch.field < 0
    lineage = _lineage(canvas, parent)
    for index, mask in enumerate(canvas.masks):
        if index not in lineage:
            mask[window] &= ~inside
    full = np.zeros(canvas.x.shape, bool)
    full[window] = inside
    canvas.masks.append(full)
    canvas.areas.append(int(inside.sum()))
    canvas.parents.append(parent)
    canvas.levels.append(len(lineage))
    return len(canvas.masks) - 1


def _lineage(canvas: Canvas, index: int) -> list[int]:
    """The object and all those that it is a part of."""
    lineage = []
    while index >= 0:
        lineage.append(index)
        index = canvas.parents[index]
    return lineage


def _cast_shadow(canvas: Canvas, patch: Patch) -> None:
    """Darkens what lies behind an object along its outline, most on one side."""
    rng = canvas.rng
    strength, softness = rng.uniform(0.0, 0.5), rng.uniform(2, 6) * canvas.unit
    down, right = (int(v) for v in rng.integers(-3, 4, 2) * max(round(canvas.unit), 1))
    shadow = np.clip(0.5 - patch.field / softness, 0, 1)
    shadow = np.pad(shadow, ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))), mode="edge")
    height, width = patch.field.shape
    shadow = shadow[max(-down, 0) :, max(-right, 0) :][:height, :width]
    canvas.image[patch.rows, patch.columns] *= (1 - strength * shadow)[..., None]


def _parts(canvas: Canvas, owner: Patch, index: int) -> None:
    """Parts of an object and their own parts."""
    rng, level = canvas.rng, canvas.levels[index]
    room = canvas.areas[index] / (MIN_AREA * canvas.unit**2)  # how many smallest objects would cover it
    if level == 2 or room < 3 or rng.random() > (0.75, 0.3)[level]:
        return
    layouts = [_core, _rim, _cap, _band, _inset] + [_windows] * (1 if room > 10 else 0)
    surface = draw_surface(rng, canvas.palette, owner.surface.mean, CONTRAST)
    for part in layouts[rng.integers(len(layouts))](canvas, owner, surface):
        smallest = MIN_AREA * canvas.unit**2
        if smallest <= np.count_nonzero(part.field < 0) <= MAX_SHARE * canvas.areas[index]:
            _parts(canvas, part, _put(canvas, part, index))


def _inner(owner: Patch, inner: np.ndarray, surface: Surface, radius: float | None = None) -> Patch:
    """A part in its owner's window, cut to the owner; its centre is that of its pixels."""
    inner = np.maximum(inner, owner.field)
    rows, columns = np.nonzero(inner < 0)
    centre = owner.centre
    if len(rows):
        centre = (columns.mean() + owner.columns.start, rows.mean() + owner.rows.start)
    return _cropped(Patch(owner.rows, owner.columns, inner, centre, radius or owner.radius * 0.6, surface), 1.0)


def _core(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """The inside of an outline that runs parallel to the owner's: a plate's bottom, a screen."""
    depth = -owner.field.min() * canvas.rng.uniform(0.14, 0.3)
    return [_inner(owner, owner.field + depth, surface)]


def _rim(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """A frame along the owner's outline."""
    depth = -owner.field.min() * canvas.rng.uniform(0.25, 0.45)
    return [_inner(owner, -(owner.field + depth), surface)]


def _cap(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """What a straight cut takes off: a roof, a lid."""
    along = _along(canvas, owner)
    cut = np.quantile(along[owner.field < 0], canvas.rng.uniform(0.35, 0.6))
    return [_inner(owner, along - cut, surface)]


def _band(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """A strip across the owner: a belt, a label."""
    along, start = _along(canvas, owner), canvas.rng.uniform(0.1, 0.5)
    low, high = np.quantile(along[owner.field < 0], (start, start + canvas.rng.uniform(0.3, 0.45)))
    return [_inner(owner, np.maximum(low - along, along - high), surface)]


def _along(canvas: Canvas, owner: Patch) -> np.ndarray:
    """Coordinates along a random direction in the owner's window."""
    angle = canvas.rng.uniform(0, 2 * np.pi)
    return canvas.x[owner.rows, owner.columns] * np.cos(angle) + canvas.y[owner.rows, owner.columns] * np.sin(angle)


def _inset(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """One shape somewhere inside: a nucleus, an eye, a door."""
    rng = canvas.rng
    rows, columns = np.nonzero(owner.field <= owner.field.min() * 0.5)
    pick = rng.integers(len(rows))
    radius = -float(owner.field[rows[pick], columns[pick]]) * rng.uniform(0.8, 1.2)
    kind = ("ellipse", "blob", "polygon", "box", "star")[rng.integers(5)]
    return [_placed(canvas, owner, kind, (rows[pick], columns[pick]), radius, surface, rng.uniform(0, 2 * np.pi))]


def _windows(canvas: Canvas, owner: Patch, surface: Surface) -> list[Patch]:
    """Up to three equal shapes on a lattice."""
    rng = canvas.rng
    radius = max(float(-owner.field.min()) * rng.uniform(0.3, 0.42), 4.2 * canvas.unit)
    angle, pitch = rng.uniform(0, np.pi), radius * 2.5
    x, y = canvas.x[owner.rows, owner.columns], canvas.y[owner.rows, owner.columns]
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / pitch, (y * np.cos(angle) - x * np.sin(angle)) / pitch
    # the pixel nearest to each lattice point, where the shape fits
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
    """A shape around a pixel (row, column) of the owner's window, cut a pixel inside the owner's outline."""
    x, y = canvas.x[owner.rows, owner.columns], canvas.y[owner.rows, owner.columns]
    inner = draw_shape(canvas.rng, kind, x - x[0, place[1]], y - y[place[0], 0], radius, angle=angle, stretch=1.0)
    return _inner(owner, np.maximum(inner, owner.field + canvas.unit).astype(np.float32), surface, radius)


def _visible(canvas: Canvas) -> Scene:
    """The scene with the objects that show enough of themselves; parts of one that does not belong to its nearest kept owner."""
    scene = Scene(camera(canvas.rng, canvas.image, canvas.unit))
    kept: dict[int, int] = {-1: -1}
    for index, mask in enumerate(canvas.masks):
        owner = canvas.parents[index]
        while owner not in kept:
            owner = canvas.parents[owner]
        area, parent = np.count_nonzero(mask), kept[owner]
        too_small = area < max(MIN_AREA * canvas.unit**2, MIN_VISIBLE * canvas.areas[index])
        if too_small or (parent >= 0 and area > MAX_SHARE * np.count_nonzero(scene.masks[parent])):
            continue
        kept[index] = len(scene.masks)
        scene.masks.append(mask)
        scene.parents.append(parent)
        scene.levels.append(scene.levels[parent] + 1 if parent >= 0 else 0)
    return scene

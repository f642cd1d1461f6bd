"""Synthetic scenes: wholes, parts and subparts that hide one another, painted back to front.

A scene is what SA-1B's images are to a click: a place belongs to several things at once. A window is a window and a
part of its house, and both have a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from samtrain.data.scenes.canvas import Canvas, Patch, draw_patch, put
from samtrain.data.scenes.parts import LAYOUTS, windows
from samtrain.data.scenes.shapes import SHAPES
from samtrain.data.scenes.surfaces import Surface, camera, draw_ground, draw_surface, light, paint

SCENES_VERSION = 10  # raise it when a seed gives another scene than before: sets on disk are keyed by it
NATIVE_SIDE = 128  # sizes below are in pixels of a scene of this side; other sizes scale them
MIN_VISIBLE = 0.4  # of its area; an object hidden further is not annotated: a sliver looks like its neighbours' part
MAX_SHARE = 0.65  # a part that covers more of what is visible of its whole would be its duplicate
HAS_PARTS = (0.9, 0.35, 0.0)  # chance by level: four or five of ten objects then lie in another (measured: 0.43 to 0.46)


@dataclass(frozen=True)
class Layout:
    """How many wholes there are, of which radii (pixels), and where: at the freest of `tries` places, or, with the chance
    `anywhere`, at any.
    """

    num_wholes: tuple[int, int]
    radius: tuple[float, float]
    tries: int
    anywhere: float


SPARSE = Layout((2, 3), (30.0, 46.0), tries=6, anywhere=0.2)  # 4.4 objects (measured), hiding one another
CROWDED = Layout((5, 7), (15.0, 25.0), tries=20, anywhere=0.0)  # more, smaller, and apart


@dataclass
class Scene:
    """An image and everything in it.

    image:    (H, W, 3) uint8 RGB
    masks:    one (H, W) bool an object, its visible pixels; a whole's mask includes its parts
    parents:  the index of the object that an object is a part of, -1 for wholes
    levels:   0 whole, 1 part, 2 subpart
    """

    image: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)


def generate_scene(
    seed: int | Sequence[int],
    size: tuple[int, int] = (NATIVE_SIDE, NATIVE_SIDE),
    *,
    layout: Layout = SPARSE,
) -> Scene:
    """One scene of `size` (H, W), a function of its arguments alone."""
    rng = np.random.default_rng(seed)
    canvas, ground = _background(rng, size)
    for centre, radius in _places(canvas, layout):
        whole = _whole(canvas, centre, radius, ground)
        index = put(canvas, whole, parent=-1)
        _parts(canvas, whole, index)
    canvas.image *= light(rng, canvas.x, canvas.y)[..., None].astype(np.float32)
    return _visible(canvas)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Canvas, Surface]:
    """A canvas covered by one textured surface."""
    y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in size), indexing="ij")
    unit, ground = min(size) / NATIVE_SIDE, draw_ground(rng)
    image = paint(rng, ground, x, y, unit)
    return Canvas(rng, image, x, y, unit), ground


def _places(canvas: Canvas, layout: Layout) -> list[tuple[tuple[float, float], float]]:
    """Centres (x, y) and radii; places that are not the freest make occlusion."""
    rng, (height, width) = canvas.rng, canvas.x.shape
    count = int(rng.integers(layout.num_wholes[0], layout.num_wholes[1] + 1))
    smallest, largest = np.log(layout.radius)
    radii = np.sort(np.exp(rng.uniform(smallest, largest, count)) * canvas.unit)[::-1]  # large ones behind
    centres = np.zeros((count, 2))
    for i in range(count):
        tries = 1 if rng.random() < layout.anywhere else layout.tries
        candidates = rng.uniform(0.08, 0.92, (tries, 2)) * (width, height)
        gaps = np.linalg.norm(candidates[:, None] - centres[None, :i], axis=2) - radii[:i] - radii[i]
        centres[i] = candidates[gaps.min(axis=1).argmax()] if i else candidates[0]
    return [((float(x), float(y)), float(radius)) for (x, y), radius in zip(centres, radii, strict=True)]


def _whole(canvas: Canvas, centre: tuple[float, float], radius: float, ground: Surface) -> Patch:
    """An object of any shape at one place."""
    rng = canvas.rng
    surface = draw_surface(rng, ground)
    return draw_patch(canvas, rng.choice(list(SHAPES)), centre, radius, surface, angle=rng.uniform(0, 2 * np.pi))


def _parts(canvas: Canvas, owner: Patch, index: int) -> None:
    """Parts of an object and their own parts."""
    rng, level = canvas.rng, canvas.levels[index]
    room = canvas.areas[index] / canvas.min_area  # how many smallest objects would cover it
    if HAS_PARTS[level] == 0 or room < 3 or rng.random() > HAS_PARTS[level]:
        return
    layouts = [*LAYOUTS, windows] if room > 10 else LAYOUTS
    surface = draw_surface(rng, owner.surface)
    for part in layouts[rng.integers(len(layouts))](canvas, owner, surface):
        if canvas.min_area <= np.count_nonzero(part.field < 0) <= MAX_SHARE * canvas.areas[index]:
            _parts(canvas, part, put(canvas, part, index))


def _visible(canvas: Canvas) -> Scene:
    """The scene with the objects that show enough of themselves.

    Parts of an object that does not become parts of what it is a part of itself.
    """
    scene = Scene(camera(canvas.rng, canvas.image, canvas.unit))
    kept: dict[int, int] = {-1: -1}
    for index, mask in enumerate(canvas.masks):
        owner = canvas.parents[index]
        while owner not in kept:
            owner = canvas.parents[owner]
        area, parent = np.count_nonzero(mask), kept[owner]
        too_small = area < max(canvas.min_area, MIN_VISIBLE * canvas.areas[index])
        if too_small or (parent >= 0 and area > MAX_SHARE * np.count_nonzero(scene.masks[parent])):
            continue
        kept[index] = len(scene.masks)
        scene.masks.append(mask)
        scene.parents.append(parent)
        scene.levels.append(scene.levels[parent] + 1 if parent >= 0 else 0)
    return scene

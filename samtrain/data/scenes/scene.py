"""Synthetic scenes of wholes, parts and subparts that hide one another, painted from back to front.

Clicks are ambiguous in a scene as they are in SA-1B: one place belongs to several objects. A window is an object and a part
of its house, and both have a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from samtrain.data.scenes.canvas import Canvas, Patch, draw_patch, put
from samtrain.data.scenes.parts import LAYOUTS, windows
from samtrain.data.scenes.shapes import SHAPES
from samtrain.data.scenes.surfaces import Surface, camera, draw_ground, draw_surface, light, paint

SCENES_VERSION = 11  # raise it if a seed gives another record: the folder of a set is named by it
NATIVE_SIDE = 128  # the sizes below are in pixels of a scene with this side, and are scaled for others
MIN_VISIBLE = 0.4  # visible share below which an object is not annotated: a sliver looks like a part of its neighbour
MAX_SHARE = 0.65  # a part that covers more of its visible whole would be a duplicate of it
HAS_PARTS = (0.9, 0.35, 0.0)  # probability by level; 43 to 46 % of the objects are then inside another one (measured)


@dataclass(frozen=True)
class Layout:
    """Says how many wholes there are, their range of radii (pixels), and where they are placed.

    Each is placed at the freest of `tries` random places or, with probability `anywhere`, at a random one.
    """

    num_wholes: tuple[int, int]
    radius: tuple[float, float]
    tries: int
    anywhere: float


SPARSE = Layout((2, 3), (30.0, 46.0), tries=6, anywhere=0.2)  # 4.4 objects per scene (measured), hiding one another
CROWDED = Layout((5, 7), (15.0, 25.0), tries=20, anywhere=0.0)  # more and smaller objects, apart from each other


@dataclass
class Scene:
    """An image and its objects.

    image:    (H, W, 3) uint8 RGB
    masks:    (H, W) bool for each object, its visible pixels; a whole's mask includes its parts
    parents:  for each object the index of the object that it is a part of, -1 for wholes
    levels:   for each object 0 (whole), 1 (part) or 2 (subpart)
    shapes:   for each object the name of its outline: one of `SHAPES`, or core, cap or band for a part cut out of its whole
    hues:     for each object the hue of its surface on a circle of length 1
    """

    image: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    hues: list[float] = field(default_factory=list)


def generate_scene(
    seed: int | Sequence[int],
    size: tuple[int, int] = (NATIVE_SIDE, NATIVE_SIDE),
    *,
    layout: Layout = SPARSE,
) -> Scene:
    """Returns a scene of `size` (H, W) as a pure function of the arguments."""
    rng = np.random.default_rng(seed)
    canvas, ground = _background(rng, size)
    for centre, radius in _places(canvas, layout):
        whole = _whole(canvas, centre, radius, ground)
        index = put(canvas, whole, parent=-1)
        _parts(canvas, whole, index)
    canvas.image *= light(rng, canvas.x, canvas.y)[..., None].astype(np.float32)
    return _visible(canvas)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Canvas, Surface]:
    """Returns a canvas covered by one textured surface."""
    y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in size), indexing="ij")
    unit, ground = min(size) / NATIVE_SIDE, draw_ground(rng)
    image = paint(rng, ground, x, y, unit)
    return Canvas(rng, image, x, y, unit), ground


def _places(canvas: Canvas, layout: Layout) -> list[tuple[tuple[float, float], float]]:
    """Returns centres (x, y) and radii; objects overlap where the place is not the freest one."""
    rng, (height, width) = canvas.rng, canvas.x.shape
    count = int(rng.integers(layout.num_wholes[0], layout.num_wholes[1] + 1))
    smallest, largest = np.log(layout.radius)
    # large objects are painted first, behind the others
    radii = np.sort(np.exp(rng.uniform(smallest, largest, count)) * canvas.unit)[::-1]
    centres = np.zeros((count, 2))
    for i in range(count):
        tries = 1 if rng.random() < layout.anywhere else layout.tries
        candidates = rng.uniform(0.08, 0.92, (tries, 2)) * (width, height)
        gaps = np.linalg.norm(candidates[:, None] - centres[None, :i], axis=2) - radii[:i] - radii[i]
        centres[i] = candidates[gaps.min(axis=1).argmax()] if i else candidates[0]
    return [((float(x), float(y)), float(radius)) for (x, y), radius in zip(centres, radii, strict=True)]


def _whole(canvas: Canvas, centre: tuple[float, float], radius: float, ground: Surface) -> Patch:
    """Returns an object of a random shape."""
    rng = canvas.rng
    surface = draw_surface(rng, ground)
    return draw_patch(canvas, rng.choice(list(SHAPES)), centre, radius, surface, angle=rng.uniform(0, 2 * np.pi))


def _parts(canvas: Canvas, owner: Patch, index: int) -> None:
    """Paints parts of an object, and their own parts."""
    rng, level = canvas.rng, canvas.levels[index]
    room = canvas.areas[index] / canvas.min_area  # how many objects of the minimum size would cover it
    if HAS_PARTS[level] == 0 or room < 3 or rng.random() > HAS_PARTS[level]:
        return
    layouts = [*LAYOUTS, windows] if room > 10 else LAYOUTS
    surface = draw_surface(rng, owner.surface)
    for part in layouts[rng.integers(len(layouts))](canvas, owner, surface):
        if canvas.min_area <= np.count_nonzero(part.field < 0) <= MAX_SHARE * canvas.areas[index]:
            _parts(canvas, part, put(canvas, part, index))


def _visible(canvas: Canvas) -> Scene:
    """Returns the scene with the objects that are visible enough.

    The parts of an object that is dropped become parts of that object's parent.
    """
    scene = Scene(camera(canvas.rng, canvas.image, canvas.unit))
    kept: dict[int, int] = {-1: -1}
    for index, mask in enumerate(canvas.masks):
        # the nearest parent that is not dropped
        owner = canvas.parents[index]
        while owner not in kept:
            owner = canvas.parents[owner]
        # drop objects that are small, mostly hidden, or almost their whole
        area, parent = np.count_nonzero(mask), kept[owner]
        too_small = area < max(canvas.min_area, MIN_VISIBLE * canvas.areas[index])
        if too_small or (parent >= 0 and area > MAX_SHARE * np.count_nonzero(scene.masks[parent])):
            continue
        kept[index] = len(scene.masks)
        scene.masks.append(mask)
        scene.parents.append(parent)
        scene.levels.append(scene.levels[parent] + 1 if parent >= 0 else 0)
        scene.shapes.append(canvas.shapes[index])
        scene.hues.append(canvas.hues[index])
    return scene

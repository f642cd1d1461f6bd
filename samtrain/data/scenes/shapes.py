"""Outlines of the synthetic objects, each as a field over the pixels: approximately the signed distance, negative inside.

A field is used instead of a polygon because everything that a scene needs follows from it by arithmetic: the mask (below 0),
the antialiased edge (around 0), the rim and the core (between two values), the shadow (a wider ramp).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = np.ndarray  # (h, w) float32, pixels, negative inside


def ellipse(rng: np.random.Generator, x: Field, y: Field, radius: float) -> Field:
    """Returns a disc, which `draw_shape` stretches."""
    return np.hypot(x, y) - radius


def blob(rng: np.random.Generator, x: Field, y: Field, radius: float) -> Field:
    """Returns a smooth closed curve; its radius is a short Fourier series of the angle."""
    angle = np.arctan2(y, x)
    waves = np.zeros_like(x)
    for frequency in range(2, 6):
        amplitude = rng.uniform(0.0, 0.32) / (frequency - 0.5)  # decreases with the frequency, so that the curve stays smooth
        waves += amplitude * np.cos(frequency * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(x, y) - radius * (1 + waves)


def polygon(rng: np.random.Generator, x: Field, y: Field, radius: float) -> Field:
    """Returns a convex polygon of 3 to 6 sides with rounded corners, by the p-norm of the distances to its sides."""
    sides = int(rng.integers(3, 7))
    angles = 2 * np.pi * (np.arange(sides) + rng.uniform(-0.15, 0.15, sides)) / sides
    sharpness = rng.uniform(6, 16)  # p of the norm: 2 gives a circle, infinity sharp corners
    inner = radius * (0.68 if sides == 3 else 0.86)  # a triangle extends further beyond its incircle
    reach = [np.maximum(x * np.cos(a) + y * np.sin(a), 0) / inner for a in angles]
    sides_only = (np.sum(np.power(reach, sharpness), axis=0) ** (1 / sharpness) - 1) * inner
    return np.maximum(sides_only, np.hypot(x, y) - 1.3 * radius)  # clip narrow corners, which extend far


def box(rng: np.random.Generator, x: Field, y: Field, radius: float) -> Field:
    """Returns a rectangle with slightly rounded corners."""
    return _rounded_box(x, y, radius * 0.88, radius * rng.uniform(0.55, 0.88), radius * 0.1)


def bunch(rng: np.random.Generator, x: Field, y: Field, radius: float) -> Field:
    """Returns two or three overlapping discs."""
    field = np.hypot(x, y) - radius * 0.7
    for _ in range(int(rng.integers(1, 3))):
        angle, size = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.4, 0.6)
        offset = radius * rng.uniform(0.6, 0.8)
        field = np.minimum(field, np.hypot(x - offset * np.cos(angle), y - offset * np.sin(angle)) - size)
    return field


def _rounded_box(x: Field, y: Field, half_x: float, half_y: float, corner: float) -> Field:
    """Returns the exact distance to a rectangle that has arcs of radius `corner` as corners."""
    out_x, out_y = np.abs(x) - (half_x - corner), np.abs(y) - (half_y - corner)
    return np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0)) + np.minimum(np.maximum(out_x, out_y), 0) - corner


SHAPES: dict[str, Callable[[np.random.Generator, Field, Field, float], Field]] = {
    "ellipse": ellipse,
    "blob": blob,
    "polygon": polygon,
    "box": box,
    "bunch": bunch,
}
REACH = 1.9  # radii around the centre that contain any outline: a polygon's 1.3, times the root of its stretch, plus a margin


def draw_shape(
    rng: np.random.Generator, kind: str, x: Field, y: Field, radius: float, *, angle: float, stretch: float
) -> Field:
    """Returns the field of one outline around (0, 0), turned by `angle` (radians) and stretched along its own x axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    long, short = np.sqrt(stretch), 1 / np.sqrt(stretch)
    own_x, own_y = (x * cos + y * sin) / long, (y * cos - x * sin) / short
    # scaled by the short axis, so that the field never exceeds the distance
    return SHAPES[kind](rng, own_x, own_y, radius) * short

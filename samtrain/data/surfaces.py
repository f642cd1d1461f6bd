"""What the synthetic objects are covered with and lit by: two-tone textures, shading, shadows, the camera's blur and noise.

A surface is two colours and a pattern in [0, 1] between them, so that an object has no one colour that a flood fill could follow,
while its mean colour still differs from what surrounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

TONE_DISTANCE = (95.0, 160.0)  # RGB; wide enough that a flood fill that spans both tones also leaks (difficulty.py measures it)
PATTERNS = ("stripes", "bands", "checker", "dots", "clouds", "grain", "ramp")


@dataclass(frozen=True)
class Surface:
    """Two RGB colours in [0, 255] and the name of the pattern that mixes them."""

    first: np.ndarray
    second: np.ndarray
    pattern: str

    @property
    def mean(self) -> np.ndarray:
        """The colour seen from afar."""
        return (self.first + self.second) / 2


def draw_palette(rng: np.random.Generator, count: int = 8) -> np.ndarray:
    """(count, 3) colours in [0, 255]: from dark to light in even steps, each with a hue of its own or, in one scene of four, grey."""
    lightness = np.linspace(45, 215, count) + rng.uniform(-8, 8, count)
    chroma = rng.uniform(-1, 1, (count, 3)) * (8 if rng.random() < 0.25 else 75)
    chroma -= chroma.mean(axis=1, keepdims=True)
    return np.clip(lightness[:, None] + chroma, 8, 247)


def draw_surface(rng: np.random.Generator, palette: np.ndarray, around: np.ndarray, contrast: float) -> Surface:
    """A surface whose mean colour differs by at least `contrast` (RGB distance, if the palette allows) from the colour `around` it.

    Its second tone leans towards a third colour or, half of the time, towards its surroundings: the two then share a tone.
    """
    distances = np.linalg.norm(palette - around, axis=1)
    usable = np.flatnonzero(distances >= contrast)
    own = palette[rng.choice(usable)] if len(usable) else palette[distances.argmax()]
    other = around if rng.random() < 0.7 else palette[rng.integers(len(palette))]
    # the tones lie to both sides of the own colour, so that the mean keeps its distance from the surroundings
    direction = other - own + rng.uniform(-10, 10, 3)
    lean = direction * (rng.uniform(*TONE_DISTANCE) / 2 / np.linalg.norm(direction))
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    return Surface(np.clip(own - lean, 0, 255), np.clip(own + lean, 0, 255), pattern)


def paint(rng: np.random.Generator, surface: Surface, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """(h, w, 3) float32: the surface at pixel coordinates x, y; `unit` is the length of a 128 px scene's pixel."""
    mix = _pattern(rng, surface.pattern, x, y, unit)
    return (surface.first + mix[..., None] * (surface.second - surface.first)).astype(np.float32)


def _pattern(rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """(h, w) in [0, 1], mean about a half."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(4, 9) * unit
    along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / length) + rng.uniform(0, 2 * np.pi)
    across = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / length) + rng.uniform(0, 2 * np.pi)
    if name == "stripes":
        return 0.5 + 0.5 * np.clip(3 * np.sin(along), -1, 1)
    if name == "bands":
        return 0.5 + 0.5 * np.sin(along * 0.6)
    if name == "checker":
        return 0.5 + 0.5 * np.clip(4 * np.sin(along) * np.sin(across), -1, 1)
    if name == "dots":
        return 0.5 + 0.5 * np.clip(3 * (np.cos(along) + np.cos(across)) - 1, -1, 1)
    if name == "clouds":
        return smooth_noise(rng, x.shape, 5 * unit)
    if name == "grain":
        return smooth_noise(rng, x.shape, 1.6 * unit)
    span = along - along.min()
    return span / max(float(span.max()), 1e-6)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], length: float) -> np.ndarray:
    """(H, W) noise in [0, 1] whose patches are about `length` pixels wide: random numbers on a grid, smoothly interpolated."""
    rows, columns = (_interpolation(side, length) for side in size)
    grid = rng.random((rows.shape[1], columns.shape[1]))
    return rows @ grid @ columns.T


def _interpolation(side: int, length: float) -> np.ndarray:
    """(side, cells) weights, two a row: smoothstep between neighbouring grid values."""
    position = np.arange(side) / max(length, 1.0)
    left = position.astype(np.int64)
    t = position - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((side, int(left[-1]) + 2))
    weights[np.arange(side), left] = 1 - t
    weights[np.arange(side), left + 1] = t
    return weights


def light(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W) factor on the picture: light from one side, vignetting, in half of the scenes a soft shadow across everything."""
    height, width = x.shape
    u, v = x / width - 0.5, y / height - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    shade = 1.05 + rng.uniform(0, 0.5) * (u * np.cos(angle) + v * np.sin(angle))
    shade -= rng.uniform(0, 0.6) * (u * u + v * v)
    if rng.random() < 0.5:
        turn, place = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.35)
        edge = (u * np.cos(turn) + v * np.sin(turn) - place) / rng.uniform(0.02, 0.12)
        shade *= 1 - rng.uniform(0.15, 0.4) * np.clip(edge, 0, 1)
    return shade


def camera(rng: np.random.Generator, image: np.ndarray, unit: float) -> np.ndarray:
    """(H, W, 3) uint8: the picture after the lens (blur) and the sensor (noise)."""
    sigma = rng.uniform(0.0, 0.7) * unit
    if sigma > 0.25:
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3.0)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 7.0))
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

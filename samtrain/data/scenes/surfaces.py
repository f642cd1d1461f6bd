"""Surfaces and light of the synthetic scenes: two-tone textures, shadows, the camera's blur and noise.

The ground is dull, an object has a warm hue, its parts have cold hues and their parts warm ones again, so that an object is
recognised by its hue. The two tones of a surface differ more in brightness than neighbouring surfaces do, so that a flood fill
either stays in one tone or leaks. (Surfaces that share a tone with their surroundings, and unordered hues, were tried first: a
small model learned little from them in ten minutes, see experiments/LOG.md.)
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

TONE_DISTANCE = (125.0, 195.0)  # RGB; so large that a flood fill that covers both tones also leaks
GROUND_TONE_DISTANCE = (70.0, 130.0)  # RGB
WARM, COLD = (-0.14, 0.2), (0.42, 0.72)  # hues on a circle of length 1: magenta to yellow, green to violet
SATURATION = (0.65, 1.0)
PATTERNS = ("stripes", "bands", "checker", "dots", "clouds", "grain")


@dataclass(frozen=True)
class Surface:
    """Two RGB colours in [0, 255], the name of the pattern that mixes them, whether their hue is warm, and the hue (0 to 1)."""

    first: np.ndarray
    second: np.ndarray
    pattern: str
    warm: bool = False
    hue: float = 0.0


def draw_ground(rng: np.random.Generator) -> Surface:
    """Returns a dull surface of two tinted greys."""
    half = rng.uniform(*GROUND_TONE_DISTANCE) / 2 / np.sqrt(3)
    middle = rng.uniform(60, 195) + rng.uniform(-9, 9, 3)
    return Surface(np.clip(middle - half, 0, 255), np.clip(middle + half, 0, 255), _draw_pattern(rng))


def draw_surface(rng: np.random.Generator, around: Surface) -> Surface:
    """Returns a cold surface if the surrounding one is warm, else a warm one."""
    warm = not around.warm
    hue = rng.uniform(*(WARM if warm else COLD)) % 1
    pure = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*SATURATION), 1.0)) * 255
    bright = rng.uniform(0.85, 1.0)
    dark = max(0.12, bright - rng.uniform(*TONE_DISTANCE) / np.linalg.norm(pure))
    tones = [pure * dark, pure * bright]
    if rng.random() < 0.5:
        tones.reverse()
    return Surface(tones[0], tones[1], _draw_pattern(rng), warm, hue)


def _draw_pattern(rng: np.random.Generator) -> str:
    return PATTERNS[rng.integers(len(PATTERNS))]


def paint(rng: np.random.Generator, surface: Surface, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """Returns the (h, w, 3) float32 surface at pixel coordinates x, y; `unit` is the size of a 128 px scene's pixel."""
    mix = _pattern(rng, surface.pattern, x, y, unit)
    return (surface.first + mix[..., None] * (surface.second - surface.first)).astype(np.float32)


def _pattern(rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """Returns (h, w) values in [0, 1] with a mean of about 0.5."""
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
    return smooth_noise(rng, x.shape, 1.6 * unit)  # grain


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], length: float) -> np.ndarray:
    """Returns (H, W) noise in [0, 1] with patches about `length` pixels wide: interpolated random numbers on two grids."""
    total = np.zeros(size)
    for scale in (1.0, 0.63):  # the two grids share no lines, because one grid alone looks like tiles
        rows, columns = (_interpolation(side, length * scale) for side in size)
        total += rows @ rng.random((rows.shape[1], columns.shape[1])) @ columns.T
    return np.clip(2.5 * (total / 2 - 0.5) + 0.5, 0, 1)  # 2.5 gives mostly one of two tones, which stops a flood fill


def _interpolation(side: int, length: float) -> np.ndarray:
    """Returns (side, cells) weights, two per row, for a smoothstep between neighbouring grid values."""
    position = np.arange(side) / max(length, 1.0)
    left = position.astype(np.int64)
    t = position - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((side, int(left[-1]) + 2))
    weights[np.arange(side), left] = 1 - t
    weights[np.arange(side), left + 1] = t
    return weights


def light(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns an (H, W) factor for the image: light from one side, vignetting, and in half of the scenes a shadow."""
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
    """Returns the (H, W, 3) uint8 image after the lens (blur) and the sensor (noise)."""
    sigma = rng.uniform(0.0, 0.7) * unit
    if sigma > 0.25:
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3.0)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 7.0))
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

"""Draws images with masks and prompts for validation, report and preview."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samtrain.files import write_bytes
from samtrain.types import PointLabel, Prompts

COLOURS = np.array(  # distinct for most colour-blind people (Okabe and Ito 2008), without black
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66)],
    dtype=np.uint8,
)
FOREGROUND, BACKGROUND, BOX = (30, 200, 80), (230, 40, 60), (255, 214, 0)
PAPER, INK = (255, 255, 255), (40, 40, 40)
FILL = 0.45  # opacity of a mask
CAPTION = 20  # height of a caption in pixels


@dataclass(frozen=True)
class ClickedObject:
    """Holds one object of a validation and the mask after each of K clicks, in the input frame.

    key:        the image's key
    number:     the object's number in the batch
    image:      (S, S, 3) uint8
    truth:      (S, S) bool, the true mask
    predicted:  K masks (S, S) bool
    clicks:     K of (x, y, label)
    ious:       K IoUs
    """

    key: str
    number: int
    image: np.ndarray
    truth: np.ndarray
    predicted: Sequence[np.ndarray]
    clicks: Sequence[tuple[float, float, int]]
    ious: Sequence[float]


def draw_panel(
    image_HWC: np.ndarray,
    masks_NHW: np.ndarray,
    prompts: Prompts | None = None,
    *,
    truth_HW: np.ndarray | None = None,
    caption: str = "",
    side: int = 256,
) -> np.ndarray:
    """Draws one tile, (side + CAPTION, side, 3) uint8: the image, its masks and prompts, and a caption above.

    image_HWC:  (H, W, 3) uint8 RGB, fitted into the tile
    masks_NHW:  bool, each filled with a colour
    prompts:    clicks and boxes in pixels of the image
    truth_HW:   bool, drawn as a white outline
    """
    H, W = image_HWC.shape[:2]
    scale = side / max(H, W)
    size = max(1, round(W * scale)), max(1, round(H * scale))  # (width, height), as PIL takes it
    image = np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)

    # Masks, then the outline of the true mask
    for number, mask_HW in enumerate(masks_NHW):
        mask, colour = _resize(mask_HW, size), COLOURS[number % len(COLOURS)]
        image[mask] = (1 - FILL) * image[mask] + FILL * colour
        image[_outline(mask, 2)] = colour
    if truth_HW is not None:
        truth = _resize(truth_HW, size)
        image[_outline(truth, 3)] = INK  # its dark rim keeps the white line visible on white
        image[_outline(truth, 2)] = PAPER

    # Prompts, each at the centre of its pixel
    tile = Image.new("RGB", (side, side + CAPTION), PAPER)
    tile.paste(Image.fromarray(image.astype(np.uint8)), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    if prompts is not None:
        for coords_K2, labels_K in zip(prompts.coords.cpu().numpy(), prompts.labels.cpu().numpy(), strict=True):
            _draw_prompts(draw, (coords_K2 + 0.5) * scale + (0, CAPTION), labels_K, radius=max(3.0, side / 55))
    draw.text((3, CAPTION / 2), caption, fill=INK, font=_font(), anchor="lm")
    return np.asarray(tile)


def tile_panels(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 6) -> np.ndarray:
    """Arranges tiles of one size in rows on white, (H, W, 3) uint8; rows may have different lengths."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            sheet[y : y + height, x : x + width] = tile
    return sheet


def _draw_prompts(draw: ImageDraw.ImageDraw, coords_K2: np.ndarray, labels_K: np.ndarray, radius: float) -> None:
    """Draws the box, then the clicks; the newest click, which comes first in the prompts, is larger than the others."""
    corners = [tuple(coords_K2[labels_K == label][0]) for label in (2, 3) if (labels_K == label).any()]
    if len(corners) == 2:
        box = [*np.minimum(*corners), *np.maximum(*corners)]
        draw.rectangle(box, outline=INK, width=4)
        draw.rectangle(box, outline=BOX, width=2)
    clicks = [k for k, label in enumerate(labels_K) if label in (PointLabel.FOREGROUND, PointLabel.BACKGROUND)]
    for k in reversed(clicks):
        is_newest, is_foreground = k == clicks[0], labels_K[k] == PointLabel.FOREGROUND
        colour = FOREGROUND if is_foreground else BACKGROUND
        _draw_click(draw, coords_K2[k], colour, radius * (1 if is_newest else 0.65))


def _draw_click(draw: ImageDraw.ImageDraw, xy: np.ndarray, colour: tuple[int, int, int], radius: float) -> None:
    """Draws a disc with a white rim: green with a plus for foreground, red with a minus for background."""
    x, y = xy.tolist()
    draw.ellipse([x - radius - 1.5, y - radius - 1.5, x + radius + 1.5, y + radius + 1.5], fill=PAPER)
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    arm = 0.55 * radius
    draw.line([x - arm, y, x + arm, y], fill=PAPER, width=1)
    if colour == FOREGROUND:
        draw.line([x, y - arm, x, y + arm], fill=PAPER, width=1)


def _resize(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask resized to PIL's (width, height)."""
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127


def _outline(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """Returns the mask's pixels within `width` steps of its border; the image's edge is a border, too."""
    inner = np.pad(mask_HW, 1)
    for _ in range(width):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask_HW & ~inner[1:-1, 1:-1]


@lru_cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 image as a PNG that is complete or absent."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    write_bytes(path, stream.getvalue())

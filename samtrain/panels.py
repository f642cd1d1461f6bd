"""Images of masks and prompts: for validation, the report, the preview."""

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

COLOURS = np.array(  # told apart by most colour-blind people (Okabe and Ito 2008), without black
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66)],
    dtype=np.uint8,
)
FOREGROUND, BACKGROUND, BOX = (30, 200, 80), (230, 40, 60), (255, 214, 0)
PAPER, INK = (255, 255, 255), (40, 40, 40)
FILL = 0.45  # how much a mask covers the image
CAPTION = 20  # height of a caption in pixels


@dataclass(frozen=True)
class ClickedObject:
    """One object of a validation and what was made of each click, in pixels of the model's input.

    key, number: the image's key, and which object of the batch. image: (S, S, 3) uint8. truth: (S, S) bool. predicted: K of
    these. clicks: K of (x, y, label). ious: K.
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
    """One tile, (side + CAPTION, side, 3) uint8: a uint8 RGB image, bool masks filled with colours, all prompts.

    Masks, `truth_HW` (a white outline) and prompts are in the image's pixels. The image is fitted into the tile.
    """
    H, W = image_HWC.shape[:2]
    scale = side / max(H, W)
    size = max(1, round(W * scale)), max(1, round(H * scale))  # PIL's order
    image = np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)

    # masks, then the outline of what should be
    for number, mask_HW in enumerate(masks_NHW):
        mask, colour = _resize(mask_HW, size), COLOURS[number % len(COLOURS)]
        image[mask] = (1 - FILL) * image[mask] + FILL * colour
        image[_outline(mask, 2)] = colour
    if truth_HW is not None:
        truth = _resize(truth_HW, size)
        image[_outline(truth, 3)] = INK  # what is left of it inside keeps the white visible on white
        image[_outline(truth, 2)] = PAPER

    # prompts, each at the centre of its pixel
    tile = Image.new("RGB", (side, side + CAPTION), PAPER)
    tile.paste(Image.fromarray(image.astype(np.uint8)), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    if prompts is not None:
        for coords_K2, labels_K in zip(prompts.coords.cpu().numpy(), prompts.labels.cpu().numpy(), strict=True):
            _draw_prompts(draw, (coords_K2 + 0.5) * scale + (0, CAPTION), labels_K, radius=max(3.0, side / 55))
    draw.text((3, CAPTION / 2), caption, fill=INK, font=_font(), anchor="lm")
    return np.asarray(tile)


def tile_panels(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 6) -> np.ndarray:
    """Tiles of one size set in rows on white, (H, W, 3) uint8; shorter rows end earlier."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            sheet[y : y + height, x : x + width] = tile
    return sheet


def _draw_prompts(draw: ImageDraw.ImageDraw, coords_K2: np.ndarray, labels_K: np.ndarray, radius: float) -> None:
    """Box first, clicks on top of it, the newest (it stands first) larger than the others."""
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
    """A disc with a white rim: a plus on the object's colour, a minus on the background's."""
    x, y = xy.tolist()
    draw.ellipse([x - radius - 1.5, y - radius - 1.5, x + radius + 1.5, y + radius + 1.5], fill=PAPER)
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    arm = 0.55 * radius
    draw.line([x - arm, y, x + arm, y], fill=PAPER, width=1)
    if colour == FOREGROUND:
        draw.line([x, y - arm, x, y + arm], fill=PAPER, width=1)


def _resize(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127


def _outline(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """The mask's pixels that are `width` steps or less from what is not the mask; the image's edge is a border too."""
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

"""Turns an image and its annotations into a sample: chooses a window and masks, then renders both.

A transform chooses a `Window`, and image and masks are rendered in it in the same way. Masks stay RLE until they are chosen:
the boxes and areas of their runs say which masks are visible, `max_masks` of those are drawn, and only they are decoded. The
`bbox` and `area` of the JSON are not asked, because a wrong one would drop a good mask unseen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.decode import StoredImage
from samtrain.data.windows import MaskPatch, Window, render_image, render_mask
from samtrain.ops.masks import longest_side_size
from samtrain.ops.rle_extents import rle_extents

Annotation = dict[str, Any]


@dataclass
class Sample:
    """One image in the input frame with the N masks that were drawn; N may be 0.

    image:         (3, S, S) uint8 RGB, zero in the padding
    masks:         (N, S, S) bool
    input_size:    (H, W) of the part that is not padding
    original_size: (H, W) of the stored image
    objects:       the numbers of the masks among the annotations of the record
    """

    image: Tensor
    masks: Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]
    key: str = ""
    objects: list[int] = field(default_factory=list)


class WindowTransform(ABC):
    """The base of all transforms: `transform(image, annotations, max_masks, rng)` returns a `Sample`.

    The image is (H, W, 3) uint8, or a `StoredImage` that is decoded no larger than the window needs; the annotations are
    SA-1B's. Masks above `max_mask_area` of the image or of the window are dropped (paper, appendix A: 90 %), as are masks
    below `min_mask_area` input pixels.
    """

    def __init__(
        self,
        *,
        image_size: int = 1024,
        max_mask_area: float = 0.9,
        min_mask_area: int = 1,
        flip_probability: float = 0.0,
    ) -> None:
        if min_mask_area < 1:
            raise ValueError(f"loader.min_mask_area is {min_mask_area}: give 1 or more pixels")
        self.image_size = image_size
        self.max_mask_area = max_mask_area
        self.min_mask_area = min_mask_area
        self.flip_probability = flip_probability

    @abstractmethod
    def window(self, size: tuple[int, int], boxes_N4: np.ndarray, rng: np.random.Generator) -> Window:
        """Returns the window of an image of `size` (H, W) with objects at these boxes (xyxy)."""

    def __call__(
        self,
        image: np.ndarray | StoredImage,
        annotations: Sequence[Annotation],
        max_masks: int,
        rng: np.random.Generator,
    ) -> Sample:
        # drop masks that are too large
        size = image.shape[:2]
        areas_N, boxes_N4 = mask_extents(annotations, size)
        kept = np.flatnonzero(areas_N <= self.max_mask_area * size[0] * size[1])
        boxes_N4 = boxes_N4[kept] + np.array([0.0, 0.0, 1.0, 1.0])  # a margin on two sides, for what resizing rounds

        # choose the window, and draw objects that are visible in it, by their boxes alone
        window = self.window(size, boxes_N4, rng)
        visible = kept[self._visible(areas_N[kept], boxes_N4, window)]
        found = self._draw(rng.permutation(visible).tolist(), max_masks, annotations, size, window)
        masks = list(found.values())

        # render the image, and mirror both at random
        pixels, reduction = image.decode(max(window.scale)) if isinstance(image, StoredImage) else (image, 1)
        sample = Sample(*self._pad(render_image(pixels, window, reduction), masks), window.size, tuple(size))
        sample.objects = list(found)
        if self.flip_probability > 0 and rng.random() < self.flip_probability:
            _mirror(sample)
        return sample

    def _draw(
        self, order: list[int], max_masks: int, annotations: Sequence[Annotation], size: tuple[int, int], window: Window
    ) -> dict[int, MaskPatch]:
        """Decodes the masks in this order until `max_masks` fit; returns them by their numbers, in the annotations' order.

        The visible part of a mask may be too small or too large. Then the next one takes its place.
        """
        largest = self.max_mask_area * window.size[0] * window.size[1]
        found: dict[int, MaskPatch] = {}
        for i in order:
            if len(found) == max_masks:
                break
            mask = render_mask(annotations[i]["segmentation"], size, window)
            if self.min_mask_area <= mask.area <= largest:
                found[i] = mask
        return {i: found[i] for i in sorted(found)}

    def _visible(self, areas_N: np.ndarray, boxes_N4: np.ndarray, window: Window) -> np.ndarray:
        """Returns (N,) bool: the box overlaps the window, and the whole object would be large enough in it."""
        x0, y0, x1, y1 = window.box
        overlaps = (boxes_N4[:, 0] < x1) & (boxes_N4[:, 2] > x0) & (boxes_N4[:, 1] < y1) & (boxes_N4[:, 3] > y0)
        if self.min_mask_area == 1:
            return overlaps  # a visible mask keeps at least one pixel
        return overlaps & (areas_N * window.scale[0] * window.scale[1] >= self.min_mask_area)

    def _pad(self, image: np.ndarray, masks: Sequence[MaskPatch]) -> tuple[Tensor, Tensor]:
        """Returns (3, S, S) and (N, S, S): image and masks in the top left corner of the square."""
        square = np.zeros((3, self.image_size, self.image_size), dtype=np.uint8)
        square[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        masks_NSS = np.zeros((len(masks), self.image_size, self.image_size), dtype=bool)
        for row, mask in enumerate(masks):
            height, width = mask.pixels.shape
            masks_NSS[row, mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
        return torch.from_numpy(square), torch.from_numpy(masks_NSS)


def _mirror(sample: Sample) -> None:
    """Mirrors the part that is not padding from left to right."""
    width = sample.input_size[1]
    sample.image[..., :width] = sample.image[..., :width].flip(-1)
    sample.masks[..., :width] = sample.masks[..., :width].flip(-1)


class ResizeLongestSide(WindowTransform):
    """Shows the whole image with its longest side resized to `image_size`, as SAM's own preprocessing does."""

    def window(self, size: tuple[int, int], boxes_N4: np.ndarray, rng: np.random.Generator) -> Window:
        return Window((0, 0, size[1], size[0]), longest_side_size(size, self.image_size))


class LargeScaleJitter(WindowTransform):
    """Resizes the longest side to a random multiple of `image_size`, then crops at random or pads (paper: [0.1, 2.0])."""

    def __init__(self, *, scale: Sequence[float] = (0.1, 2.0), **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"loader.large_scale_jitter is {list(scale)}: give [smallest, largest], both above 0")
        self.smallest, self.largest = scale

    def window(self, size: tuple[int, int], boxes_N4: np.ndarray, rng: np.random.Generator) -> Window:
        # draw the size and the crop, in pixels of the resized image
        resized = longest_side_size(size, self.image_size * rng.uniform(self.smallest, self.largest))
        cropped = min(resized[0], self.image_size), min(resized[1], self.image_size)
        top, left = (int(rng.integers(0, r - c + 1)) for r, c in zip(resized, cropped, strict=True))
        # convert the crop to original pixels
        step_y, step_x = size[0] / resized[0], size[1] / resized[1]
        bottom, right = (top + cropped[0]) * step_y, (left + cropped[1]) * step_x
        return Window((left * step_x, top * step_y, min(right, size[1]), min(bottom, size[0])), cropped)


class NativeCrop(WindowTransform):
    """Crops a square of `image_size` original pixels that contains an object; a smaller image is padded.

    Each call draws an object, and a place for the square around it. With `centre`, the crop is deterministic: it contains the
    object nearest to the middle of the image.
    """

    def __init__(self, *, centre: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.centre = centre

    def window(self, size: tuple[int, int], boxes_N4: np.ndarray, rng: np.random.Generator) -> Window:
        anchor = self._anchor(size, boxes_N4, rng)
        left, right = self._span(size[1], anchor[0::2], rng)
        top, bottom = self._span(size[0], anchor[1::2], rng)
        return Window((left, top, right, bottom), (bottom - top, right - left))

    def _anchor(self, size: tuple[int, int], boxes_N4: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the box that the crop contains: a random or the most central object, of those that fit if any does."""
        if len(boxes_N4) == 0:
            return np.array([0, 0, size[1], size[0]], dtype=np.float64)
        # prefer objects that fit into the crop
        sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        fitting = boxes_N4[(sides_N2 <= self.image_size).all(axis=1)]
        choice = fitting if len(fitting) else boxes_N4
        if not self.centre:
            return choice[rng.integers(len(choice))]
        middle = np.array([size[1], size[0]]) / 2
        distance = np.abs((choice[:, :2] + choice[:, 2:]) / 2 - middle).max(axis=1)
        return choice[distance.argmin()]

    def _span(self, side: int, anchor: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """Returns start and end of the crop along one axis: it contains the anchor, or is inside a larger anchor."""
        length = min(side, self.image_size)
        inside = sorted((int(np.ceil(anchor[1])) - length, int(np.floor(anchor[0]))))
        low, high = (min(max(start, 0), side - length) for start in inside)
        start = min(max((side - length) // 2, low), high) if self.centre else int(rng.integers(low, high + 1))
        return start, start + length


def mask_extents(annotations: Sequence[Annotation], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,) areas in pixels and (N, 4) tight boxes (xyxy) of the masks of an image of `size` (H, W).

    Raises ValueError that begins with the annotation's id for a mask that is empty, broken or of another size.
    """
    cure = "correct it, leave it out of the JSON, or set data.on_error=skip"
    try:
        areas_N, boxes_N4 = rle_extents([annotation["segmentation"] for annotation in annotations], size)
    except ValueError as error:
        message, number = error.args
        raise ValueError(f"annotation {annotations[number].get('id')}: {message}: {cure}") from error
    if len(empty := np.flatnonzero(areas_N == 0)):
        raise ValueError(f"annotation {annotations[int(empty[0])].get('id')}: the mask is empty: {cure}")
    return areas_N, boxes_N4

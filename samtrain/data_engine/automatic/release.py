"""The form in which images of people and streets are given away: smaller, with faces and licence plates blurred.

A detector finds what it finds: this lessens what is shown of people, it is no guarantee of privacy.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

NO_GUARANTEE = (
    "Faces and licence plates were blurred where a detector found them. It overlooks some, so this is no guarantee of privacy: "
    "look at the images before you give them away."
)


class Detector(Protocol):
    """What finds something to blur in an (H, W, 3) uint8 RGB image: (N, 4) xyxy in its pixels."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class CascadeDetector:
    """OpenCV's bundled cascades, at their usual settings; several of them find more."""

    def __init__(self, cascades: Sequence[str], *, min_size: int = 20, min_neighbours: int = 5, mirrored: bool = False) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ValueError(
                "generate.release blurs with OpenCV, which is not installed: pip install 'samtrain[release]', or name "
                "another detector in generate.release.detectors"
            ) from error
        self.min_size, self.min_neighbours, self.mirrored = min_size, min_neighbours, mirrored
        folder = cv2.data.haarcascades  # type: ignore[attr-defined] # its stubs know no data
        self._cascades = [cv2.CascadeClassifier(folder + name) for name in cascades]
        if missing := [name for name, cascade in zip(cascades, self._cascades, strict=True) if cascade.empty()]:
            raise ValueError(f"OpenCV has no cascades {missing}: see the folder {folder}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        grey = np.asarray(Image.fromarray(image).convert("L"))
        boxes = [self._detect(cascade, grey) for cascade in self._cascades]
        if self.mirrored:  # a cascade of profiles knows one side
            for cascade in self._cascades:
                found = self._detect(cascade, np.ascontiguousarray(grey[:, ::-1]))
                found[:, [0, 2]] = grey.shape[1] - found[:, [2, 0]]
                boxes.append(found)
        return np.concatenate(boxes)

    def _detect(self, cascade, grey: np.ndarray) -> np.ndarray:
        size = (self.min_size, self.min_size)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=self.min_neighbours, minSize=size)
        boxes = np.array(found, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


@dataclass(frozen=True)
class ReleaseForm:
    """What an image becomes before it is written.

    short_side:  pixels; larger images are shrunk to it, smaller ones stay (SA-1B: 1500)
    quality:     of the JPEG, which carries no EXIF
    detectors:   what to blur, by name
    margin:      share of a box's sides by which it is blurred beyond itself, on every side
    """

    short_side: int | None
    quality: int
    detectors: dict[str, Detector]
    margin: float = 0.2

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (H, W) that an image of (H, W) gets."""
        if self.short_side is None or min(size) <= self.short_side:
            return size
        H, W = (max(1, round(side * self.short_side / min(size))) for side in size)
        return H, W

    def jpeg(self, image: np.ndarray) -> tuple[bytes, dict[str, int]]:
        """The image as it is written, and how many boxes of each kind were blurred in it."""
        H, W = self.size(image.shape[:2])
        small = Image.fromarray(image)
        if small.size != (W, H):
            small = small.resize((W, H), Image.Resampling.LANCZOS)
        counts = {}
        for name, detector in self.detectors.items():
            boxes = detector(np.asarray(small))
            counts[name] = len(boxes)
            for box in boxes.tolist():
                _blur(small, box, self.margin)
        stream = io.BytesIO()
        small.save(stream, "jpeg", quality=self.quality)
        return stream.getvalue(), counts


def _blur(image: Image.Image, box: Sequence[float], margin: float) -> None:
    """Makes the inside of a box, and a margin, unrecognisable: a Gaussian of a sixth of its longer side."""
    x0, y0, x1, y1 = box
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    around = (
        max(0, int(x0 - dx)), max(0, int(y0 - dy)), min(image.width, int(x1 + dx) + 1), min(image.height, int(y1 + dy) + 1)
    )  # fmt: skip
    if around[0] < around[2] and around[1] < around[3]:
        part = image.crop(around)
        image.paste(part.filter(ImageFilter.GaussianBlur(max(x1 - x0, y1 - y0) / 6)), around)

"""Prepares images of people and streets for a release: shrinks them and blurs faces and licence plates.

Detectors miss some faces and plates. Blurring reduces what is shown of people, but it does not guarantee their privacy.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

NO_GUARANTEE = (
    "Faces and licence plates were blurred where a detector found them. It misses some, so this is no guarantee of privacy: "
    "check the images before you release them."
)


class Detector(Protocol):
    """Finds what to blur: takes an (H, W, 3) uint8 RGB image and returns (N, 4) boxes xyxy in its pixels."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class CascadeDetector:
    """Runs one or several of the cascades that come with OpenCV and returns the boxes of all.

    mirrored: also search the mirrored image, for cascades that know one side only
    """

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
            raise ValueError(f"OpenCV has no cascades {missing}: choose from the files in {folder}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        grey = np.asarray(Image.fromarray(image).convert("L"))
        boxes = [self._detect(cascade, grey) for cascade in self._cascades]
        if self.mirrored:
            for cascade in self._cascades:
                found = self._detect(cascade, np.ascontiguousarray(grey[:, ::-1]))
                found[:, [0, 2]] = grey.shape[1] - found[:, [2, 0]]
                boxes.append(found)
        return np.concatenate(boxes)

    def _detect(self, cascade, grey: np.ndarray) -> np.ndarray:
        """Returns the boxes of one cascade; a scale factor of 1.1 is OpenCV's default."""
        size = (self.min_size, self.min_size)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=self.min_neighbours, minSize=size)
        boxes = np.array(found, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


@dataclass(frozen=True)
class ReleaseForm:
    """How an image is changed before it is written.

    short_side:  pixels; larger images are shrunk to it, smaller ones keep their size (SA-1B: 1500)
    quality:     of the JPEG, which is written without EXIF
    detectors:   find what to blur, by name
    margin:      the blurred region exceeds a box by this share of its sides, on every side
    """

    short_side: int | None
    quality: int
    detectors: dict[str, Detector]
    margin: float = 0.2

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) at which an image of (H, W) is written."""
        if self.short_side is None or min(size) <= self.short_side:
            return size
        H, W = (max(1, round(side * self.short_side / min(size))) for side in size)
        return H, W

    def jpeg(self, image: np.ndarray) -> tuple[bytes, dict[str, int]]:
        """Returns the JPEG of an image, and how many boxes each detector found in it."""
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
    """Blurs a box and its margin in place until nothing is recognisable, with a sigma of a sixth of the longer side (ours)."""
    x0, y0, x1, y1 = box
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    around = (
        max(0, int(x0 - dx)), max(0, int(y0 - dy)), min(image.width, int(x1 + dx) + 1), min(image.height, int(y1 + dy) + 1)
    )  # fmt: skip
    if around[0] < around[2] and around[1] < around[3]:
        part = image.crop(around)
        image.paste(part.filter(ImageFilter.GaussianBlur(max(x1 - x0, y1 - y0) / 6)), around)

"""Edge detection (section 7.2, appendix D.2): edges are where the masks of a grid of clicks end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from samtrain.data.decode import decode_shown
from samtrain.evaluators.evaluator import GeneratorEvaluator, Part, Row
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.metrics.edge_matching import EdgeCounts, count_edges, edge_metrics, read_boundaries

HALF_PLANE = -np.pi / 8  # radians; the border is away from the axes and diagonals, where ties between neighbours are common
NEIGHBOURS = np.ones((3, 3), dtype=bool)
ROUNDING = 1e-5
SMOOTHING = 2.0  # pixels, standard deviation before the direction of an edge is computed (ours; the paper says "edge NMS")


@dataclass(frozen=True)
class EdgeImage:
    """An image of BSDS500 and the file with its annotators' boundaries."""

    key: str
    image: Path
    boundaries: Path


class Edges(GeneratorEvaluator):
    """Compares edges from the masks of a 16 x 16 grid with people's boundaries on BSDS500 (conf/generator/edges.yaml)."""

    has_default_set = False

    def locate(self, given: str | list[str]) -> list[str]:
        """Returns folders, because BSDS500 does not come as shards."""
        return [given] if isinstance(given, str) else list(given)

    def parts(self, sets: Mapping[str, list[str]], checkpoint: str | None) -> list[Part]:
        if not self.config.sets:
            raise ValueError("zero_shot.sets is empty: name BSDS500's data folder, +zero_shot.sets.bsds500=BSDS500/data")
        return super().parts(sets, checkpoint)

    def open(self, part: Part) -> Iterator[EdgeImage]:
        for folder in part.sources:
            yield from edge_images(Path(folder), self.config.split, key=f"zero_shot.sets.{part.name}")

    def rows(self, image: EdgeImage) -> list[Row]:
        """Returns the `EdgeCounts` of an image as one row of plain lists."""
        pixels = decode_shown(image.image.read_bytes(), str(image.image))
        counts = count_edges(edge_strength(self.generator, pixels), read_boundaries(image.boundaries))
        return [{name: values.tolist() for name, values in vars(counts).items()}]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `edge_metrics`."""
        return edge_metrics([EdgeCounts(**row) for row in rows])

    def objects(self, row: Row) -> list[Row]:
        return []


def edge_images(folder: Path, split: str, *, key: str) -> Iterator[EdgeImage]:
    """Yields `<folder>/images/<split>/*.jpg` with `<folder>/groundTruth/<split>/*.mat`, the layout of BSDS500's archive.

    Raises ValueError that names `key` if there are no images, or an image without annotations.
    """
    images = sorted((folder / "images" / split).glob("*.jpg"))
    if not images:
        raise ValueError(
            f"{key} is {str(folder)!r}, and there is no image in {folder / 'images' / split}: give BSDS500's data folder, and "
            "its split in zero_shot.split"
        )
    for image in images:
        boundaries = folder / "groundTruth" / split / f"{image.stem}.mat"
        if not boundaries.is_file():
            raise ValueError(f"{key}: {image.name} has no annotations, {boundaries} does not exist: unpack BSDS500 again")
        yield EdgeImage(image.stem, image, boundaries)


def edge_strength(generator: SamAutomaticMaskGenerator, image: np.ndarray) -> np.ndarray:
    """Returns (H, W) float in 0 to 1, the strength of thin edges of an (H, W, 3) uint8 image."""
    H, W = image.shape[:2]
    strongest = np.zeros((H, W))
    for candidate in generator.candidates(image):
        # the probabilities of one mask at the size of the image
        logits = candidate.low_res_logits
        assert logits is not None
        frame = candidate.crop.frame
        h, w = len(frame.rows.first), len(frame.columns.first)  # of the image, or of a tile, beyond which there is no mask
        probabilities = np.zeros((H, W))
        part = frame.render(logits, (slice(0, h), slice(0, w))).T.double().sigmoid().cpu().numpy()
        probabilities[frame.top : frame.top + h, frame.left : frame.left + w] = part
        # their Sobel magnitude, zero off the outer boundary of the mask; the maximum over all masks
        magnitude = np.hypot(ndimage.sobel(probabilities, axis=0), ndimage.sobel(probabilities, axis=1))
        strongest = np.maximum(strongest, np.where(outer_boundary(probabilities > 0.5), magnitude, 0))
    # normalise linearly, then thin
    low, high = strongest.min(), strongest.max()
    return thin_edges((strongest - low) / (high - low)) if high > low else np.zeros((H, W))


def outer_boundary(mask_HW: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool, the pixels on both sides of the mask's outline; the outlines of holes do not count."""
    filled = ndimage.binary_fill_holes(mask_HW)
    return ndimage.binary_dilation(filled, NEIGHBOURS) & ~ndimage.binary_erosion(filled, NEIGHBOURS, border_value=1)


def thin_edges(strength_HW: np.ndarray) -> np.ndarray:
    """Returns the strength where it is a maximum across the edge, else 0: non-maximum suppression of edges.

    The direction across is that of the largest curvature of the smoothed strength. The neighbours at a distance of one
    pixel on both sides are interpolated.
    """
    # second derivatives of the smoothed strength
    smooth = ndimage.gaussian_filter(strength_HW, SMOOTHING)
    dy, dx = np.gradient(smooth)
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    # the main axis of largest curvature: a ridge curves most across itself
    across = 0.5 * np.arctan2(2 * dyx, dxx - dyy)  # the angle from x to y
    along = across + np.pi / 2
    curved = [dxx * np.cos(a) ** 2 + 2 * dyx * np.cos(a) * np.sin(a) + dyy * np.sin(a) ** 2 for a in (across, along)]
    angle = np.where(np.abs(curved[0]) >= np.abs(curved[1]), across, along)
    # the same half plane for all pixels, so that along a straight edge ties go to the same side
    angle = (angle - HALF_PLANE) % np.pi + HALF_PLANE
    # the strength of the neighbours on both sides
    rows, columns = np.indices(strength_HW.shape)
    kept = strength_HW > 0
    neighbours = [
        ndimage.map_coordinates(
            strength_HW, [rows + sign * np.sin(angle), columns + sign * np.cos(angle)], order=1, mode="constant"
        )
        for sign in (-1, 1)
    ]
    # of two neighbours that are equal up to rounding, one stays
    kept &= (strength_HW >= neighbours[0] - ROUNDING) & (strength_HW > neighbours[1] + ROUNDING)
    return np.where(kept, strength_HW, 0)

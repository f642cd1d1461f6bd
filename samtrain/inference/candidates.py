"""Filters the masks of the automatic generator one by one, before they are compared with each other.

On a CPU masks are rendered at full size as late as possible. A mask is dropped early by its predicted IoU, or if bounds of its
logits prove that it is unstable (`ops.logit_frame`). The others are rendered only in the rectangle where they can have pixels.
A GPU renders many whole masks in less time than it takes to ask it for one rectangle, so only the predicted IoU comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.grids import Box
from samtrain.ops.logit_frame import ROUNDING, LogitFrame
from samtrain.ops.rle import runs_of, runs_of_many
from samtrain.types import Size

NEAR_EDGE = 20  # pixels; a mask this close to an inner edge of its crop is assumed to be cut off (segment_anything)
PIXELS_AT_A_TIME = 2**23  # pixels rendered one by one between two synchronisations with the device
PIXELS_TOGETHER = 2**27  # pixels of masks that are rendered together: 512 MiB of float32
ONE_BY_ONE = {"cpu"}  # devices that render masks one by one, each in its rectangle
Reach = tuple[slice, slice]
NOTHING: Reach = (slice(0, 1), slice(0, 1))  # the rectangle in which a mask without pixels is rendered


@dataclass(frozen=True)
class Crop:
    """Describes a part of an image that is encoded by itself.

    image:         number of the image
    layer:         crop layer, 0 for the whole image, or for tiles of it
    box:           in pixels of the image, x1 and y1 one past the last
    input_size:    (H, W) in the network input, without padding
    box_in_frame:  xyxy in the frame of the records, which is that of the image or a smaller one
    frame_size:    (H, W) of that frame
    frame:         maps the crop's logits to that frame
    points:        (K, 2) the clicks (x, y), in pixels of the crop
    """

    image: int
    layer: int
    box: Box
    input_size: Size
    box_in_frame: tuple[float, float, float, float]
    frame_size: Size
    frame: LogitFrame
    points: np.ndarray = field(compare=False, repr=False)

    @property
    def size(self) -> Size:
        """(H, W) of the crop in pixels of the image."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


@dataclass
class Candidate:
    """Holds a mask that may become a record; click, inclusive xyxy box and run lengths are in the frame of the records.

    low_res_logits:  (h, w), kept on request; `crop.frame` renders them
    """

    crop: Crop
    point: tuple[float, float]
    predicted_iou: float
    stability_score: float
    box: tuple[int, int, int, int]
    area: int
    runs: np.ndarray
    low_res_logits: Tensor | None = None


@dataclass(frozen=True)
class MaskTests:
    """Holds the thresholds that a mask must pass.

    `max_area` is a share of the frame, `near_edge` the distance in pixels from an inner edge of its crop at which a mask is
    taken to be cut off. With `keep_logits` the masks that pass keep their low-resolution logits.
    """

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    mask_threshold: float
    max_area: float | None
    near_edge: float = NEAR_EDGE
    keep_logits: bool = False

    def passing(self, logits_nMhw: Tensor, ious_nM: Tensor, crops: Sequence[Crop], points_n2: np.ndarray) -> list[Candidate]:
        """Returns the masks that pass, of M masks for each of n clicks, in the order of clicks and masks.

        logits_nMhw:  float32, low-resolution
        ious_nM:      predicted IoUs
        crops:        the crop of each click
        points_n2:    the clicks (x, y), in pixels of their crop
        """
        # Predicted IoU; with a threshold of 0 all masks pass, as in segment_anything
        kept = ious_nM > self.pred_iou_thresh if self.pred_iou_thresh > 0 else torch.ones_like(ious_nM, dtype=torch.bool)
        logits_mhw, ious = logits_nMhw[kept], ious_nM[kept].tolist()
        clicks = kept.nonzero()[:, 0].tolist()
        owners = [crops[click] for click in clicks]
        points = [points_n2[click] for click in clicks]
        if logits_mhw.device.type not in ONE_BY_ONE:
            return self._passing_together(logits_mhw, ious, owners, points)

        # Stability by its bounds; the masks that are left are rendered and tested in full
        reaches = self._reaches(logits_mhw, owners)
        passed = []
        for batch in _batches_by_pixels(self._possibly_stable(logits_mhw, owners, reaches), reaches):
            masks = [self._at_full_size(logits_mhw[i], owners[i], reaches[i]) for i in batch]
            numbers = torch.stack([counts for _, counts in masks]).tolist()
            for i, (mask_WH, _), counts in zip(batch, masks, numbers, strict=True):
                corner = reaches[i][0].start, reaches[i][1].start
                found = self._tested(owners[i], points[i], ious[i], counts, corner)
                if found is not None:
                    frame = owners[i].frame
                    corner = corner[0] + frame.top, corner[1] + frame.left
                    found.runs = runs_of(mask_WH.cpu().numpy(), corner, owners[i].frame_size)
                    found.low_res_logits = logits_mhw[i].clone() if self.keep_logits else None
                    passed.append(found)
        return passed

    def _passing_together(
        self, logits_mhw: Tensor, ious: list[float], owners: list[Crop], points: list[np.ndarray]
    ) -> list[Candidate]:
        """Returns the masks that pass; those of one crop are rendered together, in parts, with two synchronisations each."""
        passed: list[Candidate] = []
        for _, group in groupby(range(len(owners)), key=lambda i: id(owners[i])):
            masks = list(group)
            crop = owners[masks[0]]
            size = max(1, PIXELS_TOGETHER // (len(crop.frame.rows.first) * len(crop.frame.columns.first)))
            for part in (masks[start : start + size] for start in range(0, len(masks), size)):
                logits_nWH = crop.frame.render_whole(logits_mhw[part[0] : part[-1] + 1])
                mask_nWH = logits_nWH > self.mask_threshold
                numbers = self._numbers(logits_nWH, mask_nWH).tolist()
                found: dict[int, Candidate] = {}  # by their places in the part
                for place, (i, counts) in enumerate(zip(part, numbers, strict=True)):
                    if (candidate := self._tested(crop, points[i], ious[i], counts, (0, 0))) is not None:
                        candidate.low_res_logits = logits_mhw[i].clone() if self.keep_logits else None
                        found[place] = candidate
                if found:
                    corner = crop.frame.top, crop.frame.left
                    runs = runs_of_many(mask_nWH[list(found)], corner, crop.frame_size)
                    for candidate, own in zip(found.values(), runs, strict=True):
                        candidate.runs = own
                passed += found.values()
        return passed

    def _tested(
        self, crop: Crop, point: np.ndarray, predicted_iou: float, numbers: list[int], corner: tuple[int, int]
    ) -> Candidate | None:
        """Returns the candidate without its runs, or None if the mask does not pass.

        `numbers` are those of `_numbers`, for a mask that is rendered in a rectangle; `corner` is its first row and column.
        """
        inner, outer, area, *extents = numbers
        score = float(np.float32(inner) / np.float32(max(outer, 1)))
        box = _box(extents, corner) if area else (0, 0, 0, 0)
        return _candidate(crop, point, predicted_iou, score, box, area) if self._passes(crop, score, area, box) else None

    def _numbers(self, logits_nWH: Tensor, mask_nWH: Tensor) -> Tensor:
        """Returns (n, 7): the pixels of inner cut, outer cut and mask, then the first and last column and row of the mask."""
        cuts = (self.mask_threshold + sign * self.stability_score_offset for sign in (1, -1))
        # int32, because a CPU adds bools up in int64 six times as slowly
        counts = [each.flatten(1).sum(dim=1, dtype=torch.int32) for each in (*(logits_nWH > cut for cut in cuts), mask_nWH)]
        extents = [edge for axis in (2, 1) for edge in _ends(mask_nWH.any(dim=axis))]
        return torch.stack([*counts, *extents], dim=1)

    def _reaches(self, logits_mhw: Tensor, crops: list[Crop]) -> list[Reach]:
        """Returns the rectangle of each crop (rows, columns) outside of which mask and outer cut have no pixel."""
        hot = logits_mhw > self.mask_threshold - self.stability_score_offset - ROUNDING
        sides = [edge for axis in (2, 1) for edge in _ends(hot.any(dim=axis))]
        cells = torch.stack([*sides, hot.flatten(1).any(dim=1)], dim=1).tolist() if len(hot) else []
        reaches = []
        for (*edges, any_hot), crop in zip(cells, crops, strict=True):
            reach = crop.frame.reach(edges) if any_hot else NOTHING
            # no pixel depends on logits in the padding
            reaches.append(reach if all(s.start < s.stop for s in reach) else NOTHING)
        return reaches

    def _possibly_stable(self, logits_mhw: Tensor, crops: list[Crop], reaches: list[Reach]) -> list[int]:
        """Returns the masks that the bounds do not prove to be unstable."""
        if self.stability_score_thresh <= 0 or not crops:
            return list(range(len(crops)))
        bounds = [
            crop.frame.bounds(logits, reach, self.mask_threshold, self.stability_score_offset)
            for logits, crop, reach in zip(logits_mhw, crops, reaches, strict=True)
        ]
        most, fewest = torch.stack(bounds).double().unbind(dim=1)
        return (most >= self.stability_score_thresh * fewest).nonzero()[:, 0].tolist()

    def _at_full_size(self, logits_hw: Tensor, crop: Crop, reach: Reach) -> tuple[Tensor, Tensor]:
        """Renders a mask in its rectangle.

        Returns the bool mask (W', H'), and seven numbers (7,): the pixels of the inner cut, the outer cut and the mask, then
        the first and last column and row of the mask.
        """
        logits_WH = crop.frame.render(logits_hw, reach)
        mask = logits_WH > self.mask_threshold
        return mask, self._numbers(logits_WH[None], mask[None])[0]

    def _passes(self, crop: Crop, score: float, area: int, box: tuple[int, int, int, int]) -> bool:
        """Returns whether a rendered mask is stable, not too large, and not cut off by its crop."""
        # compared as float32, as segment_anything does: 19 of 20 pixels are 0.95
        if self.stability_score_thresh > 0 and np.float32(score) < np.float32(self.stability_score_thresh):
            return False
        H, W = crop.frame_size
        if self.max_area is not None and area >= self.max_area * H * W:
            return False
        placed = _placed(box, crop)
        return not any(
            abs(edge - inner) <= self.near_edge < abs(edge - outer)
            for edge, inner, outer in zip(placed, crop.box_in_frame, (0, 0, W, H), strict=True)
        )


def _candidate(
    crop: Crop, point: np.ndarray, predicted_iou: float, stability_score: float, box: tuple[int, int, int, int], area: int
) -> Candidate:
    """Returns the candidate without its runs, with click and box in the frame of the records."""
    x0, y0, x1, y1 = crop.box_in_frame
    (h, w), (x, y) = crop.size, point.tolist()
    placed = (x * ((x1 - x0) / w) + x0, y * ((y1 - y0) / h) + y0)
    return Candidate(crop, placed, predicted_iou, stability_score, _placed(box, crop), area, np.empty(0, np.int64))


def _placed(box: tuple[int, int, int, int], crop: Crop) -> tuple[int, int, int, int]:
    """Returns a box of the crop in the frame of the records."""
    left, top = crop.frame.left, crop.frame.top
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def _box(extents: list[int], corner: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the inclusive xyxy box in the crop, from the first and last column and row in a rectangle."""
    (left, right, top, bottom), (first_row, first_column) = extents, corner
    return left + first_column, top + first_row, right + first_column, bottom + first_row


def _ends(used_nL: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places of the first and of the last True in each row, both (n,)."""
    used = used_nL.to(torch.uint8)
    return used.argmax(dim=1), used_nL.shape[1] - 1 - used.flip(1).argmax(dim=1)


def _batches_by_pixels(masks: list[int], reaches: list[Reach]) -> Iterator[list[int]]:
    """Yields the masks in their order, in batches that end once they have `PIXELS_AT_A_TIME` pixels."""
    batch: list[int] = []
    pixels = 0
    for i in masks:
        rows, columns = reaches[i]
        pixels += (rows.stop - rows.start) * (columns.stop - columns.start)
        batch.append(i)
        if pixels >= PIXELS_AT_A_TIME:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch

"""Answers prompts on an image: three candidates as run lengths at full resolution, equal to those of `SamPredictor.predict`.

Only what is needed is computed at full resolution. In a large image that is the rectangle of each mask, some columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.ops.logit_frame import ROUNDING, LogitFrame, axis_of
from samtrain.ops.rle import (
    RLE,
    decode_rle,
    encode_mask,
    rle_area,
    rle_difference,
    rle_to_box_xywh,
    rle_union,
    runs_of,
    runs_to_counts,
)
from samtrain.types import Prompts, SamOutput, Size

MASK_LOGIT = 10.0  # of a pixel inside a mask that becomes a prompt, -10 outside; 2 to 30 gave the same IoU, see `mask_logits`
STABILITY_OFFSET = 1.0  # appendix B
WHOLE_PIXELS = 2**22  # images up to here are computed whole, to the bit as `predict` does; 2000 x 2000
STRIP_PIXELS = 2**22  # of a larger image are computed together: 16 MiB


@dataclass(frozen=True, kw_only=True)
class Question:
    """The prompts of one object, in pixels of the image.

    points: (x, y) of each click; labels: 1 on the object, 0 off it
    box:    (x0, y0, x1, y1)
    mask:   RLE of a mask to refine
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: RLE | None = None

    def arrays(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Returns points (K, 2), labels (K,) and box (4,) as `SamPredictor.predict` takes them."""
        coords = np.array(self.points, dtype=np.float64) if self.points else None
        labels = np.array(self.labels, dtype=np.int64) if self.points else None
        return coords, labels, None if self.box is None else np.array(self.box, dtype=np.float64)


@dataclass(frozen=True)
class MaskAnswer:
    """A mask at full resolution: its RLE, its predicted IoU, its stability, its pixels and its (x, y, width, height)."""

    segmentation: RLE
    score: float
    stability_score: float
    area: int
    bbox: tuple[int, int, int, int]

    def to_plain(self) -> dict[str, Any]:
        """Returns what JSON takes."""
        return {
            "segmentation": self.segmentation, "score": self.score, "stability_score": self.stability_score,
            "area": self.area, "bbox": list(self.bbox),
        }  # fmt: skip


class Decoded:
    """What the decoder says about a question, at low resolution. A mask is brought to full resolution when it is asked for.

    scores: predicted IoU of the three masks, in the model's order
    best:   the index of the highest score
    made:   the masks that were asked for
    """

    def __init__(
        self, predictor: SamPredictor, output: SamOutput, corner: tuple[int, int], size: Size, refined: RLE | None
    ) -> None:
        self.scores: list[float] = output.iou_predictions[0].tolist()
        self.best = max(range(len(self.scores)), key=self.scores.__getitem__)
        self._low_res = output.low_res_logits[0]
        self._predictor, self._corner, self._size, self._refined = predictor, corner, size, refined
        self.made: dict[int, MaskAnswer] = {}

    def mask(self, index: int) -> MaskAnswer:
        """Returns a mask at full resolution."""
        if index not in self.made:
            self.made[index] = self._make(self._low_res[index], self.scores[index])
        return self.made[index]

    @torch.no_grad()
    def _make(self, low_res_hw: Tensor, score: float) -> MaskAnswer:
        predictor, image = self._predictor, self._predictor.original_size
        if self._size[0] * self._size[1] > WHOLE_PIXELS:
            return _answer(*_in_strips(low_res_hw, predictor), score, self._size)
        # one mask at a time, because three at once no longer fit into the processor's cache and take twice as long
        logits = predictor.model.postprocess_masks(low_res_hw[None, None], predictor.input_size, self._size)[0, 0].cpu()
        if self._size == image:
            return _whole(logits.numpy(), score)
        found = _answer(*_in_tile(logits, self._corner, image), score, image)
        return found if self._refined is None else _with_rest(found, self._refined, self._corner, self._size)


@torch.no_grad()
def decode(predictor: SamPredictor, question: Question) -> Decoded:
    """Asks the decoder; raises ValueError for prompts that the model does not take."""
    coords, labels, box = question.arrays()
    tile = tile_of(predictor, question)
    mask = None if question.mask is None else mask_logits(predictor, question.mask, tile)
    prompts = as_tensors(predictor, coords, labels, box, mask)
    if isinstance(predictor, TiledPredictor):
        assert tile is not None
        output = predictor.answer_in(torch.tensor([tile], device=predictor.device), prompts, True)
        x, y = predictor.tiles[tile].tolist()
        return Decoded(predictor, output, (y, x), predictor.input_size, question.mask)
    return Decoded(predictor, predictor.answer(prompts, True), (0, 0), predictor.original_size, question.mask)


def answer(predictor: SamPredictor, question: Question) -> list[MaskAnswer]:
    """Returns the three masks in the model's order; raises ValueError for prompts that the model does not take."""
    decoded = decode(predictor, question)
    return [decoded.mask(index) for index in range(len(decoded.scores))]


def tile_of(predictor: SamPredictor, question: Question) -> int | None:
    """Returns the tile that a question is answered in: the box's, else the first click's, else the middle of the mask's.

    None for a predictor without tiles.
    """
    if not isinstance(predictor, TiledPredictor):
        return None
    if question.box is not None:
        x, y = (question.box[0] + question.box[2]) / 2, (question.box[1] + question.box[3]) / 2
    elif question.points:
        x, y = question.points[0]
    else:
        assert question.mask is not None
        rows, columns = np.nonzero(decode_rle(question.mask))
        x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    return int(predictor.tile_of(torch.tensor([[x, y]], dtype=torch.float32, device=predictor.device))[0])


def as_tensors(
    predictor: SamPredictor,
    coords: np.ndarray | None,
    labels: np.ndarray | None,
    box: np.ndarray | None,
    mask: Tensor | None,
) -> Prompts:
    """Returns the prompts in the input frame, as `SamPredictor.predict` brings them there."""
    size = predictor.original_size
    points = None if coords is None else predictor.transform.apply_coords(coords, size)
    boxes = None if box is None else predictor.transform.apply_boxes(box, size)

    def tensor(array: np.ndarray | None, dtype: torch.dtype) -> Tensor | None:
        return None if array is None else torch.as_tensor(array, dtype=dtype, device=predictor.device)

    clicks = tensor(None if points is None else points[None], torch.float32)
    kinds = tensor(None if labels is None else labels[None], torch.int64)
    return predictor._prompts(clicks, kinds, tensor(boxes, torch.float32), None if mask is None else mask[None])


def mask_logits(predictor: SamPredictor, mask: RLE, tile: int | None = None) -> Tensor:
    """Returns the (1, h, w) low-resolution logits that stand for a mask as a prompt.

    A cell's logit is 20 * c - 10, where c is the share of the cell that the mask covers; the padding has -10. The size of the
    numbers hardly matters, because the prompt encoder normalises after its first layer. On synthetic images this refines a mask
    of the model as well as the logits that the model had itself (IoU with it 0.886 both ways, 118 masks), and a true mask
    with a click gives a candidate of IoU 0.79, where the click alone gives 0.69.

    predictor:  with the image
    mask:       RLE of the image's size
    tile:       the tile that is prompted, for a predictor with tiles
    """
    pixels = decode_rle(mask, predictor.original_size)
    height, width = predictor.input_size
    if isinstance(predictor, TiledPredictor):
        assert tile is not None
        x, y = predictor.tiles[tile].tolist()
        covered = pixels[y : y + height, x : x + width].astype(np.float32)
    else:
        grey = Image.fromarray(pixels.view(np.uint8) * np.uint8(255))
        covered = np.asarray(grey.resize((width, height), Image.Resampling.BOX)).astype(np.float32) / np.float32(255)
    config = predictor.model.config
    padded = F.pad(torch.from_numpy(covered), (0, config.image_size - width, 0, config.image_size - height))
    cells = F.adaptive_avg_pool2d(padded[None], config.mask_size)
    return ((2 * cells - 1) * MASK_LOGIT).to(predictor.device)


# ---- from logits to run lengths

_Made = tuple[np.ndarray, float, tuple[int, int, int, int]]  # run lengths, stability score, (x, y, width, height)


def _whole(logits_HW: np.ndarray, score: float) -> MaskAnswer:
    """Returns a mask from all its logits; with random weights it has a hundred thousand runs."""
    # NumPy: to transpose and to count takes torch three and ten times as long; run lengths go down the columns
    mask_WH = np.ascontiguousarray((logits_HW > 0).T)
    box = _box_of(mask_WH)
    inner, outer = (int(np.count_nonzero(logits_HW > sign * STABILITY_OFFSET)) for sign in (1, -1))
    return MaskAnswer(encode_mask(mask_WH.view(np.uint8).T), score, _ratio(inner, outer), int(np.count_nonzero(mask_WH)), box)


def _box_of(mask_WH: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the (x, y, width, height) of a mask that is stored column by column; zeros for an empty one."""
    columns, rows = np.flatnonzero(mask_WH.any(axis=1)), np.flatnonzero(mask_WH.any(axis=0))
    if not columns.size:
        return 0, 0, 0, 0
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _in_tile(logits_hw: Tensor, corner: tuple[int, ...], size: Size) -> _Made:
    """Returns run lengths, stability and box of a mask in a tile, which begins at `corner` (row, column) of the image."""
    logits = logits_hw.numpy()
    mask = logits > 0
    inner, outer = (int(np.count_nonzero(logits > sign * STABILITY_OFFSET)) for sign in (1, -1))
    stability = _ratio(inner, outer)
    columns = np.flatnonzero(mask.any(axis=0))
    if not columns.size:
        return np.array([size[0] * size[1]]), stability, (0, 0, 0, 0)
    left, right = int(columns[0]), int(columns[-1]) + 1
    rows = np.flatnonzero(mask[:, left:right].any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    place = (corner[0] + top, corner[1] + left)
    runs = runs_of(np.ascontiguousarray(mask[top:bottom, left:right].T), place, size)
    return runs, stability, (place[1], place[0], right - left, bottom - top)


def _with_rest(found: MaskAnswer, refined: RLE, corner: tuple[int, int], size: Size) -> MaskAnswer:
    """Returns a tile's mask with the pixels of the refined mask beyond the tile, which the model has not seen."""
    image = (refined["size"][0], refined["size"][1])
    tile = runs_to_counts(runs_of(np.ones((size[1], size[0]), dtype=bool), corner, image))
    whole = rle_union([found.segmentation, rle_difference(refined, [{"size": list(image), "counts": tile}])])
    x, y, width, height = (int(value) for value in rle_to_box_xywh(whole))
    return replace(found, segmentation=whole, area=rle_area(whole), bbox=(x, y, width, height))


def _in_strips(logits_hw: Tensor, predictor: SamPredictor) -> _Made:
    """Returns the same for a large image; only the rectangle where the mask can be is computed, some columns at a time."""
    frame, size = _frame_of(predictor), predictor.original_size
    parts, counts = [], np.zeros(2, dtype=np.int64)
    box = [size[1], size[0], 0, 0]
    for reach in _strips(frame, logits_hw):
        logits_WH = frame.render(logits_hw, reach).cpu().numpy()
        counts += [np.count_nonzero(logits_WH > sign * STABILITY_OFFSET) for sign in (1, -1)]
        mask_WH = logits_WH > 0
        if not mask_WH.any():
            continue
        columns, rows = np.flatnonzero(mask_WH.any(axis=1)), np.flatnonzero(mask_WH.any(axis=0))
        left, top = reach[1].start, reach[0].start
        box = [
            min(box[0], left + int(columns[0])), min(box[1], top + int(rows[0])),
            max(box[2], left + int(columns[-1]) + 1), max(box[3], top + int(rows[-1]) + 1),
        ]  # fmt: skip
        parts.append(np.cumsum(runs_of(mask_WH, (top, left), size)))
    stability = _ratio(int(counts[0]), int(counts[1]))
    if not parts:
        return np.array([size[0] * size[1]]), stability, (0, 0, 0, 0)
    return _joined(parts, size), stability, (box[0], box[1], box[2] - box[0], box[3] - box[1])


def _strips(frame: LogitFrame, logits_hw: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns, some columns at a time, outside of which no logit is above -1."""
    hot = (logits_hw > -STABILITY_OFFSET - ROUNDING).cpu().numpy()
    if not hot.any():
        return
    cell_rows, cell_columns = np.flatnonzero(hot.any(axis=1)), np.flatnonzero(hot.any(axis=0))
    rows, columns = frame.reach((int(cell_rows[0]), int(cell_rows[-1]), int(cell_columns[0]), int(cell_columns[-1])))
    if rows.start >= rows.stop or columns.start >= columns.stop:  # only padding is hot
        return
    width = max(STRIP_PIXELS // (rows.stop - rows.start), 1)
    for start in range(columns.start, columns.stop, width):
        yield rows, slice(start, min(start + width, columns.stop))


def _joined(parts: list[np.ndarray], size: Size) -> np.ndarray:
    """Returns the runs of strips, one after another, as those of one mask.

    parts: of each strip the places where the value changes, and perhaps the end of the image
    """
    changes = np.concatenate([part[: 2 * (len(part) // 2)] for part in parts])
    # a strip that ends inside the mask goes on where the next one begins
    begins, ends = changes[0::2], changes[1::2]
    touching = begins[1:] == ends[:-1]
    kept = np.sort(np.concatenate([begins[np.r_[True, ~touching]], ends[np.r_[~touching, True]]]))
    runs = np.diff(kept, prepend=0, append=size[0] * size[1])
    return runs[:-1] if runs[-1] == 0 else runs


def _frame_of(predictor: SamPredictor) -> LogitFrame:
    """Returns the map from the low-resolution logits to the whole image."""
    config, device = predictor.model.config, predictor.device
    rows, columns = (
        axis_of((0, side), (side, side), length, config.image_size, config.mask_size, device)
        for side, length in zip(predictor.original_size, predictor.input_size, strict=True)
    )
    return LogitFrame(rows, columns)


def _ratio(inner: int, outer: int) -> float:
    """Returns the stability score of two numbers of pixels, in float32 as segment_anything computes it."""
    return float(np.float32(inner) / np.float32(max(outer, 1)))


def _answer(runs: np.ndarray, stability: float, box: tuple[int, int, int, int], score: float, size: Size) -> MaskAnswer:
    segmentation = {"size": [int(size[0]), int(size[1])], "counts": runs_to_counts(runs)}
    return MaskAnswer(segmentation, score, stability, int(runs[1::2].sum()), box)

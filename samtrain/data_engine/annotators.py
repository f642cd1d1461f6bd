"""Who annotates: the interface, and an annotator that works from ground truth as people work from what they see."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samtrain.data_engine.brush import Brush
from samtrain.data_engine.prominence import prominence
from samtrain.data_engine.time_model import TimeModel
from samtrain.inference.predictor import SamPredictor
from samtrain.interact import Decoder, Interaction, interact
from samtrain.ops.masks import mask_iou, stability_score
from samtrain.ops.rle import RLE, decode_rle, rle_area, rle_iou
from samtrain.prompts import CentreSampler
from samtrain.types import PointLabel

DONE, TIME = "done", "time"  # why an annotator went on to the next image
MAX_PIXELS = 1 << 24  # objects times pixels simulated at once: 64 MB of float32 logits
MARGIN = 8  # pixels round an object within which the brush works; it never paints wider over the edge


@dataclass(frozen=True)
class ImageToAnnotate:
    """What is annotated.

    image:   (H, W, 3) uint8 RGB
    objects: the record's annotations, the ground truth, which only a simulation may read
    locked:  masks that are there already and are shown, but not changed
    """

    key: str
    image: np.ndarray
    objects: list[dict[str, Any]] = field(default_factory=list)
    locked: list[RLE] = field(default_factory=list)


@dataclass(frozen=True)
class AnnotatedMask:
    """One mask as drawn, and what it took.

    mask:             (H, W) bool
    point_coords:     the clicks (x, y) in the order of time, in original pixels
    point_labels:     1 foreground, 0 background, one each
    predicted_iou, stability_score:  the model's, of its mask before any brush stroke
    good:             whether the annotator was content with it, or only out of time
    iou:              with the ground truth; None where nobody knows it
    object_index:     which of the image's objects it is; None where nobody knows it
    """

    mask: np.ndarray
    seconds: float
    clicks: int
    strokes: int
    point_coords: list[list[float]]
    point_labels: list[int]
    predicted_iou: float
    stability_score: float
    good: bool
    iou: float | None = None
    object_index: int | None = None


@dataclass(frozen=True)
class ImageAnnotation:
    """The masks of an image in the order of their making, those thrown away, and why the annotator went on.

    masks_in_time: how many of `masks` there were when a mask first took longer than the limit, or all; the rest was only
                   drawn because the annotator does not leave images
    """

    masks: list[AnnotatedMask]
    discarded: list[AnnotatedMask]
    reason: str
    masks_in_time: int


class Annotator(Protocol):
    """Whoever annotates: a simulation here, people behind the browser tool later."""

    def annotate(self, image: ImageToAnnotate, predictor: SamPredictor) -> ImageAnnotation:
        """The masks of what has none yet in one image, made with the help of a predictor that has it set."""
        ...


class SimulatedAnnotator:
    """Draws the objects that have no mask yet, the most prominent first, by clicks and then by brush, until all are good.

    It clicks the middle of the largest error (appendix D's protocol) and keeps its best mask. After `max_clicks` it
    takes the brush. Once a mask has taken more than `time_limit` seconds it is kept as it is, or discarded below
    `min_iou`, and with `leaves_image` the annotator goes on to the next image (paper, section 4). What it hands
    back it has drawn; the ground truth decides only where it clicks, where it paints and when it is content.
    """

    def __init__(
        self,
        *,
        target_iou: float = 0.90,  # SA-1B's audit: 94 % of masks were within 90 % IoU of a professional's (section 5)
        max_clicks: int = 5,  # then the brush; 14 s, what a mask took at the end of the paper's first stage
        time_limit: float = 30.0,  # seconds (section 4)
        min_iou: float = 0.5,  # below this a mask shows something else; COCO's lowest threshold
        leaves_image: bool = True,  # False: all objects, for a probe that compares models on the same ones
        has_mask_iou: float = 0.5,  # a locked mask that agrees so well with an object stands for it: not drawn again
        time_model: TimeModel | None = None,
        brush: Brush | None = None,
        seed: int = 0,
        chunk: int = 4,  # objects simulated at once at first, then twice as many: few are drawn with a bad model
    ) -> None:
        _check(target_iou, min_iou, max_clicks, time_limit)
        if not 0 < has_mask_iou <= 1:
            raise ValueError(f"annotator.has_mask_iou is {has_mask_iou}: take more than 0, up to 1")
        self.target_iou, self.min_iou = target_iou, min_iou
        self.max_clicks, self.time_limit, self.leaves_image = max_clicks, time_limit, leaves_image
        self.time_model, self.brush = time_model or TimeModel(), brush or Brush()
        self.has_mask_iou, self.seed, self.chunk = has_mask_iou, seed, chunk

    @torch.no_grad()
    def annotate(self, image: ImageToAnnotate, predictor: SamPredictor) -> ImageAnnotation:
        """Raises ValueError where an object's RLE has another size than the image."""
        kept: list[AnnotatedMask] = []
        discarded: list[AnnotatedMask] = []
        in_time: int | None = None
        for drawn in self._draw_in_order(image, predictor):
            assert drawn.iou is not None
            (kept if drawn.iou >= self.min_iou else discarded).append(drawn)
            if drawn.seconds > self.time_limit and in_time is None:
                in_time = len(kept)
                if self.leaves_image:
                    return ImageAnnotation(kept, discarded, TIME, in_time)
        return ImageAnnotation(kept, discarded, DONE, len(kept) if in_time is None else in_time)

    def _draw_in_order(self, image: ImageToAnnotate, predictor: SamPredictor) -> Iterator[AnnotatedMask]:
        """All objects without a mask, the most prominent first; a chunk is simulated when its first is asked for."""
        size = image.image.shape[:2]
        order, chunk = self._without_mask(image, _by_prominence(image)), self.chunk
        while order:
            count = max(1, min(chunk, MAX_PIXELS // (size[0] * size[1])))
            indices, order, chunk = order[:count], order[count:], 2 * chunk
            targets = [decode_rle(image.objects[i]["segmentation"], size) for i in indices]
            drafts = self._click(predictor.decoder(), torch.from_numpy(np.stack(targets)).to(predictor.device))
            for i, target, draft in zip(indices, targets, drafts, strict=True):
                rng = np.random.default_rng([self.seed, zlib.crc32(image.key.encode()), i])
                yield replace(self._refine(draft, target, rng), object_index=i)

    def _without_mask(self, image: ImageToAnnotate, objects: list[int]) -> list[int]:
        """A locked mask stands for the one object that it shows best: a whole's is not its part's, however alike they are."""
        ious_PN = rle_iou(image.locked, [image.objects[i]["segmentation"] for i in objects])
        shown = {int(ious.argmax()) for ious in ious_PN if ious.size and ious.max() >= self.has_mask_iou}
        return [i for n, i in enumerate(objects) if n not in shown]

    def _click(self, decoder: Decoder, targets_NHW: Tensor) -> list[AnnotatedMask]:
        """The best mask of each object after as many clicks as it needed, all objects in one batch."""
        sampler = CentreSampler(num_points=self._most_clicks())
        turns = interact(
            decoder,
            targets_NHW,
            sampler,
            schedule=sampler.schedule(),
            valid_NHW=torch.ones_like(targets_NHW),
            generator=torch.Generator(),  # the sampler draws nothing
        )
        best: list[AnnotatedMask] = []
        for turn in turns:
            new = self._masks_of_turn(turn, targets_NHW)
            best = [self._keep(*pair) for pair in zip(best, new, strict=True)] if best else new
            if all(mask.good for mask in best):
                break
        return best

    def _masks_of_turn(self, turn: Interaction, targets_NHW: Tensor) -> list[AnnotatedMask]:
        """The model's masks after one more click on each object."""
        logits = turn.logits()
        ious, stable = mask_iou(logits > 0, targets_NHW).tolist(), stability_score(logits).tolist()
        predicted = turn.output.iou_predictions.gather(1, turn.chosen[:, None])[:, 0].tolist()
        clicks = [_clicks_in_order(*pair) for pair in zip(turn.prompts.coords, turn.prompts.labels, strict=True)]
        return [
            AnnotatedMask(
                mask=mask,
                seconds=self.time_model.clicks(turn.index + 1),
                clicks=turn.index + 1,
                strokes=0,
                point_coords=clicks[n][0],
                point_labels=clicks[n][1],
                predicted_iou=predicted[n],
                stability_score=stable[n],
                good=ious[n] >= self.target_iou,
                iou=ious[n],
            )
            for n, mask in enumerate((logits > 0).cpu().numpy())
        ]

    def _keep(self, before: AnnotatedMask, new: AnnotatedMask) -> AnnotatedMask:
        """A mask that is good is left alone; else the click is paid for, and taken back where it did not help."""
        if before.good:
            return before
        assert before.iou is not None and new.iou is not None
        kept = new if new.iou > before.iou else before
        return replace(kept, clicks=new.clicks, seconds=new.seconds)

    def _most_clicks(self) -> int:
        """`max_clicks`, or the click that exceeds the time."""
        count = 1
        while count < self.max_clicks and self.time_model.clicks(count) <= self.time_limit:
            count += 1
        return count

    def _refine(self, draft: AnnotatedMask, target: np.ndarray, rng: np.random.Generator) -> AnnotatedMask:
        """Brush strokes until the mask is good or the time over; one that did not help is undone, its time is not."""
        if draft.good:
            return draft
        # where more is wrong than there is object, an empty sheet is the better start
        start = draft.mask if (draft.mask ^ target).sum() <= target.sum() else np.zeros_like(target)
        window = _window(start | target)
        mask, goal = start[window], target[window]
        iou, seconds, strokes = _iou(mask, goal), draft.seconds, 0
        while iou < self.target_iou and seconds <= self.time_limit:
            painted, way = self.brush.paint(mask, goal, rng)
            seconds += self.time_model.brush_stroke(way, first=strokes == 0)
            strokes += 1
            if (new := _iou(painted, goal)) > iou:
                mask, iou = painted, new
        whole = start.copy()
        whole[window] = mask
        return replace(draft, mask=whole, iou=iou, good=iou >= self.target_iou, seconds=seconds, strokes=strokes)


def _check(target_iou: float, min_iou: float, max_clicks: int, time_limit: float) -> None:
    if not 0 < min_iou <= target_iou <= 1:
        raise ValueError(
            f"annotator.min_iou is {min_iou} and annotator.target_iou {target_iou}: take 0 < min_iou <= target_iou <= 1"
        )
    if max_clicks < 1 or not 0 < time_limit < float("inf"):
        raise ValueError(
            f"annotator.max_clicks is {max_clicks} and annotator.time_limit {time_limit}: take 1 click or more, "
            "and a finite number of seconds, since it ends the work on a mask"
        )


def _by_prominence(image: ImageToAnnotate) -> list[int]:
    """Indices of the objects that have pixels, the most prominent first; equal ones in the record's order."""
    size = image.image.shape[:2]
    scores = {
        i: prominence(image.image, decode_rle(o["segmentation"], size))
        for i, o in enumerate(image.objects)
        if rle_area(o["segmentation"]) > 0
    }
    return sorted(scores, key=lambda i: -scores[i])


def _clicks_in_order(coords_K2: Tensor, labels_K: Tensor) -> tuple[list[list[float]], list[int]]:
    """Clicks stand last first in the tokens, the padding token behind them (types.Prompts)."""
    kept = labels_K != PointLabel.PADDING
    return coords_K2[kept].flip(0).tolist(), labels_K[kept].flip(0).tolist()


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The box of a mask that has pixels, and MARGIN round it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(rows[0] - MARGIN, 0), rows[-1] + 1 + MARGIN),
        slice(max(columns[0] - MARGIN, 0), columns[-1] + 1 + MARGIN),
    )


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))

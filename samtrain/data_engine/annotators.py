"""A simulated annotator that works from ground truth as people work from what they see."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from samtrain.data_engine.brush import Brush
from samtrain.data_engine.interface import DONE, TIME, AnnotatedMask, Annotator, ImageAnnotation, ImageToAnnotate
from samtrain.data_engine.prominence import prominence
from samtrain.data_engine.time_model import TimeModel
from samtrain.inference.predictor import SamPredictor
from samtrain.interact import Decoder, Interaction, interact
from samtrain.ops.masks import mask_iou, stability_score
from samtrain.ops.rle import decode_rle, rle_area, rle_iou
from samtrain.prompts import CentreSampler
from samtrain.types import PointLabel

__all__ = ["DONE", "TIME", "AnnotatedMask", "Annotator", "ImageAnnotation", "ImageToAnnotate", "SimulatedAnnotator"]

MAX_PIXELS = 1 << 24  # objects times pixels that are simulated at once: 64 MB of float32 logits
MARGIN = 8  # pixels around an object that the brush works in; it never paints further over the edge


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnotator:
    """Draws every object that has no mask yet, the most prominent first, by clicks and then with a brush.

    The settings are those of the config node `annotator`. The annotator clicks the centre of the largest error (the protocol
    of appendix D) and keeps its best mask. After `max_clicks` it takes the brush. A mask that has taken more than `time_limit`
    seconds is kept as it is, or discarded if its IoU is below `min_iou`, and with `leaves_image` the annotator then leaves the
    image (section 4). The masks are its own drawings: the ground truth decides only where it clicks and paints, and when it
    is satisfied.

    leaves_image: False makes it draw all objects, for a probe that compares models on the same ones
    has_mask_iou: IoU of a locked mask with an object from which the object counts as annotated
    chunk:        objects that are simulated at once at first, then twice as many: with a bad model only few are drawn
    """

    target_iou: float = 0.90  # SA-1B's audit: 94 % of masks were within 90 % IoU of a professional's (section 5)
    max_clicks: int = 5  # these take 14 s, what a mask took at the end of the paper's first stage (section 4)
    time_limit: float = 30.0  # seconds (section 4)
    min_iou: float = 0.5  # below this a mask shows something else; COCO's lowest threshold
    leaves_image: bool = True
    has_mask_iou: float = 0.5
    time_model: TimeModel = field(default_factory=TimeModel)
    brush: Brush = field(default_factory=Brush)
    seed: int = 0
    chunk: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.min_iou <= self.target_iou <= 1:
            raise ValueError(
                f"annotator.min_iou is {self.min_iou} and annotator.target_iou is {self.target_iou}: "
                "give 0 < min_iou <= target_iou <= 1"
            )
        if self.max_clicks < 1:
            raise ValueError(f"annotator.max_clicks is {self.max_clicks}: give 1 or more")
        if not 0 < self.time_limit < float("inf"):
            raise ValueError(
                f"annotator.time_limit is {self.time_limit}: give a finite number of seconds above 0, because it ends the work "
                "on a mask"
            )
        if not 0 < self.has_mask_iou <= 1:
            raise ValueError(f"annotator.has_mask_iou is {self.has_mask_iou}: give a number above 0, up to 1")

    @torch.no_grad()
    def annotate(self, image: ImageToAnnotate, predictor: SamPredictor) -> ImageAnnotation:
        """Annotates one image; raises ValueError if an object's RLE has another size than the image."""
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
        """Yields a mask for every object without one, the most prominent first.

        Objects are simulated in chunks, each when its first mask is asked for, so that little is computed for images that
        the annotator leaves early.
        """
        size = image.image.shape[:2]
        order, chunk = self._without_mask(image, _by_prominence(image)), self.chunk
        while order:
            # take the next chunk, as far as it fits into memory; the one after it is twice as large
            count = max(1, min(chunk, MAX_PIXELS // (size[0] * size[1])))
            indices, order, chunk = order[:count], order[count:], 2 * chunk

            # click all objects of the chunk together, then refine one after the other
            targets = [decode_rle(image.objects[i]["segmentation"], size) for i in indices]
            drafts = self._click(predictor.decoder(), torch.from_numpy(np.stack(targets)).to(predictor.device))
            for i, target, draft in zip(indices, targets, drafts, strict=True):
                rng = np.random.default_rng([self.seed, zlib.crc32(image.key.encode()), i])
                yield replace(self._refine(draft, target, rng), object_index=i)

    def _without_mask(self, image: ImageToAnnotate, objects: list[int]) -> list[int]:
        """Returns the objects that no locked mask shows.

        A locked mask counts for one object only, the one that it shows best: the mask of a whole is not that of its part.
        """
        ious_PN = rle_iou(image.locked, [image.objects[i]["segmentation"] for i in objects])
        shown = {int(ious.argmax()) for ious in ious_PN if ious.size and ious.max() >= self.has_mask_iou}
        return [i for n, i in enumerate(objects) if n not in shown]

    def _click(self, decoder: Decoder, targets_NHW: Tensor) -> list[AnnotatedMask]:
        """Returns the best mask of each object after as many clicks as it needs; all objects are clicked in one batch."""
        sampler = CentreSampler(num_points=self._max_clicks_in_time())
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
        """Returns the model's mask of each object after one more click."""
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
        """Returns the better of two masks; a mask that is not good yet pays for the new click, even if the click is undone."""
        if before.good:
            return before
        assert before.iou is not None and new.iou is not None
        kept = new if new.iou > before.iou else before
        return replace(kept, clicks=new.clicks, seconds=new.seconds)

    def _max_clicks_in_time(self) -> int:
        """Returns `max_clicks`, or fewer if the time limit is exceeded earlier; the click that exceeds it counts."""
        count = 1
        while count < self.max_clicks and self.time_model.clicks(count) <= self.time_limit:
            count += 1
        return count

    def _refine(self, draft: AnnotatedMask, target: np.ndarray, rng: np.random.Generator) -> AnnotatedMask:
        """Paints until the mask is good or the time is over; a stroke that does not help is undone, but its time counts."""
        if draft.good:
            return draft

        assert isinstance(draft.mask, np.ndarray)

        # start from the model's mask, or from an empty one if more pixels are wrong than the object has
        start = draft.mask if (draft.mask ^ target).sum() <= target.sum() else np.zeros_like(target)

        # paint in a window around both masks
        window = _window(start | target)
        mask, goal = start[window], target[window]
        iou, seconds, strokes = _iou(mask, goal), draft.seconds, 0
        while iou < self.target_iou and seconds <= self.time_limit:
            painted, length = self.brush.paint(mask, goal, rng)
            seconds += self.time_model.brush_stroke(length, first=strokes == 0)
            strokes += 1
            if (new := _iou(painted, goal)) > iou:
                mask, iou = painted, new

        # put the window back into the image
        whole = start.copy()
        whole[window] = mask
        return replace(draft, mask=whole, iou=iou, good=iou >= self.target_iou, seconds=seconds, strokes=strokes)


def _by_prominence(image: ImageToAnnotate) -> list[int]:
    """Returns the indices of the objects that have pixels, the most prominent first; ties keep the record's order."""
    size = image.image.shape[:2]
    scores = {
        i: prominence(image.image, decode_rle(o["segmentation"], size))
        for i, o in enumerate(image.objects)
        if rle_area(o["segmentation"]) > 0
    }
    return sorted(scores, key=lambda i: -scores[i])


def _clicks_in_order(coords_K2: Tensor, labels_K: Tensor) -> tuple[list[list[float]], list[int]]:
    """Returns clicks and labels in the order they were placed: tokens hold the last first, and padding (types.Prompts)."""
    kept = labels_K != PointLabel.PADDING
    return coords_K2[kept].flip(0).tolist(), labels_K[kept].flip(0).tolist()


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Returns the box around a non-empty mask, extended by MARGIN on each side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(rows[0] - MARGIN, 0), rows[-1] + 1 + MARGIN),
        slice(max(columns[0] - MARGIN, 0), columns[-1] + 1 + MARGIN),
    )


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))

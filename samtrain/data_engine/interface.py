"""What the engine and its annotators tell each other: images to annotate, and the masks that come back.

An annotator has one of two methods. `annotate` takes one image after the other: simulations, and classes of users.
`annotate_round` takes all images of a round, and may return them in any order: people, who work side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from samtrain.inference.predictor import SamPredictor
from samtrain.ops.rle import RLE

# why an annotator has left an image: nothing is missing, or a mask took too long
DONE, TIME = "done", "time"
# or the round was closed while people worked on it, or before anyone began
UNFINISHED, UNTOUCHED = "unfinished", "untouched"


@dataclass(frozen=True)
class AutomaticMask:
    """A mask that was prefilled, and the box that prompted it.

    segmentation:   RLE of the image's size
    box_xyxy:       the prompt in pixels of the image; its edges are on the object's outermost pixels
    predicted_iou, stability_score:  given by the model
    detector_score: given by the detector, 0 to 1
    """

    segmentation: RLE
    box_xyxy: list[float]
    predicted_iou: float
    stability_score: float
    detector_score: float


@dataclass(frozen=True)
class ImageToAnnotate:
    """An image, and what is known of it.

    image:     (H, W, 3) uint8 RGB
    objects:   the ground truth, as annotations of the record; only a simulation may read it
    locked:    existing masks, which the annotator sees but does not change: those of earlier rounds, then the prefilled ones
    prefilled: the last of the `locked` masks, with their scores
    """

    key: str
    image: np.ndarray
    objects: list[dict[str, Any]] = field(default_factory=list)
    locked: list[RLE] = field(default_factory=list)
    prefilled: list[AutomaticMask] = field(default_factory=list)


@dataclass(frozen=True)
class AnnotatedMask:
    """A mask that was drawn, and the work that it took.

    mask:             (H, W) bool, or its run-length encoding
    point_coords:     the clicks (x, y) in the order they were placed, in original pixels
    point_labels:     for each click 1 (foreground) or 0 (background)
    predicted_iou, stability_score:  the model's, for its mask before any brush stroke; None for a mask without a model
    good:             whether the annotator was satisfied with it, rather than out of time
    iou:              with the ground truth; None if that is unknown
    object_index:     the index of the object in the ground truth; None if that is unknown
    annotator:        the name of the person, if people draw
    more:             further keys of the mask's annotation in the shard, such as its story
    """

    mask: np.ndarray | RLE
    seconds: float
    clicks: int
    strokes: int
    point_coords: list[list[float]]
    point_labels: list[int]
    predicted_iou: float | None
    stability_score: float | None
    good: bool
    iou: float | None = None
    object_index: int | None = None
    annotator: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageAnnotation:
    """The masks of an image in the order they were drawn, the discarded ones, and why the annotator left the image.

    masks_in_time: the number of `masks` that existed when a mask first took longer than the limit, or all; the others were
                   drawn only because the annotator does not leave images
    prefilled:     the masks that the image was prefilled with, if the annotator keeps them; None: those that it was given
    rejected:      the indices of the prefilled masks that the annotator rejected or replaced by better ones
    removed:       the ids of annotations of earlier rounds that the annotator rejected or replaced by better ones
    """

    masks: list[AnnotatedMask]
    discarded: list[AnnotatedMask]
    reason: str
    masks_in_time: int
    prefilled: list[AutomaticMask] | None = None
    rejected: list[int] = field(default_factory=list)
    removed: list[Any] = field(default_factory=list)


class Annotator(Protocol):
    """Annotates one image after the other: the simulation, or a class of the user's."""

    def annotate(self, image: ImageToAnnotate, predictor: SamPredictor) -> ImageAnnotation:
        """Annotates every object that has no mask yet; `predictor` must already hold the image."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageOfRound:
    """One image of a round, which is read and prefilled when it is asked for.

    position: its number in the round
    place:    where it is stored: a local tar, and the number of its record
    split:    "train", or "val" or "test" for an image that is never trained on
    earlier:  the annotations that earlier rounds have made
    read:     decodes and prefills the image; returns None for one that cannot be read and is left out (data.on_error=skip)
    load:     does the same and gives the image to the predictor of the round, which then holds this image and no other
    """

    position: int
    key: str
    place: tuple[str, int]
    split: str
    earlier: list[dict[str, Any]]
    read: Callable[[], ImageToAnnotate | None]
    load: Callable[[], ImageToAnnotate | None]


@dataclass(frozen=True, kw_only=True)
class RoundToAnnotate:
    """The images of a round that have no drawing yet, and the model that helps with them.

    number:     the number of the round
    num_images: images of the round, including those that have a drawing
    checkpoint: the file of the model, with the digest of its weights
    predictor:  loads the model, once
    """

    number: int
    stage: str
    num_images: int
    images: Sequence[ImageOfRound]
    checkpoint: Path
    digest: str
    predictor: Callable[[], SamPredictor]


class RoundAnnotator(Protocol):
    """Annotates all images of a round: many at a time, by many people."""

    def annotate_round(self, work: RoundToAnnotate) -> Iterator[tuple[int, ImageAnnotation | None]]:
        """Yields the position and the annotation of each image, in any order; None for an image that cannot be read.

        What was yielded is on disk before the next one is asked for. A killed run asks again for those that were not.
        """
        ...


class OneByOne:
    """Lets an annotator of images annotate a round, one image after the other."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator

    def annotate_round(self, work: RoundToAnnotate) -> Iterator[tuple[int, ImageAnnotation | None]]:
        for each in work.images:
            image = each.load()
            yield each.position, None if image is None else self.annotator.annotate(image, work.predictor())


def annotates_rounds(annotator: Any) -> bool:
    """Returns whether an annotator, or its class, takes whole rounds; such people are never asked to repeat an image."""
    return callable(getattr(annotator, "annotate_round", None))


def of_rounds(annotator: Annotator | RoundAnnotator) -> RoundAnnotator:
    """Returns an annotator that takes whole rounds."""
    return annotator if annotates_rounds(annotator) else OneByOne(annotator)  # type: ignore[arg-type, return-value]

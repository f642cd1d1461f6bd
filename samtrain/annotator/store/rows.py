"""The rows of the store as frozen dataclasses. Times are seconds since 1970, sizes are pixels of the full image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from samtrain.files import printable
from samtrain.ops.rle import RLE

SPLITS = ("train", "val", "test")
IMAGE_STATES = ("open", "done", "skipped", "closed")
MASK_STATES = ("accepted", "rejected", "deleted")
ORIGINS = ("drawn", "clicked", "refined", "prefilled", "imported")
SOURCES = ("assisted", "automatic")  # of a person with the model, or of the model alone (section 4 of the paper)
MAX_TEXT = 500  # characters of a label or a request's id
MAX_PATH = 4096  # characters of a key, which may be a path
MAX_SECONDS = 86_400.0  # a day: no mask takes longer


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """An image to be annotated.

    key:     names the image in shards and exports; unique in the store
    name:    what people see
    source:  an absolute file path, or `TAR#INDEX` for a record of a shard
    digest:  of the image's bytes, "" if unknown
    round:   the round in which it is annotated; None outside rounds
    rank:    images are handed out in the order of their ranks, the lowest first
    """

    key: str
    source: str
    width: int
    height: int
    name: str = ""
    digest: str = ""
    split: str = "train"
    round: int | None = None
    rank: float = 0.0
    state: str = "open"
    opinions_wanted: int = 1

    def __post_init__(self) -> None:
        if not self.key or len(self.key) > MAX_PATH or not self.source:
            raise ValueError(f"an image has a key of up to {MAX_PATH} characters and a source, got {self.key[:80]!r}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"image {self.key} has {self.width} x {self.height} pixels: give at least 1 x 1")
        for text in (self.key, self.name, self.source, self.digest):
            if not is_storable(text):
                raise ValueError(f"image {printable(text)!r} has a name that is not UTF-8, or has a zero byte: rename the file")
        one_of(self.split, SPLITS, "split")
        one_of(self.state, IMAGE_STATES, "state")
        if self.opinions_wanted < 1 or not math.isfinite(self.rank):
            raise ValueError(f"image {self.key}: give opinions_wanted from 1 and a finite rank")


@dataclass(frozen=True)
class ImageRow:
    """An image of the store; `masks` counts its accepted masks.

    `leased_by` and `lease_expires` are None where nobody works on the image now.
    """

    id: int
    key: str
    name: str
    source: str
    width: int
    height: int
    digest: str
    split: str
    round: int | None
    rank: float
    state: str
    done_by: str | None
    done_at: float | None
    opinions_wanted: int
    opinions_done: int
    leased_by: str | None
    lease_expires: float | None
    added_at: float
    masks: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.height, self.width


@dataclass(frozen=True)
class Lease:
    """The right to write to an image's masks until `expires`, `expires_in` seconds from now.

    opinion: 0 for the first annotator of an image, 1 for the one who gives a second opinion
    """

    image_id: int
    annotator: str
    token: str
    expires: float
    expires_in: float
    opinion: int = 0


@dataclass(frozen=True, kw_only=True)
class NewMask:
    """A mask that an annotator accepts, or that is there before people come.

    segmentation:  RLE at full resolution, {"size": [H, W], "counts": ...}
    point_coords:  the clicks (x, y) in pixels of the image, in the order they were placed; point_labels: 1 or 0 for each
    box:           the box prompt (x1, y1, x2, y2), if there was one
    strokes:       the strokes of brush and eraser
    seconds:       of work, without idle time
    parent:        id of the mask that this one refines and replaces
    model:         digest of the checkpoint that helped
    object_id:     the id that an imported mask had where it comes from
    story:         the prompts in order, with their times
    request:       the client's id of this save: a repeated save is one mask
    doubt:         from 0 to 1, how likely the mask is to need a correction; review shows the highest first
    """

    segmentation: RLE
    point_coords: list[list[float]] = field(default_factory=list)
    point_labels: list[int] = field(default_factory=list)
    box: list[float] | None = None
    strokes: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    predicted_iou: float | None = None
    stability_score: float | None = None
    origin: str = "clicked"
    source: str = "assisted"
    locked: bool = False
    state: str = "accepted"
    parent: int | None = None
    model: str | None = None
    label: str | None = None
    object_id: int | None = None
    story: list[Any] = field(default_factory=list)
    request: str | None = None
    doubt: float | None = None

    def __post_init__(self) -> None:
        one_of(self.origin, ORIGINS, "origin")
        one_of(self.source, SOURCES, "source")
        one_of(self.state, MASK_STATES, "state")
        for name in ("request", "label", "model"):
            check_text(getattr(self, name), name)
        if self.request == "":
            raise ValueError("request is empty: give each save an id of its own, such as a UUID")


@dataclass(frozen=True)
class MaskRow:
    """A mask of the store: the fields of `NewMask`, and what the store knows of it.

    bbox:      tight (x, y, width, height)
    opinion:   0 for the masks that count; 1 for those of the second annotator of an image
    revision:  0 at first, one more with each change
    """

    id: int
    image_id: int
    annotator: str
    segmentation: RLE
    area: int
    bbox: list[float]
    predicted_iou: float | None
    stability_score: float | None
    point_coords: list[list[float]]
    point_labels: list[int]
    box: list[float] | None
    strokes: list[Any]
    seconds: float
    origin: str
    source: str
    locked: bool
    state: str
    parent: int | None
    model: str | None
    label: str | None
    object_id: int | None
    opinion: int
    story: list[Any]
    request: str | None
    round: int | None
    revision: int
    created_at: float
    updated_at: float
    doubt: float | None = None


@dataclass(frozen=True)
class Draft:
    """What an annotator has in the works on an image, as the page wrote it; `seq` grows with each write."""

    image_id: int
    annotator: str
    content: Any
    seq: int
    updated_at: float


@dataclass(frozen=True)
class Model:
    """The model that helps people now; metrics such as {"val/miou_1": 0.71}."""

    path: str
    digest: str
    name: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What there is to do now, for the status bar.

    kind:  "annotate", "review", "training" (people wait or continue while the engine trains), "finished"
    """

    kind: str
    round: int | None = None
    stage: int | None = None
    message: str = ""
    goals: dict[str, float] = field(default_factory=dict)
    progress: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRow:
    """A round with people; goals such as {"images": 20} say when it closes."""

    number: int
    stage: int
    state: str
    goals: dict[str, float]
    opened_at: float
    closed_at: float | None
    model: dict[str, Any] | None


def check_text(value: Any, name: str) -> None:
    """Raises ValueError unless `value` is None or a text that both databases store as it is."""
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT or not is_storable(value)):
        raise ValueError(f"{name} is a text of up to {MAX_TEXT} characters of Unicode, without a zero character")


def check_json(value: Any, name: str) -> None:
    """Raises ValueError unless `value` is plain JSON without NaN and infinities."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be written as JSON ({error})") from error


def is_storable(text: str) -> bool:
    """Returns whether a text has no lone surrogate, as file names of other encodings have, and no zero character."""
    return "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


def one_of(value: Any, allowed: tuple[str, ...], name: str) -> None:
    """Raises ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} is {str(value)[:80]!r}: give one of {', '.join(allowed)}")

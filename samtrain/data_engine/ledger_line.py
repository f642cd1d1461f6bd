"""One line of `ledger.jsonl`: frozen dataclasses in memory, one flat JSON object on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from samtrain.plain import from_plain


@dataclass(frozen=True, kw_only=True)
class RoundModel:
    """The model that a round has trained.

    name:       its size, such as "vit_b"
    checkpoint: the file, relative to the run's directory if it is inside it
    digest:     the sha256 of its weights
    parent:     the digest of the promoted model before: it helped to annotate, and training started from it
    """

    name: str
    checkpoint: str
    digest: str
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class RoundDetector:
    """The object detector that prefilled the round's masks: its file, and the sha256 of that file."""

    checkpoint: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Person:
    """The work of one person in a round: images with a mask of theirs, masks, and measured seconds and clicks per mask."""

    images: int
    masks: int
    seconds_per_mask: float | None
    clicks_per_mask: float | None


@dataclass(frozen=True, kw_only=True)
class People:
    """What people did in a round, beside the numbers that simulations have as well.

    images_untouched:  images that nobody had begun when the round was closed; later rounds annotate them
    images_unfinished: images with masks that nobody had finished when the round was closed
    prefilled:         masks that people were shown
    rejected:          prefilled masks that they rejected, or replaced by better ones; rejected_share is their share
    removed:           masks of earlier rounds that they rejected or replaced
    by_name:           the work of each person
    """

    images_untouched: int
    images_unfinished: int
    prefilled: int
    rejected: int
    rejected_share: float | None
    removed: int
    by_name: dict[str, Person]


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What was annotated in the round.

    images, masks:       images annotated in this round, masks added to them
    masks_automatic:     the number of these masks that were prefilled
    discarded:           masks that the annotator threw away
    images_skipped:      images that could not be read and were left out (data.on_error=skip)
    images_left:         images that the annotator left because a mask took longer than the time limit
    masks_per_image:     all masks of these images, including automatic ones and those of earlier rounds
    assisted_per_image:  the same without the automatic ones
    seconds_per_mask:    all seconds, including those of discarded masks, divided by the number of masks drawn; automatic
                         masks take no time. Seconds are modelled for a simulation and measured for people
    mask_iou:            mean IoU of the drawn masks with the ground truth
    automatic_precision: share of the automatic masks with an IoU above 0.75 with some object; without ground truth the share
                         that people did not reject
    coverage:            share of the objects of these images that some mask shows with an IoU above 0.75:
                         {all, small, medium, large}
    people:              what people did; None for a simulation
    """

    images: int
    masks: int
    masks_automatic: int
    discarded: int
    images_skipped: int
    images_left: int
    masks_per_image: float | None
    assisted_per_image: float | None
    seconds_per_mask: float | None
    clicks_per_mask: float | None
    strokes_per_mask: float | None
    mask_iou: float | None
    automatic_precision: float | None
    coverage: dict[str, float | None]
    people: People | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Annotation of the fixed probe objects with the model that is promoted after the round, without prefilling.

    good:            share of the objects that reached the target IoU within the time limit
    coverage_alone:  coverage reached by an annotator who leaves images
    coverage:        coverage reached when the detector of the round prefills masks first
    """

    masks: int
    seconds_per_mask: float | None
    clicks_per_mask: float | None
    mask_iou: float | None
    good: float | None
    coverage_alone: dict[str, float | None]
    coverage: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all rounds so far: masks, images (each counted once), and images seen in training."""

    masks: int
    images: int
    images_seen: int


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whether the trained model replaces the promoted one.

    metric:        the metric that decides (engine.promote_metric)
    before, after: validation metrics of the model promoted before, and of the model trained in this round
    promoted:      whether the trained model was better
    encoder:       size of the promoted model after this round
    """

    metric: str
    before: dict[str, float | None]
    after: dict[str, float | None]
    promoted: bool
    encoder: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar with the masks of a round."""

    path: str
    sha256: str
    images: int
    masks: int


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """A round. Round 0 is the first model: nothing is annotated or trained, but the model is measured and probed.

    stage:        "assisted_manual" or "semi_automatic"
    detector:     None in stages that do not prefill masks
    probe_before: the probe's result with the model that a stage began with; only in the first round of a stage, which may
                  have other images in its probe than the stage before
    wall:         wall-clock seconds of each step, in the process that finished it
    """

    round: int
    stage: str
    model: RoundModel
    annotated: Annotated
    totals: Totals
    probe: ProbeResult
    promotion: Promotion
    detector: RoundDetector | None = None
    probe_before: ProbeResult | None = None
    shards: tuple[Shard, ...] = ()
    wall: dict[str, float] = field(default_factory=dict)

    @property
    def promoted(self) -> bool:
        return self.promotion.promoted

    def to_flat(self) -> dict[str, Any]:
        """Returns the line as the flat JSON object that `ledger.jsonl` holds."""
        flat = {key: _get(self, path) for key, path in FLAT.items()}
        if self.annotated.people is not None:
            flat[PEOPLE] = asdict(self.annotated.people)
        flat["probe_before"] = _flat_probe(self.probe_before) if self.probe_before else {}
        flat["shards"] = [{each.name: getattr(shard, each.name) for each in fields(Shard)} for shard in self.shards]
        return flat

    def reproducible(self) -> dict[str, Any]:
        """Returns the flat line without `wall`, the only key that may differ between two runs of one config."""
        return {name: value for name, value in self.to_flat().items() if name != "wall"}

    def describe(self) -> str:
        """Returns a sentence for the log."""
        measured = self._describe_measurement()
        if self.round == 0:
            return f"round 0: the first model has {measured}"
        automatic = f" ({self.annotated.masks_automatic} automatic)" if self.detector else ""
        return (
            f"round {self.round}: {self.annotated.masks} masks{automatic} in {self.annotated.images} images, "
            f"{_format(self.annotated.seconds_per_mask, 1)} s per mask, {measured}, "
            f"{'promoted' if self.promoted else 'not better: the previous model stays'}"
        )

    def _describe_measurement(self) -> str:
        name, promotion = self.promotion.metric, self.promotion
        if not promotion.after:
            return "no measurement, because no image is held back for validation"
        after = _format(promotion.after[name])
        return f"{name} {after}" if self.round == 0 else f"{name} {_format(promotion.before.get(name))} -> {after}"


# The keys of a line in the order of the file, and the path to the field that each of them holds.
FLAT: dict[str, tuple[str, ...]] = {
    "round": ("round",),
    "stage": ("stage",),
    "model": ("model", "name"),
    "encoder": ("promotion", "encoder"),
    "parent": ("model", "parent"),
    "checkpoint": ("model", "checkpoint"),
    "digest": ("model", "digest"),
    "images": ("annotated", "images"),
    "masks": ("annotated", "masks"),
    "masks_automatic": ("annotated", "masks_automatic"),
    "masks_total": ("totals", "masks"),
    "images_total": ("totals", "images"),
    "discarded": ("annotated", "discarded"),
    "images_skipped": ("annotated", "images_skipped"),
    "images_left": ("annotated", "images_left"),
    "masks_per_image": ("annotated", "masks_per_image"),
    "assisted_per_image": ("annotated", "assisted_per_image"),
    "seconds_per_mask": ("annotated", "seconds_per_mask"),
    "clicks_per_mask": ("annotated", "clicks_per_mask"),
    "strokes_per_mask": ("annotated", "strokes_per_mask"),
    "mask_iou": ("annotated", "mask_iou"),
    "automatic_precision": ("annotated", "automatic_precision"),
    "coverage": ("annotated", "coverage"),
    "probe_masks": ("probe", "masks"),
    "probe_seconds_per_mask": ("probe", "seconds_per_mask"),
    "probe_clicks_per_mask": ("probe", "clicks_per_mask"),
    "probe_mask_iou": ("probe", "mask_iou"),
    "probe_good": ("probe", "good"),
    "probe_coverage_alone": ("probe", "coverage_alone"),
    "probe_coverage": ("probe", "coverage"),
    "images_seen": ("totals", "images_seen"),
    "promote_metric": ("promotion", "metric"),
    "metrics_before": ("promotion", "before"),
    "metrics_after": ("promotion", "after"),
    "promoted": ("promotion", "promoted"),
    "detector": ("detector", "checkpoint"),
    "detector_digest": ("detector", "digest"),
    "probe_before": ("probe_before",),
    "shards": ("shards",),
    "wall": ("wall",),
}
PEOPLE = "people"  # the key that only the rounds of people have
# keys that runs before December 2026 wrote
RENAMED = {"pictures_skipped": "images_skipped", "pictures_left": "images_left"}


def from_flat(values: Any, name: str) -> LedgerLine:
    """Returns the line that a flat JSON object holds; `name` says in errors where it was found.

    Raises ValueError for missing and unknown keys and for values of another kind.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is not a line of a ledger: it holds a {type(values).__name__}; restore the file")
    values = {RENAMED.get(key, key): value for key, value in values.items()}
    unknown = values.keys() - FLAT.keys() - {PEOPLE}
    if unknown or FLAT.keys() - values.keys():
        raise ValueError(
            f"{name} is not a line of this version's ledger: missing {sorted(FLAT.keys() - values.keys())}, "
            f"unknown {sorted(unknown)}; read it with the version that wrote it"
        )
    nested: dict[str, Any] = {}
    for key, path in FLAT.items():
        part = nested.setdefault(path[0], {}) if len(path) > 1 else nested
        part[path[-1]] = values[key]

    # the parts that a line may lack, and the only ones nested in the file, too
    nested["annotated"]["people"] = values.get(PEOPLE)
    if values["detector"] is None:
        nested["detector"] = None
    before = values["probe_before"]
    if isinstance(before, Mapping):
        nested["probe_before"] = {str(key).removeprefix("probe_"): value for key, value in before.items()} or None
    try:
        return from_plain(LedgerLine, nested, "line")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; restore the file") from error


def _get(line: LedgerLine, path: tuple[str, ...]) -> Any:
    """Returns the field at a path of names; None inside a part that the line lacks."""
    value: Any = line
    for name in path:
        value = None if value is None else getattr(value, name)
    return value


def _flat_probe(probe: ProbeResult) -> dict[str, Any]:
    return {f"probe_{each.name}": getattr(probe, each.name) for each in fields(ProbeResult)}


def _format(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"

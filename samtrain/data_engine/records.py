"""Turns prefilled and drawn masks into records in the form of SA-1B with their origin, and into the ledger's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samtrain.data_engine.coverage import compare, coverage, share_above
from samtrain.data_engine.interface import DONE, TIME, UNFINISHED, UNTOUCHED, AnnotatedMask, AutomaticMask, ImageAnnotation
from samtrain.data_engine.ledger_line import Annotated, People, Person, ProbeResult
from samtrain.ops.rle import RLE, encode_mask, rle_area, rle_to_box_xywh

ASSISTED, AUTOMATIC = "assisted", "automatic"  # `source`: where a mask comes from
Drawing = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Digests of the model that helped and of the detector that prefilled masks, None without prefilling."""

    model: str
    detector: str | None = None


@dataclass(frozen=True)
class ImageWork:
    """All masks of one image (of earlier rounds, prefilled, drawn), and the objects of its ground truth."""

    key: str
    drawn: ImageAnnotation
    automatic: list[AutomaticMask] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    objects: list[RLE] = field(default_factory=list)


def to_drawing(work: ImageWork, *, first_id: int, origin: Origin) -> Drawing:
    """Returns the result of one image as plain JSON: its annotations as a shard holds them, and the work on each object.

    IoUs with the ground truth are kept out of the annotations, so that no shard holds them. `truth` compares the masks that
    existed when a mask first took too long, even if the annotator does not leave images and continued.
    """
    # prefilled masks get the first ids, then those that were drawn; what was rejected is in no shard
    found = [_automatic(mask, first_id + n, origin) for n, mask in enumerate(work.automatic)]
    automatic = [each for n, each in enumerate(found) if n not in work.drawn.rejected]
    first_id += len(found)
    assisted = [_assisted(mask, first_id + n, origin) for n, mask in enumerate(work.drawn.masks)]
    untouched = work.drawn.reason == UNTOUCHED  # nobody has looked at it, so it is annotated later
    earlier = [] if untouched else [each for each in work.earlier if each["id"] not in work.drawn.removed]
    in_time = [*earlier, *automatic, *assisted[: work.drawn.masks_in_time]]
    drawing = {
        "key": work.key,
        "annotations": [*earlier, *automatic, *assisted],
        "earlier": len(earlier),
        "left": work.drawn.reason == TIME,
        "skipped": False,
        "work": [
            {"kept": kept} | {name: getattr(mask, name) for name in ("seconds", "clicks", "strokes", "iou", "good")}
            for kept, masks in ((True, work.drawn.masks), (False, work.drawn.discarded))
            for mask in masks
        ],
        "truth": compare(work.objects, _segmentations(in_time), _segmentations(found)),
    }
    return drawing if work.drawn.prefilled is None else drawing | _of_people(work, len(found))


def _of_people(work: ImageWork, prefilled: int) -> Drawing:
    """Returns what only the drawings of people have."""
    drawn = work.drawn
    return {
        "untouched": drawn.reason == UNTOUCHED,
        "unfinished": drawn.reason == UNFINISHED,
        "prefilled": prefilled,
        "rejected": len(drawn.rejected),
        "removed": sum(each["id"] in drawn.removed for each in work.earlier),
        "annotators": [mask.annotator for mask in (*drawn.masks, *drawn.discarded)],
    }


def left_out(key: str) -> Drawing:
    """Returns the drawing of an image that could not be read."""
    nothing = ImageWork(key, ImageAnnotation([], [], DONE, 0))
    return to_drawing(nothing, first_id=0, origin=Origin("")) | {"skipped": True}


def _assisted(mask: AnnotatedMask, number: int, origin: Origin) -> dict[str, Any]:
    """Returns the annotation of a mask that the annotator drew with the model's help."""
    rle = mask.mask if isinstance(mask.mask, dict) else encode_mask(mask.mask)
    annotation = _annotation(rle, number, mask)
    annotation |= {"point_coords": mask.point_coords, "point_labels": mask.point_labels}
    annotation |= {"source": ASSISTED, "model": origin.model}
    annotation |= {"clicks": mask.clicks, "strokes": mask.strokes, "seconds": mask.seconds}
    return annotation | ({} if mask.annotator is None else {"annotator": mask.annotator}) | mask.more


def _automatic(mask: AutomaticMask, number: int, origin: Origin) -> dict[str, Any]:
    """Returns the annotation of a prefilled mask; `box_xyxy` is its prompt in pixels of the image, its seconds are 0."""
    annotation = _annotation(mask.segmentation, number, mask)
    annotation |= {"point_coords": [], "point_labels": [], "box_xyxy": mask.box_xyxy}
    annotation |= {"source": AUTOMATIC, "model": origin.model, "detector": origin.detector}
    return annotation | {"detector_score": mask.detector_score, "clicks": 0, "strokes": 0, "seconds": 0.0}


def _annotation(rle: RLE, number: int, mask: AnnotatedMask | AutomaticMask) -> dict[str, Any]:
    """Returns the keys of SA-1B, except the points; a mask that was painted without a model has no scores."""
    H, W = rle["size"]
    scores = {"predicted_iou": mask.predicted_iou, "stability_score": mask.stability_score}
    return {
        "id": number,
        "segmentation": rle,
        "bbox": rle_to_box_xywh(rle),
        "area": rle_area(rle),
        **{name: score for name, score in scores.items() if score is not None},
        "crop_box": [0.0, 0.0, float(W), float(H)],
    }


def _segmentations(annotations: Sequence[dict[str, Any]]) -> list[RLE]:
    return [annotation["segmentation"] for annotation in annotations]


def summarise_round(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> Annotated:
    """Returns the ledger's numbers for a round's images.

    All work counts for the masks drawn, including the work on discarded masks.
    """
    work = [item for drawing in drawings for item in drawing["work"]]
    kept = [item for item in work if item["kept"]]
    sources = [each["source"] for drawing in drawings for each in drawing["annotations"]]
    masks = len(sources) - sum(drawing["earlier"] for drawing in drawings)
    skipped = sum(drawing["skipped"] for drawing in drawings)
    images = len(drawings) - skipped - sum(drawing.get("untouched", False) for drawing in drawings)
    people = summarise_people(drawings)
    automatic = [iou for drawing in drawings for iou in drawing["truth"]["automatic"]]
    return Annotated(
        images=images,
        images_skipped=skipped,
        images_left=sum(drawing["left"] for drawing in drawings),
        masks=masks,
        masks_automatic=masks - len(kept),
        discarded=len(work) - len(kept),
        masks_per_image=len(sources) / images if images else None,
        assisted_per_image=sources.count(ASSISTED) / images if images else None,
        seconds_per_mask=_ratio(work, "seconds", len(kept)),
        clicks_per_mask=_ratio(work, "clicks", len(kept)),
        strokes_per_mask=_ratio(work, "strokes", len(kept)),
        mask_iou=_mean_iou(kept),
        automatic_precision=share_above(automatic) if _has_ground_truth(drawings) else _not_rejected(people),
        coverage=summarise_coverage(drawings, size_limits),
        people=people,
    )


def summarise_probe(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> ProbeResult:
    """Returns the probe metrics without prefilling: means over all its objects, which are the same for every model.

    The coverage is that of an annotator who leaves images.
    """
    work = [item for drawing in drawings for item in drawing["work"]]
    covered = summarise_coverage(drawings, size_limits)
    return ProbeResult(
        masks=len(work),
        seconds_per_mask=_ratio(work, "seconds", len(work)),
        clicks_per_mask=_ratio(work, "clicks", len(work)),
        mask_iou=_mean_iou(work),
        good=_ratio(work, "good", len(work)),
        coverage_alone=covered,
        coverage=covered,
    )


def summarise_coverage(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> dict[str, float | None]:
    """Returns the share of the objects that are covered, of all and by size."""
    return coverage([drawing["truth"] for drawing in drawings], size_limits)


def summarise_people(drawings: Sequence[Drawing]) -> People | None:
    """Returns what people did in a round, in all and by name; None if a simulation annotated."""
    own = [drawing for drawing in drawings if "annotators" in drawing]
    if not own:
        return None
    by_name: dict[str, list[dict[str, Any]]] = {}
    images: dict[str, int] = {}
    for drawing in own:
        for name, item in zip(drawing["annotators"], drawing["work"], strict=True):
            by_name.setdefault(str(name), []).append(item)
        for name in {str(name) for name in drawing["annotators"]}:
            images[name] = images.get(name, 0) + 1
    prefilled, rejected = (sum(drawing[key] for drawing in own) for key in ("prefilled", "rejected"))
    return People(
        images_untouched=sum(drawing["untouched"] for drawing in own),
        images_unfinished=sum(drawing["unfinished"] for drawing in own),
        prefilled=prefilled,
        rejected=rejected,
        rejected_share=rejected / prefilled if prefilled else None,
        removed=sum(drawing["removed"] for drawing in own),
        by_name={name: _person(images[name], work) for name, work in sorted(by_name.items())},
    )


def _person(images: int, work: Sequence[dict[str, Any]]) -> Person:
    kept = sum(item["kept"] for item in work)
    seconds, clicks = (_ratio(work, key, kept) for key in ("seconds", "clicks"))
    return Person(images=images, masks=kept, seconds_per_mask=seconds, clicks_per_mask=clicks)


def _not_rejected(people: People | None) -> float | None:
    """Returns the share of the prefilled masks that people let stand, which is what they tell of the precision."""
    return None if people is None or people.rejected_share is None else 1 - people.rejected_share


def _has_ground_truth(drawings: Sequence[Drawing]) -> bool:
    return any(drawing["truth"]["areas"] for drawing in drawings)


def _ratio(work: Sequence[dict[str, Any]], name: str, masks: int) -> float | None:
    return sum(item[name] for item in work) / masks if masks else None


def _mean_iou(work: Sequence[dict[str, Any]]) -> float | None:
    """Returns the mean IoU with the ground truth, None where it is unknown."""
    ious = [item["iou"] for item in work if item["iou"] is not None]
    return sum(ious) / len(ious) if ious else None

"""Turns prefilled and drawn masks into records in the form of SA-1B with their origin, and into the ledger's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samtrain.data_engine.annotators import DONE, TIME, AnnotatedMask, ImageAnnotation
from samtrain.data_engine.coverage import compare, coverage, share_above
from samtrain.data_engine.ledger_line import Annotated, ProbeResult
from samtrain.data_engine.prefill import AutomaticMask
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
    # prefilled masks get the first ids, then those that were drawn
    automatic = [_automatic(mask, first_id + n, origin) for n, mask in enumerate(work.automatic)]
    first_id += len(automatic)
    assisted = [_assisted(mask, first_id + n, origin) for n, mask in enumerate(work.drawn.masks)]
    in_time = [*work.earlier, *automatic, *assisted[: work.drawn.masks_in_time]]
    return {
        "key": work.key,
        "annotations": [*work.earlier, *automatic, *assisted],
        "earlier": len(work.earlier),
        "left": work.drawn.reason == TIME,
        "skipped": False,
        "work": [
            {"kept": kept} | {name: getattr(mask, name) for name in ("seconds", "clicks", "strokes", "iou", "good")}
            for kept, masks in ((True, work.drawn.masks), (False, work.drawn.discarded))
            for mask in masks
        ],
        "truth": compare(work.objects, _segmentations(in_time), _segmentations(automatic)),
    }


def left_out(key: str) -> Drawing:
    """Returns the drawing of an image that could not be read."""
    nothing = ImageWork(key, ImageAnnotation([], [], DONE, 0))
    return to_drawing(nothing, first_id=0, origin=Origin("")) | {"skipped": True}


def _assisted(mask: AnnotatedMask, number: int, origin: Origin) -> dict[str, Any]:
    """Returns the annotation of a mask that the annotator drew with the model's help."""
    annotation = _annotation(encode_mask(mask.mask), number, mask)
    annotation |= {"point_coords": mask.point_coords, "point_labels": mask.point_labels}
    annotation |= {"source": ASSISTED, "model": origin.model}
    return annotation | {"clicks": mask.clicks, "strokes": mask.strokes, "seconds": mask.seconds}


def _automatic(mask: AutomaticMask, number: int, origin: Origin) -> dict[str, Any]:
    """Returns the annotation of a prefilled mask; `box_xyxy` is its prompt in pixels of the image, its seconds are 0."""
    annotation = _annotation(mask.segmentation, number, mask)
    annotation |= {"point_coords": [], "point_labels": [], "box_xyxy": mask.box_xyxy}
    annotation |= {"source": AUTOMATIC, "model": origin.model, "detector": origin.detector}
    return annotation | {"detector_score": mask.detector_score, "clicks": 0, "strokes": 0, "seconds": 0.0}


def _annotation(rle: RLE, number: int, mask: AnnotatedMask | AutomaticMask) -> dict[str, Any]:
    """Returns the keys of SA-1B, except the points."""
    H, W = rle["size"]
    return {
        "id": number,
        "segmentation": rle,
        "bbox": rle_to_box_xywh(rle),
        "area": rle_area(rle),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
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
    images = sum(not drawing["skipped"] for drawing in drawings)
    automatic = [iou for drawing in drawings for iou in drawing["truth"]["automatic"]]
    return Annotated(
        images=images,
        images_skipped=len(drawings) - images,
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
        automatic_precision=share_above(automatic) if _has_ground_truth(drawings) else None,
        coverage=summarise_coverage(drawings, size_limits),
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


def _has_ground_truth(drawings: Sequence[Drawing]) -> bool:
    return any(drawing["truth"]["areas"] for drawing in drawings)


def _ratio(work: Sequence[dict[str, Any]], name: str, masks: int) -> float | None:
    return sum(item[name] for item in work) / masks if masks else None


def _mean_iou(work: Sequence[dict[str, Any]]) -> float | None:
    """Returns the mean IoU with the ground truth, None where it is unknown."""
    ious = [item["iou"] for item in work if item["iou"] is not None]
    return sum(ious) / len(ious) if ious else None

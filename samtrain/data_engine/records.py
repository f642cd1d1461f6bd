"""From what was filled in and drawn to records in SA-1B's form with their origin, and to the numbers of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samtrain.data_engine.annotators import DONE, TIME, AnnotatedMask, ImageAnnotation
from samtrain.data_engine.coverage import compare, coverage, share_above
from samtrain.data_engine.prefill import AutomaticMask
from samtrain.ops.rle import RLE, encode_mask, rle_area, rle_to_box_xywh

ASSISTED, AUTOMATIC = "assisted", "automatic"  # `source`: where a mask comes from
Drawing = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Digests of the model that helped and of the detector that looked first, None where none did."""

    model: str
    detector: str | None = None


@dataclass(frozen=True)
class ImageWork:
    """All masks of one image: those of earlier rounds, those filled in, those drawn; and the objects there are."""

    key: str
    drawn: ImageAnnotation
    automatic: list[AutomaticMask] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    objects: list[RLE] = field(default_factory=list)


def to_drawing(work: ImageWork, *, first_id: int, origin: Origin) -> Drawing:
    """The outcome of one image as plain JSON: its annotations as a shard will hold them, and what each object took.

    IoUs with the ground truth stay out of the annotations: a shard knows nothing of them. `truth` is of the masks that were
    there when a mask first took too long, though an annotator who does not leave went on.
    """
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
    """An image that could not be read."""
    nobody = ImageWork(key, ImageAnnotation([], [], DONE, 0))
    return to_drawing(nobody, first_id=0, origin=Origin("")) | {"skipped": True}


def _assisted(mask: AnnotatedMask, number: int, origin: Origin) -> dict[str, Any]:
    annotation = _annotation(encode_mask(mask.mask), number, mask)
    annotation |= {"point_coords": mask.point_coords, "point_labels": mask.point_labels}
    annotation |= {"source": ASSISTED, "model": origin.model}
    return annotation | {"clicks": mask.clicks, "strokes": mask.strokes, "seconds": mask.seconds}


def _automatic(mask: AutomaticMask, number: int, origin: Origin) -> dict[str, Any]:
    """The box that prompted it stands as `box_xyxy`, pixels of the image; nobody's time was spent."""
    annotation = _annotation(mask.segmentation, number, mask)
    annotation |= {"point_coords": [], "point_labels": [], "box_xyxy": mask.box_xyxy}
    annotation |= {"source": AUTOMATIC, "model": origin.model, "detector": origin.detector}
    return annotation | {"detector_score": mask.detector_score, "clicks": 0, "strokes": 0, "seconds": 0.0}


def _annotation(rle: RLE, number: int, mask: AnnotatedMask | AutomaticMask) -> dict[str, Any]:
    """SA-1B's keys but for the points."""
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


def summarise(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> dict[str, Any]:
    """What the ledger says of a round's images; all work, that on discarded masks too, counts for the masks drawn."""
    work = [item for drawing in drawings for item in drawing["work"]]
    kept = [item for item in work if item["kept"]]
    sources = [each["source"] for drawing in drawings for each in drawing["annotations"]]
    there = len(sources)
    masks = there - sum(drawing["earlier"] for drawing in drawings)
    images = sum(not drawing["skipped"] for drawing in drawings)
    automatic = [iou for drawing in drawings for iou in drawing["truth"]["automatic"]]
    return {
        "images": images,
        "images_skipped": len(drawings) - images,
        "masks": masks,
        "masks_automatic": masks - len(kept),
        "discarded": len(work) - len(kept),
        "images_left": sum(drawing["left"] for drawing in drawings),
        "masks_per_image": there / images if images else None,
        "assisted_per_image": sources.count(ASSISTED) / images if images else None,
        "seconds_per_mask": _ratio(work, "seconds", len(kept)),
        "clicks_per_mask": _ratio(work, "clicks", len(kept)),
        "strokes_per_mask": _ratio(work, "strokes", len(kept)),
        "mask_iou": _mean_iou(kept),
        "automatic_precision": share_above(automatic) if _known(drawings) else None,
        "coverage": _coverage(drawings, size_limits),
    }


def summarise_probe(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> dict[str, Any]:
    """What the ledger says of the probe: means over all its objects, which are the same ones for every model, and what the
    annotator would have covered who leaves images.
    """
    work = [item for drawing in drawings for item in drawing["work"]]
    return {
        "probe_masks": len(work),
        "probe_seconds_per_mask": _ratio(work, "seconds", len(work)),
        "probe_clicks_per_mask": _ratio(work, "clicks", len(work)),
        "probe_mask_iou": _mean_iou(work),
        "probe_good": _ratio(work, "good", len(work)),
        "probe_coverage_alone": _coverage(drawings, size_limits),
        "probe_coverage": _coverage(drawings, size_limits),
    }


def summarise_filled_probe(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> dict[str, Any]:
    """What the probe's images are covered with by everything that the stage has."""
    return {"probe_coverage": _coverage(drawings, size_limits)}


def _coverage(drawings: Sequence[Drawing], size_limits: tuple[float, float]) -> dict[str, float | None]:
    return coverage([drawing["truth"] for drawing in drawings], size_limits)


def _known(drawings: Sequence[Drawing]) -> bool:
    """Whether anybody knows what the images hold."""
    return any(drawing["truth"]["areas"] for drawing in drawings)


def _ratio(work: Sequence[dict[str, Any]], name: str, masks: int) -> float | None:
    return sum(item[name] for item in work) / masks if masks else None


def _mean_iou(work: Sequence[dict[str, Any]]) -> float | None:
    """None where nobody knows the ground truth."""
    ious = [item["iou"] for item in work if item["iou"] is not None]
    return sum(ious) / len(ious) if ious else None

"""From what an annotator drew to records in SA-1B's form with their origin, and to the numbers of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samtrain.data_engine.annotators import TIME, AnnotatedMask, PictureAnnotation
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh

SOURCE = "assisted"  # where a mask comes from; the later stages write "semi_automatic" and "automatic"
Drawing = dict[str, Any]


def to_drawing(key: str, result: PictureAnnotation, *, first_id: int, model_digest: str) -> Drawing:
    """The outcome of one picture as plain JSON: its annotations as a shard will hold them, and what each object took.

    IoUs with the ground truth stay out of the annotations: a shard knows nothing of them.
    """
    return {
        "key": key,
        "annotations": [_annotation(mask, first_id + n, model_digest) for n, mask in enumerate(result.masks)],
        "left": result.reason == TIME,
        "work": [
            {"kept": kept} | {name: getattr(mask, name) for name in ("seconds", "clicks", "strokes", "iou", "good")}
            for kept, masks in ((True, result.masks), (False, result.discarded))
            for mask in masks
        ],
    }


def _annotation(mask: AnnotatedMask, number: int, model_digest: str) -> dict[str, Any]:
    """SA-1B's keys first, ours behind them."""
    rle = encode_mask(mask.mask)
    H, W = mask.mask.shape
    return {
        "id": number,
        "segmentation": rle,
        "bbox": rle_to_box_xywh(rle),
        "area": rle_area(rle),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "crop_box": [0.0, 0.0, float(W), float(H)],
        "point_coords": mask.point_coords,
        "point_labels": mask.point_labels,
        "source": SOURCE,
        "model": model_digest,
        "clicks": mask.clicks,
        "strokes": mask.strokes,
        "seconds": mask.seconds,
    }


def summarise(drawings: Sequence[Drawing]) -> dict[str, Any]:
    """What the ledger says of a round's pictures; all work, that on discarded masks too, counts for the masks kept."""
    work = [item for drawing in drawings for item in drawing["work"]]
    kept = [item for item in work if item["kept"]]
    return {
        "images": len(drawings),
        "masks": len(kept),
        "discarded": len(work) - len(kept),
        "pictures_left": sum(drawing["left"] for drawing in drawings),
        "masks_per_image": len(kept) / len(drawings) if drawings else None,
        "seconds_per_mask": _ratio(work, "seconds", len(kept)),
        "clicks_per_mask": _ratio(work, "clicks", len(kept)),
        "strokes_per_mask": _ratio(work, "strokes", len(kept)),
        "mask_iou": _mean_iou(kept),
    }


def summarise_probe(drawings: Sequence[Drawing]) -> dict[str, Any]:
    """What the ledger says of the probe: means over all its objects, which are the same ones for every model."""
    work = [item for drawing in drawings for item in drawing["work"]]
    return {
        "probe_masks": len(work),
        "probe_seconds_per_mask": _ratio(work, "seconds", len(work)),
        "probe_clicks_per_mask": _ratio(work, "clicks", len(work)),
        "probe_mask_iou": _mean_iou(work),
        "probe_good": _ratio(work, "good", len(work)),
    }


def _ratio(work: Sequence[dict[str, Any]], name: str, masks: int) -> float | None:
    return sum(item[name] for item in work) / masks if masks else None


def _mean_iou(work: Sequence[dict[str, Any]]) -> float | None:
    """None where nobody knows the ground truth."""
    ious = [item["iou"] for item in work if item["iou"] is not None]
    return sum(ious) / len(ious) if ious else None

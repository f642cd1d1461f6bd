"""Masks between engine and store: prefilled ones and those of earlier rounds go in, what people made of them comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from samtrain.annotator.store import ImageRow, MaskRow, NewMask, Store
from samtrain.data_engine.interface import (
    DONE,
    TIME,
    UNFINISHED,
    UNTOUCHED,
    AnnotatedMask,
    AutomaticMask,
    ImageAnnotation,
)

EARLIER, PREFILLED = "earlier rounds", "model"  # the annotators of masks that are there before people come
ALL_STATES = ("accepted", "rejected", "deleted")
MAX_STORY = 4096  # characters of a mask's story that shards keep


def earlier_masks(annotations: Sequence[dict[str, Any]]) -> list[NewMask]:
    """Returns the masks of earlier rounds, which are locked."""
    return [
        NewMask(
            segmentation=each["segmentation"],
            predicted_iou=each.get("predicted_iou"),
            stability_score=each.get("stability_score"),
            origin="imported",
            source=each.get("source", "assisted"),
            locked=True,
            model=each.get("model"),
            object_id=each["id"],
            request=f"earlier {number}",
        )
        for number, each in enumerate(annotations)
    ]


def prefilled_masks(masks: Sequence[AutomaticMask], model: str) -> list[NewMask]:
    """Returns prefilled masks, which are locked; the detector's score is their story."""
    return [
        NewMask(
            segmentation=each.segmentation,
            box=each.box_xyxy,
            predicted_iou=each.predicted_iou,
            stability_score=each.stability_score,
            origin="prefilled",
            source="automatic",
            locked=True,
            model=model,
            story=[{"detector_score": each.detector_score}],
            request=f"prefilled {number}",
        )
        for number, each in enumerate(masks)
    ]


def annotation_of(store: Store, image: ImageRow) -> ImageAnnotation:
    """Returns what people have made of an image, in the order in which they did."""
    rows = store.masks(image.id, ALL_STATES)
    locked = [row for row in rows if row.locked]
    prefilled = [row for row in locked if row.origin == "prefilled"]
    own = [row for row in rows if not row.locked]
    reason = {"done": DONE, "skipped": TIME}.get(image.state, UNFINISHED)
    if reason == UNFINISHED and not own and all(row.revision == 0 for row in locked):
        reason = UNTOUCHED

    # a mask that replaces others has taken their work, too
    by_id = {row.id: row for row in own}
    replaced = {row.parent for row in own if row.state == "accepted" or row.parent in by_id}
    kept = [_annotated(row, by_id) for row in own if row.state == "accepted"]
    discarded = [_annotated(row, by_id) for row in own if row.state != "accepted" and row.id not in replaced]
    return ImageAnnotation(
        masks=kept,
        discarded=discarded,
        reason=reason,
        masks_in_time=len(kept),
        prefilled=[] if reason == UNTOUCHED else [_automatic(row) for row in prefilled],
        rejected=[n for n, row in enumerate(prefilled) if row.state != "accepted"],
        removed=[row.object_id for row in locked if row.origin != "prefilled" and row.state != "accepted"],
    )


def _annotated(row: MaskRow, by_id: dict[int, MaskRow]) -> AnnotatedMask:
    """Returns a mask of a person, with the seconds, clicks and strokes of the masks that it replaced."""
    line = [row]
    while (parent := by_id.get(line[-1].parent or 0)) is not None and parent not in line:
        line.append(parent)
    more = {"origin": row.origin, "model": row.model, "label": row.label, "box_xyxy": row.box, "story": _story(row)}
    return AnnotatedMask(
        mask=row.segmentation,
        seconds=sum(each.seconds for each in line),
        clicks=sum(len(each.point_labels) for each in line),
        strokes=sum(len(each.strokes) for each in line),
        point_coords=row.point_coords,
        point_labels=row.point_labels,
        predicted_iou=row.predicted_iou,
        stability_score=row.stability_score,
        good=True,
        annotator=row.annotator,
        more={key: value for key, value in more.items() if value is not None},
    )


def _automatic(row: MaskRow) -> AutomaticMask:
    assert row.box is not None and row.predicted_iou is not None and row.stability_score is not None
    return AutomaticMask(row.segmentation, row.box, row.predicted_iou, row.stability_score, row.story[0]["detector_score"])


def _story(row: MaskRow) -> list[Any] | None:
    """Returns the story of a mask if it is short enough for the shards; the store has all of them."""
    return row.story if row.story and len(json.dumps(row.story)) <= MAX_STORY else None

"""Review of automatic masks: the most doubtful come first, and what people made of them goes to `task=audit`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.annotator.sources import is_record
from samtrain.annotator.store import ImageRow, MaskRow, Store
from samtrain.annotator.store.rows import MASK_STATES
from samtrain.annotator.transfer.exporting import CURE, MADE_BY, check_ours, to_annotation
from samtrain.annotator.transfer.importing import IMPORT
from samtrain.files import write_text
from samtrain.inference.predictor import SamPredictor
from samtrain.ops.rle import decode_rle


def doubt(mask: MaskRow, disagreement: float | None = None) -> float:
    """Returns from 0 to 1 how likely a mask is to need a correction: what speaks least for it decides.

    It counts the predicted IoU, the stability, and the disagreement with another model, where they are known. A mask for
    which nothing speaks has a doubt of 1.
    """
    known = [score for score in (mask.predicted_iou, mask.stability_score) if score is not None]
    known += [] if disagreement is None else [1 - disagreement]
    return 1 - min(max(min(known, default=0.0), 0.0), 1.0)


def disagreements(predictor: SamPredictor, image: np.ndarray, masks: Sequence[MaskRow]) -> dict[int, float]:
    """Returns 1 - IoU of each mask with what the predictor's model makes of its box: the best of its three masks counts.

    image: (H, W, 3) uint8 RGB. A mask that the model would draw the same way has 0.
    """
    if not masks:
        return {}
    predictor.set_image(image)
    found = {}
    for each in masks:
        x, y, width, height = each.bbox
        drawn_3HW, _, _ = predictor.predict(box=np.array([x, y, x + width, y + height]), multimask_output=True)
        own_HW = decode_rle(each.segmentation, image.shape[:2])
        both, either = (drawn_3HW & own_HW).sum(axis=(1, 2)), (drawn_3HW | own_HW).sum(axis=(1, 2))
        found[each.id] = 1 - float((both / either).max())
    return found


def order_by_doubt(store: Store, disagreement: Mapping[int, float] | None = None) -> None:
    """Sets the doubt of the imported masks, and the order of the open images: those with the highest mean doubt come first.

    What people have drawn is not in doubt. The mean, not the sum, because an image with many masks takes a person's time for
    each of them. `disagreement` gives that of `disagreements` by the id of the mask, for some masks or all.
    """
    for image in store.images(state="open"):
        imported = [each for each in store.masks(image.id) if each.origin == "imported"]
        doubts = {each.id: doubt(each, (disagreement or {}).get(each.id)) for each in imported}
        store.set_doubt(doubts)
        store.update_images([image.id], rank=-float(np.mean(list(doubts.values()))) if doubts else 0.0)


def export_corrections(store: Store, folder: Path) -> dict[str, int]:
    """Writes `<folder>/<image>.json` for each reviewed image, as `task=audit audit.corrected=<folder>` reads it.

    `annotations` holds the masks that people accepted or corrected under the ids that they correct, `rejected` the ids of
    those that show nothing, and `added` what people drew. Of an image that is not done, only what somebody has changed is
    written. Returns {"images", "accepted", "corrected", "rejected", "added"}; raises ValueError if two images would share a
    file.
    """
    counts = dict.fromkeys(("images", "accepted", "corrected", "rejected", "added"), 0)
    written: dict[str, str] = {}
    for image in store.images():
        content = _corrections(image, store.masks(image.id, MASK_STATES), counts)
        if content is None:
            continue
        stem = image.name if is_record(image.source) else os.path.splitext(image.name)[0]
        name = f"{Path(stem).name}.json"  # as the audit names it; it never leaves the folder
        if name in written:
            raise ValueError(f"images {written[name]} and {image.key} need the same file {folder / name}: rename one of them")
        check_ours(folder / name)
        written[name] = image.key
        write_text(folder / name, json.dumps(content, separators=(",", ":"), allow_nan=False), CURE)
        counts["images"] += 1
    return counts


def _corrections(image: ImageRow, masks: Sequence[MaskRow], counts: dict[str, int]) -> dict[str, Any] | None:
    """Returns the JSON of one image and counts what it holds; None if nobody has looked at it."""
    by_id = {each.id: each for each in masks}
    annotations, rejected, added = [], [], []
    answered = set()  # imported masks for which another one was accepted
    for each in masks:
        root = _root(each, by_id)
        if each.state != "accepted" or each.id == root.id and _is_imported(each):
            continue
        annotation = to_annotation(each, image.size)
        if _is_imported(root):
            annotations.append(annotation | {"id": original_id(root)})
            answered.add(root.id)
            counts["corrected"] += 1
        else:
            added.append(annotation)
            counts["added"] += 1
    for each in (mask for mask in masks if _is_imported(mask) and mask.id not in answered):
        corrected = each.origin != "imported" or each.seconds > 0
        if each.state != "accepted":
            rejected.append(original_id(each))
            counts["rejected"] += 1
        elif each.revision > 0 or image.state == "done":
            annotations.append(to_annotation(each, image.size) | {"id": original_id(each)})
            counts["corrected" if corrected else "accepted"] += 1
    if not (annotations or rejected or added or image.state == "done"):
        return None
    about = {"width": image.width, "height": image.height, "file_name": image.name, "done": image.state == "done"}
    return {"info": MADE_BY, "image": about, "annotations": annotations, "rejected": rejected, "added": added}


def _is_imported(mask: MaskRow) -> bool:
    """Returns whether a mask came with the shards; one that somebody has corrected in its place has another origin since."""
    return mask.annotator == IMPORT


def original_id(mask: MaskRow) -> Any:
    """Returns the id that an imported mask had where it comes from: a number, or text, which the store keeps in its story."""
    if mask.object_id is not None:
        return mask.object_id
    return mask.story[0]["id"] if mask.story and isinstance(mask.story[0], dict) and "id" in mask.story[0] else mask.id


def _root(mask: MaskRow, by_id: Mapping[int, MaskRow]) -> MaskRow:
    """Returns the mask from which this one was refined, step by step."""
    seen = {mask.id}
    while mask.parent is not None and mask.parent in by_id and mask.parent not in seen:
        mask = by_id[mask.parent]
        seen.add(mask.id)
    return mask

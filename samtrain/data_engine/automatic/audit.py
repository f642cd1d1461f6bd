"""Measures automatic masks by their IoU with corrected versions of themselves (paper, section 5, "Mask quality")."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from samtrain.data.prepare.formats import IdIndex
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.names import pair_names
from samtrain.data.prepare.segmentations import to_rle
from samtrain.data.shards import Record
from samtrain.data_engine.automatic.truth import names_of
from samtrain.data_engine.brush import Brush
from samtrain.ops.rle import RLE, decode_rle, encode_mask, rle_iou, to_compressed

LEVELS = (0.9, 0.75)  # IoUs; the paper reports the share of masks above each (section 5)
MAX_STROKES = 60  # per simulated correction (ours)
BRUSH_MARGIN = 8  # pixels around a mask and its object; the brush works on this window only, to save time
RESAMPLES = 2000  # bootstrap samples of the images
BINS = 20  # of the distribution of IoU

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """The IoU of an automatic mask with its corrected version."""

    image: str
    id: int
    iou: float


def sample(records: Sequence[T], count: int, seed: int) -> list[T]:
    """Returns `count` items drawn uniformly without replacement, in their original order; all items if there are fewer."""
    if len(records) <= count:
        return list(records)
    chosen = np.random.default_rng(seed).choice(len(records), size=count, replace=False)
    return [records[i] for i in sorted(chosen.tolist())]


def pairs_with_corrections(records: Sequence[Record], folder: Path) -> tuple[list[Pair], dict[str, int]]:
    """Returns pairs with the annotations of the same id in `<folder>/<key>.json`, and counts what has no correction.

    A JSON has SA-1B's form or is a bare list of annotations; segmentations may be polygons or RLE. Raises ValueError that
    names the file and the mask if a correction does not fit, or if there is no pair at all.
    """
    pairs, missing = [], {"images without a file": 0, "masks without a correction": 0}
    for record in records:
        path = folder / f"{Path(record.key).name}.json"
        if not path.is_file():
            missing["images without a file"] += 1
            continue
        corrected = _corrections(path, record)
        ids = IdIndex(corrected)
        for each in record.annotation["annotations"]:
            if (own := ids.find(each["id"])) is None:
                missing["masks without a correction"] += 1
                continue
            pairs.append(_pair(record, each, corrected[own]))
    if not pairs:
        raise ValueError(
            f"audit.corrected is {folder}, which has no mask with the id of any mask in {len(records)} images ({missing}): "
            "set it to the folder with the corrections of these images"
        )
    return pairs, missing


def _corrections(path: Path, record: Record) -> dict[Any, RLE]:
    """Returns the corrected masks of an image by the id of the mask that they correct."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be parsed as JSON ({error}): repair or remove it") from error
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(annotations, list) or not all(isinstance(a, dict) and "id" in a for a in annotations):
        raise ValueError(f"{path} has no list of annotations with an id and a segmentation each: write it in SA-1B's form")
    size = record.annotation["image"]["height"], record.annotation["image"]["width"]
    found = {}
    for each in annotations:
        try:
            found[each["id"]] = to_rle(each.get("segmentation"), size)
        except (ValueError, Refused) as error:
            raise ValueError(f"{path}, annotation {each['id']}: {error}") from error
    return found


def pairs_with_truth(
    records: Sequence[Record], truth: dict[str, list[RLE]], *, target_iou: float, min_iou: float, brush: Brush, seed: int
) -> tuple[list[Pair], dict[str, int]]:
    """Returns pairs with what a simulated annotator makes of each mask, and counts the masks that show no object.

    The annotator paints until the IoU with the mask's object, the one of highest IoU, reaches `target_iou`. A mask below
    `min_iou` with every object shows none and is not corrected. `truth` has the objects by the image's names (`names_of`).
    Raises ValueError for an image without ground truth.
    """
    pairs, missing = [], {"masks that show no object": 0}
    known = pair_names((name for record in records for name in names_of(record)), truth)
    for record in records:
        name = next((name for name in names_of(record) if name in known.found), None)
        if name is None:
            why = known.why_not(names_of(record)[0])
            raise ValueError(f"{record.name}: audit.truth has no such image ({why}), add its ground truth to these shards")
        objects = truth[known.found[name]]
        annotations = record.annotation["annotations"]
        ious = rle_iou([each["segmentation"] for each in annotations], objects)
        for number, each in enumerate(annotations):
            if not objects or ious[number].max() < min_iou:
                missing["masks that show no object"] += 1
                continue
            target = decode_rle(objects[int(ious[number].argmax())])
            own = each["id"]
            rng = np.random.default_rng([seed, own if isinstance(own, int) else zlib.crc32(str(own).encode())])
            corrected = _correct(decode_rle(each["segmentation"]), target, target_iou, brush, rng)
            pairs.append(_pair(record, each, encode_mask(corrected)))
    return pairs, missing


def _correct(
    mask: np.ndarray, target: np.ndarray, target_iou: float, brush: Brush, rng: np.random.Generator
) -> np.ndarray:
    """Returns the mask after strokes over its largest error; a stroke that lowers the IoU is undone."""
    # paint on a window around mask and object, because a stroke takes time in proportion to the pixels
    rows, columns = (np.flatnonzero((mask | target).any(axis=axis)) for axis in (1, 0))
    window = tuple(slice(max(i[0] - BRUSH_MARGIN, 0), i[-1] + 1 + BRUSH_MARGIN) for i in (rows, columns))
    part, goal = mask[window], target[window]
    best = _iou(part, goal)
    for _ in range(MAX_STROKES):
        if best >= target_iou:
            break
        painted, _ = brush.paint(part, goal, rng)
        if (iou := _iou(painted, goal)) > best:
            part, best = painted, iou
    corrected = np.zeros_like(mask)
    corrected[window] = part
    return corrected


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _pair(record: Record, automatic: dict[str, Any], corrected: RLE) -> Pair:
    iou = rle_iou([automatic["segmentation"]], [to_compressed(corrected)])[0, 0]
    return Pair(Path(record.key).name, automatic["id"], float(iou))


def summary(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Returns the share of pairs above each level with its 95 % interval, the mean IoU, and the distribution of IoU.

    The masks of one image resemble each other, so the intervals come from a bootstrap over images, not over masks.
    """
    by_image: dict[str, list[float]] = {}
    for pair in pairs:
        by_image.setdefault(pair.image, []).append(pair.iou)
    ious = np.array([pair.iou for pair in pairs])
    counts, _ = np.histogram(ious, bins=BINS, range=(0, 1))
    result: dict[str, Any] = {
        "images": len(by_image),
        "pairs": len(pairs),
        "mean_iou": float(ious.mean()),
        "distribution": counts.tolist(),
    }
    for level in LEVELS:
        low, high = _interval(list(by_image.values()), level, seed)
        result[f"share_above_{100 * level:.0f}"] = float((ious > level).mean())
        result[f"share_above_{100 * level:.0f}_low"], result[f"share_above_{100 * level:.0f}_high"] = low, high
    return result


def _interval(images: Sequence[Sequence[float]], level: float, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of the share of masks above `level`; `images` has the IoUs of each image's masks."""
    above = np.array([sum(iou > level for iou in ious) for ious in images])
    masks = np.array([len(ious) for ious in images])
    chosen = np.random.default_rng(seed).integers(len(images), size=(RESAMPLES, len(images)))
    shares = above[chosen].sum(axis=1) / masks[chosen].sum(axis=1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


def rows(pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """Yields one record per pair, for people who want to count by themselves."""
    for pair in pairs:
        yield {"image": pair.image, "id": pair.id, "iou": round(pair.iou, 6)}

"""Clicks objects by the centre protocol, on whole images in their own pixels (section 7.1 and appendix D)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.decode import decode_image
from samtrain.data.shards import Record
from samtrain.inference.predictor import SamPredictor
from samtrain.interact import Decoder, Interaction, interact
from samtrain.ops.masks import mask_iou
from samtrain.ops.rle import decode_rle, rle_area, to_compressed
from samtrain.prompts import CentreSampler, seeded_generator

log = logging.getLogger(__name__)

REPORTED = (1, 2, 3, 5, 9)  # clicks at which the paper reports
MAX_TOGETHER = 32  # objects that are clicked at once
MAX_PIXELS = 1 << 24  # objects times pixels that are predicted at once: 64 MB of float32 logits
Row = dict[str, Any]


@torch.no_grad()
def evaluate_clicks(
    predictor: SamPredictor,
    records: Iterable[Record],
    *,
    num_points: int = 5,
    max_masks: int | None = None,
    seed: int = 0,
    chunk: int = MAX_TOGETHER,
    on_error: str = "raise",
) -> tuple[dict[str, float], list[Row]]:
    """Returns the mean IoU over all objects after 1, 2, 3, 5, 9 clicks (up to `num_points`) and for a box, and the rows.

    Each image is encoded once, and at most `max_masks` of its objects are drawn, by seed and key. `miou_1` takes the mask
    of highest predicted IoU, `oracle_miou_1` the best of the three. There is one row per object: key, object, area and
    IoUs. Raises ValueError that names the record if an image or an RLE does not fit it (on_error="skip" logs the record
    and leaves it out), and if no record holds an object.
    """
    rows: list[Row] = []
    for record in records:
        try:
            chosen = choose_objects(record, max_masks, seed)
            image = read_image(record)
        except ValueError as error:
            if on_error == "raise":
                raise
            log.warning("Skipped a record: %s", error)
            continue
        if not chosen:
            continue
        predictor.set_image(image)
        rows += _rows_of_image(predictor, record, chosen, num_points, chunk)
    if not rows:
        raise ValueError("no record to evaluate holds an object: check the test split of the data set (data)")
    names = [name for name in rows[0] if name.startswith(("iou", "oracle_iou", "box_iou"))]
    return {name.replace("iou", "miou"): float(np.mean([row[name] for row in rows])) for name in names}, rows


def _rows_of_image(
    predictor: SamPredictor,
    record: Record,
    chosen: list[int],
    num_points: int,
    chunk: int,
) -> list[Row]:
    """Clicks the chosen objects of the image that the predictor holds, and prompts with their boxes."""
    rows: list[Row] = []
    for indices, masks in mask_chunks(record, chosen, predictor.device, chunk):
        scores = click_ious(predictor.decoder(), masks, num_points) | box_ious(predictor.decoder(), masks)
        scores = {name: ious for name, ious in scores.items() if name not in _unreported(num_points)}
        for n, i in enumerate(indices):
            ious = {name: float(values[n]) for name, values in scores.items()}
            rows.append({"key": record.key, "object": i, "area": int(masks[n].sum()), **ious})
    return rows


def mask_chunks(
    record: Record, chosen: list[int], device: torch.device, max_count: int = MAX_TOGETHER
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields indices and (N, H, W) bool masks of as many chosen objects as are clicked at once, in their order."""
    objects, size = record.annotation["annotations"], image_size(record)
    count = max(1, min(max_count, MAX_PIXELS // (size[0] * size[1])))
    for start in range(0, len(chosen), count):
        indices = chosen[start : start + count]
        masks = torch.from_numpy(np.stack([decode_rle(objects[i]["segmentation"], size) for i in indices]))
        yield indices, masks.to(device)


def draw_seed(record: Record, seed: int, number: int) -> int:
    """Returns the seed of the random clicks on the objects from `number` on, a function of `seed` and the record's key."""
    return int(torch.randint(2**31, (), generator=seeded_generator("cpu", seed, number, *record.key.encode())))


def _unreported(num_points: int) -> set[str]:
    """Returns the names of the IoUs at clicks that the paper does not report."""
    return {f"iou_{k}" for k in range(1, num_points + 1) if k not in REPORTED}


def click_ious(
    decoder: Decoder, masks_NHW: Tensor, num_points: int, *, first: str = "point", seed: int = 0
) -> dict[str, Tensor]:
    """Returns the IoUs of `sampled_ious` for so many clicks; `first` is that of `CentreSampler`."""
    return sampled_ious(decoder, masks_NHW, CentreSampler(num_points=num_points, first=first), seed=seed)


def sampled_ious(
    decoder: Decoder, masks_NHW: Tensor, sampler: CentreSampler, *, enough: float | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Returns `oracle_iou_1` and `iou_1`, `iou_2`, ..., (N,) each, for objects of the image that the decoder holds.

    With `enough`, clicking ends once all objects have had this IoU, but not before the
    last of the `REPORTED` clicks.
    """
    scores: dict[str, Tensor] = {}
    best = torch.zeros(len(masks_NHW), device=masks_NHW.device)
    for turn in _interact(decoder, masks_NHW, sampler, seed):
        scores[f"iou_{turn.index + 1}"] = iou = _iou(turn.logits(), masks_NHW)
        best = torch.maximum(best, iou)
        if turn.index == 0:
            low_res = turn.output.low_res_logits
            each = [_iou(decoder.to_frame(low_res[:, m : m + 1])[:, 0], masks_NHW) for m in range(low_res.shape[1])]
            scores["oracle_iou_1"] = torch.stack(each).amax(dim=0)
        if enough is not None and turn.index + 1 >= REPORTED[-1] and bool((best >= enough).all()):
            break
    return scores


def box_ious(decoder: Decoder, masks_NHW: Tensor) -> dict[str, Tensor]:
    """Returns `box_iou`, (N,), for the box of the ground truth alone."""
    (turn,) = _interact(decoder, masks_NHW, CentreSampler(num_points=1, first="box"))
    return {"box_iou": _iou(turn.logits(), masks_NHW)}


def _interact(decoder: Decoder, masks_NHW: Tensor, sampler: CentreSampler, seed: int = 0) -> Iterator[Interaction]:
    valid, generator = torch.ones_like(masks_NHW), seeded_generator(masks_NHW.device, seed)
    return interact(decoder, masks_NHW, sampler, schedule=sampler.schedule(), valid_NHW=valid, generator=generator)


def _iou(logits_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    return mask_iou(logits_NHW > 0, masks_NHW)


def choose_objects(record: Record, max_masks: int | None, seed: int) -> list[int]:
    """Returns ascending indices of objects that have pixels; at most `max_masks`, drawn by the seed and the record's key."""
    indices = [i for i, each in enumerate(record.annotation["annotations"]) if _has_pixels(record, each)]
    if max_masks is None or len(indices) <= max_masks:
        return indices
    draw = torch.randperm(len(indices), generator=seeded_generator("cpu", seed, *record.key.encode()))
    return sorted(indices[i] for i in draw[:max_masks].tolist())


def _has_pixels(record: Record, annotation: dict[str, Any]) -> bool:
    try:
        return rle_area(to_compressed(annotation["segmentation"], image_size(record))) > 0
    except (ValueError, TypeError) as error:
        cure = "correct it, or set data.on_error=skip"
        raise ValueError(f"{record.name}: annotation {annotation.get('id')}: {error}; {cure}") from error


def image_size(record: Record) -> tuple[int, int]:
    """Returns (H, W)."""
    return record.annotation["image"]["height"], record.annotation["image"]["width"]


def read_image(record: Record) -> np.ndarray:
    """Returns the (H, W, 3) uint8 RGB image of a record."""
    H, W = image_size(record)
    return decode_image(record.image_bytes, W, H, record.name)

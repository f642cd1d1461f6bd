"""Writes what task=generate leaves beside its shards: metrics, panels, and the counts that the report draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.data.decode import decode_image
from samtrain.data.image_set import records
from samtrain.data.shards import Record
from samtrain.data_engine.automatic.inputs import InputImage
from samtrain.data_engine.automatic.release import NO_GUARANTEE
from samtrain.data_engine.automatic.truth import truth_of
from samtrain.files import write_text
from samtrain.metrics.automatic import evaluate_automatic
from samtrain.metrics.full_truth import ImageMasks
from samtrain.ops.rle import decode_rle
from samtrain.panels import draw_panel, save_image, tile_panels
from samtrain.run.directory import Metrics
from samtrain.terminal import counted

NAME = "generated.json"  # in the run's directory, where the report reads it
COLUMNS = 4  # of panels in a row


def generated_metrics(total: dict[str, Any], *, seconds: float, new: int) -> Metrics:
    """Returns the counts of the whole output, and the pace of this run: `new` images in `seconds`."""
    images, masks = total["images"], total["masks"]
    return {
        "generated/images": images,
        "generated/masks": masks,
        "generated/masks_per_image": masks / images if images else None,
        "generated/left_out": len(total["refused"]),
        "generated/images_per_second": new / seconds if new else None,
        **{f"generated/blurred_{kind}": count for kind, count in total["blurred"].items()},
    }


def compare_with_truth(tars: Sequence[Path], images: Sequence[InputImage], first_image_id: int) -> dict[str, Any]:
    """Returns `evaluate_automatic` of the shards; raises ValueError if an image has no ground truth."""
    compared = []
    for record in records([str(tar) for tar in tars]):
        number = record.annotation["image"]["image_id"] - first_image_id
        compared.append(ImageMasks(truth_of(images[number]), record.annotation["annotations"]))
    return evaluate_automatic(compared)


def write_generated(run_dir: Path, total: dict[str, Any], truth: dict[str, Any] | None) -> None:
    """Writes `generated.json`; the report adds a warning if the images were blurred."""
    released = total["generate"]["release"] is not None
    content = {**total, "truth": truth, "note": NO_GUARANTEE if released else ""}
    write_text(run_dir / NAME, json.dumps(content, indent=1) + "\n")


def draw_panels(run_dir: Path, tars: Sequence[Path], count: int) -> None:
    """Draws the first `count` images with their masks in `panels/generated.png`."""
    tiles: list[np.ndarray] = []
    for record in records([str(tar) for tar in tars[:1]]):
        if len(tiles) == count:
            break
        tiles.append(_tile(record))
    if tiles:
        folder = run_dir / "panels"
        folder.mkdir(exist_ok=True)
        rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
        save_image(folder / "generated.png", tile_panels(rows))


def _tile(record: Record) -> np.ndarray:
    """Returns one image with its masks, small masks on top of large ones."""
    image, annotations = record.annotation["image"], record.annotation["annotations"]
    pixels = decode_image(record.image_bytes, image["width"], image["height"], record.name)
    by_area = sorted(annotations, key=lambda each: -each["area"])
    masks = np.array([decode_rle(each["segmentation"]) for each in by_area]).reshape(-1, *pixels.shape[:2])
    return draw_panel(pixels, masks, caption=f"{record.key}: {counted(len(masks), 'mask')}", side=384)

"""Writes the synthetic scenes, which are the default data, as a prepared set that is read like any other."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from samtrain.data.scenes import CROWDED, SCENES_VERSION, SPARSE, Scene, generate_scene
from samtrain.data.scenes.captions import describe, hue_name
from samtrain.data.shards import ShardWriter
from samtrain.files import build_once
from samtrain.ops.rle import encode_mask, rle_to_box_xywh

__all__ = ["SPLITS", "Scene", "generate_scene", "make_synthetic"]
log = logging.getLogger(__name__)

# the index of a split seeds its scenes, so that no two splits share one; "crowded" has more and smaller objects
SPLITS = ("public", "pool", "val", "test", "crowded")
MIN_SIDE = 32  # pixels; in smaller scenes the objects would have only a few pixels
MANIFEST = "synthetic.json"


def make_synthetic(
    root: str | Path,
    *,
    splits: Mapping[str, int],
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    max_count: int = 500,
    num_workers: int = 0,
) -> Path:
    """Returns the folder `<root>/<parameters>/<split>/*.tar` with `splits[name]` scenes of `size` (H, W) for each split.

    It is made once: a call with the same parameters finds it and returns at once, and other parameters get another folder. A
    killed call leaves nothing under the final name. If several processes call this, one paints and the others wait.
    `num_workers` processes paint, or this one if 0; the result does not depend on it.
    """
    check_splits(splits, size, seed)
    parameters = {
        "version": SCENES_VERSION,
        "splits": {name: int(splits[name]) for name in SPLITS if name in splits},
        "size": [int(side) for side in size],
        "seed": int(seed),
        "max_count": int(max_count),
    }
    text = json.dumps(parameters, sort_keys=True)
    name = f"synthetic_{size[0]}x{size[1]}_seed{seed}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return build_once(Path(root) / name, partial(_make, parameters=parameters, num_workers=num_workers), MANIFEST)


def check_splits(splits: Mapping[str, int], size: Sequence[int], seed: int) -> None:
    """Raises ValueError for unknown splits, negative counts, and sizes that are too small for a scene."""
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"data.splits has {', '.join(unknown)}: choose from {', '.join(SPLITS)}")
    if not splits or min(splits.values()) < 0:
        raise ValueError(f"data.splits is {dict(splits)}: give each split 0 scenes or more")
    if len(size) != 2 or min(size) < MIN_SIDE:
        raise ValueError(f"data.size is {list(size)}: give (H, W) of at least {MIN_SIDE} pixels each")
    if seed < 0:
        raise ValueError(f"data.seed is {seed}: give 0 or more")


def _make(folder: Path, parameters: dict[str, Any], num_workers: int) -> dict[str, Any]:
    """Paints all splits, from the beginning after an interruption, because that takes only seconds."""
    jobs = [
        (parameters["seed"], SPLITS.index(split), number, tuple(parameters["size"]))
        for split, count in parameters["splits"].items()
        for number in range(count)
    ]
    log.info("Painting %d synthetic scenes into %s.", len(jobs), folder)
    records = iter(track(_painted(jobs, num_workers), "synthetic scenes", len(jobs), disable=not sys.stdout.isatty()))
    for split, count in parameters["splits"].items():
        shutil.rmtree(folder / split, ignore_errors=True)
        with ShardWriter(folder / split, "synthetic", max_count=parameters["max_count"]) as writer:
            for _ in range(count):
                writer.write(*next(records))
    return parameters


Job = tuple[int, int, int, tuple[int, int]]  # seed, index of the split, number of the scene, (H, W)


def _painted(jobs: list[Job], num_workers: int) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
    """Yields the records in the order of their jobs."""
    if num_workers < 1:
        yield from map(paint_record, jobs)
        return
    # spawned instead of forked, because the caller may have threads of torch
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(paint_record, jobs, chunksize=16)


def paint_record(job: Job) -> tuple[str, bytes, str, dict[str, Any]]:
    """Returns key, PNG bytes, extension and annotation of one scene."""
    seed, split, number, size = job
    scene = generate_scene((seed, split, number), size, layout=CROWDED if SPLITS[split] == "crowded" else SPARSE)
    stream = io.BytesIO()
    # noise hardly compresses, and level 6 takes 3 times as long
    Image.fromarray(scene.image).save(stream, "png", compress_level=1)
    image_id = number * len(SPLITS) + split + 1
    key = f"{SPLITS[split]}_{seed}_{number:06d}"
    return key, stream.getvalue(), "png", scene_annotation(scene, image_id, key)


def scene_annotation(scene: Scene, image_id: int, key: str) -> dict[str, Any]:
    """Returns the scene in SA-1B's form; `parent_id` (-1: none) and `level` say how its objects are nested.

    `hue`, `shape` and `caption` say in words what an object looks like.
    """
    height, width = scene.image.shape[:2]
    ids = [image_id * 1000 + number for number in range(len(scene.masks))]  # no scene has 1000 objects
    annotations = [
        {
            "id": ids[number],
            "segmentation": (rle := encode_mask(mask)),
            "bbox": rle_to_box_xywh(rle),
            "area": int(mask.sum()),
            "parent_id": ids[parent] if parent >= 0 else -1,
            "level": level,
            "hue": hue_name(scene.hues[number]),
            "shape": scene.shapes[number],
            "caption": describe(scene, number),
        }
        for number, (mask, parent, level) in enumerate(zip(scene.masks, scene.parents, scene.levels, strict=True))
    ]
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"{key}.png"}
    return {"image": image, "annotations": annotations}

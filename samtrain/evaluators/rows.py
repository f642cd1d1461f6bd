"""The rows of an evaluation on disk: one line per image, written by any number of processes, resumable after a kill."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from samtrain.evaluators.evaluator import Evaluator, Part, Row
from samtrain.files import explain_full_disk, write_text
from samtrain.modeling.build import load_sam

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # the identity of the files that the rows were computed from
ROWS = "rows*.jsonl"  # one file per process; a line has the set's name, the image's key and number, and its rows
LOG_EVERY = 30.0  # seconds
ImageId = tuple[str, str]  # a part's name and an image's key


def check_inputs(folder: Path, inputs: dict[str, str]) -> None:
    """Stores what the rows are computed from; raises ValueError if the rows in the folder belong to other files."""
    path = folder / INPUTS
    stored = json.loads(path.read_text()) if path.is_file() else inputs
    changed = sorted(name for name in stored.keys() | inputs.keys() if stored.get(name) != inputs.get(name))
    if changed:
        raise ValueError(
            f"{changed[0]} has changed since {folder} was started, so its rows no longer belong to it: choose another run_dir"
        )
    write_text(path, json.dumps(inputs, indent=1) + "\n")


def finished_images(folder: Path) -> set[ImageId]:
    """Returns the images that already have rows."""
    return {(line["set"], line["image"]) for line in _read_lines(folder)}


def rows_by_part(folder: Path) -> dict[str, list[Row]]:
    """Returns all rows of every part, in the order of its images, whichever process measured them.

    If two processes measured the same image, it counts once.
    """
    found: dict[str, dict[int, list[Row]]] = {}
    for line in _read_lines(folder):
        found.setdefault(line["set"], {})[line["number"]] = line["rows"]
    return {name: [row for number in sorted(images) for row in images[number]] for name, images in found.items()}


def measure_images(
    evaluator: Evaluator,
    parts: Sequence[Part],
    path: Path,
    *,
    finished: Collection[ImageId],
    device: torch.device,
    index: int = 0,
    count: int = 1,
) -> None:
    """Appends one line to the file `path` for each image that has no rows yet.

    Of `count` processes that share the images, this one measures those with a number that leaves `index` when divided by
    `count`.
    """
    parent, last_log = multiprocessing.parent_process(), time.monotonic()
    loaded = None
    with open(path, "a", encoding="utf-8") as file:
        for part in parts:
            for number, image in _numbered_images(evaluator, part):
                if number % count != index or (part.name, image.key) in finished:
                    continue
                # the model is loaded only when there is an image to measure with it
                if part.checkpoint != loaded:
                    evaluator.load(load_sam(part.checkpoint).to(device))
                    loaded = part.checkpoint
                rows = evaluator.rows(image)
                if parent is not None and not parent.is_alive():
                    return  # a resumed run may be measuring this image by now
                with explain_full_disk(path):
                    file.write(json.dumps({"set": part.name, "number": number, "image": image.key, "rows": rows}) + "\n")
                    file.flush()
                if time.monotonic() - last_log > LOG_EVERY:
                    last_log = time.monotonic()
                    log.info("%s: measured image %d", part.name, number + 1)


def _numbered_images(evaluator: Evaluator, part: Part) -> Iterator[tuple[int, Any]]:
    """Yields the images of a part with their numbers; raises ValueError if two images have the same key."""
    seen: set[str] = set()
    for number, image in enumerate(evaluator.open(part)):
        if image.key in seen:
            raise ValueError(
                f"the set {part.name} has two images with the key {image.key!r}: make its shards separate sets (zero_shot.sets)"
            )
        seen.add(image.key)
        yield number, image


def _read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of all processes, of this run and of an interrupted one; cuts off a line that was only half written."""
    for path in sorted(folder.glob(ROWS)):
        complete = 0
        with open(path, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                complete += len(line)
                yield json.loads(line)
            file.truncate(complete)

"""Training a detector: samples of boxes, a loss that falls, and resuming after a kill."""

from __future__ import annotations

import csv
import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxes_data import SIZE, rectangles, train_tiny, write_rectangles
from tiny_training import fork_server

from samtrain.data.box_samples import BoxTransform, annotated_boxes
from samtrain.data.datasets import SamDataset
from samtrain.data.shards import index_tar, read_record
from samtrain.detector import Detector, DetectorRecipe, LitDetector, load_detector
from samtrain.metrics.boxes import evaluate_boxes
from samtrain.ops.rle import encode_mask


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


def rows_of(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- samples


def annotation(mask: np.ndarray, number: int = 0) -> dict[str, Any]:
    return {"id": number, "segmentation": encode_mask(mask)}


def test_boxes_enclose_their_masks() -> None:
    _, masks = rectangles(0)
    boxes, areas = annotated_boxes([annotation(mask) for mask in masks], SIZE, max_mask_area=0.9)
    for mask, box, area in zip(masks, boxes.astype(int), areas, strict=True):
        again = np.zeros(SIZE, dtype=bool)
        again[box[1] : box[3], box[0] : box[2]] = True
        assert np.array_equal(mask, again) and area == mask.sum()


def test_backgrounds_and_empty_masks_are_not_objects() -> None:
    whole, nothing, half = np.ones(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool), np.ones(SIZE, dtype=bool)
    half[30:] = False
    objects = [annotation(mask) for mask in (whole, nothing, half)]
    boxes, areas = annotated_boxes(objects, SIZE, max_mask_area=0.9)
    assert boxes.tolist() == [[0, 0, SIZE[1], 30]] and areas.tolist() == [30 * SIZE[1]]
    assert annotated_boxes([], SIZE, max_mask_area=0.9)[0].shape == (0, 4)


def test_a_mask_of_another_size_is_refused_by_its_id() -> None:
    with pytest.raises(ValueError, match="annotation 7: .*size.*on_error"):
        annotated_boxes([annotation(np.ones((3, 3), dtype=bool), 7)], SIZE, max_mask_area=1.0)


def test_a_mirrored_image_has_mirrored_boxes(shards: list[str]) -> None:
    transforms: list[Any] = [BoxTransform(flip_probability=p) for p in (0.0, 1.0)]
    samples: list[Any] = [SamDataset(shards, transform, seed=0).get(0, 1) for transform in transforms]
    plain, mirrored = samples
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    x0, y0, x1, y1 = plain.boxes.unbind(1)
    assert torch.equal(mirrored.boxes, torch.stack([SIZE[1] - x1, y0, SIZE[1] - x0, y1], dim=1))
    assert mirrored.key == plain.key == "image_1"


# ---- training


def test_it_learns_a_few_images(shards: list[str], tmp_path: Path) -> None:
    path = train_tiny(tmp_path, shards, steps=60, val=shards)
    rows = rows_of(tmp_path)
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    scores = [float(row["val/box_ap50"]) for row in rows if row.get("val/box_ap50")]
    assert len(scores) == 15 and scores[-1] > scores[0] + 0.2
    detector = load_detector(path)
    index = index_tar(shards[0])
    records = [read_record(index, i) for i in range(len(index))]
    measured = evaluate_boxes(detector.detect, records)  # image by image and in the batches of validation alike
    best = max(float(row["val/box_ap"]) for row in rows if row.get("val/box_ap"))
    assert measured["box_ap"] == pytest.approx(best, abs=1e-3)


def test_the_same_arguments_give_the_same_file(shards: list[str], tmp_path: Path) -> None:
    one, same, other = (train_tiny(tmp_path / str(n), shards, steps=3, seed=n // 2) for n in (0, 1, 2))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == ["checkpoints", "detector.pth", "metrics.csv"]


def test_it_starts_from_another_detector(shards: list[str], tmp_path: Path) -> None:
    first = train_tiny(tmp_path / "first", shards, steps=4)
    second = train_tiny(tmp_path / "second", shards, steps=1, init=first)
    new = train_tiny(tmp_path / "new", shards, steps=1)

    def distance(a: Path, b: Path) -> float:
        states = [load_detector(path).state_dict() for path in (a, b)]
        return sum(float((states[0][key] - states[1][key]).abs().sum()) for key in states[0])

    assert distance(first, second) < 0.7 * distance(first, new)  # a step on it, and three other steps and one
    with pytest.raises(ValueError, match="detector.init"):
        train_tiny(tmp_path / "third", shards, init=tmp_path / "none.pth")


def test_the_weights_of_a_training_load_from_its_checkpoints(shards: list[str], tmp_path: Path) -> None:
    result = load_detector(train_tiny(tmp_path, shards, steps=4, val=shards))
    for name in ("best.ckpt", "last.ckpt"):
        loaded = load_detector(tmp_path / "checkpoints" / name)
        assert isinstance(loaded, Detector) and loaded.config == result.config


def test_wrong_numbers_are_refused() -> None:
    for name, value in {"learning_rate": 0, "warmup_steps": -1, "max_mask_area": 2, "name": "smal"}.items():
        with pytest.raises(ValueError, match=f"detector.{name} is '?{value}"):
            DetectorRecipe(**{"steps": 3, "batch_size": 1, "learning_rate": 1.0} | {name: value})


# ---- killed and resumed


def life(directory: Path, shards: list[str], dies_in_step: int | None) -> None:
    """One process's training; killed with SIGKILL at the beginning of a step."""
    warnings.simplefilter("ignore")
    logging.disable()
    begin = LitDetector.on_train_batch_start

    def hook(self: LitDetector, batch: Any, batch_idx: int) -> None:
        if self.trainer.fit_loop.total_batch_idx == dies_in_step:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, batch, batch_idx)

    LitDetector.on_train_batch_start = hook  # type: ignore[method-assign]
    train_tiny(directory, shards, val=shards)


def test_killed_and_resumed_it_equals_an_undisturbed_run(shards: list[str], tmp_path: Path) -> None:
    """Checkpoints after 3 and 6 steps, validations after 4 and 8: killed behind each, and between them."""
    server = fork_server()
    codes = []
    lives: list[tuple[Path, list[int | None]]] = [
        (tmp_path / "whole", [None]),
        (tmp_path / "killed", [0, 2, 3, 4, 5, 7, None]),
    ]
    for directory, steps in lives:
        for step in steps:
            process = server.Process(target=life, args=(directory, shards, step))
            process.start()
            process.join(timeout=120)
            codes.append(process.exitcode)
    assert codes == [0, *[-signal.SIGKILL] * 6, 0]
    for name in ("detector.pth", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    here, there = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("killed", "whole"))
    assert all(torch.equal(here["state_dict"][key], there["state_dict"][key]) for key in here["state_dict"])


def test_a_directory_of_another_detector_is_refused(shards: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    train_tiny(tmp_path, shards, steps=3)
    monkeypatch.setitem(train_tiny.__globals__["TINY"], "image_size", 80)
    with pytest.raises(ValueError, match="another detector.*image_size"):
        train_tiny(tmp_path, shards, steps=5)

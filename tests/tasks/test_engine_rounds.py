"""What `task=rounds` adds to the engine: whole rows of all trainings, and trainings in processes of their own."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest

from samtrain.data.datasets import Source
from samtrain.data.once import write_whole
from samtrain.tasks import rounds
from samtrain.tasks.training import Training
from samtrain.tasks.worker import read_training, train_apart


def training(directory: Path) -> Training:
    return Training(
        directory=directory,
        model="vit_tiny",
        init=Path("first.ckpt"),
        train=[Source(["a.tar", "b.tar"], 10.0)],
        val=["v.tar"],
        steps=7,
        learning_rate=1e-4,
        native=True,
        large_scale_jitter=False,
        images_seen=12,
        key="rounds.3.model",
    )


def test_rows_of_all_trainings_are_joined(tmp_path: Path) -> None:
    for folder, text in {
        "pretrain": "step,train/loss\n1,0.5\n2,0.4\n",
        "rounds/10/fit": "step,val/miou_1\n1,0.3\n",
        "rounds/2/fit": "step,train/loss,val/miou_1\n1,0.2,\n",
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.csv").write_text(text)
    for _ in range(2):  # again gives the same
        rounds.join_metrics(tmp_path)
        with open(tmp_path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["round"], row["step"]) for row in rows] == [("0", "1"), ("0", "2"), ("2", "1"), ("10", "1")]
        assert [row["val/miou_1"] for row in rows] == ["", "", "", "0.3"]


def test_a_training_travels_to_another_process(tmp_path: Path) -> None:
    """The launcher stands in for the worker: it writes a result and keeps the request."""
    asked = training(tmp_path / "fit")
    numbers = '"metrics": {"val/miou_1": 0.5}, "images_seen": 9, "seconds": 1.0'
    result = f'{{"checkpoint": "b.ckpt", "last": "l.ckpt", {numbers}}}'
    script = tmp_path / "launcher.sh"
    write_whole(script, f"#!/bin/sh\necho '{result}' > {asked.directory}/trained.json\n")
    fitted = train_apart(tmp_path, asked, f"sh {script}")
    assert asdict(fitted) == {
        "checkpoint": Path("b.ckpt"),
        "last": Path("l.ckpt"),
        "metrics": {"val/miou_1": 0.5},
        "images_seen": 9,
        "seconds": 1.0,
    }
    assert read_training(asked.directory) == asked


def test_rounds_need_rounds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\+experiment=stage1"):
        rounds.run({"task": "rounds"}, tmp_path)

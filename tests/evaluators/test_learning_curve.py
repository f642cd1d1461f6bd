"""What was spent on the checkpoints of a run, read from runs that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samtrain.evaluators import LearningCurve
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.learning_curve import read_milestones


def checkpoint(path: Path, masks: int, images: int, step: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"masks_seen": masks, "images_seen": images, "global_step": step}, path)
    return str(path)


def line(number: int, name: str, masks: int, automatic: int, seconds: float | None, fit: float, total: int) -> dict:
    return {
        "round": number, "checkpoint": name, "masks": masks, "masks_automatic": automatic, "masks_total": total,
        "seconds_per_mask": seconds, "wall": {"fit": fit} if fit else {"probe": 5.0},
    }  # fmt: skip


def test_milestones_of_a_data_engine_run(tmp_path: Path) -> None:
    names = ["pretrain/best.ckpt", "rounds/1/best.ckpt", "rounds/2/best.ckpt"]
    for name, masks, images in zip(names, (100, 40, 60), (10, 20, 40), strict=True):
        checkpoint(tmp_path / name, 1, 1, 1)  # from an earlier validation; last.ckpt has the counts of the whole training
        checkpoint(tmp_path / name.replace("best", "last"), masks, images, 9)
    (tmp_path / "pretrain" / "fit.json").write_text(json.dumps({"result": {}, "wall": 360.0}))
    lines = [
        line(0, names[0], 0, 0, None, 0, 0), line(1, names[1], 30, 0, 20.0, 1800.0, 30),
        line(2, names[2], 50, 10, 15.0, 3600.0, 80),
    ]  # fmt: skip
    (tmp_path / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {devices: 2, num_nodes: 1}")
    found = read_milestones(tmp_path)
    assert [each.name for each in found] == ["first model", "round 1", "round 2"]
    assert [each.masks for each in found] == [0, 30, 80]
    assert [each.masks_seen for each in found] == [100, 140, 200]
    assert [each.annotator_seconds for each in found] == [0, 600, 600 + 40 * 15]
    assert [each.device_hours for each in found] == pytest.approx([0.2, 1.2, 3.2])
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match="rounds/1/best.ckpt is missing"):
        read_milestones(tmp_path)


def test_milestones_of_a_single_training(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints" / "best.ckpt", 30, 6, 3)
    checkpoint(tmp_path / "checkpoints" / "last.ckpt", 40, 8, 4)
    (tmp_path / "metrics.json").write_text(json.dumps({"time/seconds": 7200.0}))
    best, last = read_milestones(tmp_path)
    assert (best.name, best.masks_seen, last.masks_seen, last.images_seen) == ("best", 30, 40, 8)
    assert best.device_hours == 1.5 and last.device_hours == 2.0 and last.annotator_seconds is None
    with pytest.raises(ValueError, match="neither ledger.jsonl nor checkpoints"):
        read_milestones(tmp_path / "checkpoints")
    (tmp_path / "metrics.json").unlink()
    assert read_milestones(tmp_path)[0].device_hours is None


def test_every_set_is_measured_at_every_milestone(tmp_path: Path) -> None:
    for name, step in (("best", 3), ("last", 4)):
        checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt", 1, 1, step)
    evaluator = LearningCurve(ZeroShotConfig(protocol="learning_curve", run=str(tmp_path)))
    parts = evaluator.parts({"one": ["1.tar"], "two": ["2.tar"]}, None)
    assert [each.name for each in parts] == ["one/best", "one/last", "two/best", "two/last"]
    assert parts[3].sources == ["2.tar"] and parts[3].checkpoint.endswith("last.ckpt")

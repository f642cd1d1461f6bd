"""Rounds with people from the command line: unlabelled images, a killed run, retraining under an open page, and stage 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pretend_predictor import scene
from scripted_user import ScriptedUser

from samtrain.data.shards import index_tar, read_record
from samtrain.data_engine.ledger import read_ledger
from samtrain.modeling.build import build_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.ops.rle import RLE, encode_mask

pytest.importorskip("fastapi", reason="needs the extra annotate")
ROOT = Path(__file__).resolve().parents[2]
SCALE = [
    "annotator=web", "data=folder", "data.root=images", "data_dir=shards", "annotate.port=0", "annotate.val=0",
    "annotate.test=0.3", "trainer.accelerator=cpu", "scale.image_size=64", "scale.batch_size=2", "scale.images_per_step=2",
    "scale.max_masks=3", "scale.log_every_steps=1", "scale.checkpoint_every_steps=1", "scale.detector.image_size=64",
    "prefill.box_score_thresh=0", "prefill.max_detections=3", "prefill.pred_iou_thresh=0", "prefill.stability_score_thresh=0",
    "evaluator.num_points=2", "loader.num_workers=0",
]  # fmt: skip
STAGE_1 = [
    "+experiment=stage1", *SCALE, "checkpoint=first.safetensors", "run_dir=one",
    *(f"scale.rounds.{n}.{key}=2" for n in (1, 2) for key in ("images", "steps")),
    *(f"~rounds.{n}" for n in (3, 4, 5, 6)),
    *(f"rounds.{n}.model=vit_tiny" for n in (1, 2)),
]  # fmt: skip
STAGE_2 = [
    "+experiment=stage2", *SCALE, "stage1_run=one", "run_dir=two", "rounds.7.model=vit_tiny",
    *(f"scale.rounds.7.{key}=2" for key in ("images", "steps", "detector_steps")),
    *(f"~rounds.{n}" for n in (8, 9, 10, 11)),
]  # fmt: skip


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "samtrain", *arguments]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=open(folder / "log.txt", "ab"), stderr=subprocess.STDOUT)


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, "the run has ended"
        time.sleep(0.02)


def ends_well(process: subprocess.Popen[bytes], folder: Path, user: ScriptedUser) -> None:
    """Waits for a run and its user."""
    while process.poll() is None:
        assert not user.error, user.error
        time.sleep(0.1)
    assert process.returncode == 0, (folder / "log.txt").read_text()[-4000:]
    user.end()


def masks_of(run_dir: Path, first_round: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Returns the annotations of the shards of a run's own rounds and of what it holds back, by image."""
    tars = [run_dir / shard.path for line in read_ledger(run_dir)[first_round:] for shard in line.shards]
    tars += sorted(run_dir.glob("rounds/0/held_back/*/*.tar"))
    records = [read_record(index, i) for index in map(index_tar, tars) for i in range(len(index))]
    return {record.key: record.annotation["annotations"] for record in records}


def by_image(pairs: list[tuple[str, RLE]]) -> dict[str, list[RLE]]:
    found: dict[str, list[RLE]] = {}
    for name, segmentation in pairs:
        found.setdefault(name, []).append(segmentation)
    return found


@pytest.mark.slow
def test_people_annotate_unlabelled_images_in_two_rounds_and_one_of_stage_2(tmp_path: Path) -> None:
    truth: dict[str, list[RLE]] = {}
    (tmp_path / "images").mkdir()
    for number in range(12):
        image, masks = scene(number, num=3)
        Image.fromarray(image).save(tmp_path / "images" / f"scene_{number:03d}.png")
        truth[f"scene_{number:03d}"] = [encode_mask(mask) for mask in masks]
    save_safetensors(build_sam("vit_tiny", image_size=64), tmp_path / "first.safetensors")

    # stage 1, killed while people annotate, and resumed by the same command
    user = ScriptedUser(tmp_path / "one", truth)
    run = start(tmp_path, STAGE_1)
    wait_for(run, lambda: len(user.accepted) >= 4)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run = start(tmp_path, STAGE_1)
    ends_well(run, tmp_path, user)

    # the shards hold what was accepted, mask by mask, and nothing twice
    found = masks_of(tmp_path / "one")
    assert {key: [each["segmentation"] for each in own] for key, own in found.items()} == by_image(user.accepted)
    assert all(each["seconds"] == 2.5 and each["source"] == "assisted" for own in found.values() for each in own)
    lines = read_ledger(tmp_path / "one")
    assert len(lines) == 3 and [line.annotated.images for line in lines] == [0, 2, 2]
    assert all(line.annotated.seconds_per_mask == 2.5 for line in lines[1:])

    # people have drawn the images of the test first, which are never trained on; nothing chooses, as there is no validation
    held_back = [path.parent.name for path in (tmp_path / "one" / "rounds" / "0" / "held_back").glob("*/*.tar")]
    assert held_back == ["test"] and "test/miou_1" in json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert "Nothing was measured" in (tmp_path / "one" / "report.html").read_text()

    # one server lived from the second start to the end, and the promoted model was swapped under its open page
    assert len(user.processes) <= 2
    assert list(dict.fromkeys(user.models)) == [lines[0].model.digest, lines[1].model.digest]
    assert any("trained" in message for message in user.messages)

    # stage 2: masks are there, one of each image is rejected
    user = ScriptedUser(tmp_path / "two", truth, rejects=True)
    ends_well(start(tmp_path, STAGE_2), tmp_path, user)
    annotated = read_ledger(tmp_path / "two")[3].annotated
    assert annotated.people is not None and annotated.people.rejected == len(user.rejected) > 0
    assert annotated.automatic_precision == pytest.approx(1 - annotated.people.rejected_share)
    second = [each for own in masks_of(tmp_path / "two", 3).values() for each in own]
    assert not [each for each in second if each["source"] == "automatic" and each["segmentation"] in user.rejected]
    assert sum(each["source"] == "assisted" for each in second) == len(user.accepted)
    page = (tmp_path / "two" / "report.html").read_text()
    assert "this run, people" in page and "share rejected" in page

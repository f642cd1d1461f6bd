"""`+experiment=stage1` as a user runs it, as small as possible: the files it leaves, its W&B run, and kills in between."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_records import offline_runs

from samtrain.data_engine.engine_files import identify

ROOT = Path(__file__).resolve().parents[1]
NUM_ROUNDS = 6
STEPS = 2
SMALL = [
    "+experiment=stage1",
    "data_dir=shards",
    "scale.image_size=64",
    "scale.synthetic={size:[64,64],public:4,pool:16,val:3,test:3}",
    "scale.probe_images=1",
    "scale.batch_size=2",
    "scale.images_per_step=2",
    "scale.max_masks=3",
    "scale.log_every_steps=1",
    "scale.checkpoint_every_steps=1",
    f"scale.pretrain.steps={STEPS}",
    *(f"scale.rounds.{n}.{key}={value}" for n in range(1, 7) for key, value in (("images", 2), ("steps", STEPS))),
    "annotator.min_iou=0.01",
    "engine.promote_metric=val/box_miou",
    "evaluator.num_points=3",
]


def command(cwd: Path, *overrides: str) -> subprocess.Popen:
    ours = {name: value for name, value in os.environ.items() if "WANDB" not in name}  # not another test's service
    environment = {**ours, "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "samtrain", *SMALL, *overrides]
    return subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six undisturbed rounds, logged to W&B offline."""
    folder = tmp_path_factory.mktemp("stage1")
    process = command(folder, "run_dir=run", "logger=wandb", "logger.wandb.offline=true")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return folder / "run"


def test_what_a_run_leaves_behind(whole_run: Path) -> None:
    lines = ledger(whole_run)
    assert [line["round"] for line in lines] == list(range(NUM_ROUNDS + 1))
    assert [line["model"] for line in lines] == ["vit_tiny"] * 4 + ["vit_small"] * 3
    metrics = json.loads((whole_run / "metrics.json").read_text())
    for name in ("miou_1", "oracle_miou_1", "miou_3", "box_miou", "start_miou_1", "ceiling_miou_1", "flood_fill_miou_1"):
        assert 0 <= metrics[f"test/{name}"] <= 1, name
    promoted = [line for line in lines if line["promoted"]][-1]
    assert identify(whole_run / "checkpoints" / "best.ckpt")[0] == promoted["digest"]
    assert (whole_run / "report.html").stat().st_size > 10_000
    with open(whole_run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [(row["round"], row["step"]) for row in rows]
    assert steps == [(str(n), str(s)) for n in range(NUM_ROUNDS + 1) for s in range(1, STEPS + 1)]


def test_wandb_offline_reads_back(whole_run: Path) -> None:
    """Metrics over images seen, panels and the ledger, as W&B shows them after a sync."""
    pytest.importorskip("wandb")
    (main,) = (each for each in offline_runs(whole_run) if each.job_type != "round")
    history, axes = main.history, main.axes

    # every curve is drawn over the images seen, which never decrease
    assert axes["*"] == "images_seen"
    losses = [row for row in history if "train/loss" in row]
    assert len(losses) == STEPS * (NUM_ROUNDS + 1)
    seen = [row["images_seen"] for row in losses]
    assert seen == [2.0 * n for n in range(1, len(losses) + 1)]
    with open(whole_run / "metrics.csv", newline="") as file:
        written = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert [row["train/loss"] for row in losses] == pytest.approx(written, rel=1e-6)
    assert len([row for row in history if "val/miou_1" in row]) >= NUM_ROUNDS + 1

    # the ledger
    rounds = {row["ledger/round"]: row for row in history if "ledger/round" in row}
    for line in ledger(whole_run):
        assert rounds[line["round"]]["ledger/masks_total"] == line["masks_total"]
        assert rounds[line["round"]]["ledger/promoted"] == line["promoted"]
        assert rounds[line["round"]]["ledger/metrics_after/val/miou_1"] == line["metrics_after"]["val/miou_1"]

    # the numbers that runs and sweeps are compared by
    metrics = json.loads((whole_run / "metrics.json").read_text())
    assert main.summary["test/miou_1"] == metrics["test/miou_1"]
    assert main.summary["val/miou_1"] == metrics["val/miou_1"]  # of the promoted model, not of the last validation
    assert main.config["loader"]["max_masks"] == 3

    # panels: the images are stored beside the run
    panels = [row for row in history if "panels/sheet/path" in row]
    assert len(panels) >= NUM_ROUNDS + 1
    for row in panels:
        names = [row["panels/sheet/path"], *row["panels/objects/filenames"]]
        assert len(names) > 1 and all((main.files / name).is_file() for name in names)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_anywhere_it_ends_the_same(whole_run: Path, seed: int) -> None:
    """SIGKILL in the first model's training, then again and again: ledger, rows and weights equal an undisturbed run's."""
    folder, run = whole_run.parent, whole_run.parent / f"killed_{seed}"
    kills = 0
    for wait in PIECES[seed - 1]:
        process = command(folder, f"run_dir={run.name}")
        if not wait_for(run, wait, process):
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == len(PIECES[seed - 1])
    process = command(folder, f"run_dir={run.name}")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert (run / "metrics.csv").read_bytes() == (whole_run / "metrics.csv").read_bytes()
    for a, b in zip(ledger(run), ledger(whole_run), strict=True):
        del a["wall"], b["wall"]
        assert a == b
    for name in ("checkpoints/best.ckpt", "rounds/6/fit/checkpoints/last.ckpt"):
        assert identify(run / name)[0] == identify(whole_run / name)[0]
    metrics = [json.loads((each / "metrics.json").read_text()) for each in (run, whole_run)]
    for each in metrics:
        del each["time/seconds"], each["memory/peak_gb"]
    assert metrics[0] == metrics[1]


# the file that must exist in the run's directory before it is killed
PIECES = [
    ["pretrain/metrics.csv", "rounds/1/annotations/000000.json", "rounds/2/fit/checkpoints/last.ckpt"],
    ["rounds/0/probe/000000.json", "rounds/1/shards.json", "rounds/3/fit.json", "rounds/5/fit/metrics.csv"],
]


def wait_for(run: Path, name: str, process: subprocess.Popen) -> bool:
    """Waits until a file exists or the process has ended; returns whether the file exists."""
    while process.poll() is None:
        if (run / name).exists():
            return True
        time.sleep(0.002)
    return False

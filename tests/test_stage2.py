"""`+experiment=data_engine` and `+experiment=stage2` as a user runs them, as small as possible, and killed at random."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_records import offline_runs

from samtrain.data.shards import index_tar, read_record
from samtrain.data_engine.engine_files import identify

ROOT = Path(__file__).resolve().parents[1]
KILLS = 10
SMALL = [
    "data_dir=shards",
    "scale.image_size=64",
    "scale.synthetic={size:[64,64],public:4,pool:8,val:3,test:3,crowded:9}",
    "scale.probe_images=1",
    "scale.probe_images_stage_2=1",
    "scale.batch_size=2",
    "scale.images_per_step=2",
    "scale.max_masks=3",
    "scale.log_every_steps=1",
    "scale.checkpoint_every_steps=1",
    "scale.pretrain.steps=2",
    "scale.detector.image_size=64",
    "annotator.min_iou=0.01",
    # the models know nothing, so every mask of a box is kept
    "prefill.box_score_thresh=0",
    "prefill.max_detections=3",
    "prefill.pred_iou_thresh=0",
    "prefill.stability_score_thresh=0",
    "engine.promote_metric=val/box_miou",
    "evaluator.num_points=3",
]
FIRST = [f"scale.rounds.{n}.{key}={value}" for n in (1, 6) for key, value in (("images", 2), ("steps", 2))]
FIRST += [f"~rounds.{n}" for n in (2, 3, 4, 5)]
SECOND = [f"scale.rounds.{n}.{k}={v}" for n in (7, 8) for k, v in (("images", 3), ("steps", 2), ("detector_steps", 2))]
SECOND += [f"~rounds.{n}" for n in (9, 10, 11)]


def begin(cwd: Path, *overrides: str) -> subprocess.Popen:
    ours = {name: value for name, value in os.environ.items() if "WANDB" not in name}  # not another test's service
    environment = {**ours, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "samtrain", *SMALL, *overrides]
    return subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(cwd: Path, *overrides: str) -> Path:
    process = begin(cwd, *overrides)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return cwd / next(each for each in overrides if each.startswith("run_dir=")).removeprefix("run_dir=")


def ledger(run: Path) -> list[dict[str, Any]]:
    """Returns the ledger without wall-clock times."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    for line in lines:
        del line["wall"]
    return lines


def numbers(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two undisturbed rounds of each stage, logged to W&B offline."""
    overrides = ["+experiment=data_engine", *FIRST, *SECOND, "logger=wandb", "logger.wandb.offline=true"]
    return finish(tmp_path_factory.mktemp("engine"), *overrides, "run_dir=whole")


def test_wandb_offline_reads_back_the_lineage_of_both_stages(whole_run: Path) -> None:
    """One W&B run per round: it used the model that annotated and the masks so far, and made masks, detector and model."""
    pytest.importorskip("wandb")
    main, *rounds = offline_runs(whole_run)
    lines = ledger(whole_run)
    assert [each.job_type for each in rounds] == ["round"] * len(lines)
    assert {each.group for each in rounds} == {main.group}
    digests, shards = {line["digest"]: line["round"] for line in lines}, []
    for line, each in zip(lines, rounds, strict=True):
        used = {a.type: json.loads(a.metadata) for a in each.used}
        made = {a.type: json.loads(a.metadata) for a in each.made}
        assert set(made) == {"model"} | ({"masks"} if line["round"] else set()) | ({"detector"} if line["detector"] else set())
        assert made["model"]["sha256"] == line["digest"] and made["model"]["promoted"] == line["promoted"]
        assert set(used) == ({"model"} if line["round"] else set()) | ({"masks"} if line["round"] > 1 else set())
        assert set(used) <= set(made)  # W&B gives what is used the name "latest", and then what is made
        if line["round"]:
            assert used["model"] == {"round": digests[line["parent"]], "sha256": line["parent"]}
            assert made["masks"]["annotated_with"] == line["parent"]
            assert used.get("masks", {"sha256": []})["sha256"] == shards
        shards += [shard["sha256"] for shard in line["shards"]]
        assert made["model"]["shards"] == shards
        assert each.summary["masks_total"] == line["masks_total"] and each.config["round"] == line["round"]
    # an artifact that is used is the one that was made: the same files under the same name
    made_models = {a.client_id: (a.name, a.digest) for each in rounds for a in each.made if a.type == "model"}
    assert all((a.name, a.digest) in made_models.values() for each in rounds for a in each.used if a.type == "model")


def test_wandb_offline_reads_back_masks_and_clicks(whole_run: Path) -> None:
    """Overlays of both layers, and a table of all clicks."""
    pytest.importorskip("wandb")
    main = offline_runs(whole_run)[0]
    shown = [row for row in main.history if "panels/objects/all_masks" in row]
    assert len(shown) >= len(ledger(whole_run))
    for row in shown:
        assert row["images_seen"] > 0
        for layers in row["panels/objects/all_masks"]:
            assert {"ground_truth", "prediction_1_clicks", "prediction_5_clicks"} <= set(layers)
            assert all((main.files / mask["path"]).is_file() for mask in layers.values())
        table = json.loads((main.files / row["panels/clicks/path"]).read_text())
        clicks = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
        assert {each["click"] for each in clicks} == {1, 2, 3, 4, 5}
        assert all(0 <= each["x"] < 64 and 0 <= each["y"] < 64 and 0 <= each["iou"] <= 1 for each in clicks)
        assert {each["label"] for each in clicks if each["click"] == 1} == {"object"}  # the first lies on it


def test_both_stages_in_one_ledger_and_one_report(whole_run: Path) -> None:
    lines = ledger(whole_run)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["stage"] for line in lines] == ["assisted_manual"] * 3 + ["semi_automatic"] * 2
    sources = set()
    for line in lines[3:]:
        index = index_tar(whole_run / line["shards"][0]["path"])
        for i in range(len(index)):
            for each in read_record(index, i).annotation["annotations"]:
                sources.add(each["source"])
                assert each["source"] == "assisted" or each["detector"] == line["detector_digest"]
        assert line["masks_automatic"] > 0
    assert sources <= {"assisted", "automatic"} and "automatic" in sources
    page = (whole_run / "report.html").read_text()
    for words in (
        "second stage: semi-automatic",
        "44 → 72",
        "first stage: assisted-manual",
        "20 → 44",
        "Objects that have a mask",
    ):
        assert words in page
    metrics = numbers(whole_run)
    assert {"coverage/start_all", "coverage/all", "coverage/small", "automatic/precision", "test/box_ap"} <= metrics.keys()


def test_stage_2_continues_a_run_of_stage_1(whole_run: Path) -> None:
    """Rounds, ledger, shards and weights equal those of both stages in one run."""
    folder = whole_run.parent
    finish(folder, "+experiment=stage1", *FIRST, "run_dir=first")
    second = finish(folder, "+experiment=stage2", "stage1_run=first", *SECOND, "run_dir=second")
    paths = ("checkpoint", "detector", "shards")
    for ours, theirs in zip(ledger(second), ledger(whole_run), strict=True):
        assert {k: v for k, v in ours.items() if k not in paths} == {k: v for k, v in theirs.items() if k not in paths}
        assert [each["sha256"] for each in ours["shards"]] == [each["sha256"] for each in theirs["shards"]]
    assert identify(second / "checkpoints/best.ckpt") == identify(whole_run / "checkpoints/best.ckpt")

    # a run with another validation, and one that already contains stage 2, are refused
    refused = {
        ("stage1_run=first", "data.seed=3"): "first was run on other images or measured otherwise (stage1_run): data.seed: 0",
        ("stage1_run=second",): "stage1_run=second has to be a run without semi-automatic rounds",
    }
    for number, (overrides, words) in enumerate(refused.items()):
        process = begin(folder, "+experiment=stage2", *SECOND, *overrides, f"run_dir=refused_{number}")
        output, _ = process.communicate(timeout=300)
        assert process.returncode and words in output
    # the detector alone, on the masks that stage 1 has collected
    overrides = ("+experiment=detector", "stage1_run=first", "detector.steps=2", "run_dir=detector")
    assert "test/box_ap" in numbers(finish(folder, *overrides))


def test_killed_at_ten_random_moments_it_ends_the_same(whole_run: Path) -> None:
    """SIGKILL up to a third of a second after a file appears: ten files of an undisturbed run, drawn at random."""
    rng, run = random.Random(0), whole_run.parent / "killed"
    parts = ("pretrain/*.csv", "pretrain/checkpoints/*", "rounds/*/*.json", "rounds/*/*/*.json", "rounds/*/*/*.csv")
    files = {path for part in (*parts, "rounds/*/*/checkpoints/*", "rounds/*/shards/*.tar") for path in whole_run.glob(part)}
    moments = sorted(rng.sample(sorted(files), KILLS), key=lambda path: path.stat().st_mtime_ns)
    overrides = ("+experiment=data_engine", *FIRST, *SECOND, f"run_dir={run.name}")
    for moment in moments:
        process = begin(run.parent, *overrides)
        path = run / moment.relative_to(whole_run)
        while process.poll() is None and not path.exists():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(run.parent, *overrides)
    assert ledger(run) == ledger(whole_run)
    assert numbers(run) == numbers(whole_run)
    tars = sorted(path.relative_to(whole_run) for path in whole_run.rglob("*.tar"))
    assert len(tars) == 4 and all((run / tar).read_bytes() == (whole_run / tar).read_bytes() for tar in tars)
    assert (run / "metrics.csv").read_bytes() == (whole_run / "metrics.csv").read_bytes()
    for name in ("checkpoints/best.ckpt", "rounds/4/fit/checkpoints/last.ckpt"):
        assert identify(run / name) == identify(whole_run / name)
    detector = "rounds/4/detector/detector.pth"
    assert (run / detector).read_bytes() == (whole_run / detector).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "stage1_run is null, but semi-automatic rounds continue a run of assisted-manual ones"),
        (["stage1_run=nowhere"], "there is no run directory nowhere"),
        (["stage1_run=unfinished"], "the run in unfinished has not ended"),
        (["stage1_run=unfinished", "task=evaluate"], "only task=rounds and task=detector use it"),
    ],
)
def test_a_run_that_cannot_be_continued_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    (tmp_path / "unfinished").mkdir()
    process = begin(tmp_path, "+experiment=stage2", "run_dir=run", *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode and words in output

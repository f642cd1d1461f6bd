"""What `task=rounds` adds to the engine: whole rows of all trainings, and trainings in processes of their own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pretend_engine import ledger_line
from pretend_predictor import write_pool

from samtrain.data.contents import contents_of
from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.data_engine.stages import FitRequest
from samtrain.files import write_text
from samtrain.modeling.build import build_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.run.build import sam_config_of
from samtrain.run.directory import directory_lock
from samtrain.run.worker import read_request, train_apart
from samtrain.tasks import resolve
from samtrain.tasks.rounds import schedule, stages
from samtrain.tasks.rounds import task as rounds
from samtrain.tasks.rounds import tools as engine
from samtrain.tasks.rounds.results import coverage_metrics, join_metrics

ROOT = Path(__file__).resolve().parents[2]


REST = "model: vit_tiny, images: 1, steps: 1, learning_rate_factor: 1"
SEMI_AUTOMATIC = [f"+rounds.7={{stage: semi_automatic, detector_steps: 1, {REST}}}"]


def request(directory: Path) -> FitRequest:
    return FitRequest(
        directory=directory,
        model="vit_tiny",
        init=Path("first.ckpt"),
        train=[Source(["a.tar", "b.tar"], 10.0)],
        val=["v.tar"],
        steps=7,
        learning_rate_factor=0.5,
        native=True,
        large_scale_jitter=[0.5, 2.0],
        images_seen=12,
        model_key="rounds.3.model",
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
        join_metrics(tmp_path)
        with open(tmp_path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["round"], row["step"]) for row in rows] == [("0", "1"), ("0", "2"), ("2", "1"), ("10", "1")]
        assert [row["val/miou_1"] for row in rows] == ["", "", "", "0.3"]


def test_a_training_travels_to_another_process(tmp_path: Path) -> None:
    """The launcher stands in for the worker: it writes a result and keeps the request."""
    asked = request(tmp_path / "fit")
    numbers = '"metrics": {"val/miou_1": 0.5}, "images_seen": 9, "seconds": 1.0'
    result = f'{{"checkpoint": "b.ckpt", "last": "l.ckpt", {numbers}}}'
    script = tmp_path / "launcher.sh"
    write_text(script, f"#!/bin/sh\necho '{result}' > {asked.directory}/result.json\n")
    fitted = train_apart(tmp_path, asked, f"sh {script}")
    assert asdict(fitted) == {
        "checkpoint": Path("b.ckpt"),
        "last": Path("l.ckpt"),
        "metrics": {"val/miou_1": 0.5},
        "images_seen": 9,
        "seconds": 1.0,
    }
    assert read_request(asked.directory) == asked


def test_a_training_that_fails_apart_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the training in .*fit ended with exit status 3: .* resumes from its last"):
        train_apart(tmp_path, request(tmp_path / "fit"), "sh -c 'exit 3'")


def test_a_training_that_outlived_its_rounds_is_not_started_twice(tmp_path: Path) -> None:
    """What was started apart may still train when the rounds go on."""
    directory, code = tmp_path / "fit", "import sys; from samtrain.run.worker import main; main(*sys.argv[1:])"
    write_text(tmp_path / "config.yaml", "{}")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / ".hydra" / "config.yaml")
    directory.mkdir()
    write_text(directory / "request.json", json.dumps(asdict(request(directory)), default=str))
    command = [sys.executable, "-c", code, str(tmp_path), str(directory)]
    with directory_lock(directory):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode and f"another process is working in {directory}" in answer.stderr


def config_of(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("config", overrides=["+experiment=stage1", *overrides, "run_dir=run"]))


def test_models_that_cannot_grow_are_refused_before_anything_is_painted(tmp_path: Path) -> None:
    """The error comes before images are painted and a first model is trained."""
    wide = config_of("rounds.4.model=vit_b")
    with pytest.raises(ValueError, match=r"^rounds.4.model: vit_tiny cannot grow into vit_b.*encoder_dim"):
        rounds.run(wide, tmp_path)
    with pytest.raises(ValueError, match="recipes.vit_small.mae"):
        rounds.run(wide | {"model": wide["model"] | {"mae": True}}, tmp_path)
    with pytest.raises(ValueError, match=r"^rounds.2.model: vit_small cannot grow into vit_tiny|finds no place"):
        rounds.run(config_of("rounds.1.model=vit_small"), tmp_path)
    for scale in ("laptop", "single_gpu", "paper"):
        schedule.check_growth_of_rounds(config_of(f"scale={scale}"))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save_safetensors(build_sam("vit_tiny", image_size=64), tmp_path / "own.safetensors")
    given = f"checkpoint={path}"
    with pytest.raises(ValueError, match="own.safetensors is a model for 64 pixels.*set model.image_size=64"):
        schedule.check_growth_of_rounds(config_of(given))
    for size in ("64", "null"):
        config = config_of(given, f"model.image_size={size}")
        schedule.check_growth_of_rounds(config)
        assert sam_config_of(config).image_size == 64


def test_rounds_do_not_measure_images_that_the_first_model_was_trained_on(tmp_path: Path, write_set) -> None:
    pool, test = (list(map(str, write_set(tmp_path / name, n=4, prefix=name, varied=True))) for name in ("pool", "test"))
    path = tmp_path / "trained.safetensors"
    save_safetensors(build_sam("vit_tiny", image_size=64), path, trained_on=contents_of(test))
    config = config_of(f"checkpoint={path}", "model.image_size=64")
    config["data"] = {"kind": "shards", "train": {"a": {"urls": pool}}, "val": pool, "test": test}
    with pytest.raises(ValueError, match="images of data.test are among those that .*trained.safetensors was trained on"):
        rounds.run(config, tmp_path / "run")
    with pytest.raises(ValueError, match="images of data.val are among those that .*trained.safetensors was trained on"):
        rounds.run(config | {"data": config["data"] | {"test": None}}, tmp_path / "run")


def test_a_decoder_of_another_depth_runs_all_rounds(tmp_path: Path) -> None:
    """The rounds' models take over the decoder of the first model, new or from a checkpoint."""
    schedule.check_growth_of_rounds(config_of("model.decoder_depth=3"))
    path = save_safetensors(build_sam("vit_tiny", image_size=64, decoder_depth=3), tmp_path / "deep.safetensors")
    given = config_of(f"checkpoint={path}", "model.image_size=64", "model.name=null")
    schedule.check_growth_of_rounds(given)
    assert sam_config_of(given).decoder_depth == 3
    assert sam_config_of(config_of(f"checkpoint={path}", "model.name=vit_small", "model.image_size=null")).decoder_depth == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds.3.steps=0", "rounds.3.steps is 0"),
        ("rounds.2.images=null", "rounds.2.images is None: give a whole number"),
        ("rounds.2.stage=by_hand", "rounds.2.stage is 'by_hand': give one of assisted_manual, semi_automatic"),
        ("rounds.2.stage=semi_automatic", "rounds.2.detector_steps is None: give 1 or more"),
        (f"+rounds.more={{stage: assisted_manual, {REST}}}", "rounds.more: the rounds are named by"),
        (f"+rounds.7={{{REST}}}", "rounds.7.stage is missing: set it"),
    ],
)
def test_wrong_rounds_are_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule.rounds_of(config_of(override))


def test_a_round_left_out_keeps_the_names_of_the_others() -> None:
    assert [each.number for each in schedule.rounds_of(config_of("~rounds.2"))] == ["1", "3", "4", "5", "6"]


def test_rounds_are_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = config_of("scale=paper")
    with pytest.raises(ValueError, match="trainer.num_nodes is 16, but trainer.launcher is null"):
        rounds.run(cluster, tmp_path)
    schedule.check_processes(cluster | {"trainer": cluster["trainer"] | {"launcher": "srun"}})
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="launched 4 times"):
        rounds.run(config_of(), tmp_path)


def test_images_of_the_rounds_are_checked_and_not_the_public_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageSet] = []
    monkeypatch.setattr(stages, "check_images", lambda config, images, **_: seen.append(images))
    pool = [Source(write_pool(tmp_path / "pool", 14, num=1))]
    images = ImageSet(public=[Source(["public.tar"])], pool=pool, val=["v.tar"], test=[])
    config = config_of("data.frame=resize")
    stages.check_pools(config, stages.make_stages(config, images), images, native=False)
    assert [each.train for each in seen] == [pool]
    few = replace(images, pool=[Source(write_pool(tmp_path / "few", 3, num=1))])
    with pytest.raises(ValueError, match="the pool holds 3 images, too few for 6 rounds"):
        stages.check_pools(config, stages.make_stages(config, few), few, native=False)


def test_rounds_need_rounds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\+experiment=stage1"):
        rounds.run({"task": "rounds"}, tmp_path)


def test_a_model_that_its_training_did_not_measure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No validation may have given a number, as when a model falls apart."""
    monkeypatch.setattr(engine, "validate", lambda config, checkpoint, val, native: {"val/miou_1": 0.25})
    work = engine.EngineTools(config_of("data.frame=resize"), tmp_path, ImageSet(public=[], pool=[], val=["v.tar"], test=[]))
    work.measured = {tmp_path / "a.ckpt": {"val/miou_1": 0.5}, tmp_path / "b.ckpt": {}}
    assert [work.measure(tmp_path / name)["val/miou_1"] for name in ("a.ckpt", "b.ckpt", "c.ckpt")] == [0.5, 0.25, 0.25]


def test_rounds_of_stages_in_another_order_are_refused() -> None:
    both = [f"+rounds.0={{stage: semi_automatic, detector_steps: 3, {REST}}}"]
    with pytest.raises(ValueError, match="a round of assisted_manual comes after one of semi_automatic"):
        schedule.rounds_of(config_of(*both))


def test_stage1_run_excludes_a_checkpoint(tmp_path: Path) -> None:
    config = config_of("checkpoint=a.ckpt", "stage1_run=somewhere")
    with pytest.raises(ValueError, match="checkpoint and stage1_run are both set"):
        schedule.with_stage_1(config, tmp_path)


def test_rounds_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds is empty"):
        schedule.rounds_of(config_of(*(f"~rounds.{n}" for n in range(1, 7))))


def test_settings_are_refused_before_anything_is_trained() -> None:
    images = ImageSet(public=[], pool=[], val=["v.tar"], test=[])
    for override, words in {
        "annotator.min_iou=0.95": "annotator.min_iou is 0.95",
        "prefill.pred_iou_thresh=2": "prefill.pred_iou_thresh is 2: give 0 to 1",
        "prefill.pred_iou_thresh=null": "prefill.pred_iou_thresh is None: give a number",
        "engine.large_scale_jitter=[2,1]": r"engine.large_scale_jitter is \[2, 1\]: give two ascending scales",
        "prefill.max_detections=500": "prefill.max_detections is 500, but a detector finds at most 300",
    }.items():
        config = config_of("data.frame=resize", "data.splits.crowded=0", override, *SEMI_AUTOMATIC)
        with pytest.raises(ValueError, match=words):
            stages.make_stages(config, images)


def test_coverage_is_summarised_from_the_ledger() -> None:
    lines = [ledger_line(round=n) for n in range(2)]
    assert coverage_metrics(lines) == {}
    stage = {"stage": "semi_automatic", "probe_coverage_alone": {"all": 0.75}}
    before = replace(lines[0].probe, coverage={"all": 0.5, "small": 0.25})
    seven = replace(ledger_line(round=2, **stage, masks_automatic=30, automatic_precision=0.9), probe_before=before)
    eight = ledger_line(round=3, **stage, masks_automatic=10, automatic_precision=0.5)
    nine = ledger_line(round=4, **stage, probe_coverage={"all": 0.8, "small": None}, masks_automatic=0)
    assert coverage_metrics([*lines, seven, eight, nine]) == {
        "coverage/start_all": 0.5,
        "coverage/start_small": 0.25,
        "coverage/all": 0.8,
        "coverage/small": None,
        "coverage/without_filling_in": 0.75,
        "automatic/masks": 40.0,
        "automatic/precision": pytest.approx(0.8),
    }
    assert coverage_metrics([*lines, replace(nine, round=2, probe_before=before)])["automatic/precision"] is None


class Recorder:
    """A logger that keeps the rounds that it is told of."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.seen: list[float] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rounds.append(step)
        self.seen.append(values["images_seen"])


def test_rounds_that_a_killed_process_had_not_logged_are_logged_by_the_next(tmp_path: Path) -> None:
    """Each line once and in its order, those of the stage 1 that was taken over not at all."""
    lines = [ledger_line(round=n, images_seen=10 * n) for n in range(5)]
    tools = engine.EngineTools(config_of("data.frame=resize"), tmp_path, ImageSet(public=[], pool=[], val=[], test=[]))
    recorder: Any = Recorder()
    tools.shared, tools.images_seen = [recorder], 7

    def log(run_dir: Path, up_to: int) -> None:
        text = "".join(json.dumps(each.to_flat()) + "\n" for each in lines[:up_to])
        write_text(run_dir / "ledger.jsonl", text)
        tools._log_ledger()

    log(tmp_path, 2)
    log(tmp_path, 5)  # by another process: the first had no time to log rounds 2 and 3
    log(tmp_path, 5)
    assert recorder.rounds == [0, 1, 2, 3, 4]
    assert recorder.seen == [7, 10, 20, 30, 40], "round 0 has the images of the first model's training"

    write_text(tmp_path / "stage1" / "ledger.jsonl", "".join(json.dumps(each.to_flat()) + "\n" for each in lines[:4]))
    (tmp_path / ".hydra" / "rounds_logged").unlink()
    tools.config = {**tools.config, "stage1_run": str(tmp_path / "stage1")}
    recorder.rounds.clear()
    log(tmp_path, 5)
    assert recorder.rounds == [4]

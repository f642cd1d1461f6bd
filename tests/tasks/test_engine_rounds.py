"""What `task=rounds` adds to the engine: whole rows of all trainings, and trainings in processes of their own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.data.datasets import Source
from samtrain.data.once import write_whole
from samtrain.modeling.build import build_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.tasks import resolve, rounds
from samtrain.tasks.build import sam_config_of
from samtrain.tasks.run_dir import held
from samtrain.tasks.sets import PictureSet
from samtrain.tasks.training import Training
from samtrain.tasks.worker import read_training, train_apart

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_training_that_fails_apart_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the training in .*fit ended with exit status 3; .* goes on from its last"):
        train_apart(tmp_path, training(tmp_path / "fit"), "sh -c 'exit 3'")


def test_a_training_that_outlived_its_rounds_is_not_begun_beside(tmp_path: Path) -> None:
    """What was started apart may still train when the rounds go on."""
    directory, code = tmp_path / "fit", "import sys; from samtrain.tasks.worker import main; main(*sys.argv[1:])"
    write_whole(tmp_path / "config.yaml", "{}")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / ".hydra" / "config.yaml")
    directory.mkdir()
    write_whole(directory / "training.json", json.dumps(asdict(training(directory)), default=str))
    command = [sys.executable, "-c", code, str(tmp_path), str(directory)]
    with held(directory):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode and f"another process is working in {directory}" in answer.stderr


def config_of(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("config", overrides=["+experiment=stage1", *overrides, "run_dir=run"]))


def test_rounds_begin_with_no_model_that_they_cannot_make(tmp_path: Path) -> None:
    """Said before pictures are painted and a first model is trained."""
    wide = config_of("rounds.4.model=vit_b")
    with pytest.raises(ValueError, match=r"^rounds.4.model: vit_tiny cannot grow into vit_b.*encoder_dim"):
        rounds.run(wide, tmp_path)
    with pytest.raises(ValueError, match="recipes.vit_small.mae"):
        rounds.run(wide | {"model": wide["model"] | {"mae": True}}, tmp_path)
    with pytest.raises(ValueError, match=r"^rounds.2.model: vit_small cannot grow into vit_tiny|finds no place"):
        rounds.run(config_of("rounds.1.model=vit_small"), tmp_path)
    for scale in ("laptop", "single_gpu", "paper"):
        rounds.check_growth_of_rounds(config_of(f"scale={scale}"))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save_safetensors(build_sam("vit_tiny", image_size=64), tmp_path / "own.safetensors")
    given = f"checkpoint={path}"
    with pytest.raises(ValueError, match="checkpoint is a model of 64 pixels.*set model.image_size=64"):
        rounds.check_growth_of_rounds(config_of(given))
    for size in ("64", "null"):
        config = config_of(given, f"model.image_size={size}")
        rounds.check_growth_of_rounds(config)
        assert sam_config_of(config).image_size == 64


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds.3.steps=0", "rounds.3.steps is 0"),
        ("rounds.2.images=null", "rounds.2.images is None"),
        ("+rounds.more={model: vit_tiny, images: 1, steps: 1, learning_rate_factor: 1}", "rounds.more: rounds are named by"),
    ],
)
def test_rounds_that_cannot_be_are_named(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rounds.rounds_of(config_of(override))


def test_a_round_left_out_keeps_the_names_of_the_others() -> None:
    assert [name for name, _ in rounds.rounds_of(config_of("~rounds.2"))] == ["1", "3", "4", "5", "6"]


def test_rounds_are_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = config_of("scale=paper")
    with pytest.raises(ValueError, match="trainer.num_nodes is 16 and trainer.launcher null"):
        rounds.run(cluster, tmp_path)
    rounds.check_processes(cluster | {"trainer": cluster["trainer"] | {"launcher": "srun"}})
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="launched 4 times"):
        rounds.run(config_of(), tmp_path)


def test_pictures_of_the_rounds_are_looked_at_and_not_the_public_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PictureSet] = []
    monkeypatch.setattr(rounds, "look_at", lambda config, pictures, **_: seen.append(pictures))
    pictures = PictureSet(public=[Source(["public.tar"])], pool=[Source(["pool.tar"])], val=["v.tar"], test=[])
    rounds.Work(config_of("data.frame=resize"), tmp_path, pictures).look_at_pool()
    assert [each.train for each in seen] == [pictures.pool]


def test_rounds_need_rounds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\+experiment=stage1"):
        rounds.run({"task": "rounds"}, tmp_path)


def test_a_model_that_its_training_did_not_measure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No validation may have given a number, as when a model falls apart."""
    monkeypatch.setattr(rounds, "validate", lambda config, checkpoint, val, native: {"val/miou_1": 0.25})
    work = rounds.Work(config_of("data.frame=resize"), tmp_path, PictureSet(public=[], pool=[], val=["v.tar"], test=[]))
    work.measured = {tmp_path / "a.ckpt": {"val/miou_1": 0.5}, tmp_path / "b.ckpt": {}}
    assert [work._measure(tmp_path / name)["val/miou_1"] for name in ("a.ckpt", "b.ckpt", "c.ckpt")] == [0.5, 0.25, 0.25]

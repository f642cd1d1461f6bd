"""`task=tune` from its start to the winner's command, by pretended runs and by one that trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'samtrain[sweep]'")

from samtrain import tasks  # noqa: E402
from samtrain.tuning.trials import Command, end, measurements  # noqa: E402
from tests.tuning.pretend_command import write_command  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SPACE = "{optim.learning_rate_factor:{low:0.5,high:4.0},prompts.num_points:{low:1,high:5}}"


def run(folder: Path, *overrides: str) -> dict:
    typed = ["task=tune", "+experiment=pretrain", *overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=[*typed, f"run_dir={folder}", "tune.overrides=[]"]))
    config["tune"]["space"] = yaml.safe_load(SPACE.replace(":", ": "))  # no form of the command line has dots in keys
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
    return tasks.run(config, folder)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(write_command(tmp_path))
    return tmp_path


def test_a_sweep_from_the_default_to_the_winner(pretended: Path, caplog) -> None:
    caplog.set_level("INFO")
    folder = pretended / "run"
    metrics = run(folder, "tune.num_trials=8", "tune.num_workers=2", "tune.seeds=[1,2,3]", "name=sweep", "tune.pruner=null")
    told = json.loads((folder / "tune.json").read_text())
    assert [t["state"] for t in told["trials"]].count("COMPLETE") == 8
    assert told["trials"][0]["params"] == {"optim.learning_rate_factor": 1.0, "prompts.num_points": 1}
    assert metrics["tune/default"] == pytest.approx(0.8)  # 0.9 - |1 - 2| / 10
    rate = told["trials"][told["best"]["number"]]["params"]["optim.learning_rate_factor"]
    assert metrics["tune/best"] == pytest.approx(0.9 - abs(rate - 2) / 10) and metrics["tune/best"] > 0.8

    # both again with three seeds, each of which is worth a thousandth
    again = told["again"]
    assert again["default"] == pytest.approx({"1": 0.751, "2": 0.752, "3": 0.753})
    assert metrics["tune/winner_minus_default"] == pytest.approx(metrics["tune/best"] - 0.8)
    assert "winner minus default on test/miou_1: +" in caplog.text

    # the winner's command is what was typed, and what was found
    command = told["best"]["command"]
    assert command.startswith("python -m samtrain +experiment=pretrain name=sweep optim.learning_rate_factor=")
    assert "tune" not in command.replace("samtrain", "") and f"the winner's command: {command}" in caplog.text
    given = json.loads((folder / "trials" / "000" / "arguments.json").read_text())
    assert given[:2] == ["+experiment=pretrain", "name=sweep"] and "optim.learning_rate_factor=1.0" in given
    page = (folder / "report.html").read_text()
    assert "Which setting mattered" in page and "optim.learning_rate_factor (logarithmic)" not in page


def test_what_lags_behind_is_pruned(pretended: Path) -> None:
    more = ["tune.pruner.n_startup_trials=1", "tune.pruner.n_warmup_steps=1", "callbacks.log_every_steps=2"]
    metrics = run(pretended / "run", "tune.num_trials=5", "tune.num_workers=5", "tune.seeds=[]", *more)
    told = json.loads((pretended / "run" / "tune.json").read_text())
    pruned = [t for t in told["trials"] if t["state"] == "PRUNED"]
    assert len(told["trials"]) == 5 and all(len(t["measurements"]) < 4 for t in pruned)
    assert all(t["state"] in ("COMPLETE", "PRUNED") for t in told["trials"])
    assert metrics["tune/best"] == max(t["value"] for t in told["trials"] if t["state"] == "COMPLETE")
    for trial in pruned:
        assert not (Path(trial["folder"]) / "metrics.json").exists()  # it was ended, and did not go on alone


def test_runs_that_fail_are_named(pretended: Path) -> None:
    said = r"trial 0 failed with the default setting: exit status 1, see .*output.log: .*points are 5"
    with pytest.raises(ValueError, match=said):
        run(pretended / "run", "name=broken", "tune.num_trials=4")


def test_some_may_fail(pretended: Path) -> None:
    run(pretended / "run", "name=fails_at_5", "tune.num_trials=6", "tune.seeds=[]", "tune.num_workers=2")
    told = json.loads((pretended / "run" / "tune.json").read_text())
    failed = [t for t in told["trials"] if t["state"] == "FAIL"]
    assert all(t["params"]["prompts.num_points"] == 5 and "points are 5" in t["reason"] for t in failed)
    assert sum(t["state"] in ("COMPLETE", "PRUNED") for t in told["trials"]) == 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["tune.num_trials=0"], "tune.num_trials"),
        (["tune.direction=up"], "maximize or minimize"),
        (["tune.metric=val/iou", "tune.seeds=[]"], r"no val/iou \(tune.metric\); it has test/miou_1"),
    ],
)
def test_what_cannot_be_is_said_with_its_key(pretended: Path, more: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(pretended / "run", "tune.num_trials=1", *more)


def test_an_experiment_is_needed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "samtrain", "task=tune", f"run_dir={tmp_path / 'run'}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode and "needs an experiment that trains" in ended.stdout + ended.stderr


def test_rounds_are_measured_by_their_ledger(tmp_path: Path) -> None:
    lines = [
        {"metrics_before": {}, "metrics_after": {"m": 0.1}, "promoted": True},
        {"metrics_before": {"m": 0.1}, "metrics_after": {"m": 0.3}, "promoted": True},
        {"metrics_before": {"m": 0.3}, "metrics_after": {"m": 0.2}, "promoted": False},
        {"metrics_before": {"m": 0.3}, "metrics_after": {"m": None}, "promoted": False},
    ]
    (tmp_path / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert measurements(tmp_path, "m") == [0.3, 0.3, 0.3]


def test_a_run_ends_with_all_that_it_began(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "samtrain").mkdir()
    (tmp_path / "samtrain" / "__init__.py").write_text("")
    (tmp_path / "samtrain" / "__main__.py").write_text(
        "import os, subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    process = Command(()).start(tmp_path / "run", {})
    log = tmp_path / "run" / "output.log"
    while not log.read_text().endswith("\n"):
        time.sleep(0.05)
    end(process)
    assert process.poll() is not None
    stat = Path(f"/proc/{int(log.read_text())}/stat")
    time.sleep(0.2)
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_trained_killed_and_gone_on_with(tmp_path: Path) -> None:
    """Two processes at one study, real trainings; both are killed with what they run, and begun again."""
    small = [
        "task=tune", "+experiment=pretrain", "data_dir=shards", "scale.image_size=64", "scale.batch_size=2",
        "scale.images_per_step=2", "scale.synthetic={size:[64,64],public:4,pool:2,val:2,test:2}", "trainer.max_steps=4",
        "evaluator.num_points=1", 'tune.overrides=["callbacks.panels=0","trainer.val_every_steps=2"]', "tune.seeds=[]",
        "tune.num_trials=4", "tune.pruner.n_startup_trials=2", "tune.storage=sqlite:///study.db",
    ]  # fmt: skip

    def begin(name: str) -> subprocess.Popen:
        settings = {"env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "cwd": tmp_path, "text": True}
        arguments = [sys.executable, "-m", "samtrain", *small, f"run_dir={name}"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)

    both = [begin(name) for name in ("a", "b")]
    until = time.monotonic() + 300
    while not list(tmp_path.glob("*/trials/*/metrics.csv")) and time.monotonic() < until:
        time.sleep(0.1)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    both = [begin(name) for name in ("a", "b")]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    study = optuna.load_study(study_name="pretrain", storage=f"sqlite:///{tmp_path / 'study.db'}")
    found = [trial.state.name for trial in study.trials]
    assert found.count("COMPLETE") + found.count("PRUNED") == 4
    assert set(found) <= {"COMPLETE", "PRUNED", "FAIL"} and "FAIL" in found

"""task=tune from the start to the winner's command, with pretended runs and with real trainings."""

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
from samtrain.modeling.build import build_sam  # noqa: E402
from samtrain.modeling.checkpoints import save_safetensors  # noqa: E402
from samtrain.run.settings import read  # noqa: E402
from samtrain.tasks.tune import _open_sweep  # noqa: E402
from samtrain.tuning import TuneConfig  # noqa: E402
from samtrain.tuning.trials import (  # noqa: E402
    Command,
    TrialFailed,
    TrialKilled,
    measurements,
    result_of,
    terminate,
    worker_environments,
)
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
    monkeypatch.setattr("samtrain.tuning.trials.POLL_SECONDS", 0.05)
    monkeypatch.setattr("samtrain.tuning.loop.WAIT_SECONDS", 0.05)
    monkeypatch.chdir(write_command(tmp_path))
    return tmp_path


def test_a_sweep_from_the_default_to_the_winner(pretended: Path, caplog) -> None:
    caplog.set_level("INFO")
    folder = pretended / "run"
    metrics = run(folder, "tune.num_trials=8", "tune.num_workers=2", "tune.seeds=[1,2,3]", "name=sweep", "tune.pruner=null")
    content = json.loads((folder / "tune.json").read_text())
    assert [t["state"] for t in content["trials"]].count("COMPLETE") == 8
    assert content["trials"][0]["params"] == {"optim.learning_rate_factor": 1.0, "prompts.num_points": 1}
    assert metrics["tune/default"] == pytest.approx(0.8)  # 0.9 - |1 - 2| / 10
    rate = content["trials"][content["best"]["number"]]["params"]["optim.learning_rate_factor"]
    assert metrics["tune/best"] == pytest.approx(0.9 - abs(rate - 2) / 10) and metrics["tune/best"] > 0.8

    # both again with three seeds, each of which is worth a thousandth
    again = content["again"]
    assert again["default"] == pytest.approx({"1": 0.751, "2": 0.752, "3": 0.753})
    assert metrics["tune/winner_minus_default"] == pytest.approx(metrics["tune/best"] - 0.8)
    assert "Winner minus default on test/miou_1: +" in caplog.text

    # the winner's command is what was typed, and what was found
    command = content["best"]["command"]
    assert command.startswith("python -m samtrain +experiment=pretrain name=sweep optim.learning_rate_factor=")
    assert "tune" not in command.replace("samtrain", "") and f"The winner's command: {command}" in caplog.text
    given = json.loads((folder / "trials" / "000" / "arguments.json").read_text())
    assert given[:2] == ["+experiment=pretrain", "name=sweep"] and "optim.learning_rate_factor=1.0" in given
    page = (folder / "report.html").read_text()
    assert "Importance of the settings" in page and "optim.learning_rate_factor (logarithmic)" not in page


def test_bad_trials_are_pruned(pretended: Path) -> None:
    more = ["tune.pruner.n_startup_trials=1", "tune.pruner.n_warmup_steps=1", "callbacks.log_every_steps=1"]
    metrics = run(pretended / "run", "tune.num_trials=5", "tune.num_workers=5", "tune.seeds=[]", *more)
    content = json.loads((pretended / "run" / "tune.json").read_text())
    pruned = [t for t in content["trials"] if t["state"] == "PRUNED"]
    assert len(content["trials"]) == 5 and all(len(t["measurements"]) < 4 for t in pruned)
    assert all(t["state"] in ("COMPLETE", "PRUNED") for t in content["trials"])
    assert metrics["tune/best"] == max(t["value"] for t in content["trials"] if t["state"] == "COMPLETE")
    for trial in pruned:
        assert not (Path(trial["folder"]) / "metrics.json").exists()  # the run was ended, too


def test_a_failing_default_ends_the_sweep(pretended: Path) -> None:
    said = r"trial 0 failed with the default settings: it ended with exit status 1, see .*output.log: .*points are 5"
    with pytest.raises(ValueError, match=said):
        run(pretended / "run", "name=broken", "tune.num_trials=4")


def test_a_sweep_resumes_after_its_cause_of_failure_is_fixed(pretended: Path) -> None:
    """The default settings failed: they are run again, and are still the default."""
    more = ["tune.num_trials=4", "tune.seeds=[1]"]
    main = pretended / "samtrain" / "__main__.py"
    sound = main.read_text()
    main.write_text("import sys; sys.exit('no room on the disk')")
    with pytest.raises(ValueError, match="no room on the disk; fix the cause, and the same command resumes"):
        run(pretended / "run", *more)
    main.write_text(sound)
    metrics = run(pretended / "run", *more)
    content = json.loads((pretended / "run" / "tune.json").read_text())
    assert [t["state"] for t in content["trials"]] == ["FAIL"] + ["COMPLETE"] * 4
    assert [t["default"] for t in content["trials"]] == [True, True, False, False, False]
    assert metrics["tune/default"] == pytest.approx(0.8)


def test_an_extended_sweep_may_find_another_winner(pretended: Path) -> None:
    for count in (2, 12):
        metrics = run(pretended / "run", f"tune.num_trials={count}", "tune.seeds=[1]", "tune.pruner=null")
    content = json.loads((pretended / "run" / "tune.json").read_text())
    assert metrics["tune/winner_minus_default"] == pytest.approx(metrics["tune/best"] - 0.8)
    assert content["best"]["number"] > 1 and (pretended / "run" / "again" / f"trial_{content['best']['number']:03}").is_dir()


def test_a_killed_run_is_resumed(pretended: Path) -> None:
    main = pretended / "samtrain" / "__main__.py"
    once = "if not os.path.exists('killed'):\n    open('killed', 'w')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    main.write_text(f"import os, signal\n{once}" + main.read_text())
    metrics = run(pretended / "run", "tune.num_trials=1", "tune.seeds=[]")
    content = json.loads((pretended / "run" / "tune.json").read_text())
    assert [t["state"] for t in content["trials"]] == ["FAIL", "COMPLETE"] and metrics["tune/default"] == pytest.approx(0.8)
    assert content["trials"][0]["folder"] == content["trials"][1]["folder"]
    assert content["best"]["default"] and content["again"] == {}


def test_several_ranks_are_refused(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 ranks were launched"):
        run(pretended / "run", "tune.num_trials=1")


@pytest.mark.parametrize(
    ("given", "workers", "devices", "wanted"),
    [
        (None, 3, 1, ["0", "1", "0"]),
        ("4,5,6,7", 2, 2, ["4,5", "6,7"]),
        ("4,5", 4, 1, ["4", "5", "4", "5"]),
        (None, 1, 2, [None]),
    ],
)
def test_gpus_are_shared_out(monkeypatch, given: str | None, workers: int, devices: int, wanted: list) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    gpus = len(given.split(",")) if given else 2
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in worker_environments(workers, devices, gpus)] == wanted
    with pytest.raises(ValueError, match="tune.num_workers=1"):
        worker_environments(3, gpus, gpus)


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert worker_environments(3, 1, 0) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environments(2, 1, 0) == [{"OMP_NUM_THREADS": "5"}] * 2


def test_single_trials_may_fail(pretended: Path) -> None:
    at_random = ["tune.sampler._target_=optuna.samplers.RandomSampler", "~tune.sampler.n_startup_trials", "seed=4"]
    run(pretended / "run", "name=fails_at_5", "tune.num_trials=12", "tune.seeds=[]", "tune.pruner=null", *at_random)
    content = json.loads((pretended / "run" / "tune.json").read_text())
    failed = [t for t in content["trials"] if t["state"] == "FAIL"]
    assert failed and all(t["params"]["prompts.num_points"] == 5 and "points are 5" in t["reason"] for t in failed)
    assert sum(t["state"] in ("COMPLETE", "PRUNED") for t in content["trials"]) == 12


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["tune.num_trials=0"], "tune.num_trials"),
        (["tune.stale_after=5"], "tune.stale_after is 5: give 30"),
        (["tune.direction=up"], "one of maximize, minimize"),
        (["tune.metric=val/iou", "tune.seeds=[]"], r"no val/iou \(tune.metric, tune.compare_by\); it has test/miou_1"),
    ],
)
def test_errors_name_the_key(pretended: Path, more: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(pretended / "run", "tune.num_trials=1", *more)


def test_tune_needs_an_experiment(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "samtrain", "task=tune", f"run_dir={tmp_path / 'run'}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode and "needs an experiment that trains" in ended.stdout + ended.stderr


def test_rounds_are_read_from_their_ledger(tmp_path: Path) -> None:
    lines = [
        {"metrics_before": {}, "metrics_after": {"m": 0.1}, "promoted": True},
        {"metrics_before": {"m": 0.1}, "metrics_after": {"m": 0.3}, "promoted": True},
        {"metrics_before": {"m": 0.3}, "metrics_after": {"m": 0.2}, "promoted": False},
        {"metrics_before": {"m": 0.3}, "metrics_after": {"m": None}, "promoted": False},
    ]
    (tmp_path / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert measurements(tmp_path, "m") == [0.3, 0.3, 0.3]


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


@pytest.mark.parametrize(("status", "kind"), [(-9, TrialKilled), (143, TrialKilled), (130, TrialKilled), (1, TrialFailed)])
def test_a_run_that_a_signal_ended_was_killed(tmp_path: Path, status: int, kind: type[Exception]) -> None:
    """A run of samtrain ends with 143 after SIGTERM, which is no failure of its settings."""
    (tmp_path / "output.log").write_text("The run was stopped\n")
    with pytest.raises(kind) as error:
        result_of(status, tmp_path, "m")
    assert type(error.value) is kind


def test_a_run_ends_with_all_processes_that_it_started(tmp_path: Path, monkeypatch) -> None:
    """Also with a child that ignores the first signal."""
    (tmp_path / "samtrain").mkdir()
    (tmp_path / "samtrain" / "__init__.py").write_text("")
    (tmp_path / "samtrain" / "__main__.py").write_text(
        f"import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', {DEAF!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    process = Command(()).start(tmp_path / "run", {})
    log = tmp_path / "run" / "output.log"
    while not log.read_text().endswith("\n"):
        time.sleep(0.05)
    terminate(process)
    assert process.poll() is not None and is_gone(int(log.read_text()))


def test_a_run_ends_when_its_sweep_has_ended(tmp_path: Path) -> None:
    """`SAMTRAIN_PARENT`: when the sweep is killed, its runs do not continue alone."""
    sweep = (
        "import time\nfrom pathlib import Path\nfrom samtrain.tuning.trials import Command\n"
        "process = Command(('task=preview', 'data_dir=shards')).start(Path('run'), {})\n"
        "print(process.pid, flush=True)\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", sweep], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    log = tmp_path / "run" / "output.log"
    until = time.monotonic() + 60
    while "python -m samtrain" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.05)  # until it has started its work
    parent.kill()
    parent.wait()
    assert is_gone(child)


def is_gone(pid: int) -> bool:
    """Waits some seconds for the end of a process; a zombie counts as ended."""
    stat, until = Path(f"/proc/{pid}/stat"), time.monotonic() + 20
    while time.monotonic() < until:
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_two_killed_processes_resume_one_study(tmp_path: Path) -> None:
    """Two processes work on one study with real trainings; both are killed with their runs, and started again."""
    small = [
        "task=tune", "+experiment=pretrain", "data_dir=shards", "scale.image_size=64", "scale.batch_size=2",
        "scale.images_per_step=2", "scale.synthetic={size:[64,64],public:4,pool:2,val:2,test:2}", "trainer.max_steps=4",
        "evaluator.num_points=1", 'tune.overrides=["callbacks.panels=0","trainer.val_every_steps=2"]', "tune.seeds=[]",
        "tune.num_trials=4", "tune.pruner.n_startup_trials=2", "tune.storage=sqlite:///study.db",
    ]  # fmt: skip

    def start(name: str) -> subprocess.Popen:
        settings = {"env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "cwd": tmp_path, "text": True}
        arguments = [sys.executable, "-m", "samtrain", *small, f"run_dir={name}"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)

    both = [start(name) for name in ("a", "b")]
    until = time.monotonic() + 300
    while not list(tmp_path.glob("*/trials/*/metrics.csv")) and time.monotonic() < until:
        time.sleep(0.1)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    both = [start(name) for name in ("a", "b")]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    study = optuna.load_study(study_name="pretrain", storage=f"sqlite:///{tmp_path / 'study.db'}")
    found = [trial.state.name for trial in study.trials]
    assert found.count("COMPLETE") + found.count("PRUNED") == 4
    assert set(found) <= {"COMPLETE", "PRUNED", "FAIL"} and "FAIL" in found


def test_the_model_of_a_space_is_the_checkpoints(tmp_path: Path) -> None:
    """Fine-tuning has no model.name, and `recipes.{model}.weight_decay` is searched all the same."""
    checkpoint = save_safetensors(build_sam("vit_small", image_size=64), tmp_path / "small.safetensors")
    GlobalHydra.instance().clear()
    given = ["task=tune", "+experiment=finetune", f"checkpoint={checkpoint}", f"run_dir={tmp_path}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=given))
    sweep = _open_sweep(config, read(TuneConfig, config, "tune"), Command(("+experiment=finetune",)), tmp_path)
    assert "recipes.vit_small.weight_decay" in [each.key for each in sweep.dimensions]

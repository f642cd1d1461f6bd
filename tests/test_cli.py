"""The command line: what a stranger types, rightly and wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from samtrain import tasks
from samtrain.__main__ import overview
from samtrain.run import directory as run_dir_module
from samtrain.run.directory import open_run

ROOT = Path(__file__).resolve().parents[1]


def samtrain(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "samtrain", *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


def test_bare_command_says_what_there_is(tmp_path: Path) -> None:
    answer = samtrain(cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    names = [*tasks.TASKS, *(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")), "laptop", "paper"]
    for name in names:
        assert any(line.split("=")[-1].startswith(f"{name} ") for line in answer.stdout.splitlines()), name
    assert not list(tmp_path.iterdir())


def test_bare_command_imports_nothing_heavy() -> None:
    code = "import sys; from samtrain.__main__ import overview; overview(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "hydra", "omegaconf", "pytorch_lightning", "numpy"} & set(loaded.split())


def test_overview_fits_a_terminal() -> None:
    lines = overview().splitlines()
    assert max(map(len, lines)) <= 120
    table = [line for line in lines if line.startswith(("  +experiment=", "  task=", "  scale=", "  data=", "  tune="))]
    columns = {line.index(line.split(maxsplit=1)[1]) for line in table}
    assert len(columns) == 1 and max(map(len, table)) <= 100


def test_help_is_the_same_page(tmp_path: Path) -> None:
    assert samtrain("--help", cwd=tmp_path).stdout == samtrain(cwd=tmp_path).stdout


def test_unknown_task_lists_all() -> None:
    with pytest.raises(ValueError, match="task is 'fitt'") as error:
        tasks.check_task("fitt")
    assert all(name in str(error.value) for name in tasks.TASKS)


def test_the_tasks_folder_holds_exactly_the_verbs_that_are_listed() -> None:
    found = {path.stem for path in (ROOT / "samtrain" / "tasks").iterdir() if not path.name.startswith("__")}
    assert found == set(tasks.TASKS)


def test_unknown_task_leaves_no_run_behind(tmp_path: Path) -> None:
    answer = samtrain("task=fitt", "run_dir=run", cwd=tmp_path)
    assert answer.returncode == 1
    assert "task is 'fitt'" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert not (tmp_path / "run" / ".hydra").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [("trainer.max_stepz=3", "max_stepz"), ("scale=laptopp", "laptop"), ("+experiment=stage7", "stage1")],
)
def test_mistyped_key_is_refused(tmp_path: Path, override: str, words: str) -> None:
    answer = samtrain(override, cwd=tmp_path)
    assert answer.returncode == 1
    assert words in answer.stderr


def test_missing_value_is_named(tmp_path: Path) -> None:
    answer = samtrain("data=folder", "task=prepare", "run_dir=run", cwd=tmp_path)
    assert answer.returncode == 1
    assert "data.root" in answer.stdout + answer.stderr


def test_a_setting_that_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    """An annotator's too, which Hydra builds; and before a first model is trained."""
    small = ["scale.image_size=64", "scale.synthetic={size:[64,64],public:1,pool:8,val:1,test:1}", "data_dir=shards"]
    answer = samtrain("+experiment=stage1", "annotator.min_iou=0.95", "run_dir=run", *small, cwd=tmp_path)
    assert answer.returncode == 1
    assert "annotator.min_iou is 0.95" in answer.stdout and "Traceback" not in answer.stdout + answer.stderr
    assert not (tmp_path / "run" / "pretrain").exists()


def test_a_grid_runs_each_point_in_a_folder_of_its_own(tmp_path: Path) -> None:
    small = ["scale.image_size=64", "scale.synthetic={size:[64,64],public:3,pool:1,val:1,test:1}", "data_dir=shards"]
    answer = samtrain("-m", "task=preview", "preview.images=1,2", "run_dir=grid", *small, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for number in (0, 1):
        folder = tmp_path / "grid" / str(number)
        assert (folder / "preview.png").is_file()
        assert yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["preview"]["images"] == number + 1


def config(**changes) -> dict:
    trainer = {"max_steps": 3, "milestones": [1, 2]}
    return {"seed": 0, "run_dir": "a", "trainer": trainer, "loader": {"num_workers": 0}, **changes}


def test_same_config_goes_on(tmp_path: Path) -> None:
    for workers in (0, 4):
        with open_run(tmp_path, config(run_dir="b", loader={"num_workers": workers}), []):
            pass
    assert yaml.safe_load((tmp_path / ".hydra" / "config.yaml").read_text()) == config(run_dir="b")
    environment = json.loads((tmp_path / ".hydra" / "environment.json").read_text())
    assert {"command", "commit", "torch", "python"} <= environment.keys()


def test_other_config_is_refused_with_the_differences(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), ["seed=0"]):
        pass
    other = config(seed=1, trainer={"max_steps": 3, "milestones": [1, 5]}, extra=4, newer=None)
    with pytest.raises(ValueError, match="another config") as error, open_run(tmp_path, other, []):
        pass
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "seed: 0 there, 1 now" in lines
    assert "trainer.milestones.1: 2 there, 5 now" in lines
    assert "extra: (not set) there, 4 now" in lines
    assert not any(line.startswith("newer") for line in lines)  # a key that an older version did not know and that is null now
    assert yaml.safe_load((tmp_path / ".hydra" / "config.yaml").read_text()) == config()  # the run's own stays


def test_a_run_killed_at_its_very_beginning_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_dir_module.write_text

    def dying(path: Path, text: str) -> None:
        if path.name == "config.yaml":
            raise KeyboardInterrupt
        whole(path, text)

    monkeypatch.setattr(run_dir_module, "write_text", dying)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, config(), []):
        pass
    monkeypatch.undo()
    with open_run(tmp_path, config(seed=1), []):
        pass
    with pytest.raises(ValueError, match="It was started by\n  python -m samtrain"), open_run(tmp_path, config(seed=2), []):
        pass


def test_other_process_in_the_directory_is_refused(tmp_path: Path) -> None:
    code = f"""
import fcntl, sys
lock = open({str(tmp_path / ".lock")!r}, "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process"), open_run(tmp_path, config(), []):
            pass
        holder.communicate("")
    with open_run(tmp_path, config(), []):  # it went, and its lock with it
        pass


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_ranks_need_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(ValueError, match="run_dir="), open_run(tmp_path / "run", config(), ["seed=0"]):
        pass
    with open_run(tmp_path / "run", config(), ["run_dir=run"]):
        pass
    monkeypatch.setenv("RANK", "1")
    with open_run(tmp_path / "other", config(), ["run_dir=other"]) as run_dir:  # only the first rank writes
        assert not list(run_dir.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_package_configs_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (licence,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata and "Author: samtrain developers" in metadata
    sources = [path for path in (ROOT / "samtrain").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    configs = (ROOT / "conf").rglob("*.yaml")
    assert {str(path.relative_to(ROOT)) for path in sources} <= names
    assert {f"samtrain/{path.relative_to(ROOT)}" for path in configs} <= names
    assert not any(name.startswith(("tests", "conf", "data/", "docs", "examples")) for name in names)


def test_wheel_works_as_a_checkout_does(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies, which this environment has, and started far from the checkout."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    small = ["scale.image_size=64", "scale.synthetic={size:[64,64],public:2,pool:1,val:1,test:1}", "data_dir=shards"]
    for arguments, words in (
        ([], "+experiment=stage1"),
        (["+experiment=stage1", "scale=paper", "--cfg", "job", "--resolve"], "model: vit_h"),
        (["task=preview", "preview.images=1", "run_dir=run", *small], "preview.png"),
    ):
        command = [sys.executable, "-m", "samtrain", *arguments]
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0 and words in answer.stdout, answer.stdout + answer.stderr


@pytest.mark.slow
def test_a_grid_in_several_processes(tmp_path: Path) -> None:
    """`hydra/launcher=joblib`: a run directory a point, each with its own seed and numbers."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the sweep extra")
    small = ["scale.image_size=64", "scale.batch_size=2", "scale.images_per_step=2", "trainer.max_steps=2", "data_dir=shards"]
    small += ["scale.synthetic={size:[64,64],public:4,pool:2,val:2,test:2}", "evaluator.num_points=1"]
    grid = ["-m", "+experiment=pretrain", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "run_dir=grid"]
    answer = samtrain(*grid, *small, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    seeds = [yaml.safe_load((tmp_path / "grid" / n / ".hydra" / "config.yaml").read_text())["seed"] for n in "01"]
    found = [json.loads((tmp_path / "grid" / n / "metrics.json").read_text())["val/miou_1"] for n in "01"]
    assert seeds == [0, 1] and found[0] != found[1]

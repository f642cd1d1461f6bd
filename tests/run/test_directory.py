"""A run's directory: what started it stays, a refused opening changes nothing, exchanged files are noticed."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.run.directory import open_run
from samtrain.run.environment import command_line, resume_command
from samtrain.run.inputs import check_inputs


def config_of(**changes: Any) -> dict[str, Any]:
    return {"seed": 0, "run_dir": "a", "data": {"root": "in/images"}, "trainer": {"max_steps": 2}, **changes}


def open_and_close(run_dir: Path, config: dict[str, Any], *arguments: str) -> None:
    sys.argv = ["samtrain", *arguments]
    with open_run(run_dir, config, list(arguments)):
        (run_dir / "metrics.csv").write_text("step\n")


@pytest.fixture(autouse=True)
def same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["samtrain"])


def environment_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / ".hydra" / "environment.json").read_text())


def test_the_first_command_stays_and_later_ones_are_appended(tmp_path: Path) -> None:
    typed = ["checkpoint='my best.pth'", "run_dir=a = b", "+experiment=finetune"]
    open_and_close(tmp_path, config_of(), *typed)
    open_and_close(tmp_path, config_of(), "loader.num_workers=1")
    open_and_close(tmp_path, config_of(), "loader.num_workers=2")
    found = environment_of(tmp_path)
    assert shlex.split(found["command"]) == ["python", "-m", "samtrain", *typed], "it can be pasted into a shell"
    assert [each["command"].split()[-1] for each in found["resumed"]] == ["loader.num_workers=1", "loader.num_workers=2"]
    assert "resumed" not in found["resumed"][1]


def test_a_refused_opening_changes_nothing(tmp_path: Path) -> None:
    open_and_close(tmp_path, config_of(), "seed=0")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError, match="seed: 0 there, 1 now\nIt was started by\n  python -m samtrain seed=0\n"):
        open_and_close(tmp_path, config_of(seed=1), "seed=1")
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_the_same_folder_written_in_another_way_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    open_and_close(run_dir, config_of())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for root in (str(tmp_path / "in" / "images"), "../in/images/"):
        open_and_close(run_dir, config_of(data={"root": root}))
    with pytest.raises(ValueError, match="data.root: in/images there, ../in/others now"):
        open_and_close(run_dir, config_of(data={"root": "../in/others"}))


def test_more_steps_are_refused_with_the_way_to_train_for_longer(tmp_path: Path) -> None:
    open_and_close(tmp_path, config_of())
    with pytest.raises(ValueError, match=r"learning rate from the first step on.*checkpoint=.*last.ckpt") as error:
        open_and_close(tmp_path, config_of(trainer={"max_steps": 4}))
    assert resume_command(tmp_path) in str(error.value)


def test_a_refused_run_leaves_no_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "trian" / "1"
    with pytest.raises(ValueError, match="no such task"), open_run(run_dir, config_of(), []):
        raise ValueError("no such task")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_stopped_or_broke_stays(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), open_run(tmp_path / "run", config_of(), []):
        raise error
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_a_run_that_has_written_something_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="late"), open_run(tmp_path / "run", config_of(), []):
        (tmp_path / "run" / "metrics.csv").write_text("step\n")
        raise ValueError("late")
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_a_directory_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="run directory .*file/run cannot be made .*: set run_dir"):
        open_and_close(tmp_path / "file" / "run", config_of())


def test_the_log_goes_to_the_run_that_is_open(tmp_path: Path) -> None:
    log, level = logging.getLogger("samtrain.here"), logging.getLogger().level
    logging.getLogger().setLevel("INFO")
    for name in ("one", "two"):
        with open_run(tmp_path / name, config_of(), []):
            log.info("This is %s.", name)
    logging.getLogger().setLevel(level)
    assert "This is two." in (tmp_path / "two" / "samtrain.log").read_text()
    assert "This is two." not in (tmp_path / "one" / "samtrain.log").read_text()


def test_a_command_line_survives_a_shell() -> None:
    arguments = ["checkpoint='a b.pth'", "run_dir=x = y", "data.masks='{stem}.png'"]
    assert shlex.split(command_line(*arguments))[3:] == arguments


# ---- inputs


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for name in ("train", "val", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(name.encode() * 100_000)
    tars = {name: [str(tmp_path / name / "0.tar")] for name in ("train", "val", "test")}
    return ImageSet(public=[], pool=[Source(tars["train"])], val=tars["val"], test=tars["test"])


@pytest.mark.parametrize(
    ("name", "words"), [("train", "training images"), ("val", "validation images"), ("test", "test images")]
)
def test_exchanged_images_are_noticed(tmp_path: Path, images: ImageSet, name: str, words: str) -> None:
    run_dir = tmp_path / "run"
    check_inputs({"checkpoint": None}, run_dir, images)
    check_inputs({"checkpoint": None}, run_dir, images)
    path = tmp_path / name / "0.tar"
    content = bytearray(path.read_bytes())
    content[150_000] ^= 1  # the name and the size stay
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"  {words}: .*{name} \(sha256 \w+\) there, .*{name} \(sha256 \w+\) now"):
        check_inputs({"checkpoint": None}, run_dir, images)


def test_equal_images_in_another_folder_resume(tmp_path: Path, images: ImageSet) -> None:
    check_inputs({"checkpoint": None}, tmp_path / "run", images)
    (tmp_path / "val").rename(tmp_path / "moved")
    moved = ImageSet(public=[], pool=images.pool, val=[str(tmp_path / "moved" / "0.tar")], test=images.test)
    check_inputs({"checkpoint": None}, tmp_path / "run", moved)


def test_another_checkpoint_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"first")
    check_inputs({"checkpoint": str(path)}, tmp_path / "run")
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"began with other files:\n  checkpoint: .*model.pth .* there, .*model.pth .* now"):
        check_inputs({"checkpoint": str(path)}, tmp_path / "run")

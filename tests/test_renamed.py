"""Old names of config keys work on the command line, and a warning names the new ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.renamed import RENAMED, with_new_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("audit.pictures=3", "audit.images=3"),
        ("generator.pictures_per_shard=8", "generate.images_per_shard=8"),
        ("++generator.input=a=b.tar", "++generate.input=a=b.tar"),
        ("~generator.panels", "~generate.panels"),
        ("+generator/release=sa1b", "+generate/release=sa1b"),
        ("generator.release.short_side=9", "generate.release.short_side=9"),
        ("+annotator.leaves_picture=false", "++annotator.leaves_image=false"),
        ("+audit.pictures=3", "++audit.images=3"),  # a single + is refused for a key that conf/ has
    ],
)
def test_an_old_name_becomes_the_new_one(old: str, new: str, capsys: pytest.CaptureFixture) -> None:
    assert with_new_names([old]) == [new]
    assert new.lstrip("+~").split("=")[0].rsplit(".short_side")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument", ["generator=sam", "generator.points_per_side=4", "generate.input=x", "-m", "--cfg", "generator.partial=1"]
)
def test_other_arguments_stay(argument: str, capsys: pytest.CaptureFixture) -> None:
    assert with_new_names([argument]) == [argument]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("new", sorted(set(RENAMED.values())))
def test_the_new_names_exist(new: str) -> None:
    """An override of a key that the config does not have would raise; groups and optional arguments need a leading +."""
    GlobalHydra.instance().clear()
    is_group, is_optional = "/" in new, new == "annotator.leaves_image"
    value = "sa1b" if is_group else "null"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("config", overrides=[f"{'+' if is_group or is_optional else ''}{new}={value}"])


def test_old_names_work_on_the_command_line(tmp_path: Path) -> None:
    given = ["audit.pictures=3", "generator.input=mine", "+generator/release=sa1b", "+annotator.leaves_picture=false"]
    command = [sys.executable, "-m", "samtrain", *given, "--cfg", "job"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    config = yaml.safe_load(ended.stdout)
    assert config["audit"]["images"] == 3
    assert config["generate"]["input"] == "mine" and config["generate"]["release"]["short_side"] == 1500
    assert config["annotator"]["leaves_image"] is False
    warnings = ended.stderr.splitlines()
    assert len(warnings) == 4 and all("was renamed to" in line for line in warnings), warnings

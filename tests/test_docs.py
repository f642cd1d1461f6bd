"""What the README says works: its commands compose, and the gate does what it tells people to do."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SHELL_BLOCK = re.compile(r"^```(?:bash|sh|shell)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands of the README's shell blocks in their order, comments and continued lines resolved."""
    text = README.read_text() if README.is_file() else ""
    lines = "\n".join(SHELL_BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    found = (" ".join(shlex.split(line, comments=True, posix=False)) for line in lines)
    return [command.removeprefix("$ ") for command in found if command]


def samtrain_commands() -> list[str]:
    return [command for command in commands() if "python -m samtrain" in command]


@pytest.fixture(autouse=True)
def readme() -> str:
    if not README.is_file():
        pytest.skip("README.md is not written yet")
    return README.read_text()


def test_two_commands_come_first(readme: str) -> None:
    """Set-up and six rounds, before anything else that a shell could be given."""
    blocks = SHELL_BLOCK.findall(readme)
    first = "\n".join(blocks[:2])
    assert "pip install" in first
    assert "python -m samtrain +experiment=stage1" in first
    assert first.index("pip install") < first.index("+experiment=stage1")


def test_the_gate_sets_up_and_tests_as_the_readme_says() -> None:
    """It takes the README's line with pytest apart at its last command; what it would run is looked at here."""
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    taking = [line for line in gate.read_text().splitlines() if line.startswith(("line=", "eval "))]
    assert [line.split(" #")[0] for line in taking] == [
        "line=$(grep -m1 'python -m pytest' README.md)",
        'eval "${line% && *}"',
        'eval "${line##* && }"',
    ]
    line = next(line for line in README.read_text().splitlines() if "python -m pytest" in line)
    set_up, _, tests = line.rpartition(" && ")
    assert set_up.startswith("python3 -m venv") and "pip install -e" in set_up
    assert tests == "python -m pytest -q"


@pytest.mark.parametrize("command", samtrain_commands())
def test_commands_compose(command: str) -> None:
    words = shlex.split(command.split("python -m samtrain", 1)[1])
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    if "-m" in words:  # of a grid the first point; the launcher is Hydra's own
        overrides = [re.sub(r",.*", "", each) for each in overrides if not each.startswith("hydra")]
    if not overrides:
        return
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("config", overrides=overrides).task in TASKS


def test_the_tree_is_there(readme: str) -> None:
    """Every file and folder of the tree that the README draws exists."""
    for block in re.findall(r"^```\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL):
        if "samtrain/" not in block:
            continue
        for line in block.splitlines():
            names = re.match(r"[\w./]+", line)
            if names:
                assert (ROOT / names[0]).exists(), names[0]

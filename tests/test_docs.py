"""What README.md, CONTRIBUTING.md and docs/ say works: commands compose, code compiles, names and keys exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from samtrain.run.settings import check_config
from samtrain.tasks import NODES, TASKS, resolve

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", flags=re.MULTILINE | re.DOTALL)
# a block that a page introduces as a file: "`FOLDER/prompts/mine.yaml`:", "In `my_prompts.py`:"
FILE = re.compile(r"`(?:FOLDER/)?([\w/]+\.(?:yaml|py))`:\n\n```(?:yaml|python)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "shell")
# programs other than samtrain that a page may start; anything else is a typing error
EXECUTABLES = {"python3", "python", ".", "pip", "bash", "ruff", "mypy", "mkdocs", "torchrun", "wandb", "git", "cd", "curl"}
PLACEHOLDERS = ("IMAGES/labels",)  # folders of the user's that commands name and that have to exist
# config groups that add keys which the default config has not: pages may name those keys, too
KEY_SOURCES = (
    (), ("prompts=text",), ("logger=wandb",), ("data=folder",), ("data=sa1b_all_stages",), ("+experiment=data_engine",),
    ("annotator=web",),
)  # fmt: skip


def blocks(page: Path, *languages: str) -> list[str]:
    """Returns the fenced blocks of a page in one of the languages, without their indentation."""
    found = BLOCK.finditer(page.read_text())
    return [textwrap.dedent(block["text"]) for block in found if block["language"] in languages]


def commands(page: Path) -> list[str]:
    """Returns the commands of a page's shell blocks in order, comments removed, continued lines and `&&` resolved."""
    lines = "\n".join(blocks(page, *SHELL)).replace("\\\n", " ").splitlines()
    whole = (" ".join(shlex.split(line, comments=True, posix=False)) for line in lines)
    return [part.strip().removeprefix("$ ") for line in whole for part in line.split(" && ") if part.strip()]


def cases(of: Any) -> list[Any]:
    """Returns what `of` finds in the pages, each text once, with its first page in the test's name."""
    found: dict[str, Path] = {}
    for page in PAGES:
        for each in of(page):
            found.setdefault(each, page)
    return [pytest.param(each, id=f"{page.relative_to(ROOT)}: {each[:70]}") for each, page in found.items()]


def samtrain_commands(page: Path) -> list[str]:
    return [command for command in commands(page) if "-m samtrain" in command]


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Composes as the command line does; `config_dir` is what `--config-dir` names."""
    GlobalHydra.instance().clear()
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*overrides, *search])


def write_files(folder: Path) -> None:
    """Writes the blocks that pages introduce as a file below `folder`: config files, and modules that they name."""
    for page in PAGES:
        for name, text in FILE.findall(page.read_text()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


# ---- README.md and .ci/run


def test_two_commands_come_first() -> None:
    """Setting up and the six rounds stand before anything else that a shell could be given."""
    first = "\n".join(blocks(README, *SHELL)[:2])
    assert "pip install" in first
    assert "python -m samtrain +experiment=stage1" in first
    assert first.index("pip install") < first.index("+experiment=stage1")


def test_the_gate_sets_up_and_tests_as_the_readme_says() -> None:
    """The gate splits the README's line with pytest at its last command; this test checks what it would run."""
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    taken = [line for line in gate.read_text().splitlines() if line.startswith(("line=", "eval "))]
    assert [line.split(" #")[0] for line in taken] == [
        "line=$(grep -m1 'python -m pytest' README.md)",
        'eval "${line% && *}"',
        'eval "${line##* && }"',
    ]
    line = next(line for line in README.read_text().splitlines() if "python -m pytest" in line)
    set_up, _, tests = line.rpartition(" && ")
    assert set_up.startswith("python3 -m venv") and "pip install -e" in set_up
    assert tests == "python -m pytest -q"


def test_the_gate_runs_all_tests_and_builds_the_docs() -> None:
    """Options for pytest come from PYTEST_ADDOPTS alone, which may share the tests out but never select some of them."""
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert any(line.startswith("mkdocs build --strict") for line in lines)
    (options,) = (re.search(r"PYTEST_ADDOPTS=\"(.*?)\"", line) for line in lines if "PYTEST_ADDOPTS" in line)
    assert options is not None and options[1] == "-n 2 --dist loadfile"


def test_the_tree_is_there() -> None:
    """Every file and folder of the tree that the README draws exists."""
    trees = [block for block in blocks(README, "") if "samtrain/" in block]
    assert trees
    for tree in trees:
        folder = ROOT
        for line in tree.splitlines():
            indent, name = re.match(r"( *)([\w./]+)", line).groups()  # type: ignore[union-attr]
            folder = folder if indent else ROOT
            assert (folder / name).exists(), f"{folder / name} is in the README's tree"
            if not indent and line.rstrip() == name:  # a folder whose content follows
                folder = ROOT / name


# ---- blocks of all pages


@pytest.mark.parametrize("command", cases(samtrain_commands))
def test_commands_compose(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composes each command, and checks its settings as samtrain does before it starts."""
    given = get_args_parser().parse_args(shlex.split(command.split("-m samtrain", 1)[1]))
    overrides = given.overrides
    if given.multirun:  # the first point of a grid; the launcher is Hydra's own
        overrides = [re.sub(r"^([^\[{]*?),.*", r"\1", each) for each in overrides if not each.startswith("hydra")]
    if not overrides:
        return
    write_files(tmp_path)
    for name in PLACEHOLDERS:
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert given.config_dir in (None, "FOLDER")
    config = compose_config(overrides, given.config_dir and tmp_path)
    assert config.task in TASKS
    check_config(resolve(config), NODES)


@pytest.mark.parametrize("command", cases(commands))
def test_executables_are_known(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]  # OMP_NUM_THREADS=1 and the like
    assert not words or words[0] in EXECUTABLES, command
    for word in words[1:2]:  # python experiments/...: the script is there
        if words[0] in ("python", "python3", "bash") and not word.startswith("-"):
            assert (ROOT / word).exists(), command


@pytest.mark.parametrize("code", cases(lambda page: blocks(page, "python")))
def test_python_blocks_compile_and_name_what_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "samtrain":
                    import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samtrain":
            module = import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "samtrain":
            assert hasattr(import_module("samtrain"), node.attr), f"samtrain.{node.attr}"


@pytest.mark.parametrize("text", cases(lambda page: blocks(page, "yaml")))
def test_yaml_blocks_parse(text: str) -> None:
    yaml.safe_load(text)


# ---- tables


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "experiments").rglob("*.md"))], ids=lambda page: page.name)
def test_rows_have_as_many_cells_as_their_header(page: Path) -> None:
    header = None
    for number, line in enumerate(BLOCK.sub("", page.read_text()).splitlines()):
        cells = len(re.split(r"(?<!\\)\|", line)) if line.startswith("|") else None
        header = cells if header is None else header
        assert cells in (header, None), f"{page}: row {number} {line[:80]}"
        header = cells and header


def test_results_name_commits_of_this_repository() -> None:
    """Each row of a table with a column `commit` names commits by hashes, and git knows them."""
    hashes = set()
    column: int | None = None
    for line in (ROOT / "experiments" / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")] if line.startswith("|") else []
        if not cells:
            column = None
        elif "commit" in cells:
            column = cells.index("commit")
        elif column is not None and not cells[1].startswith("---"):
            found = re.findall(r"\b[0-9a-f]{7}\b", cells[column])
            assert found, line
            hashes |= set(found)
    assert hashes
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", "c8e44a8"], capture_output=True).returncode:
        pytest.skip("this copy has no git history")
    for each in sorted(hashes):
        assert subprocess.run([*git, "cat-file", "-e", f"{each}^{{commit}}"], capture_output=True).returncode == 0, each


# ---- keys

FILE_ENDINGS = (".py", ".yaml", ".json", ".csv", ".png", ".pth", ".safetensors")


@cache
def known_keys() -> set[str]:
    """Returns the dotted keys of the composed configs, nodes included."""
    found: set[str] = set()
    for overrides in KEY_SOURCES:
        _add_keys(OmegaConf.to_container(compose_config(overrides), resolve=False), "", found)
    return found


def _add_keys(node: Any, prefix: str, found: set[str]) -> None:
    for name, value in node.items() if isinstance(node, dict) else ():
        found.add(f"{prefix}{name}")
        _add_keys(value, f"{prefix}{name}.", found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_that_pages_name_exist(page: Path) -> None:
    """`loader.max_masks` in the text is a key of the config; `loader.max_masks=4` as well."""
    top = {key.split(".")[0] for key in known_keys()} - {"data"}
    text = BLOCK.sub("", page.read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        found = re.match(r"(?P<key>[a-z_]+(\.[a-z_0-9]+)+)(=.*)?$", code)
        if found and found["key"].split(".")[0] in top and not found["key"].endswith(FILE_ENDINGS):
            assert found["key"] in known_keys(), f"{page.name} names {found['key']}"


# ---- the site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and the navigation are checked by mkdocs; nothing is fetched from elsewhere."""
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    reference = (tmp_path / "site" / "configuration-reference" / "index.html").read_text()
    for key in ("loader.max_masks", "recipes.vit_h.layer_decay", "scale.image_size", "annotator.time_model.click"):
        assert f"<code>{key}</code>" in reference, key

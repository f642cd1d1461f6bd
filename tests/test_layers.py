"""Imports go down only (CONTRIBUTING.md, "Layers")."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "samtrain"

# the layer of each file or folder of samtrain/; siblings do not meet but in SIBLINGS_ALLOWED
LAYERS = {
    "types": 0, "files": 0, "plain": 0, "ops": 0, "terminal": 0, "report": 0, "version": 0,
    "modeling": 1, "text": 1, "prompts": 1, "losses": 1, "data": 1,
    "interact": 2, "inference": 2, "metrics": 2, "panels": 2,
    "training": 3, "evaluators": 3, "export": 3,
    "data_engine": 4, "annotator": 4, "detector": 4, "tuning": 4,
    "run": 5,
    "tasks": 6, "__main__": 6, "entry": 6, "arguments": 6, "refusals": 6, "renamed": 6,
}  # fmt: skip
# layer 0 shares its files; in layer 2 the loop comes before those who prompt by it; the losses need the model they are taken of
SIBLINGS_ALLOWED = {0, 2, 6}
INTERFACES = {("annotator", "samtrain.data_engine.interface")}  # what one sibling of layer 4 may know of another
OUTSIDE = {
    "hydra": 5, "omegaconf": 6,
    "pytorch_lightning": 3, "lightning": 3, "lightning_fabric": 3,
    "fastapi": 4, "starlette": 4, "uvicorn": 4, "sqlalchemy": 4, "psycopg": 4,
    "timm": 1, "webdataset": 1, "open_clip": 1,
}  # fmt: skip
LIGHT = {"torch", "triton", "numpy", "pycocotools", "scipy", "yaml", "rich"}  # what layer 0 may know


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def area(path: Path) -> str:
    """The file or folder directly under samtrain/ that a module belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names of all that a module imports, inside functions too, type checking included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "samtrain" else [module]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    mine = area(path)
    assert mine in LAYERS, f"say in LAYERS where {mine} belongs"
    layer = LAYERS[mine]
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "samtrain" and rest:
            other = rest[0]
            assert other in LAYERS, f"{path} imports {name}"
            may = other == mine or LAYERS[other] < layer or (layer in SIBLINGS_ALLOWED and LAYERS[other] == layer)
            assert may or (mine, name) in INTERFACES, f"{mine} (layer {layer}) imports {other} (layer {LAYERS[other]})"
        assert OUTSIDE.get(first, 0) <= layer, f"{mine} (layer {layer}) imports {first}"


@pytest.mark.parametrize("path", [p for p in modules() if LAYERS.get(area(p)) == 0], ids=lambda path: path.name)
def test_layer_0_knows_shapes_alone(path: Path) -> None:
    for name in imports(path):
        first = name.split(".")[0]
        assert first in {"samtrain", *LIGHT} | sys.stdlib_module_names, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it by idea"


def config_subscripts(tree: ast.AST) -> list[int]:
    """Lines that look a setting up in the config: `config["data"]`, `self.config["data"]["root"]`."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and (node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")) in ("config", "settings")
    ]


@pytest.mark.parametrize("path", [p for p in modules() if LAYERS.get(area(p), 9) < LAYERS["run"]], ids=lambda path: path.name)
def test_nothing_below_run_looks_settings_up_in_the_config(path: Path) -> None:
    """Each node of the config is a frozen dataclass there; a checkpoint's stored config is read by its own names."""
    assert not config_subscripts(ast.parse(path.read_text()))


def test_config_subscripts_are_found() -> None:
    source = """config["data"]["root"]; self.config["data"]; config[key]; settings["x"]; values["data"]"""
    assert config_subscripts(ast.parse(source)) == [1, 1, 1]

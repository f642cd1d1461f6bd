"""`task=export`: what is written is the model that was given, in a form that others read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samtrain.modeling.build import build_sam, load_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.tasks import export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_safetensors(build_sam("vit_tiny", image_size=64), tmp_path_factory.mktemp("given") / "own.safetensors")


@pytest.mark.parametrize("name", [None, "a/b.pth", "b.safetensors"])
def test_an_exported_model_is_the_one_that_was_given(checkpoint: Path, tmp_path: Path, name: str | None) -> None:
    path = tmp_path / (name or "model.pth")
    export.run({"checkpoint": str(checkpoint), "export": {"path": name and str(path)}}, tmp_path)
    written, given = load_sam(path), load_sam(checkpoint)
    assert written.config == given.config
    state = written.state_dict()
    assert all(torch.equal(state[key], value) for key, value in given.state_dict().items())


def test_what_is_missing_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task=export needs one, set checkpoint=FILE"):
        export.run({"checkpoint": None, "export": {"path": None}}, tmp_path)
    with pytest.raises(ValueError, match="export.path is .*model.onnx'.* .pth or .safetensors"):
        export.run({"checkpoint": str(checkpoint), "export": {"path": str(tmp_path / "model.onnx")}}, tmp_path)
    assert not list(tmp_path.iterdir())

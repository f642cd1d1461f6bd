"""`task=export`: what is written is the model that was given, in a form that others read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samtrain.modeling.build import build_sam, load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.trained_on import images_trained_on
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


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "huggingface"])
def test_an_exported_model_still_says_which_images_it_was_trained_on(checkpoint: Path, tmp_path: Path, name: str) -> None:
    seen = {"00000000000000ff", "ffffffffffffff00"}
    first = save_official(load_sam(checkpoint), tmp_path / "first.pth", trained_on=seen)
    node = {"path": str(tmp_path / name)} if "." in name else {"path": str(tmp_path), "formats": [name]}
    export.run({"checkpoint": str(first), "export": node}, tmp_path)
    assert images_trained_on(tmp_path / name) == seen
    assert load_sam(tmp_path / name).config == load_sam(checkpoint).config
    assert images_trained_on(checkpoint) == set()


def test_what_is_missing_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task=export needs one, set checkpoint=FILE"):
        export.run({"checkpoint": None, "export": {"path": None}}, tmp_path)
    with pytest.raises(ValueError, match="export.path is .*model.onnx'.* .pth or .safetensors"):
        export.run({"checkpoint": str(checkpoint), "export": {"path": str(tmp_path / "model.onnx")}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_full_disk_leaves_no_half_file_and_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails_halfway(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    def full(self: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("samtrain.modeling.checkpoints.torch.save", fails_halfway)
    monkeypatch.setattr("samtrain.files.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    if name.endswith(".safetensors"):
        monkeypatch.setattr(Path, "write_bytes", full)
    path = tmp_path / name
    with pytest.raises(OSError, match=rf"No space left on device \(free some disk space.*export.path\): '.*{name}'"):
        export.run({"checkpoint": str(checkpoint), "export": {"path": str(path)}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_has_the_permissions_that_the_user_wants(checkpoint: Path, tmp_path: Path, name: str) -> None:
    before = os.umask(0o027)
    try:
        export.run({"checkpoint": str(checkpoint), "export": {"path": str(tmp_path / name)}}, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640

"""Tests that files of other programs are read where their meaning is certain, and else refused with what was found."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from samtrain.modeling import Sam, load_sam
from samtrain.modeling.sam import PIXEL_MEAN, SamConfig

CONFIG = SamConfig("custom", 32, 2, 2, (1,), window_size=2, image_size=32, patch_size=8, prompt_dim=32, decoder_mlp_dim=32)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: value.clone() for key, value in Sam(CONFIG).state_dict().items()}


def _read(path: Path, content: Any) -> Sam:
    torch.save(content, path)
    return load_sam(path)


def _assert_equal(sam: Sam, weights: dict[str, Tensor]) -> None:
    found = sam.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "sam.", "module.model.", "model._orig_mod.", "trainer.sam."])
@pytest.mark.parametrize("wrapper", [(), ("model",), ("state_dict",), ("model_state_dict",), ("net",), ("state_dict", "model")])
def test_prefixes_and_wrappers_are_taken_off(tmp_path: Path, weights: dict[str, Tensor], prefix: str, wrapper: tuple) -> None:
    content: Any = {f"{prefix}{key}": value for key, value in weights.items()}
    for name in reversed(wrapper):
        content = {name: content, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    _assert_equal(_read(tmp_path / "sam.pth", content), weights)


@pytest.mark.parametrize("wrapper", ["model_ema", "params", "checkpoint", "student"])
def test_weights_are_found_under_any_key(tmp_path: Path, weights: dict[str, Tensor], wrapper: str) -> None:
    content = {f"module.{key}": value for key, value in weights.items()}
    beside = {"model": {"name": "vit_b"}, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 3}
    _assert_equal(_read(tmp_path / "sam.pth", {wrapper: content, **beside}), weights)
    _assert_equal(_read(tmp_path / "sam.pth", {"all": {wrapper: content, **beside}}), weights)


def test_of_several_models_the_usual_key_is_read_or_none(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    average = {key: value / 2 for key, value in weights.items()}
    _assert_equal(_read(tmp_path / "sam.pth", {"model_ema": average, "model": weights}), weights)
    assert "holds weights under 'model_ema', too; those under 'model' are read" in caplog.text
    with pytest.raises(ValueError, match=r"holds 2 models, 'student', 'teacher' \(checkpoint\): save the state_dict of one"):
        _read(tmp_path / "sam.pth", {"student": weights, "teacher": average})


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.zeros(1)}
    content["model"] = content
    with pytest.raises(ValueError, match="not the weights of a SAM"):
        _read(tmp_path / "sam.pth", content)


def test_tensors_beside_the_model_are_left_out(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    content = {f"sam.{key}": value for key, value in weights.items()} | {"loss.weight": torch.ones(3)}
    _assert_equal(_read(tmp_path / "sam.pth", {"state_dict": content}), weights)


def test_plain_values_beside_the_weights_are_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    beside = {
        "best": np.float64(0.3), "small": np.float32(1), "step": np.int64(7), "done": np.bool_(True), "curve": np.arange(3.0),
        "args": argparse.Namespace(lr=1e-4, output=Path("runs"), sizes=[1, 2]),
    }  # fmt: skip
    _assert_equal(_read(tmp_path / "sam.pth", {"model": weights, **beside}), weights)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("hide", [lambda x: x, lambda x: argparse.Namespace(lr=x), lambda x: np.array([x], dtype=object)])
def test_nothing_in_a_file_runs(tmp_path: Path, weights: dict[str, Tensor], hide: Any) -> None:
    with pytest.raises(ValueError, match=r"nothing in it was executed \(checkpoint\): it names posix.mkdir"):
        _read(tmp_path / "sam.pth", {"model": weights, "extra": hide(Hostile(tmp_path / "made"))})
    assert not (tmp_path / "made").exists()


def test_own_normalisation_is_used_and_said(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    usual = {"pixel_mean": torch.tensor(PIXEL_MEAN).view(-1, 1, 1)}
    assert _read(tmp_path / "sam.pth", {**weights, **usual}).config.pixel_mean == PIXEL_MEAN and not caplog.text
    with caplog.at_level(logging.WARNING):
        sam = _read(tmp_path / "sam.pth", {**weights, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
    assert sam.config.pixel_mean == (0, 0, 0) and sam.config.pixel_std == (1, 1, 1) and sam.pixel_std.eq(1).all()
    assert "has its own normalisation of pixels, which is used" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, weights: dict[str, Tensor], value: float) -> None:
    broken = {**weights, "mask_decoder.iou_token.weight": weights["mask_decoder.iou_token.weight"] + value}
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of \d+ tensors, first in mask_decoder.iou_token.weight"):
        _read(tmp_path / "sam.pth", broken)


def test_several_models_are_refused_by_name(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    content = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in weights.items()}
    with pytest.raises(ValueError, match="holds 2 models, 'student.', 'teacher.'"):
        _read(tmp_path / "sam.pth", content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no tensors but a list"),
        ({}, "holds no tensors but an empty dictionary"),
        ({"epoch": 3, "log": "text"}, "holds no tensors but a dictionary with the keys 'epoch', 'log'"),
        ({"conv1.weight": torch.ones(2)}, r"these are not the weights of a SAM: .* \(conv1.weight, ...\)"),
    ],
)
def test_other_files_are_refused_with_what_was_found(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _read(tmp_path / "sam.pth", content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 375\n", "pointer of git-lfs.*fetch them with"),
        ("<!DOCTYPE html><html></html>", "is a web page, not weights"),
    ],
)
def test_what_is_stored_in_place_of_weights_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sam.pth").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_sam(tmp_path / "sam.pth")


def test_a_folder_of_transformers_is_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"is a folder without model.safetensors \(checkpoint\), it holds nothing"):
        load_sam(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    _assert_equal(load_sam(tmp_path), weights)

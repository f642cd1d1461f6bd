"""A program of torch.export gives samtrain's masks without samtrain's operators."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from samtrain.export import torch_programs
from samtrain.export.config import ExportConfig
from samtrain.export.graphs import EncoderGraph
from samtrain.export.probe import ask_samtrain, compare, make_probe
from samtrain.modeling import Sam
from samtrain.modeling.transformer import head_channels
from tests.export.conftest import random_sam


def test_programs_agree_and_need_no_samtrain(sam: Sam, tmp_path: Path) -> None:
    probe = make_probe()
    expected = ask_samtrain(sam, probe)
    (product,) = torch_programs.write_torch_export(sam, tmp_path, ExportConfig(formats=["torch_export"]))
    agreement = compare(expected.answers, product.ask(probe).answers)
    assert max(agreement.logit_error, agreement.iou_error) < 1e-4 and agreement.mask_iou > 0.999
    for path in product.files:
        with path.open("rb") as file:
            targets = {str(node.target) for node in torch.export.load(file).graph.nodes}
        assert not any("samtrain" in target for target in targets)
    # tensors that were made while the graph was traced are not found by the model later
    head_channels.cache_clear()
    assert compare(expected.answers, ask_samtrain(sam, probe).answers).logit_error == 0


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_an_encoder_takes_any_number_of_images(sam: Sam, batch: int, program: torch.export.ExportedProgram) -> None:
    images = torch.randn(batch, 3, 64, 64)
    assert (program.module()(input_image=images) - sam.encode(images)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def program(sam: Sam) -> torch.export.ExportedProgram:
    return torch_programs.program(EncoderGraph(sam))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
def test_compiled_programs_agree(tmp_path: Path) -> None:
    """One block and one layer, because the compiler takes a minute for these."""
    small, probe = random_sam(7, encoder_depth=1, global_attn_indexes=(0,), decoder_depth=1), make_probe()
    (product,) = torch_programs.write_aotinductor(small, tmp_path, ExportConfig(formats=["aotinductor"]))
    agreement = compare(ask_samtrain(small, probe).answers, product.ask(probe).answers)
    assert max(agreement.logit_error, agreement.iou_error) < 1e-4 and agreement.mask_iou > 0.999


def test_aotinductor_without_a_compiler_is_refused(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_programs.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="aotinductor, which needs a C\\+\\+ compiler: install g\\+\\+"):
        torch_programs.write_aotinductor(sam, tmp_path, ExportConfig(formats=["aotinductor"]))
    assert not list(tmp_path.iterdir())

"""`export_model` keeps what gives the model's masks in the other program, and removes what does not."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samtrain.export import formats
from samtrain.export.config import ExportConfig
from samtrain.export.product import Product
from samtrain.export.run import export_model
from samtrain.files import digest
from samtrain.modeling import Sam, load_sam, save_safetensors
from samtrain.modeling.sam import PIXEL_MEAN
from samtrain.tasks import export
from tests.export.conftest import random_sam

FACTS = {"checkpoint": "best.ckpt"}


def test_formats_are_written_checked_and_described(sam: Sam, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the reference: pip install transformers")
    pytest.importorskip("segment_anything", reason="needs the reference: pip install segment-anything")
    settings = ExportConfig(formats=["official", "safetensors", "huggingface"])
    good = export_model(sam, tmp_path, settings, image=None, facts=FACTS)
    assert [each.product.name for each in good] == ["official", "safetensors", "huggingface"]
    figures = json.loads((tmp_path / "export.json").read_text())
    assert figures["checkpoint"] == "best.ckpt" and figures["model"] == sam.config.to_dict()
    for name, program in (("official", "segment-anything"), ("safetensors", "samtrain"), ("huggingface", "transformers")):
        found = figures["formats"][name]
        assert found["passed"] and found["checked_with"].startswith(program) and found["agreement"]["logit_error"] < 1e-5
        for file, facts in found["files"].items():
            assert facts == {"bytes": (tmp_path / file).stat().st_size, "sha256": digest(tmp_path / file)}
    card = (tmp_path / "README.md").read_text()
    assert "| official | segment-anything" in card and "checkpoint | best.ckpt" in card
    # the code on the card runs beside the files
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            exec(code, {})
    finally:
        os.chdir(before)


def test_graphs_without_text_prompts_say_so(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(model: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
        return formats.write_safetensors(model, folder / "onnx", settings)

    monkeypatch.setitem(formats.WRITERS, "onnx", write)
    settings = ExportConfig(formats=["safetensors", "onnx"])
    export_model(sam, tmp_path / "plain", settings, image=None, facts=FACTS)
    assert "text prompts" not in caplog.text
    with_texts = Sam(replace(sam.config, text_dim=16)).eval()
    export_model(with_texts, tmp_path / "texts", settings, image=None, facts=FACTS)
    assert "onnx: these files take no text prompts" in caplog.text and "safetensors" not in caplog.text.split("text prompts")[0]


def test_what_does_not_agree_is_removed(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = random_sam(5)

    def write_wrong(_: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
        path = save_safetensors(other, folder / "wrong" / "model.safetensors").parent
        return [replace(formats.write_safetensors(other, folder / "x", settings)[0], name="huggingface", files=[path])]

    monkeypatch.setitem(formats.WRITERS, "huggingface", write_wrong)
    settings = ExportConfig(formats=["huggingface", "official"])
    with pytest.raises(ValueError, match=r"1 of the formats did not give .* masks .*: huggingface \(an error of .*export.json"):
        export_model(sam, tmp_path, settings, image=None, facts=FACTS)
    assert not (tmp_path / "wrong").exists() and load_sam(tmp_path / "model.pth").config == sam.config
    figures = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert not figures["huggingface"]["passed"] and figures["official"]["passed"]
    assert "huggingface" not in (tmp_path / "README.md").read_text().split("## How")[0]


def test_the_comparison_sees_small_mistakes(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(given: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
        wrong = Sam(replace(given.config, pixel_mean=tuple(value + 2 for value in PIXEL_MEAN))).eval()
        wrong.load_state_dict(given.state_dict())
        return formats.write_safetensors(wrong, folder, settings)

    monkeypatch.setitem(formats.WRITERS, "safetensors", shifted)
    with pytest.raises(ValueError, match="did not give samtrain's masks"):
        export_model(sam, tmp_path, ExportConfig(formats=["safetensors"]), image=None, facts=FACTS)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_missing_program_is_said(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    (good,) = export_model(sam, tmp_path, ExportConfig(formats=["huggingface"]), image=None, facts=FACTS)
    assert good.product.program == "samtrain" and good.agreement.logit_error == 0
    assert "huggingface was only read back by samtrain" in caplog.text and "samtrain[parity]" in caplog.text


def test_the_task_takes_an_image_and_warns_of_native_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    given = random_sam(2, frame="native")
    checkpoint = save_safetensors(given, tmp_path / "given.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    node = {"path": str(tmp_path / "out"), "formats": ["safetensors"], "image": str(tmp_path / "image.png")}
    export.run({"checkpoint": str(checkpoint), "export": node}, tmp_path)
    figures = json.loads((tmp_path / "out" / "export.json").read_text())
    assert figures["image"] == [40, 30] and figures["checkpoint_sha256"] == digest(checkpoint)
    assert "was trained on native pixels" in caplog.text and "native pixels" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"formats": ["pth"]}, r"export.formats is \['pth'\]: give a list of one or more of official, safetensors"),
        ({"formats": []}, "export.formats is"),
        ({"formats": ["official"], "path": "a.pth"}, "export.path is 'a.pth' and export.formats is set: give a folder"),
        ({"path": "a.onnx"}, r"export.path is 'a.onnx': .*or set export.formats to some of official"),
        ({"formats": ["onnx"], "precision": ["fp8"]}, "export.precision is"),
        ({"onnx_input": "raw"}, "export.onnx_input is 'raw': choose normalised or pixels"),
        ({"min_iou": 0}, "export.min_iou is 0"),
        ({"image": "none.png"}, "export.image is 'none.png', which is not a file"),
    ],
)
def test_settings_are_checked(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExportConfig(**fields)


def test_weights_of_an_average_are_exported(tmp_path: Path) -> None:
    """Lightning stores the average as the state_dict, and the weights that were trained beside it."""
    given, trained = random_sam(3), random_sam(4)
    content = {
        "state_dict": {f"sam.{key}": value for key, value in given.state_dict().items()},
        "current_model_state": {f"sam.{key}": value for key, value in trained.state_dict().items()},
        "sam_config": given.config.to_dict(),
    }
    torch.save(content, tmp_path / "best.ckpt")
    export.run({"checkpoint": str(tmp_path / "best.ckpt"), "export": {"path": str(tmp_path / "m.safetensors")}}, tmp_path)
    written = load_sam(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(written[key], value) for key, value in given.state_dict().items())

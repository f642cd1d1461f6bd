"""ONNX Runtime gives samtrain's masks, from the image file to the mask, for any number of images, objects and points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'samtrain[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'samtrain[onnx]'")

import onnx  # noqa: E402

from samtrain.export import onnx_files, onnx_formats  # noqa: E402
from samtrain.export.config import ExportConfig  # noqa: E402
from samtrain.export.onnx_formats import session, write_onnx, write_optimum  # noqa: E402
from samtrain.export.probe import ask_samtrain, compare, make_probe  # noqa: E402
from samtrain.export.run import export_model  # noqa: E402
from samtrain.modeling import Sam  # noqa: E402
from samtrain.types import Prompts  # noqa: E402

SIZE = (50, 70)


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Any:
    """Tracing a graph takes seconds, so that each one is traced once for all tests."""
    real = onnx_formats.export_graph
    made: dict[str, Any] = {}

    def export_graph(graph: torch.nn.Module) -> Any:
        name = type(graph).__name__
        made[name] = made.get(name) or real(graph)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_formats, "export_graph", export_graph)
        yield


@pytest.fixture(scope="module")
def folder(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(sam, folder, ExportConfig(formats=["onnx"]))
    write_optimum(sam, folder, ExportConfig(formats=["optimum"]))
    return folder


def _names(path: Path) -> tuple[list[str], list[str]]:
    made = session(path)
    return [each.name for each in made.get_inputs()], [each.name for each in made.get_outputs()]


def test_names_are_those_that_other_programs_expect(folder: Path) -> None:
    without_size = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"]
    for name in ("decoder", "decoder_single_mask"):
        expected = [*without_size, "orig_im_size"], ["masks", "iou_predictions", "low_res_masks"]
        assert _names(folder / f"onnx/{name}.onnx") == expected
    assert _names(folder / "onnx/decoder_low_res.onnx") == (without_size, ["iou_predictions", "low_res_masks"])
    assert _names(folder / "onnx/encoder.onnx") == (["input_image"], ["image_embeddings"])
    pair = ["image_embeddings", "image_positional_embeddings"]
    assert _names(folder / "optimum/onnx/vision_encoder.onnx") == (["pixel_values"], pair)
    decoder = ["input_points", "input_labels", *pair], ["iou_scores", "pred_masks"]
    assert _names(folder / "optimum/onnx/prompt_encoder_mask_decoder.onnx") == decoder
    assert (folder / "optimum/config.json").is_file() and (folder / "optimum/preprocessor_config.json").is_file()


def test_only_batches_are_dynamic_in_an_encoder_and_no_shape_is_computed_without_upscaling(folder: Path) -> None:
    """TensorRT takes neither images of unknown sides nor sizes that come from floats."""
    shape = onnx.load(folder / "onnx/encoder.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [0, 3, 64, 64]
    operations = {node.op_type for node in onnx.load(folder / "onnx/decoder_low_res.onnx").graph.node}
    assert not operations & {"Resize", "NonZero", "Loop", "If", "Mod"}


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_images_of_a_batch_have_their_own_embeddings(sam: Sam, folder: Path, batch: int) -> None:
    images = torch.randn(batch, 3, 64, 64)
    expected = sam.encode(images).numpy()
    (found,) = session(folder / "onnx/encoder.onnx").run(None, {"input_image": images.numpy()})
    assert np.abs(found - expected).max() < 1e-4
    same, positions = session(folder / "optimum/onnx/vision_encoder.onnx").run(None, {"pixel_values": images.numpy()})
    assert np.array_equal(same, found) and np.allclose(positions, sam.prompt_encoder.dense_pe().expand(batch, -1, -1, -1))


@pytest.mark.parametrize(("objects", "points", "masks"), [(1, 1, 0), (3, 2, 3), (3, 5, 1)])
@torch.no_grad()
def test_the_decoder_equals_that_of_metas_exporter(sam: Sam, folder: Path, objects: int, points: int, masks: int) -> None:
    pytest.importorskip("segment_anything", reason="needs the reference: pip install segment-anything")
    from segment_anything.utils.onnx import SamOnnxModel

    from tests.official import official_like

    generator = torch.Generator().manual_seed(objects + points)
    inputs = {
        "image_embeddings": torch.randn(1, 32, 8, 8, generator=generator),
        "point_coords": torch.rand(objects, points, 2, generator=generator) * 64,
        "point_labels": torch.randint(-1, 4, (objects, points), generator=generator).float(),
        "mask_input": torch.randn(max(masks, 1), 1, 32, 32, generator=generator) * 5,
        "has_mask_input": torch.tensor([float(masks > 0)]),
        "orig_im_size": torch.tensor(SIZE).float(),
    }
    for name, single in (("decoder", False), ("decoder_single_mask", True)):
        expected = SamOnnxModel(official_like(sam), return_single_mask=single)(**inputs)
        found = session(folder / f"onnx/{name}.onnx").run(None, {key: value.numpy() for key, value in inputs.items()})
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape and np.abs(ours - theirs.numpy()).max() < 1e-4 * max(1, theirs.abs().max())


@pytest.mark.parametrize(("batch", "objects", "points"), [(1, 1, 1), (3, 1, 2), (2, 3, 4)])
@torch.no_grad()
def test_optimums_pair_takes_clicks_on_several_images(sam: Sam, folder: Path, batch: int, objects: int, points: int) -> None:
    embeddings = torch.randn(batch, 32, 8, 8)
    coords = torch.rand(batch, objects, points, 2) * 64
    labels = torch.randint(0, 2, (batch, objects, points))
    # samtrain's prompts, with the padding that stands for "no box"
    flat = Prompts(
        torch.cat([coords.flatten(0, 1), torch.zeros(batch * objects, 1, 2)], dim=1),
        torch.cat([labels.flatten(0, 1), torch.full((batch * objects, 1), -1)], dim=1),
    )
    expected = sam.decode(embeddings, torch.arange(batch).repeat_interleave(objects), flat, True)
    positions = sam.prompt_encoder.dense_pe().expand(batch, -1, -1, -1)
    inputs = {
        "input_points": coords,
        "input_labels": labels,
        "image_embeddings": embeddings,
        "image_positional_embeddings": positions,
    }
    ious, masks = session(folder / "optimum/onnx/prompt_encoder_mask_decoder.onnx").run(
        None, {name: value.detach().numpy() for name, value in inputs.items()}
    )
    assert masks.shape == (batch, objects, 3, 32, 32)
    scale = max(1, expected.low_res_logits.abs().max())
    assert np.abs(masks.reshape(-1, 3, 32, 32) - expected.low_res_logits.numpy()).max() < 1e-4 * scale
    assert np.abs(ious.reshape(-1, 3) - expected.iou_predictions.numpy()).max() < 1e-4 * scale


@pytest.mark.parametrize("onnx_input", ["normalised", "pixels"])
def test_a_files_masks_agree_and_the_cards_code_runs(sam: Sam, tmp_path: Path, onnx_input: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    settings = ExportConfig(formats=["onnx"], onnx_input=onnx_input)
    (good,) = export_model(sam, tmp_path, settings, image=np.asarray(Image.open(tmp_path / "image.png")), facts={})
    assert max(good.agreement.logit_error, good.agreement.iou_error) < 1e-4 and good.agreement.mask_iou > 0.99
    assert good.image_seconds > 0 and good.prompt_seconds > 0
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"onnx/', f'"{tmp_path}/onnx/')
    found: dict[str, Any] = {"IMAGE": str(tmp_path / "image.png")}
    exec(code, found)
    assert found["mask"].shape == SIZE


def test_float16_and_int8_keep_the_masks_nearly(sam: Sam, tmp_path: Path) -> None:
    probe = make_probe()
    own = ask_samtrain(sam, probe)
    settings = ExportConfig(formats=["onnx"], precision=["fp32", "fp16", "int8"])
    ious = {}
    for product in write_onnx(sam, tmp_path, settings):
        agreement = compare(own.answers, product.ask(probe).answers)
        ious[product.name] = agreement.mask_iou
        assert all(path.is_file() for path in product.files) and product.rounds == (product.name != "onnx fp32")
        assert product.name == "onnx fp32" or agreement.logit_error > 1e-4, "nothing was rounded"
    assert ious["onnx fp32"] > 0.999 and ious["onnx fp16"] > 0.98 and ious["onnx int8"] > 0.9
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "onnx").iterdir()}
    assert sizes["encoder_fp16.onnx"] < 0.8 * sizes["encoder.onnx"]
    # what goes in and comes out stays float32
    for name in ("encoder_fp16", "decoder_fp16", "encoder_int8"):
        made = session(tmp_path / f"onnx/{name}.onnx")
        assert {each.type for each in [*made.get_inputs(), *made.get_outputs()]} == {"tensor(float)"}


def test_large_weights_lie_beside_the_graph(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "LARGEST_FILE", 10_000)
    (product,) = write_onnx(sam, tmp_path, ExportConfig(formats=["onnx"]))
    names = {path.name for path in product.files}
    assert {"encoder.onnx", "encoder.onnx.data", "decoder.onnx.data"} <= names
    assert names == {path.name for path in (tmp_path / "onnx").iterdir()}
    assert (tmp_path / "onnx/encoder.onnx").stat().st_size < (tmp_path / "onnx/encoder.onnx.data").stat().st_size
    assert (tmp_path / "onnx/encoder.onnx").stat().st_mode == (tmp_path / "onnx/encoder.onnx.data").stat().st_mode
    moved = (tmp_path / "onnx").rename(tmp_path / "moved")
    images = np.zeros((1, 3, 64, 64), np.float32)
    assert session(moved / "encoder.onnx").run(None, {"input_image": images})[0].shape == (1, 32, 8, 8)

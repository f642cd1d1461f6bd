"""Lists the formats that a model is written in, and what each is checked with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from samtrain.export.config import ExportConfig
from samtrain.export.huggingface import ask_transformers, save_huggingface
from samtrain.export.official import ask_segment_anything
from samtrain.export.onnx_formats import write_onnx, write_optimum
from samtrain.export.probe import ask_samtrain
from samtrain.export.product import Product
from samtrain.export.torch_programs import write_aotinductor, write_torch_export
from samtrain.modeling.build import load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.sam import Sam

Writer = Callable[..., list[Product]]  # of (Sam, Path, ExportConfig)


def write_official(sam: Sam, folder: Path, settings: ExportConfig, *, trained_on: Collection[str] = ()) -> list[Product]:
    """Writes `model.pth`, and checks it in Meta's package."""
    path = save_official(sam, folder / "model.pth", trained_on=trained_on)
    if find_spec("segment_anything") is None:
        return [Product("official", [path], lambda probe: ask_samtrain(load_sam(path), probe), "samtrain", missing="parity")]
    ask = lambda probe: ask_segment_anything(path, sam.config, probe)  # noqa: E731
    return [Product("official", [path], ask, _version("segment-anything"))]


def write_safetensors(sam: Sam, folder: Path, settings: ExportConfig, *, trained_on: Collection[str] = ()) -> list[Product]:
    """Writes `model.safetensors` under our own names, which only samtrain reads."""
    path = save_safetensors(sam, folder / "model.safetensors", trained_on=trained_on)
    return [Product("safetensors", [path], lambda probe: ask_samtrain(load_sam(path), probe), "samtrain")]


def write_huggingface(sam: Sam, folder: Path, settings: ExportConfig, *, trained_on: Collection[str] = ()) -> list[Product]:
    """Writes the folder `huggingface`, and checks it in transformers."""
    path = save_huggingface(sam, folder / "huggingface", trained_on=trained_on)
    if find_spec("transformers") is None:
        ask = lambda probe: ask_samtrain(load_sam(path), probe)  # noqa: E731
        return [Product("huggingface", [path], ask, "samtrain", missing="parity")]
    return [Product("huggingface", [path], lambda probe: ask_transformers(path, sam.config, probe), _version("transformers"))]


def _version(package: str) -> str:
    return f"{package} {metadata.version(package)}"


WRITERS: dict[str, Writer] = {
    "official": write_official,
    "safetensors": write_safetensors,
    "huggingface": write_huggingface,
    "onnx": write_onnx,
    "optimum": write_optimum,
    "torch_export": write_torch_export,
    "aotinductor": write_aotinductor,
}
EXTRAS = {"onnx": "onnx", "optimum": "onnx"}  # formats that need an optional package to be written, and its extra
GRAPHS = ("onnx", "optimum", "torch_export", "aotinductor")  # they take clicks, boxes and masks, and no embedding of a text
KEEPS_TRAINED_ON = ("official", "safetensors", "huggingface")  # these files say which images the model was trained on

"""Writes programs of torch.export, and libraries of AOTInductor, that run without samtrain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samtrain.export.config import ExportConfig
from samtrain.export.graphs import DecoderGraph, EncoderGraph, example
from samtrain.export.numpy_frame import in_input_frame, network_input
from samtrain.export.onnx_formats import meta_prompts
from samtrain.export.probe import Answer, Probe, Reading, ask
from samtrain.export.product import Product
from samtrain.files import atomic_path, explain_full_disk
from samtrain.modeling.checkpoints import EXPORT_CURE
from samtrain.modeling.sam import Sam, SamConfig

NUM_OUTPUTS = 4  # masks of the decoder's graph


def write_torch_export(sam: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
    """Writes `torch_export/encoder.pt2` and `decoder.pt2`, the decoder without its upscaling to the image's size."""
    paths = _paths(folder / "torch_export")
    for path, graph in zip(paths, (EncoderGraph(sam), DecoderGraph(sam)), strict=True):
        made = program(graph)
        # a file object, because the function wants the ending .pt2 in a name
        full = explain_full_disk(path, EXPORT_CURE, (RuntimeError,))
        with full, atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.export.save(made, file)
    return [Product("torch_export", paths, partial(_ask, paths, _load_program, sam.config), f"torch {torch.__version__}")]


def write_aotinductor(sam: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
    """Writes `aotinductor/encoder.pt2` and `decoder.pt2`, compiled for this machine; raises ValueError without a compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ValueError("export.formats has aotinductor, which needs a C++ compiler: install g++, or leave aotinductor out")
    paths = _paths(folder / "aotinductor")
    for path, graph in zip(paths, (EncoderGraph(sam), DecoderGraph(sam)), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch._inductor.aoti_compile_and_package(program(graph), package_path=str(path))
    ask_it = partial(_ask, paths, lambda path: torch._inductor.aoti_load_package(str(path)), sam.config)
    return [Product("aotinductor", paths, ask_it, f"torch {torch.__version__}")]


def program(graph: nn.Module) -> torch.export.ExportedProgram:
    """Returns a graph of `graphs` as a program for any number of images, objects and points."""
    inputs, axes = example(graph)
    dims: dict[str, Any] = {}  # axes with one name have one length
    shapes = {
        name: {axis: dims.setdefault(dim, torch.export.Dim(dim)) for axis, dim in axes.get(name, {}).items()} or None
        for name in inputs
    }
    with torch.no_grad():
        return torch.export.export(graph.eval(), (), kwargs=inputs, dynamic_shapes=shapes, strict=False)


def _paths(folder: Path) -> list[Path]:
    return [folder / "encoder.pt2", folder / "decoder.pt2"]


def _load_program(path: Path) -> Callable[..., Any]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _ask(paths: list[Path], load: Callable[[Path], Callable[..., Any]], config: SamConfig, probe: Probe) -> Reading:
    """Returns the answers of the loaded programs."""
    encoder, decoder = (load(path) for path in paths)
    embeddings: dict[str, Tensor] = {}

    @torch.no_grad()
    def set_image() -> None:
        embeddings["image"] = encoder(input_image=torch.from_numpy(network_input(probe.image, config)))

    @torch.no_grad()
    def decode(objects: slice, use_boxes: bool) -> Answer:
        points, labels = meta_prompts(probe, objects, use_boxes)
        ious, masks = decoder(
            image_embeddings=embeddings["image"],
            point_coords=torch.from_numpy(in_input_frame(points, probe.image.shape[:2], config)),
            point_labels=torch.from_numpy(np.ascontiguousarray(labels)),
            mask_input=torch.zeros(len(points), 1, config.mask_size, config.mask_size),
            has_mask_input=torch.zeros(1),
        )
        return Answer(masks[:, 1:NUM_OUTPUTS].numpy(), ious[:, 1:NUM_OUTPUTS].numpy())

    return ask(
        set_image,
        {
            "clicks": lambda: decode(slice(None), False),
            "boxes": lambda: decode(slice(None), True),
            "one object": lambda: decode(slice(1), False),
        },
    )

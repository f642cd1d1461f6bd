"""The settings of `task=export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Format = Literal["official", "safetensors", "huggingface", "onnx", "optimum", "torch_export", "aotinductor"]
MaskFormat = Literal["coco", "sa1b", "label_maps"]  # of a data set
Precision = Literal["fp32", "fp16", "int8"]
OnnxInput = Literal["normalised", "pixels"]
ENDINGS = {".pth": "official", ".safetensors": "safetensors"}  # formats of a single file


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The `export` node: what is written, and how well it must agree with samtrain.

    path:        the file to write, or with `formats` the folder; None: model.pth in the run's directory, or the directory
    formats:     the formats to write, each checked in the library that it is for; None: one file, as `path` says
    dataset:     shards to write instead of a checkpoint, with `formats` coco, sa1b, label_maps
    image:       the image on which masks are compared; None: a painted scene
    precision:   of the ONNX files: fp32, fp16, int8, several of them if a list has several
    onnx_input:  what the ONNX encoder takes: normalised (B, 3, S, S), or pixels (H, W, 3) of 0 to 255
    min_iou:     smallest IoU of a mask with samtrain's where a format rounds: fp16, int8, another resize
    """

    path: str | None = None
    formats: list[str] | None = None
    dataset: str | list[str] | None = None
    image: str | None = None
    precision: list[str] = field(default_factory=lambda: ["fp32"])
    onnx_input: OnnxInput = "normalised"
    min_iou: float = 0.95

    def __post_init__(self) -> None:
        if self.formats is None and self.path is not None and Path(self.path).suffix not in ENDINGS:
            raise ValueError(
                f"export.path is {self.path!r}: set it to a file that ends with {' or '.join(ENDINGS)}, or set export.formats "
                f"to some of {', '.join(get_args(Format))}, and export.path to a folder"
            )
        if self.formats is not None and self.path is not None and Path(self.path).suffix in ENDINGS:
            raise ValueError(
                f"export.path is {self.path!r} and export.formats is set: give a folder, in which each format has its own files"
            )
        _check_list("export.formats", self.formats, get_args(Format if self.dataset is None else MaskFormat))
        if self.dataset is not None and self.formats is None:
            raise ValueError(f"export.dataset is set: set export.formats to some of {', '.join(get_args(MaskFormat))}, too")
        _check_list("export.precision", self.precision, get_args(Precision))
        if self.onnx_input not in get_args(OnnxInput):
            raise ValueError(f"export.onnx_input is {self.onnx_input!r}: choose {' or '.join(get_args(OnnxInput))}")
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"export.min_iou is {self.min_iou}: give a share above 0 and up to 1")
        if self.image is not None and not Path(self.image).is_file():
            raise ValueError(f"export.image is {self.image!r}, which is not a file: give an image, or null for a painted scene")


def _check_list(key: str, values: list[str] | None, known: tuple[str, ...]) -> None:
    """Raises ValueError for an empty list, and for values that are unknown or given twice."""
    if values is None:
        return
    if not isinstance(values, list) or not values or set(values) - set(known) or len(set(values)) < len(values):
        raise ValueError(f"{key} is {values!r}: give a list of one or more of {', '.join(known)}, each once")

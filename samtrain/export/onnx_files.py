"""Writes ONNX files: encoder, decoder in Meta's signature, and the pair of optimum, in float32, float16 and int8."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samtrain.export.graphs import example
from samtrain.files import atomic_path, explain_full_disk
from samtrain.modeling.checkpoints import EXPORT_CURE

OPSET = 18  # the oldest that torch's exporter writes; ONNX Runtime for browsers and TensorRT 10 read it
# a protocol buffer holds at most 2^31 bytes; larger weights lie beside the graph, in FILE.data
LARGEST_FILE = 1_900_000_000
# float32 in float16 files: sums over many numbers, and what is read from coordinates of up to 1024
KEPT_FLOAT32 = ["LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Div", "Softmax", "Sin", "Cos", "Resize"]


def export_graph(graph: nn.Module) -> Any:
    """Returns the ONNX model of one of `graphs`, in float32."""
    inputs, axes = example(graph)
    output_names = {
        "input_image": ["image_embeddings"],
        "point_coords": ["iou_predictions", "low_res_masks"],
        "input_points": ["iou_scores", "pred_masks"],
    }
    names = next(names for name, names in output_names.items() if name in inputs)
    # axes with one name have one length
    dims: dict[str, Any] = {}
    shapes = {
        name: {axis: dims.setdefault(dim, torch.export.Dim(dim)) for axis, dim in axes.get(name, {}).items()} or None
        for name in inputs
    }
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph.eval(), (), kwargs=inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, input_names=list(inputs),
            output_names=names, external_data=False, verbose=False, optimize=True,
        )  # fmt: skip
    assert program is not None
    return _without_notes(program.model_proto)


def _without_notes(model: Any) -> Any:
    """Returns the model without the exporter's notes on each node, such as lines of source, which take more room than it."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for values in (model.graph.value_info, model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            del value.metadata_props[:]
    return model


def in_precision(model: Any, precision: str) -> Any:
    """Returns the model in fp32, fp16 or int8; inputs and outputs stay float32."""
    if precision == "fp16":
        return _float16(model)
    return _int8(model) if precision == "int8" else model


def _float16(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    blocked = _nodes_of_coordinates(model)
    large = _num_bytes(model) > LARGEST_FILE
    with _quiet():
        converted = OnnxModel(
            convert_float_to_float16(
                _copy(model), keep_io_types=True, op_block_list=KEPT_FLOAT32, node_block_list=blocked, disable_shape_infer=large
            )
        )
        converted.topological_sort()  # the converter appends nodes
    del converted.model.graph.value_info[:]  # it leaves types of before
    return converted.model


def _nodes_of_coordinates(model: Any) -> list[str]:
    """Returns the nodes from the coordinates of prompts to the matrix products: float16 would move points by a pixel."""
    reached = {"point_coords", "point_labels", "input_points", "input_labels", "orig_im_size"}
    found = []
    for node in model.graph.node:
        if reached & set(node.input) and node.op_type not in ("MatMul", "Gemm", "LayerNormalization", "Conv"):
            found.append(node.name)
            reached.update(node.output)
    return found


def _int8(model: Any) -> Any:
    """Returns the model with int8 weights in its matrix products; activations are quantised as they come.

    Weights have 7 bits, because processors without VNNI add up two products in 16 bits, which 8 bits overflow: the smallest IoU
    of a small random model's masks was 0.77 with 8 bits and is 0.96 with 7.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, shaped, path = (Path(folder) / f"{name}.onnx" for name in ("given", "shaped", "int8"))
        large = _num_bytes(model) > LARGEST_FILE
        onnx.save_model(_copy(model), given, save_as_external_data=large)
        # without the shapes of all tensors, the quantiser fails on some graphs (onnxruntime issue 19997)
        onnx.shape_inference.infer_shapes_path(given, shaped, data_prop=True)
        quantize_dynamic(
            shaped, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8, use_external_data_format=large,
        )  # fmt: skip
        return onnx.load(path)


def _copy(model: Any) -> Any:
    """Returns a copy of a model, for functions that change theirs."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _num_bytes(model: Any) -> int:
    """Returns the bytes of the weights; a model of more than 2^31 bytes cannot tell its own size."""
    return sum(len(each.raw_data) for each in model.graph.initializer)


def save_onnx(model: Any, path: Path) -> list[Path]:
    """Writes a checked ONNX model, and returns its files: large weights lie in a second one, FILE.data, beside it."""
    import onnx

    with explain_full_disk(path, EXPORT_CURE), atomic_path(path) as temporary:
        if _num_bytes(model) <= LARGEST_FILE:
            onnx.checker.check_model(model, full_check=True)
            temporary.write_bytes(model.SerializeToString())
            return [path]
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)
        # of a copy, because writing takes the weights out of the model
        onnx.save_model(_copy(model), str(temporary), save_as_external_data=True, location=data.name)
        onnx.checker.check_model(str(temporary))
    data.chmod(path.stat().st_mode)  # onnx makes it private
    return [path, data]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters print about their own internals out of the log."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "onnxruntime")]
        before = [each.level for each in loggers]
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, before, strict=True):
                each.setLevel(level)

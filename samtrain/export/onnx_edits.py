"""Changes ONNX models after their export, so that each part of a model is traced only once."""

from __future__ import annotations

from typing import Any

import numpy as np

LOW_RES, IOUS, MASKS, SIZE = "low_res_masks", "iou_predictions", "masks", "orig_im_size"
SINGLE_MASK_BONUS = 1000.0  # segment_anything/utils/onnx.py
FEW_POINTS = 2.5  # the same: more points choose the single mask, fewer the best of three


class Edit:
    """Adds nodes and constants to a copy of an ONNX model; their names begin with that of the edit."""

    def __init__(self, model: Any, name: str) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph, self.name = self.model.graph, name
        self._num_nodes = len(self.graph.node)

    def constant(self, name: str, values: Any, dtype: str) -> str:
        """Adds a constant tensor and returns its name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), f"{self.name}.{name}"))
        return f"{self.name}.{name}"

    def node(self, op: str, inputs: list[str], output: str, *, final: bool = False, **attributes: Any) -> str:
        """Adds a node and returns the name of its output; a `final` output keeps the name that users see."""
        from onnx import helper

        output = output if final else f"{self.name}.{output}"
        self.graph.node.append(helper.make_node(op, inputs, [output], name=f"{self.name}.{output}", **attributes))
        return output

    def rename(self, old: str, new: str) -> str:
        """Gives a tensor of the nodes that were there before another name."""
        for node in list(self.graph.node)[: self._num_nodes]:
            node.input[:] = [new if each == old else each for each in node.input]
            node.output[:] = [new if each == old else each for each in node.output]
        return new

    def nodes_to_front(self) -> None:
        """Moves the added nodes before the others, which use their results."""
        nodes = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*nodes[self._num_nodes :], *nodes[: self._num_nodes]])

    def set_values(self, kind: str, **shapes: list[Any]) -> None:
        """Replaces the inputs or outputs of the same names, or adds them, as float32 tensors of these shapes."""
        from onnx import TensorProto, helper

        values = getattr(self.graph, kind)
        known = {each.name: each for each in values}
        known |= {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
        del values[:]
        values.extend(known.values())

    def order(self, kind: str, names: tuple[str, ...]) -> None:
        """Keeps the inputs or outputs of these names, in this order."""
        values = getattr(self.graph, kind)
        known = {each.name: each for each in values}
        del values[:]
        values.extend(known[name] for name in names)


def with_upscaling(model: Any, image_size: int) -> Any:
    """Returns a decoder with the input `orig_im_size` (2,) float32, (H, W), and the output `masks` (N, M, H, W).

    The masks are upscaled to the square input, cut to the part that is not padding, and resized to the image, bilinearly each
    time: the steps of `Sam.postprocess_masks` and of segment_anything. The shapes follow from a tensor's numbers, which
    TensorRT does not take; for TensorRT leave this step out.
    """
    edit = Edit(model, "upscaling")
    resize: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 0}
    side = edit.constant("side", image_size, "float32")

    # the numbers of objects and of masks, which stay as they are
    ends = [edit.constant("zero", [0], "int64"), edit.constant("two", [2], "int64")]
    leading = edit.node("Slice", [edit.node("Shape", [LOW_RES], "shape"), *ends], "leading")

    # to the square input
    square = edit.node("Concat", [leading, edit.constant("square", [image_size] * 2, "int64")], "square_size", axis=0)
    upscaled = edit.node("Resize", [LOW_RES, "", "", square], "upscaled", **resize)

    # cut off the padding: the size of the resized image, rounded as by ResizeLongestSide
    scale = edit.node("Div", [side, edit.node("ReduceMax", [SIZE], "longest", keepdims=0)], "scale")
    added = edit.node("Add", [edit.node("Mul", [SIZE, scale], "scaled"), edit.constant("half", 0.5, "float32")], "added")
    rounded = edit.node("Max", [edit.node("Floor", [added], "floor"), edit.constant("one", 1.0, "float32")], "rounded")
    kept = edit.node("Cast", [rounded], "kept", to=INT64)
    cut = [edit.constant("starts", [0, 0], "int64"), kept, edit.constant("axes", [2, 3], "int64")]
    visible = edit.node("Slice", [upscaled, *cut], "visible")

    # to the image
    final = edit.node("Concat", [leading, edit.node("Cast", [SIZE], "original", to=INT64)], "final_size", axis=0)
    edit.node("Resize", [visible, "", "", final], MASKS, final=True, **resize)
    edit.set_values("input", **{SIZE: [2]})
    edit.set_values("output", **{MASKS: [*_leading_dims(edit), "height", "width"]})
    edit.order("output", (MASKS, IOUS, LOW_RES))  # Meta's order
    return edit.model


def with_single_mask(model: Any) -> Any:
    """Returns a decoder (see `DecoderGraph`) that answers with one mask per object, chosen as Meta's exporter does.

    For three points or more, a padding point included, that is the single mask, else the best of the three others.
    """
    edit = Edit(model, "single")
    ious, masks = edit.rename(IOUS, "single.all_ious"), edit.rename(LOW_RES, "single.all_masks")
    ends = [edit.constant("one", [1], "int64"), edit.constant("two", [2], "int64")]
    points = edit.node("Slice", [edit.node("Shape", ["point_coords"], "shape"), *ends], "points")
    count = edit.node("Cast", [points], "count", to=FLOAT)
    bonus = edit.constant("bonus", [SINGLE_MASK_BONUS, 0, 0, 0], "float32")
    above = edit.node("Sub", [count, edit.constant("few", [FEW_POINTS], "float32")], "above")
    scores = edit.node("Add", [ious, edit.node("Mul", [above, bonus], "weighted")], "scores")
    best = edit.node("ArgMax", [scores], "best", axis=1, keepdims=0)
    choice = [best, edit.constant("four", [4], "int64"), edit.constant("off_on", [0, 1], "float32")]
    chosen = edit.node("OneHot", choice, "chosen", axis=-1)
    axis = edit.constant("axis", [1], "int64")
    edit.node("ReduceSum", [edit.node("Mul", [ious, chosen], "one_iou"), axis], IOUS, final=True, keepdims=1)
    planes = edit.node("Unsqueeze", [chosen, edit.constant("last", [2, 3], "int64")], "planes")
    edit.node("ReduceSum", [edit.node("Mul", [masks, planes], "one_mask"), axis], LOW_RES, final=True, keepdims=1)
    objects, size = _leading_dims(edit)[0], _dims(edit, LOW_RES)[2:]
    edit.set_values("output", **{IOUS: [objects, 1], LOW_RES: [objects, 1, *size]})
    return edit.model


def with_pixels(model: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """Returns an encoder of one image (H, W, 3) float32 of 0 to 255, RGB; the longer of H and W is the input's side.

    It normalises the pixels and pads them with zeros.
    """
    edit = Edit(model, "pixels")
    network_input = edit.rename("input_image", "pixels.padded")
    planes = edit.node("Transpose", ["input_image"], "planes", perm=[2, 0, 1])
    batch = edit.node("Unsqueeze", [planes, edit.constant("first", [0], "int64")], "batch")
    centred = edit.node("Sub", [batch, edit.constant("mean", np.reshape(mean, (1, 3, 1, 1)), "float32")], "centred")
    normal = edit.node("Div", [centred, edit.constant("std", np.reshape(std, (1, 3, 1, 1)), "float32")], "normal")
    missing = edit.node("Sub", [edit.constant("full", [1, 3, image_size, image_size], "int64"),
                                edit.node("Shape", [normal], "shape")], "missing")  # fmt: skip
    pads = edit.node("Concat", [edit.constant("none", [0] * 4, "int64"), missing], "pads", axis=0)
    padded = edit.node("Pad", [normal, pads], "padded_any", mode="constant")
    # a reshape, so that the side is known to whoever reads the graph
    square = edit.constant("square", [1, 3, image_size, image_size], "int64")
    edit.node("Reshape", [padded, square], network_input, final=True)
    edit.nodes_to_front()
    edit.set_values("input", input_image=["image_height", "image_width", 3])
    edit.set_values("output", image_embeddings=[1, *_dims(edit, "image_embeddings")[1:]])
    return edit.model


def as_vision_encoder(model: Any, positions_1Cgg: np.ndarray) -> Any:
    """Returns an encoder with the names of optimum and transformers.js, and the encoded positions as a second output."""
    edit = Edit(model, "vision")
    edit.rename("input_image", "pixel_values")
    positions = edit.constant("positions", positions_1Cgg, "float32")
    shape = edit.node("Shape", ["image_embeddings"], "shape")
    edit.node("Expand", [positions, shape], "image_positional_embeddings", final=True)
    size, image = _dims(edit, "image_embeddings")[1:], next(each for each in edit.graph.input if each.name == "input_image")
    sides = [dim.dim_value for dim in image.type.tensor_type.shape.dim[1:]]
    edit.set_values("input", pixel_values=["batch_size", *sides])
    edit.order("input", ("pixel_values",))
    embeddings = ["batch_size", *size]
    edit.set_values("output", image_embeddings=embeddings, image_positional_embeddings=embeddings)
    return edit.model


FLOAT, INT64 = 1, 7  # onnx.TensorProto's numbers of the types


def _dims(edit: Edit, output: str) -> list[Any]:
    """Returns the names and lengths of an output's axes."""
    value = next(each for each in edit.graph.output if each.name == output)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _leading_dims(edit: Edit) -> list[Any]:
    return _dims(edit, LOW_RES)[:2]

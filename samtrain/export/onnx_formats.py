"""Writes the ONNX formats, and asks ONNX Runtime about them with NumPy alone, from the image to the mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.export.config import ExportConfig
from samtrain.export.graphs import DecoderGraph, EncoderGraph, PromptGraph
from samtrain.export.huggingface import write_model_settings, write_processor
from samtrain.export.numpy_frame import in_input_frame, network_input, resized_pixels
from samtrain.export.onnx_edits import as_vision_encoder, with_pixels, with_single_mask, with_upscaling
from samtrain.export.onnx_files import export_graph, in_precision, save_onnx
from samtrain.export.probe import Answer, Probe, Reading, ask
from samtrain.export.product import Product
from samtrain.modeling.sam import Sam, SamConfig

SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}  # of file names, as transformers.js expects them
PADDING, CORNERS = -1.0, (2.0, 3.0)  # labels of points that Meta's decoder knows


def write_onnx(sam: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
    """Writes `onnx/encoder.onnx` and three decoders: Meta's, Meta's with a single mask, and one without upscaling.

    int8 quantises the encoder only: the decoder is small, and its masks would change.
    """
    encoder, low_res = export_graph(EncoderGraph(sam)), export_graph(DecoderGraph(sam))
    if settings.onnx_input == "pixels":
        encoder = with_pixels(encoder, sam.config.image_size, sam.config.pixel_mean, sam.config.pixel_std)
    decoders = {
        "decoder": with_upscaling(low_res, sam.config.image_size),
        "decoder_single_mask": with_upscaling(with_single_mask(low_res), sam.config.image_size),
        "decoder_low_res": low_res,
    }
    products = []
    for precision in settings.precision:
        decoder_precision = "fp32" if precision == "int8" else precision
        files = {"encoder": save_onnx(in_precision(encoder, precision), folder / f"onnx/encoder{SUFFIX[precision]}.onnx")}
        for name, decoder in decoders.items():
            path = folder / f"onnx/{name}{SUFFIX[decoder_precision]}.onnx"
            # the decoders of int8 may have been written with fp32
            shared = precision == "int8" and "fp32" in settings.precision
            files[name] = [path] if shared and path.is_file() else save_onnx(in_precision(decoder, decoder_precision), path)
        own = [path for name, paths in files.items() for path in paths]
        if precision == "int8" and "fp32" in settings.precision:
            own = files["encoder"]
        firsts = {name: paths[0] for name, paths in files.items()}
        product = Product(
            f"onnx {precision}", own, partial(ask_meta, firsts, sam.config), _runtime(), rounds=precision != "fp32"
        )
        products.append(product)
    return products


def write_optimum(sam: Sam, folder: Path, settings: ExportConfig) -> list[Product]:
    """Writes the folder `optimum`, which transformers.js reads: config.json, the processor, and the pair in `onnx/`."""
    target = folder / "optimum"
    write_processor(sam.config, target)
    write_model_settings(sam.config, target)
    positions = sam.prompt_encoder.dense_pe().detach().float().cpu().numpy()
    encoder, decoder = as_vision_encoder(export_graph(EncoderGraph(sam)), positions), export_graph(PromptGraph(sam))
    products, configs = [], [target / "config.json", target / "preprocessor_config.json"]
    for precision in settings.precision:
        decoder_precision = "fp32" if precision == "int8" else precision
        pair = {
            "encoder": save_onnx(in_precision(encoder, precision), target / f"onnx/vision_encoder{SUFFIX[precision]}.onnx"),
            "decoder": save_onnx(
                in_precision(decoder, decoder_precision),
                target / f"onnx/prompt_encoder_mask_decoder{SUFFIX[decoder_precision]}.onnx",
            ),
        }
        firsts = {name: paths[0] for name, paths in pair.items()}
        shared = precision == "int8" and "fp32" in settings.precision
        own = pair["encoder"] if shared else [*pair["encoder"], *pair["decoder"]]
        own = [*own, *(configs if len(settings.precision) == 1 else [])]
        ask_it = partial(ask_optimum, firsts, sam.config)
        products.append(Product(f"optimum {precision}", own, ask_it, _runtime(), rounds=precision != "fp32"))
    return products


def ask_meta(files: Mapping[str, Path], config: SamConfig, probe: Probe) -> Reading:
    """Returns the answers of ONNX Runtime for an encoder and decoders in Meta's signature."""
    sessions = {name: session(path) for name, path in files.items()}
    size = probe.image.shape[:2]
    embeddings: dict[str, np.ndarray] = {}

    def set_image() -> None:
        takes_pixels = len(sessions["encoder"].get_inputs()[0].shape) == 3
        shown = resized_pixels(probe.image, config) if takes_pixels else network_input(probe.image, config)
        (embeddings["image"],) = sessions["encoder"].run(None, {"input_image": shown})

    def decode(name: str, objects: slice, use_boxes: bool, masks_of: slice) -> Answer:
        points, labels = meta_prompts(probe, objects, use_boxes)
        inputs = {
            "image_embeddings": embeddings["image"],
            "point_coords": in_input_frame(points, size, config),
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, config.mask_size, config.mask_size), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
        }
        if name != "decoder_low_res":
            inputs["orig_im_size"] = np.array(size, np.float32)
        *masks, ious, low_res = sessions[name].run(None, inputs)
        return Answer(low_res[:, masks_of], ious[:, masks_of], masks[0][:, masks_of] if masks else None)

    everything, three, one = slice(None), slice(1, 4), slice(1)
    return ask(
        set_image,
        {
            "clicks": lambda: decode("decoder", everything, False, three),
            "boxes": lambda: decode("decoder_low_res", everything, True, three),
            "one object": lambda: decode("decoder", one, False, three),
            "single clicks": lambda: decode("decoder_single_mask", everything, False, one),
            "single boxes": lambda: decode("decoder_single_mask", everything, True, one),
        },
    )


def meta_prompts(probe: Probe, objects: slice, use_boxes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns points and labels: corners of a box, or clicks and the padding point that stands for "no box"."""
    if use_boxes:
        boxes = probe.boxes[objects].reshape(-1, 2, 2)
        return boxes, np.tile(np.array(CORNERS, np.float32), (len(boxes), 1))
    points, labels = probe.points[objects], probe.labels[objects]
    points = np.concatenate([points, np.zeros((len(points), 1, 2))], axis=1)
    return points, np.concatenate([labels, np.full((len(labels), 1), PADDING)], axis=1).astype(np.float32)


def ask_optimum(files: Mapping[str, Path], config: SamConfig, probe: Probe) -> Reading:
    """Returns the answers of ONNX Runtime for optimum's pair, which takes clicks and leaves the upscaling to its user."""
    encoder, decoder = session(files["encoder"]), session(files["decoder"])
    embeddings: dict[str, np.ndarray] = {}

    def set_image() -> None:
        found = encoder.run(None, {"pixel_values": network_input(probe.image, config)})
        embeddings.update(zip(("image_embeddings", "image_positional_embeddings"), found, strict=True))

    def decode(objects: slice) -> Answer:
        points = in_input_frame(probe.points[objects], probe.image.shape[:2], config)
        inputs = {"input_points": points[None], "input_labels": probe.labels[objects][None], **embeddings}
        ious, masks = decoder.run(None, inputs)
        return Answer(masks[0], ious[0])

    return ask(set_image, {"clicks": lambda: decode(slice(None)), "one object": lambda: decode(slice(1))})


def session(path: Path) -> Any:
    """Returns ONNX Runtime's session of a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _runtime() -> str:
    return f"onnxruntime {metadata.version('onnxruntime')}"
